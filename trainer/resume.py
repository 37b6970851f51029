"""Which checkpoint a training goes on from: of its folder, of a path, or of a store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer import checkpoint as checkpoints
from trainer import remote
from trainer.config import TrainConfig
from trainer.distributed import Processes


def checkpoint_to_resume(
    config: TrainConfig, identity: Mapping[str, Any], processes: Processes
) -> tuple[checkpoints.Checkpoint | None, list[str]]:
    """The checkpoint and what was refused on the way, by name. Only the main process asks a store: to be
    called there first. Raises CheckpointError for a `resume` that cannot be used."""
    out = config.output_dir
    if remote.is_url(config.resume):
        if processes.main:
            return remote.given(config.resume, out, identity)
        return checkpoints.find(out, "auto", identity)
    found, refused = checkpoints.find(out, config.resume, identity)
    if found is None and config.resume == "auto" and config.checkpoint_url and processes.main:
        found, more = remote.bring(config.checkpoint_url, out, identity)
        refused += more
    return found, refused


def refusals(refused: list[str], found: checkpoints.Checkpoint | None) -> list[str]:
    """What to say about the checkpoints that were `refused`."""
    if not refused or found is not None:
        return refused
    anew = (
        "this training starts anew, and its checkpoints take the place of those; to keep them, undo the "
        "change or set another output_dir."
    )
    return [*refused, anew]
