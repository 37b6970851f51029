"""The keys of the data in one training, to the end."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.trainer.picture_sets import picture
from trainer import LoRATrainer
from trainer.cache import Cache
from trainer.files import sha256_file

Make = Callable[..., dict[str, Any]]
Read = Callable[[Path], list[dict[str, Any]]]

PLUGIN = """
from trainer.plugins import augmentation

@augmentation("data_dim")
def dim(image, rng):
    share = 0.5 + rng.random() / 2
    return image.point(lambda value: int(value * share))
"""


def run(config: dict[str, Any]) -> Path:
    trainer = LoRATrainer(config)
    trainer.prepare_data()
    trainer.build_model()
    trainer.train()
    return Path(config["output_dir"])


def test_all_at_once_trains_and_trains_the_same_again(
    images_config: Make, events: Read, tmp_path: Path
) -> None:
    for number, size in enumerate([(90, 60), (60, 90), (64, 64), (120, 60), (70, 60)]):
        colour = (40 * number, 90, 200 - 30 * number)
        picture(tmp_path / "set/2_cat" / f"{number}.png", f"a, b {number}, c, d", colour, size)
        picture(tmp_path / "masks" / f"{number}.png", None, 200, size, "L")
    picture(tmp_path / "class/1_cat/r.png", "cat", (9, 9, 9), (80, 60))
    picture(tmp_path / "held/v.png", "held", (99, 9, 9), (60, 80))
    (tmp_path / "dim.py").write_text(PLUGIN)

    def config(name: str) -> dict[str, Any]:
        return images_config(
            train_data_dir=tmp_path / "set",
            validation_dir=tmp_path / "held",
            reg_data_dir=tmp_path / "class",
            reg_weight=0.5,
            masked_loss="folder",
            mask_dir=tmp_path / "masks",
            unmasked_weight=0.1,
            flip=True,
            crop="random",
            plugins=[tmp_path / "dim.py"],
            augmentations=["data_dim"],
            caption_shuffle=True,
            keep_tokens=1,
            caption_dropout=0.2,
            trigger_word="sks",
            background="black",
            repeats=2,
            cache_variants=2,
            validation_steps=2,
            output_dir=tmp_path / name / "style",
            cache_dir=tmp_path / name / "cache",
        )

    first, second = run(config("one")), run(config("two"))
    name = "pytorch_lora_weights.safetensors"
    assert sha256_file(first / name) == sha256_file(second / name)
    said = {event["type"] if "type" in event else event["event"]: event for event in events(first)}
    assert said["start"]["samples"] == 5 * 2 * 2 + 2
    assert said["validation"]["loss"] > 0


def test_a_training_trims_the_cache_when_it_is_over(text_config: Make, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    old = cache.put_bytes("latents", {"n": 1}, ".safetensors", bytes(1000))
    os.utime(old, (0, 0))
    config = text_config(max_steps=1, cache_dir=cache.root, cache_limit_gb=0, output_dir=tmp_path / "one")
    run(config)
    assert old.exists()
    run({**config, "cache_limit_gb": 1e-7, "output_dir": tmp_path / "two"})
    assert not old.exists()
