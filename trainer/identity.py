"""What makes two trainings the same one: a checkpoint of the one continues the other exactly."""

from __future__ import annotations

import json
from typing import Any

from trainer.config import TrainConfig
from trainer.config.data_keys import ImageKeys, TextKeys
from trainer.files import sha256_bytes, sha256_file
from trainer.optim.schedule import BY_LENGTH

_BY_DIGEST = {
    "train_data_dir",
    "metadata_path",
    "validation_dir",
    "reg_data_dir",
    "mask_dir",
    "base_model",
    "plugins",
    "chat_template",
}
"""The digests of what they name stand for these."""

_NO_NUMBER = {
    "output_dir",
    "on_bad_image",
    "cache_dir",
    "cache_limit_gb",
    "resume",
    "save_steps",
    "keep_last",
    "checkpoint_url",
    "validation_steps",
    "early_stop",
    "keep_best",
    "sample_prompts",
    "sample_every",
    "sample_steps",
    "sample_guidance",
    "sample_tokens",
    "merge",
    "gguf",
    "log_every",
    "tracker",
    "skip_nonfinite",
}
"""Keys that change no weight of any step."""

_ROUNDING = {"device", "compile", "gradient_checkpointing"}
"""Keys that change rounding at most: a run may go on elsewhere, or with less memory."""

_IMAGES_ONLY = set(ImageKeys.model_fields) | {
    "loss",
    "huber_delta",
    "min_snr_gamma",
    "noise_offset",
    "prediction_type",
    "zero_terminal_snr",
    "train_text_encoder",
    "text_encoder_lr",
}


def identity(
    config: TrainConfig, kind: str, base_digest: str, data_digest: str, *, plugins: str = "", world: int = 1
) -> dict[str, Any]:
    """Plain JSON values. The length of the run counts only where the learning rate depends on it; processes
    count as accumulation. `plugins`: the digest of their files."""
    left_out = _BY_DIGEST | _NO_NUMBER | _ROUNDING
    left_out |= set(TextKeys.model_fields) if kind == "images" else _IMAGES_ONLY
    if config.lr_schedule not in BY_LENGTH:
        left_out |= {"epochs", "max_steps"}
    values = config.model_dump(mode="json", exclude=left_out)
    values["lora_alpha"] = config.alpha
    values["gradient_accumulation"] = config.gradient_accumulation * world
    if config.chat_template is not None and kind == "text":
        values["chat_template"] = "sha256:" + sha256_file(config.chat_template)
    return {**values, "kind": kind, "base_model": base_digest, "dataset": data_digest, "plugins": plugins}


def config_hash(values: dict[str, Any]) -> str:
    """`sha256:<hex>` of an identity."""
    return "sha256:" + sha256_bytes(json.dumps(values, sort_keys=True).encode())
