"""The check before step 0: decode every picture, parse every row, list everything that is wrong."""

from __future__ import annotations

import json
from dataclasses import replace

from trainer.cache import Cache, sha256_bytes
from trainer.config import TrainConfig
from trainer.data import images
from trainer.data.chat_rows import read_chats
from trainer.data.imagefolder import read_images
from trainer.data.report import DatasetReport, ImageItem, Problem
from trainer.models.sniff import native_resolution, sniff


def check_dataset(config: TrainConfig) -> DatasetReport:
    """Check the dataset of `config`; the kind follows from the base model's own header.

    A picture whose very bytes were decoded before (by this code) is not decoded again.
    Raises ModelError when the base model is missing or of a kind that cannot be trained.
    """
    kind = sniff(config.base_model).kind
    if kind == "text":
        chats, problems = read_chats(config)
        return DatasetReport(kind, list(chats), problems)
    report = DatasetReport(kind)
    listed, problems = read_images(config)
    cache = Cache(config.cache_root)
    for item in listed:
        checked = _decode(item, cache)
        if isinstance(checked, Problem):
            problems.append(checked)
        else:
            report.items.append(checked)
    if config.on_bad_image == "skip" and report.items:
        report.warnings += [f"skipped: {problem}" for problem in problems]
    else:
        report.problems += problems
    _advise(report, config)
    return report


def _decode(item: ImageItem, cache: Cache) -> ImageItem | Problem:
    try:
        data = item.path.read_bytes()
    except OSError as error:
        return Problem(item.name, None, f"cannot be read: {error.strerror}")
    sha = sha256_bytes(data)
    key = {"sha256": sha, "code": images.VERSION}
    known = cache.find("sizes", key, ".json")
    if known is not None:
        try:
            width, height = json.loads(known.read_text())
            return replace(item, sha256=sha, width=int(width), height=int(height))
        except (ValueError, OSError):
            pass
    if not data:
        return Problem(item.name, None, "is empty", "copy the picture again")
    try:
        width, height = images.open_rgb(data).size
    except images.ImageError as error:
        return Problem(item.name, None, str(error), "replace or remove it")
    cache.put_bytes("sizes", key, ".json", json.dumps([width, height]).encode())
    return replace(item, sha256=sha, width=width, height=height)


def _advise(report: DatasetReport, config: TrainConfig) -> None:
    pictures = [item for item in report.items if isinstance(item, ImageItem)]
    side = config.resolution or (native_resolution(sniff(config.base_model)) if pictures else 0)
    small = [item for item in pictures if min(item.width, item.height) < side]
    if small:
        report.warnings.append(
            f"{len(small)} of {len(pictures)} images are smaller than {side} pixels and will "
            f"be blurred by enlarging (the first: {small[0].name}); use larger ones or lower resolution."
        )
    if config.lora_rank >= 32 and 0 < len(pictures) < 50:
        report.warnings.append(
            f"lora_rank {config.lora_rank} on {len(pictures)} images tends to overfit; start with 4 to 8."
        )
