"""Submitting: nothing half-written that lasts, one request for one id, whoever dies when."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows import attempt
from flows import submit as submission
from flows.submit import absolute_config, resubmit, submit, submit_file
from lora_ops import ids, keys
from lora_ops.errors import ConfigError, ConflictError, NotFoundError, Refused, StoreError
from lora_ops.request import Pin
from lora_ops.state import Track
from tasks.datasets import fetch_dataset
from tasks.platform import Platform
from tasks.store import Store, open_store
from tasks.store.faulty import Fault, FaultyStore, Killed
from trainer.config import parse_config
from trainer.data import DATA_PATHS

CONFIG = "train_data_dir: ./facts\nbase_model: ./base.gguf\noutput_dir: ./out\nlearning_rate: 2e-4\n"
OLD = f"sha256:{'a' * 64}"


@pytest.fixture(autouse=True)
def _no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "_checked", {})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LORA_OPS_CACHE", str(tmp_path / "cache"))
    made = tmp_path / "work"
    (made / "facts").mkdir(parents=True)
    (made / "base.gguf").write_bytes(b"GGUF" + bytes(64))
    row = {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ada."}]}
    (made / "facts" / "train.jsonl").write_text(f"{json.dumps(row)}\n" * 3)
    (made / "run.yaml").write_text(CONFIG)
    return made


def _platform(store: Store) -> Platform:
    platform = Platform(store, "loras", "test")
    if not platform.state().clouds:
        platform.record("cloud-set", {"name": "east", "stable": OLD})
    return platform


@pytest.fixture
def platform() -> Platform:
    return _platform(open_store("memory://"))


def _submit(platform: Platform, folder: Path, **changes: Any) -> Any:
    return submit(platform, CONFIG, **{"source": "run.yaml", "cwd": folder, **changes})


def test_what_is_stored_runs_elsewhere(platform: Platform, folder: Path, tmp_path: Path) -> None:
    """The attempt takes the dataset from the store and puts its folder before the config's data paths."""
    made = _submit(platform, folder, name="ada", max_attempts=2)
    assert made.order.name == "ada"
    assert made.order.max_attempts == 2
    stored = yaml.safe_load(platform.store.get(keys.request_config(made.id)).data)
    where = fetch_dataset(platform.store, made.order.dataset, made.order.dataset_digest, tmp_path / "other")
    stored["train_data_dir"] = str(where / stored["train_data_dir"])
    config = parse_config(yaml.safe_dump(stored), "stored")
    assert (config.train_data_dir / "train.jsonl").read_bytes() == (folder / "facts/train.jsonl").read_bytes()
    assert config.base_model == folder / "base.gguf"
    assert config.learning_rate == 2e-4


def test_metadata_beside_the_data_moves_with_it(platform: Platform, folder: Path, tmp_path: Path) -> None:
    (folder / "lists").mkdir()
    (folder / "facts/train.jsonl").rename(folder / "lists/all.jsonl")
    text = f"{CONFIG}metadata_path: lists/all.jsonl\n"
    made = submit(platform, text, source="run.yaml", cwd=folder)
    stored = yaml.safe_load(platform.store.get(keys.request_config(made.id)).data)
    assert (stored["train_data_dir"], stored["metadata_path"]) == ("facts", "lists/all.jsonl")
    where = fetch_dataset(platform.store, made.order.dataset, made.order.dataset_digest, tmp_path / "other")
    assert (where / "lists/all.jsonl").is_file()


def test_the_same_training_has_the_same_digests(platform: Platform, folder: Path) -> None:
    first = _submit(platform, folder)
    moved = folder.rename(folder.with_name("moved"))
    (moved / "base.gguf").rename(folder.parent / "base.gguf")
    text = CONFIG.replace("./base.gguf", str(folder.parent / "base.gguf")).replace("2e-4", "0.0002")
    second = submit(platform, text.replace("./out", str(folder / "out")), source="x", cwd=moved)
    assert first.order.dataset_digest == second.order.dataset_digest
    assert first.order.config_digest != second.order.config_digest  # another base model
    third = submit(platform, text.replace("./out", str(folder / "out")), source="y", cwd=moved)
    assert second.order == third.order
    assert second.id != third.id


def test_an_id_is_one_request(platform: Platform, folder: Path) -> None:
    name = ids.new_id(ids.REQUEST, 1.0, 7)
    pin = Pin(cloud="east", track=Track.CANARY)
    first = _submit(platform, folder, request_id=name, probe="roll/0", pin=pin, max_attempts=1)
    (folder / "facts/train.jsonl").unlink()  # it is known: the data is not looked at again
    again = _submit(
        _platform(platform.store), folder, request_id=name, probe="roll/0", pin=pin, max_attempts=1
    )
    assert (first.id, again.id) == (name, name)
    with pytest.raises(ConflictError, match=name):
        _submit(platform, folder, request_id=name, probe="roll/1", pin=pin, max_attempts=1)


def test_an_abandoned_id_is_followed(platform: Platform, folder: Path) -> None:
    name = ids.new_id(ids.REQUEST, 1.0, 7)
    platform.record_request(name, "abandoned", {})
    made = _submit(platform, folder, request_id=name)
    assert made.id != name
    assert made.id[:13] == name[:13]  # the same moment
    assert _submit(platform, folder, request_id=name).id == made.id


def test_losing_the_first_event_to_the_reconciler(folder: Path) -> None:
    """It stalls between its marker and its first event; the reconciler gives it up; it submits anew."""
    store = open_store("memory://")
    other = _platform(store)
    name = ids.new_id(ids.REQUEST, 1.0, 7)

    def stall(method: str, key: str) -> Fault | None:
        if (method, key) == ("create", f"{keys.request(name)}/{0:020d}.json") and other.request(name).seq < 0:
            other.record_request(name, "abandoned", {})
            store.delete(keys.open_marker(name))
        return None

    made = _submit(_platform(FaultyStore(store, stall)), folder, request_id=name)
    assert made.id != name
    assert other.request(made.id).order is not None
    assert [meta.key for meta in store.list("open")] == [keys.open_marker(made.id)]


def test_a_kill_on_any_write_loses_nothing(folder: Path) -> None:
    """Killed before or after each write, then submitted again with its key: one request, whole."""
    writes = _count_writes(folder)
    assert writes >= 6
    for at in range(writes):
        for fault in (Fault.KILLED_BEFORE, Fault.KILLED_AFTER, Fault.NO_ANSWER):
            store = open_store("memory://")
            _platform(store)
            broken = FaultyStore(store, _at_write(at, fault))
            with contextlib.suppress(Killed, StoreError):
                _submit(Platform(broken, "loras", "first"), folder, idempotency_key="k")
            platform = Platform(store, "loras", "second")
            made = _submit(platform, folder, idempotency_key="k")
            submitted = [
                each for each in store.list_folders("requests") if platform.request(each).order is not None
            ]
            assert submitted == [made.id], (at, fault)
            assert keys.open_marker(made.id) in [meta.key for meta in store.list("open")]
            assert store.get(keys.request_config(made.id)).data


def _at_write(at: int, fault: Fault) -> Any:
    seen = [0]

    def plan(method: str, key: str) -> Fault | None:
        if method not in ("put", "create") or key.startswith("clock/"):
            return None
        seen[0] += 1
        return fault if seen[0] == at + 1 else None

    return plan


def _count_writes(folder: Path) -> int:
    store = FaultyStore(open_store("memory://"), lambda method, key: None)
    platform = _platform(store)
    before = len(store.calls)
    _submit(platform, folder, idempotency_key="k")
    return sum(method in ("put", "create") for method, _ in store.calls[before:])


def test_two_with_one_key_at_once(folder: Path) -> None:
    """The other one takes the key between this one's look and its claim."""
    store = open_store("memory://")
    other = _platform(store)
    others: list[str] = []

    def race(method: str, key: str) -> Fault | None:
        if method == "create" and key.startswith("idempotency/") and not others:
            others.append("")
            others[0] = _submit(other, folder, idempotency_key="k").id
        return None

    made = _submit(_platform(FaultyStore(store, race)), folder, idempotency_key="k")
    assert others == [made.id]
    assert store.list_folders("requests") == [made.id]


def test_the_marker_is_written_first_and_the_journal_last(folder: Path) -> None:
    store = FaultyStore(open_store("memory://"), lambda method, key: None)
    platform = _platform(store)
    before = len(store.calls)
    made = _submit(platform, folder)
    wrote = [key for method, key in store.calls[before:] if method in ("put", "create")]
    assert wrote[-3:] == [
        keys.open_marker(made.id),
        keys.request_config(made.id),
        f"{keys.request(made.id)}/{0:020d}.json",
    ]
    assert all(key.startswith("datasets/") for key in wrote[:-3])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"cwd": "work"}, "relative to no folder"),
        ({"cloud": "west"}, "west"),
        ({"pin": Pin(cloud="west")}, "west"),
        ({"request_id": "../../etc"}, "is not a"),
    ],
)
def test_a_wrong_order_writes_nothing(platform: Platform, folder: Path, change: Any, told: str) -> None:
    before = platform.store.list("")
    with pytest.raises(Exception, match=told):
        _submit(platform, folder, **change)
    assert platform.store.list("") == before


def test_bad_rows_and_a_missing_model_are_config_errors(platform: Platform, folder: Path) -> None:
    (folder / "facts/train.jsonl").write_text("not json\n{}\n")
    with pytest.raises(ConfigError) as caught:
        _submit(platform, folder)
    assert len(caught.value.details) == 2
    (folder / "base.gguf").unlink()
    with pytest.raises(ConfigError, match=r"base\.gguf"):
        _submit(platform, folder)


def test_a_model_that_went_away_is_told_though_the_data_is_known(platform: Platform, folder: Path) -> None:
    _submit(platform, folder)
    (folder / "base.gguf").unlink()
    with pytest.raises(ConfigError, match=r"base\.gguf"):
        _submit(platform, folder)


def test_the_same_bytes_are_decoded_once(
    platform: Platform, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []
    original = submission.check_dataset
    monkeypatch.setattr(submission, "check_dataset", lambda each: decoded.append(1) or original(each))
    for _ in range(3):
        _submit(platform, folder)
    assert len(decoded) == 1
    rows = (folder / "facts/train.jsonl").read_text()
    (folder / "facts/train.jsonl").write_text(rows * 2)
    _submit(platform, folder)
    assert len(decoded) == 2


def test_submit_file_takes_paths_from_the_files_folder(platform: Platform, folder: Path) -> None:
    made = submit_file(platform, folder / "run.yaml")
    assert made.order is not None
    assert made.order.name == "run"
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        submit_file(platform, folder / "none.yaml")


def test_absolute_config_keeps_what_was_said(folder: Path) -> None:
    text, config = absolute_config(f"{CONFIG}mixed_precision: no\n", source="run.yaml", cwd=folder)
    assert config.train_data_dir == folder / "facts"
    assert config.output_dir == folder / "out"
    again = parse_config(text, "again")
    assert again == config
    assert set(yaml.safe_load(text)) == {
        "train_data_dir",
        "base_model",
        "output_dir",
        "learning_rate",
        "mixed_precision",
    }


def test_resubmit_wants_a_result(platform: Platform, folder: Path) -> None:
    made = _submit(platform, folder)
    with pytest.raises(Refused):
        resubmit(platform, made.id)
    platform.record_request(made.id, "result", {"state": "cancelled"})
    again = resubmit(platform, made.id, actor="ada")
    assert again.order is not None
    assert again.order.retry_of == made.id
    with pytest.raises(NotFoundError):
        resubmit(platform, ids.new_id(ids.REQUEST, 1.0, 1))


def test_an_attempt_knows_the_paths_that_move_with_the_data() -> None:
    """It names them itself: importing trainer.data would cost each attempt half a second."""
    assert attempt.DATA_PATHS == DATA_PATHS
