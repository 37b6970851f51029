"""Checkpoints copied to a store, and brought back from one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.runs import run
from trainer import LoRATrainer, remote
from trainer import checkpoint as checkpoints
from trainer.errors import CheckpointError
from trainer.files import TEMPORARY, sha256_file

Make = Callable[..., dict[str, Any]]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def test_a_machine_that_goes_away_costs_nothing(text_config: Make, tmp_path: Path, store: Path) -> None:
    options: dict[str, Any] = {
        "max_steps": 5,
        "save_steps": 1,
        "keep_last": 2,
        "validation_split": 0.3,
        "output_dir": tmp_path / "here",
    }
    run(text_config(**options))
    wanted = sha256_file(tmp_path / "here" / "adapter_model.safetensors")
    shutil.rmtree(tmp_path / "here")
    config = text_config(**options, checkpoint_url=f"file://{store}")
    run(config)
    kept = names(tmp_path / "here" / "checkpoints")
    assert names(store) == [name for name in kept if name != "latest"]
    shutil.rmtree(store / "step-000005")
    shutil.rmtree(tmp_path / "here")
    (store / "step-000009").mkdir()
    (store / "step-000009" / checkpoints.ADAPTER).write_bytes(b"half a copy")
    again = run(config)
    assert again.start_facts["resumed_from_step"] == 4
    assert sha256_file(tmp_path / "here" / "adapter_model.safetensors") == wanted
    assert not list((tmp_path / "here" / "checkpoints").glob(f"{TEMPORARY}*"))


def test_torn_and_foreign_copies_are_refused_by_name(text_config: Make, tmp_path: Path, store: Path) -> None:
    url = f"file://{store}"
    run(text_config(max_steps=3, save_steps=1, output_dir=tmp_path / "a", checkpoint_url=url))
    file = store / "step-000003" / checkpoints.OPTIMIZER
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    other = LoRATrainer(text_config(max_steps=3, output_dir=tmp_path / "b", checkpoint_url=url, seed=3))
    other.prepare_data()
    assert other.resumed_from is None
    assert "belongs to another training: seed was 0, is 3" in other.start_facts["refused_checkpoints"][0]
    mine = LoRATrainer(text_config(max_steps=3, output_dir=tmp_path / "c", checkpoint_url=url))
    mine.prepare_data()
    assert mine.start_facts["resumed_from_step"] == 2
    assert f"{url}/step-000003 is torn" in mine.start_facts["refused_checkpoints"][0]


def test_resume_may_be_a_store_url(text_config: Make, tmp_path: Path, store: Path) -> None:
    run(text_config(max_steps=3, save_steps=1, output_dir=tmp_path / "a", checkpoint_url=f"file://{store}"))
    for url, step in ((f"file://{store}", 3), (f"file://{store}/step-000002", 2)):
        trainer = LoRATrainer(text_config(max_steps=3, output_dir=tmp_path / f"b{step}", resume=url))
        trainer.prepare_data()
        assert trainer.start_facts["resumed_from_step"] == step
    empty = text_config(output_dir=tmp_path / "c", resume=f"file://{tmp_path / 'nothing'}")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        LoRATrainer(empty).prepare_data()
    with pytest.raises(CheckpointError, match="cannot be opened as a store"):
        LoRATrainer(text_config(output_dir=tmp_path / "d", resume="nosuch://x/y")).prepare_data()


def test_a_copy_that_fails_is_a_warning_and_is_made_up_for(
    text_config: Make,
    tmp_path: Path,
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    upload, calls = remote.Remote.upload, []

    def away(self: remote.Remote, folder: Path) -> None:
        calls.append(folder.name)
        if len(calls) <= 2:
            raise OSError("the store is away")
        upload(self, folder)

    monkeypatch.setattr(remote.Remote, "upload", away)
    config = text_config(max_steps=3, save_steps=1, checkpoint_url=f"file://{store}")
    run(config)
    assert calls == ["step-000001", "step-000001", "step-000001", "step-000002", "step-000003"]
    assert names(store) == ["step-000001", "step-000002", "step-000003"]
    said = capsys.readouterr().err
    assert "step-000001 was not copied (the store is away); tried again" in said


def test_a_copy_that_was_cut_short_is_none(text_config: Make, tmp_path: Path, store: Path) -> None:
    """`state.json` goes last: what a killed writer leaves is not listed."""
    config = text_config(max_steps=1)
    run(config)
    folder = config["output_dir"] / "checkpoints" / "step-000001"
    copies = remote.Remote(f"file://{store}")
    order: list[str] = []
    put = copies._api.put

    class Api:
        def put(self, where: Any, name: str, data: Any) -> None:
            order.append(name)
            if name.endswith(checkpoints.STATE):
                raise KeyboardInterrupt
            put(where, name, data)

        def __getattr__(self, name: str) -> Any:
            import obstore

            return getattr(obstore, name)

    copies._api = Api()
    with pytest.raises(KeyboardInterrupt):
        copies.upload(folder)
    assert order[-1] == f"step-000001/{checkpoints.STATE}"
    assert len(order) == 3
    assert copies.steps() == []
