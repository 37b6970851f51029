"""`lora-ops storage check|sync|gc` on real folders, without a server."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_ops import keys
from tasks.platform import Platform
from tasks.store import Store, key_digest, open_store
from tests.tasks.backup_world import CANARY, STABLE, World

Cli = Callable[..., tuple[int, str, str]]
SPEC = "app: team\nstore: ./store\nbackup: {url: ./copy}\nclouds: {east: {}}\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LORA_OPS_SPEC", raising=False)
    (tmp_path / "lora-ops.yaml").write_text(SPEC)
    return tmp_path


@pytest.fixture
def world(here: Path) -> World:
    return World(open_store(str(here / "store")), here / "files")


@pytest.fixture
def copy(here: Path) -> Store:
    return open_store(str(here / "copy"))


def test_check_tries_out_both(cli: Cli, world: World) -> None:
    world.live()
    assert cli("storage", "sync")[0] == 0
    status, out, err = cli("storage", "check", "--deep", "--json")
    assert status == 0
    document = json.loads(out)
    assert document["ok"] is True
    store, backup = document["stores"]
    assert [each["name"] for each in store["checks"]] == [
        "open", "create-only", "latency", "clock", "space", "digests",
    ]  # fmt: skip
    assert backup["checks"][-1]["name"] == "mirror"
    assert "lacks 0 objects" in backup["checks"][-1]["found"]
    digests = store["checks"][-1]["found"]
    of, count = digests.split(" ")[0], digests.split(" ")[3]
    assert count == of
    assert err.count("\n") >= int(count)  # --deep names what it reads
    status, out, _ = cli("storage", "check")
    assert status == 0
    assert "ok    create-only" in out


def test_check_names_what_is_damaged(cli: Cli, world: World) -> None:
    over, _ = world.live()
    damaged = f"{keys.artifacts(over, 2)}/lora.safetensors"
    world.store.put(damaged, b"bit rot")
    status, out, _ = cli("storage", "check", "--deep")
    assert status == 1
    assert damaged in out
    assert "-> Take these objects from the backup" in out


def test_check_tells_a_store_that_cannot_be_opened(cli: Cli, here: Path) -> None:
    (here / "store").write_text("a file")
    status, out, _ = cli("storage", "check", "--json")
    assert status == 1
    first = json.loads(out)["stores"][0]["checks"]
    assert [each["level"] for each in first] == ["fail"]
    assert "not a folder" in first[0]["found"]


def test_without_a_backup(cli: Cli, here: Path) -> None:
    (here / "lora-ops.yaml").write_text("store: ./store\nclouds: {east: {}}\n")
    assert "backup  none" in cli("storage", "check")[1]
    status, _, err = cli("storage", "sync")
    assert status == 3
    assert "names no backup" in err
    assert "backup: {url:" in err


def test_sync_and_back(cli: Cli, world: World, copy: Store, here: Path) -> None:
    world.live()
    state = world.platform.state()
    status, out, _ = cli("storage", "sync", "--dry-run", "--json")
    assert status == 0
    assert json.loads(out)["missing"]["journal"]["objects"] == 1
    assert copy.list("") == []
    status, out, _ = cli("storage", "sync", "--json")
    assert (status, json.loads(out)["problems"]) == (0, [])
    assert "nothing is missing" in cli("storage", "sync")[1]
    status, _, err = cli("storage", "sync", "--restore", "--yes")
    assert status == 6
    assert "is not empty" in err
    shutil.rmtree(here / "store")
    status, _, err = cli("storage", "sync", "--restore")
    assert status == 2  # nobody was asked
    assert "--yes" in err
    assert cli("storage", "sync", "--restore", "--yes")[0] == 0
    assert Platform(open_store(str(here / "store")), "team", "test").state() == state


def test_a_sync_that_is_not_whole_fails(cli: Cli, world: World) -> None:
    over, _ = world.live()
    world.store.put(f"{keys.artifacts(over, 2)}/lora.safetensors", b"rot")
    status, _, err = cli("storage", "sync")
    assert status == 1
    assert "is not what its manifest says" in err


def test_gc(cli: Cli, world: World) -> None:
    over, open_one = world.live()
    world.release(CANARY)
    before = [meta.key for meta in world.store.list("")]
    status, out, _ = cli("storage", "gc", "--older-than", "0s", "--dry-run", "--json")
    assert status == 0
    found = json.loads(out)["found"]
    assert found["checkpoint"]["objects"] == 8
    assert found["release"]["objects"] == 2
    after = [meta.key for meta in world.store.list("")]
    assert [key for key in after if not key.startswith("clock/")] == [
        key for key in before if not key.startswith("clock/")
    ]

    status, out, err = cli("storage", "gc", "--older-than", "0s")
    assert status == 0
    assert "1 releases are kept: add --yes" in err
    assert out.splitlines()[4].split() == ["release", "2", "349", "B", "kept"]
    assert world.store.list(f"checkpoints/{over}") == []
    assert len(world.store.list(f"checkpoints/{open_one}")) == 4
    assert len(world.store.list_folders("releases")) == 2

    assert cli("storage", "gc", "--older-than", "0s", "--yes")[0] == 0
    assert world.store.list_folders("releases") == [key_digest(STABLE)]
    assert "there is no garbage" in cli("storage", "gc", "--older-than", "0s")[1]


def test_an_age_that_is_none(cli: Cli, here: Path) -> None:
    status, _, err = cli("storage", "gc", "--older-than", "a while")
    assert status == 2
    assert "30d or 12h" in err


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (
            "store: s3://bucket/x?encrypt=sse-s3",
            "`encrypt` is not an option of a store. Did you mean `encryption`?",
        ),
        ("store: s3://bucket/x?kms_key=alias/x", "`kms_key` goes with"),
        ("store: gs://bucket?encryption=sse-s3", "gs:// takes no options"),
        ("backup: {url: ./store/copy}\nstore: ./store", "a place of its own"),
        ("backup: {url: ./copy, credentials_block: x/y}", "for s3:// stores"),
        ("backup: {url: s3://b, every: 1s}", "backup.every"),
        ("backup: {urll: ./copy}", "unknown key `backup.urll`. Did you mean `url`?"),
    ],
)
def test_a_spec_that_cannot_be(cli: Cli, here: Path, line: str, told: str) -> None:
    (here / "lora-ops.yaml").write_text(f"{line}\nclouds: {{east: {{}}}}\n")
    status, _, err = cli("storage", "check")
    assert status == 3
    assert told in err
    assert "lora-ops.yaml:" in err
