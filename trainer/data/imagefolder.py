"""Which pictures and captions a config names: of training, regularisation and validation."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from trainer.config import TrainConfig
from trainer.data import masks
from trainer.data.folders import read_pictures
from trainer.data.listing import Listing
from trainer.data.metadata import metadata_in, read_metadata
from trainer.data.report import ImageItem, Problem
from trainer.data.text_files import read_text

__all__ = ["list_training", "list_validation", "read_text"]


def list_training(config: TrainConfig) -> Listing:
    """The pictures of train_data_dir, with their masks, and those of reg_data_dir; not decoded yet."""
    found = _folder(config.train_data_dir, config.metadata_path, config, "train_data_dir")
    _masked(found, config, needed=True)
    if config.reg_data_dir is not None:
        of_class = config.model_copy(update={"caption_fallback": config.reg_caption})
        reg = _folder(config.reg_data_dir, None, of_class, "reg_data_dir")
        reg.problems = [
            replace(
                problem,
                what=problem.what.replace("caption_fallback", "reg_caption"),
                hint=problem.hint.replace("caption_fallback", "reg_caption"),
            )
            for problem in reg.problems
        ]
        reg.items = [replace(item, regularisation=True) for item in reg.items]
        reg.below(config.reg_data_dir.name)
        found.add(reg)
    return found


def list_validation(config: TrainConfig) -> Listing:
    """The pictures of validation_dir, each once, with their masks where there are any."""
    if config.validation_dir is None:
        return Listing()
    found = _folder(config.validation_dir, None, config, "validation_dir")
    _masked(found, config, needed=False)
    found.items = [replace(item, repeats=1) for item in found.items]
    found.below(config.validation_dir.name)
    return found


def _folder(folder: Path, metadata: Path | None, config: TrainConfig, key: str) -> Listing:
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "no such folder"
        hint = f"set {key} to the folder that holds the images"
        return Listing(faults=[Problem(str(folder), None, what, hint)])
    metadata = metadata or metadata_in(folder)
    if metadata is not None:
        return read_metadata(folder, metadata, config)
    return read_pictures(folder, config, _others(folder, config))


def _others(folder: Path, config: TrainConfig) -> Collection[Path]:
    """The other folders that the config names."""
    named = (config.train_data_dir, config.validation_dir, config.reg_data_dir, config.mask_dir)
    return {each.absolute() for each in named if each is not None} - {folder.absolute()}


def _masked(found: Listing, config: TrainConfig, needed: bool) -> None:
    if config.masked_loss != "folder":
        if config.mask_dir is not None and needed:
            found.warnings.append("mask_dir is not read; set masked_loss: folder to learn from the masks.")
        return
    if config.mask_dir is None or not config.mask_dir.is_dir():
        what = "is not set" if config.mask_dir is None else f"{config.mask_dir}: no such folder"
        hint = "masked_loss: folder wants a folder of masks with the pictures' names"
        if needed:
            found.faults.append(Problem("mask_dir", None, what, hint))
        return
    known = masks.masks_by_name(config.mask_dir)
    with_masks: list[ImageItem] = []
    for item in found.items:
        masked = masks.with_mask(item, known, config.mask_dir)
        if isinstance(masked, ImageItem):
            with_masks.append(masked)
        elif needed:
            found.problems.append(masked)
        else:
            with_masks.append(item)
    found.items = with_masks
