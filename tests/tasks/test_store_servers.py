"""The contract on servers that stand for clouds: ministack (S3, with signatures), azurite, a GCS stand-in.

ministack and azurite are emulators, not AWS and Azure; of GCS only its documented answers are played.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import sys
import urllib.request
import uuid
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import boto3
import pytest

from lora_ops.errors import StoreDenied
from tasks.backup import restore, sync
from tasks.store import Store, open_store, prove_create_only
from tasks.store.contract import StoreContract
from tests.tasks.backup_world import World
from tests.tasks.gcs_stand_in import Gcs
from tests.tasks.store_servers import azurite_program, free_port, ministack_folder, process

pytestmark = pytest.mark.s3

DOC = Path(__file__).parents[2] / "docs" / "storage.md"
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
AZURE_ACCOUNT = "devstoreaccount1"


# --- S3 whose requests are checked: ministack ---


@pytest.fixture(scope="session")
def ministack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    url = f"http://127.0.0.1:{free_port()}"
    env = {
        "PYTHONPATH": str(ministack_folder()),
        "GATEWAY_PORT": url.rpartition(":")[2],
        "BIND_HOST": "127.0.0.1",
        "SERVICES": "s3,iam,sts",
        "AUTH": "true",
        "IOT_MTLS_ENABLED": "0",
        "LOG_LEVEL": "WARNING",
        "AWS_ACCESS_KEY_ID": "root",
        "AWS_SECRET_ACCESS_KEY": "root",
    }
    log = tmp_path_factory.mktemp("ministack") / "log"
    with process([sys.executable, "-m", "ministack"], env, url, log):
        yield url


def as_root(service: str, url: str) -> Any:
    return boto3.client(
        service,
        endpoint_url=url,
        aws_access_key_id="root",
        aws_secret_access_key="root",
        region_name="us-east-1",
    )


@pytest.fixture(scope="session")
def user(ministack: str) -> dict[str, str]:
    """Options of a user with exactly the rights that docs/storage.md names, on the bucket `team-bucket`."""
    as_root("s3", ministack).create_bucket(Bucket="team-bucket")
    iam = as_root("iam", ministack)
    iam.create_user(UserName="lora")
    policy = documented_policy().replace("BUCKET", "team-bucket").replace("FOLDER", "platform")
    iam.put_user_policy(UserName="lora", PolicyName="store", PolicyDocument=policy)
    key = iam.create_access_key(UserName="lora")["AccessKey"]
    return {
        "endpoint": ministack,
        "access_key_id": key["AccessKeyId"],
        "secret_access_key": key["SecretAccessKey"],
    }


def documented_policy() -> str:
    blocks = re.findall(r"```json\n(.*?)```", DOC.read_text(), re.DOTALL)
    return next(block for block in blocks if "s3:PutObject" in block)


class TestS3WithTheDocumentedRights(StoreContract):
    @pytest.fixture
    def store(self, user: dict[str, str]) -> Store:
        return open_store("s3://team-bucket/platform", options=user)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"secret_access_key": "wrong"}, "the secret key is wrong"),
        ({"access_key_id": "AKIANOBODY"}, "no such access key"),
    ],
)
def test_wrong_credentials_are_told_as_such(user: dict[str, str], wrong: dict[str, str], told: str) -> None:
    store = open_store("s3://team-bucket/platform", options={**user, **wrong})
    for act in (
        lambda: store.get("a"),
        lambda: store.create("a", b""),
        lambda: prove_create_only(store, again=True),
    ):
        with pytest.raises(StoreDenied) as caught:
            act()
        assert told in caught.value.message
        assert "AWS_ACCESS_KEY_ID" in caught.value.hint
        assert caught.value.exit_code == 4


def test_another_folder_of_the_bucket_is_not_allowed(user: dict[str, str]) -> None:
    store = open_store("s3://team-bucket/elsewhere", options=user)
    with pytest.raises(StoreDenied, match="does not allow it this") as caught:
        store.put("a", b"")
    assert "docs/storage.md" in caught.value.hint


# --- Azure ---


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("azurite")
    url = f"http://127.0.0.1:{free_port()}"
    command = [str(azurite_program()), "--inMemoryPersistence", "--silent", "--skipApiVersionCheck"]
    command += ["--disableTelemetry", "--blobHost", "127.0.0.1", "--blobPort", url.rpartition(":")[2]]
    with process(command, {}, url, folder / "log"):
        endpoint = f"{url}/{AZURE_ACCOUNT}"
        make_container(endpoint, "team")
        yield {
            "endpoint": endpoint,
            "account_name": AZURE_ACCOUNT,
            "account_key": AZURE_KEY,
        }


def make_container(endpoint: str, name: str) -> None:
    """One signed request: obstore makes no containers."""
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-12-02"}
    text = "PUT" + "\n" * 12 + "".join(f"{key}:{value}\n" for key, value in sorted(headers.items()))
    text += f"/{AZURE_ACCOUNT}/{AZURE_ACCOUNT}/{name}\nrestype:container"
    digest = hmac.new(base64.b64decode(AZURE_KEY), text.encode(), hashlib.sha256).digest()
    headers["Authorization"] = f"SharedKey {AZURE_ACCOUNT}:{base64.b64encode(digest).decode()}"
    headers["Content-Length"] = "0"
    request = urllib.request.Request(f"{endpoint}/{name}?restype=container", method="PUT", headers=headers)
    urllib.request.urlopen(request).close()


class TestAzure(StoreContract):
    @pytest.fixture
    def store(self, azurite: dict[str, Any]) -> Store:
        return open_store(f"az://team/{uuid.uuid4().hex}", options=azurite)


def test_a_wrong_key_of_azure_is_told_as_such(azurite: dict[str, Any]) -> None:
    wrong = base64.b64encode(b"wrong").decode()
    store = open_store("az://team/x", options={**azurite, "account_key": wrong})
    with pytest.raises(StoreDenied) as caught:
        store.get("a")
    assert "AZURE_STORAGE_ACCOUNT_KEY" in caught.value.hint


# --- GCS ---


@pytest.fixture(scope="session")
def gcs() -> Iterator[Gcs]:
    stand_in = Gcs()
    yield stand_in
    stand_in.close()


def gcs_options(gcs: Gcs) -> dict[str, Any]:
    return {"service_account_key": gcs.key(), "client_options": {"allow_http": True}}


class TestGcsStandIn(StoreContract):
    @pytest.fixture
    def store(self, gcs: Gcs) -> Store:
        return open_store(f"gs://team/{uuid.uuid4().hex}", options=gcs_options(gcs))


def test_a_create_on_gcs_asks_for_generation_0(gcs: Gcs) -> None:
    store = open_store("gs://team/generation", options=gcs_options(gcs))
    gcs.seen.clear()
    store.create("a", b"1")
    store.put("a", b"2")
    assert gcs.seen == [("PUT", "0"), ("PUT", None)]


# --- from cloud to cloud ---


def test_a_platform_moves_from_s3_to_azure_and_back(
    user: dict[str, str], azurite: dict[str, Any], tmp_path: Path
) -> None:
    store = open_store(f"s3://team-bucket/platform/{uuid.uuid4().hex}", options=user)
    backup = open_store(f"az://team/{uuid.uuid4().hex}", options=azurite)
    world = World(store, tmp_path)
    over, open_one = world.live()
    assert sync(store, backup).problems == []
    again = open_store(f"s3://team-bucket/platform/{uuid.uuid4().hex}", options=user)
    assert restore(again, backup).problems == []
    assert json.loads(again.get(f"journal/team/{0:020d}.json").data)["kind"] == "cloud-set"
    assert [meta.key for meta in again.list("open")] == [f"open/{open_one}"]
    assert len(again.list(f"artifacts/{over}/2")) == 3
