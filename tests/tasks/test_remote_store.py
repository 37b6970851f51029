"""What only a store behind a network can get wrong: credentials, cut connections, missing buckets."""

from __future__ import annotations

import http.server
import os
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest

from lora_ops.errors import ConfigError, ObjectExists, StoreFull, StoreLies, StoreUnavailable
from tasks.journal import Journal
from tasks.store import Store, open_store, prove_create_only

pytestmark = pytest.mark.s3

FAST: dict[str, Any] = {"retry_config": {"max_retries": 1, "retry_timeout": timedelta(seconds=2)}}


class Script(http.server.BaseHTTPRequestHandler):
    """Answers with the scripted statuses in turn, then 200; `None` cuts the connection."""

    protocol_version = "HTTP/1.1"
    statuses: list[int | None]
    body: bytes
    seen: list[tuple[str, str | None]]

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.seen.append((self.command, self.headers.get("If-None-Match")))
        status = self.statuses.pop(0) if self.statuses else 200
        if status is None:
            self.close_connection = True
            return
        body = b"" if status == 200 and self.command == "PUT" else self.body
        self.send_response(status)
        self.send_header("ETag", '"1"')
        self.send_header("Last-Modified", "Tue, 01 Sep 2026 10:00:00 GMT")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_HEAD = do_DELETE = answer  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def scripted(s3_environment: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Script]]:
    """An S3 endpoint that answers what the test says."""
    handler = type("Scripted", (Script,), {"statuses": [], "body": b"data", "seen": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    yield handler
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("trouble", [500, 503, None])
def test_reads_and_overwrites_are_tried_again(scripted: type[Script], trouble: int | None) -> None:
    store = open_store("s3://bucket")
    scripted.statuses[:] = [trouble, trouble]
    assert store.get("a").data == b"data"
    assert [method for method, _ in scripted.seen] == ["GET"] * 3
    scripted.seen.clear()
    scripted.statuses[:] = [trouble]
    store.put("a", b"x")
    store.delete("a")
    assert [method for method, _ in scripted.seen] == ["PUT", "PUT", "DELETE"]


def test_a_create_asks_for_create_only(scripted: type[Script]) -> None:
    store = open_store("s3://bucket")
    store.create("a", b"x")
    store.put("a", b"x")
    assert scripted.seen == [("PUT", "*"), ("PUT", None)]
    scripted.statuses[:] = [412]
    with pytest.raises(ObjectExists):
        store.create("a", b"x")


def test_a_create_whose_connection_is_cut_is_unknown(scripted: type[Script]) -> None:
    store = open_store("s3://bucket")
    scripted.statuses[:] = [None] * 10
    with pytest.raises(StoreUnavailable):
        store.create("a", b"x")


@pytest.mark.parametrize(
    ("status", "body", "hint"),
    [
        (403, b"<Error><Code>InvalidAccessKeyId</Code></Error>", "credentials"),
        (403, b"<Error><Code>AccessDenied</Code></Error>", "credentials"),
        (401, b"", "credentials"),
        (404, b"<Error><Code>NoSuchBucket</Code></Error>", "Create the bucket"),
        (503, b"<Error><Code>SlowDown</Code></Error>", "network"),
    ],
)
def test_trouble_is_named(scripted: type[Script], status: int, body: bytes, hint: str) -> None:
    store = open_store("s3://bucket/folder", options=FAST)
    scripted.body = body
    for act in (lambda: store.get("a"), lambda: store.put("a", b""), lambda: store.list("a")):
        scripted.statuses[:] = [status] * 4
        with pytest.raises(StoreUnavailable) as caught:
            act()
        assert "s3://bucket/folder" in caught.value.message
        assert hint in caught.value.hint
        assert "\n" not in caught.value.message


def test_a_full_store(scripted: type[Script]) -> None:
    store = open_store("s3://bucket", options=FAST)
    scripted.body = b"<Error><Code>XMinioStorageFull</Code></Error>"
    scripted.statuses[:] = [507] * 4
    with pytest.raises(StoreFull):
        store.create("a", b"")


def test_a_server_that_is_not_there(s3_environment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    store = open_store("s3://bucket", options=FAST)
    with pytest.raises(StoreUnavailable) as caught:
        store.head("a")
    assert caught.value.exit_code == 7


def test_a_missing_bucket(s3_environment: str) -> None:
    store = open_store("s3://no-such-bucket", options=FAST)
    for act in (lambda: store.get("a"), lambda: store.create("a", b""), lambda: store.list("")):
        with pytest.raises(StoreUnavailable) as caught:
            act()
        assert "Create the bucket" in caught.value.hint
    with pytest.raises(StoreUnavailable):
        prove_create_only(store)


def test_a_server_that_ignores_create_only_is_refused(scripted: type[Script]) -> None:
    with pytest.raises(StoreLies, match="s3://bucket"):
        open_store("s3://bucket", prove=True)


def test_journals_on_s3_keep_whole_seconds(s3_store: Store) -> None:
    journal = Journal(s3_store, "journal/app")
    entries = [journal.append({"id": f"e{n}"}, n) for n in range(3)]
    assert all(entry.last_modified == int(entry.last_modified) for entry in entries)
    assert Journal(s3_store, "journal/app").read_all() == entries


def test_folders_in_the_bucket_do_not_see_each_other(s3_store: Store) -> None:
    bucket = s3_store.url.removesuffix("/team/platform")
    other, same = open_store(f"{bucket}/team/platform2"), open_store(f"{bucket}/team/platform/")
    s3_store.put("a", b"1")
    assert other.list("") == []
    assert same.get("a").data == b"1"
    assert same.url == s3_store.url


# --- credentials ---


class Block(SimpleNamespace):
    """What a prefect-aws block gives: a session and the client's parameters."""

    def get_boto3_session(self) -> boto3.Session:
        return boto3.Session(aws_access_key_id=self.key, aws_secret_access_key="s", region_name="eu-west-1")


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Blocks by `kind/name`, in place of a Prefect server's."""
    import prefect_aws

    known: dict[str, Any] = {}

    def loader(kind: str) -> Any:
        def load(name: str, _sync: bool) -> Any:
            found = known.get(f"{kind}/{name}")
            if isinstance(found, Exception):
                raise found
            if found is None:
                raise ValueError(f"Unable to find block document named {name}")
            return found

        return SimpleNamespace(load=load)

    monkeypatch.setattr(prefect_aws, "AwsCredentials", loader("aws-credentials"))
    monkeypatch.setattr(prefect_aws, "MinIOCredentials", loader("minio-credentials"))
    return known


@pytest.mark.parametrize("name", ["minio-credentials/team", "team"])
def test_credentials_and_endpoint_of_a_block(
    s3_store: Store, blocks: dict[str, Any], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    for variable in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        monkeypatch.delenv(variable)
    blocks["minio-credentials/team"] = Block(
        key="k", aws_client_parameters=SimpleNamespace(endpoint_url=endpoint)
    )
    store = open_store(s3_store.url, credentials_block=name, prove=True)
    store.put("a", b"1")
    assert s3_store.get("a").data == b"1"


def test_blocks_that_cannot_be(blocks: dict[str, Any]) -> None:
    import httpx

    with pytest.raises(ConfigError, match="knows no credentials block `team`"):
        open_store("s3://bucket", credentials_block="team")
    with pytest.raises(ConfigError, match="not a kind of credentials block"):
        open_store("s3://bucket", credentials_block="gcp-credentials/team")
    with pytest.raises(ConfigError, match="for s3:// stores"):
        open_store("gs://bucket", credentials_block="team")
    blocks["aws-credentials/team"] = httpx.ConnectError("refused")
    with pytest.raises(StoreUnavailable, match="cannot be read"):
        open_store("s3://bucket", credentials_block="team")


def test_the_shared_aws_files_are_read(
    s3_store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(variable)
    shared = tmp_path / "credentials"
    shared.write_text("[team]\naws_access_key_id = k\naws_secret_access_key = s\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(shared))
    monkeypatch.setenv("AWS_PROFILE", "team")
    open_store(s3_store.url).put("a", b"1")
    assert s3_store.get("a").data == b"1"
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(ConfigError, match="profile"):
        open_store(s3_store.url)


@pytest.mark.parametrize("url", ["s3://", "gs://bucket", "az://container"])
def test_urls_that_cannot_be_opened_are_named(
    url: str, s3_environment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nonexistent.json")
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(ConfigError) as caught:
        open_store(url)
    assert url in caught.value.message
