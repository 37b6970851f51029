from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from trainer import checkpoint as checkpoints
from trainer.errors import CheckpointError

MINE = {"lora_rank": 4, "dataset": "sha256:a"}


def save(folder: Path, step: int, keep: int = 9, identity: dict[str, object] | None = None) -> Path:
    tensors = {"w": torch.full((2, 2), float(step))}
    return checkpoints.save(folder, step, tensors, tensors, identity or MINE, keep)


def test_the_newest_whole_one_of_this_training_is_found(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 5):
        save(tmp_path, step, identity={**MINE, "lora_rank": 8} if step == 5 else None)
    parent = tmp_path / "checkpoints"
    torn = parent / "step-000004" / checkpoints.OPTIMIZER
    torn.write_bytes(torn.read_bytes()[:-1] + b"\xff")
    (parent / "step-000003" / checkpoints.STATE).unlink()
    (parent / ".tmp-left").mkdir()
    found, refused = checkpoints.find(tmp_path, "auto", MINE)
    assert found is not None
    assert found.step == 2
    assert "lora_rank was 8, is 4" in refused[0]
    assert "step-000004 is torn" in refused[1]
    assert "step-000003 is torn" in refused[2]
    assert checkpoints.find(tmp_path, "never", MINE) == (None, [])


@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "json", "swap"])
@pytest.mark.parametrize("name", [checkpoints.ADAPTER, checkpoints.OPTIMIZER, checkpoints.STATE])
def test_every_kind_of_damage_is_known(tmp_path: Path, name: str, damage: str) -> None:
    file = save(tmp_path, 1) / name
    if damage == "gone":
        file.unlink()
    else:
        whole = file.read_bytes()
        file.write_bytes({"cut": whole[:-2], "empty": b"", "json": b"{}", "swap": whole[::-1]}[damage])
    with pytest.raises(CheckpointError, match="torn"):
        checkpoints.load(file.parent)


def test_a_path_may_be_a_checkpoint_or_hold_some(tmp_path: Path) -> None:
    path = save(tmp_path, 7)
    for given in (path, path.parent, tmp_path):
        found, _ = checkpoints.find(tmp_path / "other", str(given), MINE)
        assert found is not None
        assert found.step == 7
    with pytest.raises(CheckpointError, match="lora_rank was 4, is 5"):
        checkpoints.find(tmp_path, str(path), {**MINE, "lora_rank": 5})
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        checkpoints.find(tmp_path, str(tmp_path / "empty"), MINE)


def test_keys_that_only_one_release_knows_do_not_matter(tmp_path: Path) -> None:
    save(tmp_path, 1, identity={**MINE, "old_key": 1})
    found, _ = checkpoints.find(tmp_path, "auto", {**MINE, "new_key": 2})
    assert found is not None


def test_only_the_newest_are_kept_and_later_ones_of_others_are_left(tmp_path: Path) -> None:
    save(tmp_path, 900)
    for step in range(1, 6):
        save(tmp_path, step, keep=2)
    names = sorted(p.name for p in (tmp_path / "checkpoints").glob("step-*"))
    assert names == ["step-000004", "step-000005", "step-000900"]


def test_a_step_written_again_takes_the_place_of_the_old(tmp_path: Path) -> None:
    save(tmp_path, 1, identity={**MINE, "lora_rank": 9})
    path = save(tmp_path, 1)
    assert checkpoints.load(path).identity == MINE
    assert sorted(p.name for p in path.parent.iterdir()) == ["latest", "step-000001"]


def test_state_says_what_it_holds(tmp_path: Path) -> None:
    state = json.loads((save(tmp_path, 3) / checkpoints.STATE).read_text())
    assert (state["step"], state["format"]) == (3, 1)
