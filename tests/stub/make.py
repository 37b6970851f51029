"""Sources of stub releases: this tree with the stand-in trainer, each with a behaviour of its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
_NO_BYTECODE = shutil.ignore_patterns("__pycache__")


def make_stub_source(dest: Path, **behaviour: Any) -> Path:
    """A source folder for `lora-ops deploy --source dest --dirty`; see trainer/__main__.py for the keys."""
    for folder in ("flows", "tasks", "lora_ops"):
        shutil.copytree(REPO / folder, dest / folder, ignore=_NO_BYTECODE)
    shutil.copytree(REPO / "tests" / "stub" / "trainer", dest / "trainer", ignore=_NO_BYTECODE)
    shutil.copy(REPO / "constraints.txt", dest / "constraints.txt")
    (dest / "trainer" / "behaviour.json").write_text(json.dumps(behaviour))
    return dest


def make_stub_config(folder: Path, **changes: Any) -> Path:
    """A trainer config that the platform's checker accepts: two small pictures and the shell of a model."""
    from PIL import Image

    folder = folder.absolute()
    data = folder / "pictures"
    data.mkdir(parents=True, exist_ok=True)
    for n, colour in enumerate(("red", "blue")):
        Image.new("RGB", (64, 64), colour).save(data / f"{n}.png")
        (data / f"{n}.txt").write_text(f"a {colour} square")
    model = folder / "model"
    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        (model / part).mkdir(parents=True, exist_ok=True)
    (model / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    keys = {"train_data_dir": data, "base_model": model, "output_dir": folder / "output", **changes}
    config = folder / "stub.yaml"
    config.write_text("".join(f"{key}: {value}\n" for key, value in keys.items()))
    return config
