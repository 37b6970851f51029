"""Where this machine keeps what can be made again: bundles, datasets, scratch folders, logs."""

from __future__ import annotations

import os
from pathlib import Path

HOME_ENV = "LORA_OPS_HOME"


def home() -> Path:
    """`$LORA_OPS_HOME`, by default `.lora-ops` in the working directory. Absolute."""
    return Path(os.environ.get(HOME_ENV) or ".lora-ops").absolute()


def bundles(base: Path) -> Path:
    return base / "bundles"


def datasets(base: Path) -> Path:
    return base / "datasets"


def scratch(base: Path) -> Path:
    return base / "scratch"


def cache(base: Path) -> Path:
    """The trainer's own cache: converted models, latents, embeddings."""
    return base / "cache"


def logs(base: Path) -> Path:
    return base / "logs"
