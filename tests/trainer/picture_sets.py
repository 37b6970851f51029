"""Small picture datasets, and a base model of names alone: enough to check data."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from PIL import Image

from trainer.config import TrainConfig, config_from

ORIENTATION = 0x0112


def sd_header(folder: Path) -> Path:
    """A diffusers folder by its names: enough to tell the kind."""
    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    return folder


def config(root: Path, **changes: Any) -> TrainConfig:
    """A config of the dataset `root/data` at 16 pixels."""
    return config_from(
        {
            "train_data_dir": root / "data",
            "base_model": sd_header(root / "model"),
            "output_dir": root / "out",
            "cache_dir": root / "cache",
            "resolution": 16,
            **changes,
        }
    )


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The file of a picture."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture(
    path: Path,
    caption: str | None = None,
    colour: tuple[int, ...] | int = (10, 200, 30),
    size: tuple[int, int] = (20, 16),
    mode: str = "RGB",
) -> Path:
    """Write a picture of one colour; with `caption` a .txt beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path
