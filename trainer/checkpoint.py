"""Checkpoints: `checkpoints/step-000100/` holds the adapter, the optimizer and `state.json`.

A folder is filled under a temporary name, fsynced and renamed; `latest` is written after that. `state.json`
holds the sha256 of the others, so that a torn copy is known as one. No pickle: a checkpoint from elsewhere
runs no code.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.errors import CheckpointError
from trainer.files import put_folder, sha256_bytes, sha256_file, whole_folder, write_atomic

if TYPE_CHECKING:
    from torch import Tensor

FOLDER, LATEST, STATE = "checkpoints", "latest", "state.json"
ADAPTER, OPTIMIZER, BEST = "adapter.safetensors", "optimizer.safetensors", "best.safetensors"
FORMAT = 1
_NAME = re.compile(r"^step-(\d{6,})$")


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint. `step`: optimizer steps done. `identity`: what was trained, see `identity.py`."""

    path: Path
    step: int
    identity: dict[str, Any]
    state: dict[str, Any]


def save(
    output_dir: Path,
    step: int,
    adapter: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    identity: Mapping[str, Any],
    keep_last: int,
    journal: Mapping[str, Any] | None = None,
    plain: Mapping[str, Any] | None = None,
    best: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write the checkpoint of `step` and drop all but the newest `keep_last` up to it, and those that a kept
    one's journal names as the best.

    `plain`: what of the optimizer's state is no tensor. `best`: the adapter of the lowest validation loss,
    where that is another step's: one checkpoint is enough to go on from anywhere.
    """
    from trainer.export.tensor_file import serialize

    parent = output_dir / FOLDER
    parent.mkdir(parents=True, exist_ok=True)
    final = folder_of(output_dir, step)
    with whole_folder(final) as made:
        files = {ADAPTER: serialize(adapter), OPTIMIZER: serialize(optimizer)}
        if best:
            files[BEST] = serialize(best)
        state = {
            "format": FORMAT,
            "step": step,
            "identity": dict(identity),
            "journal": dict(journal or {}),
            "optimizer": dict(plain or {}),
            "files": {
                name: {"sha256": sha256_bytes(data), "size": len(data)} for name, data in files.items()
            },
        }
        files[STATE] = (json.dumps(state, indent=1, sort_keys=True) + "\n").encode()
        for name, data in files.items():
            write_atomic(made / name, data, sync=False)
    point_to(final)
    mine = [folder for number, folder in _steps(parent) if number <= step]
    named = {_best_of(folder) for folder in mine[-keep_last:]}
    for old in mine[:-keep_last]:
        if old.name not in named:
            shutil.rmtree(old, ignore_errors=True)
    return final


def put(made: Path, output_dir: Path, step: int) -> Path:
    """Give the filled folder `made` its name, and point to it."""
    final = folder_of(output_dir, step)
    put_folder(made, final)
    point_to(final)
    return final


def point_to(final: Path) -> None:
    """Make `final` the newest, once it is there."""
    write_atomic(final.parent / LATEST, f"{final.name}\n".encode())


def folder_of(output_dir: Path, step: int) -> Path:
    """Where the checkpoint of `step` lies."""
    return output_dir / FOLDER / f"step-{step:06d}"


def kept(output_dir: Path) -> set[str]:
    """The names of the checkpoints that are there."""
    return {folder.name for _, folder in _steps(output_dir / FOLDER)}


def _best_of(folder: Path) -> str:
    """The name of the checkpoint that `folder` calls the best."""
    try:
        journal = json.loads((folder / STATE).read_text(encoding="utf-8")).get("journal", {})
        return f"step-{int(journal.get('best_step', 0)):06d}"
    except (OSError, ValueError, AttributeError):
        return ""


def _steps(parent: Path) -> list[tuple[int, Path]]:
    """(step, folder) by step; leftovers of killed writers have other names."""
    if not parent.is_dir():
        return []
    return sorted((int(m[1]), p) for p in parent.iterdir() if (m := _NAME.match(p.name)) and p.is_dir())


def load(path: Path) -> Checkpoint:
    """Read and verify the checkpoint folder `path`. Raises CheckpointError if it is not a whole one."""
    try:
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        if state["format"] != FORMAT:
            raise CheckpointError(
                f"The checkpoint {path} has format {state['format']}; this trainer reads {FORMAT}."
            )
        for name, known in state["files"].items():
            file = path / Path(name).name
            if file.stat().st_size != known["size"] or sha256_file(file) != known["sha256"]:
                raise CheckpointError(f"The checkpoint {path} is torn: {name} is not what was written.")
        if {ADAPTER, OPTIMIZER} - set(state["files"]):
            raise CheckpointError(f"The checkpoint {path} is torn: it lacks its weights.")
        return Checkpoint(path, int(state["step"]), dict(state["identity"]), state)
    except FileNotFoundError as error:
        missing = Path(str(error.filename)).name
        raise CheckpointError(f"The checkpoint {path} is torn: {missing} is missing.") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"The checkpoint {path} is torn: {STATE} cannot be read ({error}).") from None


def find(output_dir: Path, resume: str, identity: Mapping[str, Any]) -> tuple[Checkpoint | None, list[str]]:
    """The checkpoint to go on from, and what was refused on the way, by name.

    `resume` is `never`, `auto` (the newest whole one in `output_dir` that belongs to this training), or the
    path of a checkpoint or of a folder that holds some. Raises CheckpointError if that cannot be used.
    """
    if resume == "never":
        return None, []
    given = None if resume == "auto" else Path(resume).expanduser()
    if given is not None and not given.is_dir():
        raise CheckpointError(f"No checkpoint at {given}.", "Correct the path, or use resume: auto.")
    if given is not None and (given / STATE).exists():
        candidates = [given]
    else:
        parents = [output_dir / FOLDER] if given is None else [given / FOLDER, given]
        candidates = [path for parent in parents for _, path in reversed(_steps(parent))]
    refused: list[str] = []
    for path in candidates:
        try:
            checkpoint = load(path)
        except CheckpointError as error:
            refused.append(error.message)
            continue
        if differing := differences(checkpoint.identity, identity):
            refused.append(f"The checkpoint {path} belongs to another training: {', '.join(differing)}.")
            continue
        return checkpoint, refused
    if given is not None:
        raise CheckpointError(
            refused[0] if refused else f"{given} holds no checkpoint.",
            "Name another one, or use resume: never to start anew.",
        )
    return None, refused


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`key was x, is y` for each key that both know and that differs (another release may know more keys)."""
    return [
        f"{key} was {then[key]}, is {now[key]}"
        for key in sorted(set(then) & set(now))
        if then[key] != now[key]
    ]
