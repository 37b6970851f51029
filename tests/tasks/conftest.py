"""A real S3-compatible server on a free port, and a store of each kind."""

from __future__ import annotations

import os
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from tasks.store import Store, open_store
from tests.tasks.backup_world import World
from tests.tasks.source_trees import git, write_tree

pytest.register_assert_rewrite("tasks.store.contract")


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The address of moto_server, for this session."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_environment(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The usual environment of an S3 client, pointing at moto_server."""
    for name in [n for n in os.environ if n.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    return s3_endpoint


@pytest.fixture
def s3_store(s3_environment: str) -> Store:
    bucket = f"bucket-{uuid.uuid4().hex}"
    urllib.request.urlopen(urllib.request.Request(f"{s3_environment}/{bucket}", method="PUT")).close()
    return open_store(f"s3://{bucket}/team/platform")


@pytest.fixture
def file_store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def memory_store() -> Store:
    return open_store("memory://")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "tree")


@pytest.fixture
def repo(tree: Path) -> Path:
    git(tree, "init", "-q", "-b", "main")
    (tree / ".gitignore").write_text("ignored*\n__pycache__\n")
    git(tree, "add", "-A")
    git(tree, "commit", "-q", "-m", "one")
    return tree


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def backup() -> Store:
    return open_store("memory://")


@pytest.fixture
def world(memory_store: Store, tmp_path: Path) -> World:
    return World(memory_store, tmp_path / "files")
