"""Identity without keys, and what an S3 bucket is asked: with moto, and a small server that stands for STS,
for EKS Pod Identity and for Entra. It shows that the identity is asked for and used, no more."""

from __future__ import annotations

import base64
import hashlib
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest

from lora_ops.storage_spec import read_address
from tasks.store import Store, open_store
from tasks.store.checks import Finding, Level, check_store
from tasks.store.opening import store_address
from tasks.store.s3_checks import check_bucket
from tests.tasks.own_ca import server_context

pytestmark = pytest.mark.s3

KEY_ARN = "arn:aws:kms:us-east-1:123456789012:key/11111111-2222-3333-4444-555555555555"


Asked = list[tuple[str, str, str]]  # (path, body, what it was asked with)
FREEZE = {"Days": 9, "StorageClass": "GLACIER"}


class Identity(BaseHTTPRequestHandler):
    """Gives out a session, as STS, as the agent of EKS Pod Identity or as Entra does."""

    asked: Asked

    def give(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        told = self.headers.get("x-amz-checksum-sha256") or self.headers.get("Authorization") or ""
        self.asked.append((self.path, body, told))
        until = (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
        if self.command == "GET":
            keys = {"AccessKeyId": "POD", "SecretAccessKey": "s", "Token": "t", "Expiration": until}
            answer = json.dumps(keys)
        elif "oauth2" in self.path:
            answer = json.dumps({"access_token": "azures", "token_type": "Bearer", "expires_in": 3600})
        else:
            answer = (
                "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>"
                f"<AccessKeyId>WEB</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>t</SessionToken>"
                f"<Expiration>{until}</Expiration></Credentials></AssumeRoleWithWebIdentityResult>"
                "</AssumeRoleWithWebIdentityResponse>"
            )
        self.send_response(200)
        self.send_header("ETag", '"1"')
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer.encode())

    do_GET = do_POST = do_PUT = give  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@contextmanager
def giver(context: ssl.SSLContext | None = None) -> Iterator[tuple[str, Asked]]:
    handler = type("Given", (Identity,), {"asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http{'s' if context else ''}://127.0.0.1:{server.server_port}", handler.asked
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def identity() -> Iterator[tuple[str, Asked]]:
    with giver() as given:
        yield given


def forget_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)


def test_a_web_identity_is_changed_for_a_session(
    s3_store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """IRSA, and GKE or AKS with a trust in AWS. STS is only ever asked over TLS."""
    forget_keys(monkeypatch)
    (tmp_path / "token").write_text("a.jwt.token")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/lora-ops-trainer")
    context, authority = server_context(tmp_path)
    with giver(context) as (url, asked):
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", url)
        store = open_store(s3_store.url, options={"client_options": {"root_certificate": authority}})
        store.put("a", b"1")
        store.put("b", b"1")
    assert s3_store.get("a").data == b"1"
    assert len(asked) == 1
    said = asked[0][0] + asked[0][1]
    assert all(part in said for part in ("AssumeRoleWithWebIdentity", "a.jwt.token", "lora-ops-trainer"))


def test_pod_identity_of_eks(
    s3_store: Store,
    identity: tuple[str, Asked],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    url, asked = identity
    forget_keys(monkeypatch)
    (tmp_path / "token").write_text("pod-token")
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{url}/v1/credentials")
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(tmp_path / "token"))
    store = open_store(s3_store.url)
    store.put("a", b"1")
    assert s3_store.get("a").data == b"1"
    assert asked == [("/v1/credentials", "", "pod-token")]


def test_workload_identity_of_aks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("a.jwt.token")
    context, authority = server_context(tmp_path)
    with giver(context) as (url, asked):
        for name, value in {
            "AZURE_CLIENT_ID": "the-client",
            "AZURE_TENANT_ID": "the-tenant",
            "AZURE_FEDERATED_TOKEN_FILE": str(tmp_path / "token"),
            "AZURE_AUTHORITY_HOST": url,
            "AZURE_STORAGE_ACCOUNT_NAME": "team",
            "AZURE_STORAGE_ENDPOINT": url,
        }.items():
            monkeypatch.setenv(name, value)
        store = open_store("az://container/x", options={"client_options": {"root_certificate": authority}})
        store.put("a", b"1")
    token, put = asked
    assert token[0] == "/the-tenant/oauth2/v2.0/token"
    assert "a.jwt.token" in token[1]
    assert "the-client" in token[1]
    assert put == ("/container/x/a", "1", "Bearer azures")


# --- options of a URL ---


@pytest.mark.parametrize(
    ("query", "sse", "key"),
    [
        ("encryption=sse-s3", "AES256", None),
        (f"encryption=sse-kms&kms_key={KEY_ARN}", "aws:kms", KEY_ARN),
    ],
)
def test_objects_are_encrypted_as_the_url_says(
    s3_store: Store, tmp_path: Path, query: str, sse: str, key: str | None
) -> None:
    store = open_store(f"{s3_store.url}?{query}")
    big = tmp_path / "big"
    big.write_bytes(bytes(12 << 20))
    store.put("put", b"1")
    store.create("created", b"1")
    store.put_file("big", big)
    bucket, folder = s3_store.url.removeprefix("s3://").split("/", 1)
    for name in ("put", "created", "big"):
        head = boto3.client("s3").head_object(Bucket=bucket, Key=f"{folder}/{name}")
        assert (head["ServerSideEncryption"], head.get("SSEKMSKeyId")) == (sse, key)
    assert store.url == s3_store.url
    found = {each.name: each for each in check_bucket(read_address(f"{s3_store.url}?{query}"), store)}
    assert found["encryption"].level is Level.OK
    assert sse in found["encryption"].found


def test_an_endpoint_in_the_url_goes_before_the_environment(
    s3_store: Store, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    store = open_store(f"{s3_store.url}?endpoint={s3_endpoint}&region=us-east-1")
    store.put("a", b"1")
    assert store.get("a").data == b"1"


def test_an_object_is_sent_with_its_checksum_as_object_lock_wants_it(
    s3_environment: str, identity: tuple[str, Asked]
) -> None:
    url, asked = identity
    open_store(f"s3://bucket?endpoint={url}").put("a", b"1")
    assert asked == [("/bucket/a", "1", base64.b64encode(hashlib.sha256(b"1").digest()).decode())]


# --- what the bucket says of itself ---


def findings(store: Store) -> dict[str, Finding]:
    return {each.name: each for each in check_bucket(store_address(store.url), store)}


@pytest.fixture
def bucket(s3_store: Store) -> str:
    return s3_store.url.removeprefix("s3://").partition("/")[0]


def test_a_plain_bucket(s3_store: Store, bucket: str) -> None:
    found = findings(s3_store)
    levels = {name: each.level.value for name, each in found.items()}
    warned = {"versions", "encryption", "public access"}
    assert levels == {name: "warn" if name in warned else "ok" for name in found}
    assert len(found) == 5
    assert all(each.remedy for each in found.values() if each.level is not Level.OK)
    assert s3_store.list("probe") == []


@pytest.fixture
def looked_after(s3_environment: str) -> Store:
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket="kept", ObjectLockEnabledForBucket=True)
    retention = {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": 30}}
    lock = {"ObjectLockEnabled": "Enabled", "Rule": retention}
    s3.put_object_lock_configuration(Bucket="kept", ObjectLockConfiguration=lock)
    block = dict.fromkeys(
        ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets"), True
    )
    s3.put_public_access_block(Bucket="kept", PublicAccessBlockConfiguration=block)
    # AWS takes obstore's x-amz-checksum-sha256 for object lock; moto wants this header of the SDKs.
    options = {"client_options": {"default_headers": {"x-amz-sdk-checksum-algorithm": "SHA256"}}}
    return open_store("s3://kept/platform?encryption=sse-s3", options=options)


def test_a_bucket_with_a_lock(looked_after: Store) -> None:
    address = read_address("s3://kept/platform?encryption=sse-s3")
    found = {each.name: each for each in check_bucket(address, looked_after)}
    assert {each.level for each in found.values()} == {Level.OK}
    assert found["object lock"].found == "governance, 30 days by default"
    assert found["versions"].found == "kept"
    everything = [each.level for each in check_store(lambda: looked_after, address, lambda store: iter(()))]
    assert set(everything) == {Level.OK}
    looked_after.create("again", b"1")
    looked_after.delete("again")  # a mark: the version stays
    looked_after.create("again", b"2")


@pytest.mark.parametrize(
    ("rule", "level"),
    [
        ({"Filter": {"Prefix": ""}, "Expiration": {"Days": 9}}, Level.FAIL),
        ({"Filter": {"Prefix": "team/platform/journal/"}, "Expiration": {"Days": 9}}, Level.FAIL),
        (
            {"Filter": {"Prefix": "team/"}, "Transitions": [{"Days": 9, "StorageClass": "GLACIER"}]},
            Level.FAIL,
        ),
        ({"Filter": {"Prefix": "team/platform/clock/"}, "Expiration": {"Days": 1}}, Level.OK),
        ({"Filter": {"Prefix": "other/"}, "Expiration": {"Days": 9}}, Level.OK),
        ({"Filter": {"Prefix": ""}, "NoncurrentVersionExpiration": {"NoncurrentDays": 9}}, Level.OK),
    ],
)
def test_a_lifecycle_rule_that_takes_what_is_needed(
    s3_store: Store, bucket: str, rule: dict[str, Any], level: Level
) -> None:
    rules = {"Rules": [{"ID": "tidy", "Status": "Enabled", **rule}]}
    boto3.client("s3").put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration=rules)
    found = findings(s3_store)["lifecycle"]
    assert found.level is level
    assert ("`tidy`" in found.found) == (level is Level.FAIL)


def test_what_may_not_be_asked_is_said(s3_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from botocore.exceptions import ClientError, EndpointConnectionError

    def refuse(error: Exception) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            raise error

        return call

    denied = ClientError({"Error": {"Code": "AccessDenied"}}, "x")
    for error, told in ((denied, "may not ask (s3:GetBucketVersioning)"),
                        (ClientError({"Error": {"Code": "NotImplemented"}}, "x"), "answers NotImplemented"),
                        (EndpointConnectionError(endpoint_url="http://x"), "Could not connect")):  # fmt: skip
        monkeypatch.setattr("botocore.client.BaseClient._make_api_call", refuse(error))
        found = findings(s3_store)["versions"]
        assert found.level is Level.OK
        assert told in found.found
