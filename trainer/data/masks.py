"""Masks for masked_loss: of the picture's own alpha, or a picture of the same name in mask_dir."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

from PIL import Image

from trainer.config import TrainConfig
from trainer.data import images
from trainer.data.report import ImageItem, Problem
from trainer.errors import DataError
from trainer.files import sha256_bytes


def masks_by_name(folder: Path) -> dict[str, Path]:
    """The pictures below `folder` by their path in it without the suffix, and by the mere stem of their names
    where only one has it."""
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in images.SUFFIXES and p.is_file())
    stems = Counter(path.stem for path in files)
    found = {path.stem: path for path in files if stems[path.stem] == 1}
    for path in reversed(files):
        found[path.relative_to(folder).with_suffix("").as_posix()] = path
    return found


def with_mask(item: ImageItem, known: Mapping[str, Path], folder: Path) -> ImageItem | Problem:
    """`item` with its mask out of `known` (see `masks_by_name`), or the problem that it has none."""
    name = PurePosixPath(item.name).with_suffix("").as_posix()
    mask = known.get(name) or known.get(item.path.stem)
    if mask is not None:
        return replace(item, mask=mask)
    near = difflib.get_close_matches(item.path.stem, known, n=1)
    hint = f"did you mean {known[near[0]].name}? " if near else ""
    return Problem(item.name, None, f"has no mask in {folder}", f"{hint}draw {item.path.stem}.png there")


def open_mask(item: ImageItem, config: TrainConfig) -> Image.Image | None:
    """The mask as grey (white: learn) in the picture's own orientation; None with masked_loss off, and for
    a picture that has none (regularisation). Raises DataError, images.ImageError."""
    if config.masked_loss == "alpha":
        return images.open_alpha(checked_bytes(item))
    if config.masked_loss == "folder" and item.mask is not None:
        return images.open_rgb(item.mask, (0, 0, 0)).convert("L")
    return None


def checked_bytes(item: ImageItem) -> bytes:
    """The file's bytes. Raises DataError when they are no longer those that were checked: what is cached
    under the old content must be of the old content."""
    try:
        data = item.path.read_bytes()
    except OSError as error:
        raise DataError(f"{item.path} can no longer be read: {error.strerror}.", "Put it back.") from None
    if item.sha256 and sha256_bytes(data) != item.sha256:
        raise DataError(f"{item.path} changed after it was checked.", "Run it again when nothing writes it.")
    return data
