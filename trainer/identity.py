"""What makes two trainings the same one: a checkpoint of the one continues the other exactly."""

from __future__ import annotations

import json
from typing import Any

from trainer.cache import sha256_bytes
from trainer.config import TrainConfig

_ELSEWHERE = {
    "train_data_dir",
    "metadata_path",
    "base_model",
    "output_dir",
    "cache_dir",
    "resume",
    "save_steps",
    "keep_last",
    "log_every",
    "tracker",
    "device",
    "on_bad_image",
    "caption_column",
}
"""Keys that change no number, or are represented by the digests of what they name."""


def identity(config: TrainConfig, kind: str, base_digest: str, data_digest: str) -> dict[str, Any]:
    """Plain JSON values. The length of the run counts only where the learning rate depends on it."""
    left_out = set(_ELSEWHERE)
    left_out |= (
        {"max_length"}
        if kind == "images"
        else {"resolution", "flip", "caption_dropout", "min_snr_gamma", "noise_offset"}
    )
    if config.lr_schedule == "constant":
        left_out |= {"epochs", "max_steps"}
    values = config.model_dump(mode="json", exclude=left_out)
    values["lora_alpha"] = config.alpha
    return {**values, "kind": kind, "base_model": base_digest, "dataset": data_digest}


def config_hash(values: dict[str, Any]) -> str:
    """`sha256:<hex>` of an identity."""
    return "sha256:" + sha256_bytes(json.dumps(values, sort_keys=True).encode())
