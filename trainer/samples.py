"""Samples on the way: generated beside the training, and never its end."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from trainer.files import TEMPORARY, put_folder
from trainer.memory import free
from trainer.models.base import Family

FOLDER = "samples"


def folder_of(output_dir: Path, step: int) -> Path:
    """Where the samples of `step` lie."""
    return output_dir / FOLDER / f"step-{step:06d}"


def take(
    family: Family,
    prompts: Sequence[str],
    output_dir: Path,
    step: int,
    seed: int,
    device: torch.device,
    warn: Callable[[str], None],
) -> list[Path]:
    """Generate from `prompts` into `folder_of(step)`: whole or not at all. Whatever goes wrong, running out
    of memory included, is a warning; no random number of the training is used up."""
    final = folder_of(output_dir, step)
    python, numpy = random.getstate(), np.random.get_state()
    made: Path | None = None
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=final.parent, prefix=TEMPORARY))
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            torch.manual_seed(seed)
            written = [path.relative_to(made) for path in family.sample(prompts, made, seed)]
        if not written:
            return []
        put_folder(made, final)
        return [final / path for path in written]
    except Exception as error:  # noqa: BLE001 - a sample must never end a training
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        warn(f"no samples at step {step}: {type(error).__name__}: {first}; the training goes on.")
        return []
    finally:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)
        random.setstate(python)
        np.random.set_state(numpy)
        free(device)
