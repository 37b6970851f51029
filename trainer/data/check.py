"""The check before step 0: decode every picture, parse every row, list everything that is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trainer.cache import Cache
from trainer.config import TrainConfig
from trainer.data import advice
from trainer.data.buckets import Size, sizes_of
from trainer.data.chat_rows import content_of, read_chats
from trainer.data.decode import Say, decode_all
from trainer.data.holdout import split
from trainer.data.imagefolder import list_training, list_validation
from trainer.data.listing import Listing, counted
from trainer.data.report import DatasetReport, ImageItem, Problem
from trainer.data.variants import known_augmentations
from trainer.models.sniff import FAMILIES, base_of, native_resolution, side_multiple


def check_dataset(config: TrainConfig, say: Say | None = None) -> DatasetReport:
    """Check the dataset of `config`; the kind follows from the base model's own header. Held-out samples are
    in `validation`. `say` gets a line of progress now and then when there are many pictures.

    A picture whose very bytes were decoded before (by this code) is not decoded again.
    Raises ModelError when the base model is missing or of a kind that cannot be trained, ConfigError for an
    augmentation that no plugin has.
    """
    base = base_of(config)
    if base.kind == "text":
        return _check_rows(config)
    known_augmentations(config)
    side = config.resolution or native_resolution(base)
    report = _check_images(config, side, sizes_of(config, side, side_multiple(base)), say)
    report.notes.insert(0, f"base model: {FAMILIES.get(base.family, base.family)}, trained at {side} pixels")
    return report


def _check_rows(config: TrainConfig) -> DatasetReport:
    rows, problems = read_chats(config)
    report = DatasetReport("text", problems=problems)
    if config.validation_dir is not None:
        held = config.model_copy(update={"train_data_dir": config.validation_dir, "metadata_path": None})
        kept, problems = read_chats(held)
        report.problems += [_of(problem, config.validation_dir) for problem in problems]
        report.items, report.validation = list(rows), list(kept)
        return report
    trained, kept_out = split([content_of(row) for row in rows], config.validation_split)
    report.items = [rows[place] for place in trained]
    report.validation = [rows[place] for place in kept_out]
    _say_held(report, config)
    return report


def _of(problem: Problem, folder: Path) -> Problem:
    name = problem.file if Path(problem.file).is_absolute() else f"{folder.name}/{problem.file}"
    return Problem(name, problem.line, problem.what, problem.hint)


def _check_images(config: TrainConfig, side: int, sizes: Sequence[Size], say: Say | None) -> DatasetReport:
    report = DatasetReport("images")
    cache = Cache(config.cache_root)
    listed, held = list_training(config), list_validation(config)
    pictures, bad = _decoded(listed, config, cache, say)
    kept, bad_kept = _decoded(held, config, cache, say)
    report.problems += [*listed.faults, *held.faults]
    skipped = [*bad, *bad_kept]
    report.warnings += [*listed.warnings, *held.warnings]
    report.notes += [*listed.notes, *held.notes]
    if config.on_bad_image == "skip" and any(not item.regularisation for item in pictures):
        if skipped:
            number = len(listed.items) + len(held.items) + len(listed.problems) + len(held.problems)
            report.warnings.append(
                f"{len(skipped)} of {counted(number, 'picture')} are left out (on_bad_image: skip); "
                "mend them, or take them out of the dataset:"
            )
        report.warnings += [f"skipped: {problem}" for problem in skipped]
    else:
        report.problems += skipped
        report.skippable = bool(pictures and skipped) and not (listed.faults or held.faults)
    if config.validation_dir is None:
        pictures, kept = _held_out(pictures, config)
    report.items, report.validation = list(pictures), list(kept)
    if pictures:
        report.buckets = advice.buckets_of(pictures, sizes)
        report.warnings += [*advice.advise(pictures, config, side, sizes), *advice.duplicates(pictures, kept)]
        report.notes.append(_coverage(pictures))
        report.notes.append(
            "buckets: " + ", ".join(f"{number} of {size}" for size, number in report.buckets.items())
        )
    _say_held(report, config)
    return report


def _decoded(
    listed: Listing, config: TrainConfig, cache: Cache, say: Say | None
) -> tuple[list[ImageItem], list[Problem]]:
    good: list[ImageItem] = []
    bad = list(listed.problems)
    for checked in decode_all(listed.items, config, cache, say):
        if isinstance(checked, Problem):
            bad.append(checked)
        else:
            good.append(checked)
    return good, bad


def _held_out(pictures: Sequence[ImageItem], config: TrainConfig) -> tuple[list[ImageItem], list[ImageItem]]:
    """(what is trained on, what is held out): regularisation pictures are never held out."""
    own = [item for item in pictures if not item.regularisation]
    trained, kept = split([item.sha256 for item in own], config.validation_split)
    reg = [item for item in pictures if item.regularisation]
    return [*(own[place] for place in trained), *reg], [own[place] for place in kept]


def _coverage(pictures: Sequence[ImageItem]) -> str:
    own = sum(item.source != "" for item in pictures)
    rest = len(pictures) - own
    keys = {
        "reg_caption" if item.regularisation else "caption_fallback" for item in pictures if not item.source
    }
    fallback = f"; the other {rest} get {' or '.join(sorted(keys))}" if rest else ""
    return f"captions: {own} of {counted(len(pictures), 'picture')}{fallback}"


def _say_held(report: DatasetReport, config: TrainConfig) -> None:
    if config.validation_split and config.validation_dir is None and report.items and not report.validation:
        report.warnings.append(
            "validation_split holds out nothing: there are no two samples that differ; add some, or name "
            "held-out ones in validation_dir."
        )
    elif report.validation:
        report.notes.append(f"held out for validation: {len(report.validation)}")
