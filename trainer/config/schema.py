"""Every key of the config, with its range and its usual choice."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _number(value: Any) -> Any:
    """`"2e-4"` (what PyYAML makes of an unquoted 2e-4) means the number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _path(value: Any) -> Any:
    if isinstance(value, str) and not value.strip():
        raise ValueError("must not be empty")
    return Path(value).expanduser() if isinstance(value, str) else value


def _word(value: Any) -> Any:
    """YAML 1.1 reads a bare `no` or `off` as false; here they are words."""
    return {False: "off", True: "on"}[value] if isinstance(value, bool) else value


def _words(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


Real = Annotated[float, BeforeValidator(_number)]
FilePath = Annotated[Path, BeforeValidator(_path)]
Words = Annotated[tuple[str, ...], BeforeValidator(_words)]


def _precision(value: Any) -> Any:
    return "no" if value is False else value


def _modules(value: Any) -> Any:
    if isinstance(value, list):
        if not value:
            raise ValueError("must name at least one module, or be auto")
        return tuple(value)
    if isinstance(value, str) and value != "auto":
        raise ValueError("must be auto or a list of module names")
    return value


def default_cache_root() -> Path:
    """$LORA_OPS_CACHE, or ~/.cache/lora-ops."""
    named = os.environ.get("LORA_OPS_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "lora-ops"


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def _key(description: str, usual: str = "", **limits: Any) -> Any:
    return Field(description=description, json_schema_extra={"usual": usual}, **limits)


class TrackerConfig(_Strict):
    """Where a run is logged besides `events.jsonl`, which is always written."""

    wandb: Annotated[Literal["auto", "off"], BeforeValidator(_word)] = _key(
        "auto: log to Weights & Biases when it is installed, offline without WANDB_API_KEY", default="auto"
    )
    project: str = _key("W&B project", default="lora-ops", min_length=1)
    name: str | None = _key("W&B run name; the output folder's name when unset", default=None)
    group: str | None = _key("W&B group", default=None)
    tags: Words = _key("W&B tags", default=())
    mode: Literal["auto", "online", "offline"] = _key(
        "auto: online when WANDB_API_KEY is set, else offline", default="auto"
    )


class TrainConfig(_Strict):
    """One training. Relative paths are relative to the current folder, not to the config file."""

    train_data_dir: FilePath = _key("folder with the images, or with *.jsonl for a language model")
    base_model: FilePath = _key("diffusers folder, SD 1.5 .safetensors, .gguf, or folder of a causal LM")
    output_dir: FilePath = _key("where the adapter, checkpoints and events.jsonl go")
    metadata_path: FilePath | None = _key(
        "captions (.csv or .jsonl), or the messages .jsonl; found in train_data_dir when unset", default=None
    )
    lora_rank: int = _key("rank of the adapter", "4 to 32", default=8, ge=1, le=1024)
    lora_alpha: Real | None = _key(
        "the adapter is scaled by lora_alpha / lora_rank", "lora_rank", default=None, gt=0, le=4096
    )
    target_modules: Annotated[Literal["auto"] | tuple[str, ...], BeforeValidator(_modules)] = _key(
        "which linear or convolution modules get an adapter, by the end of their names",
        "auto",
        default="auto",
    )
    batch_size: int = _key("samples per micro-batch", "1 to 8", default=1, ge=1, le=4096)
    gradient_accumulation: int = _key("micro-batches per step", "1 to 8", default=1, ge=1, le=4096)
    epochs: int = _key("passes over the dataset", "5 to 20", default=10, ge=1, le=100_000)
    max_steps: int | None = _key(
        "stop after so many steps; takes the place of epochs", "unset", default=None, ge=1, le=10_000_000
    )
    learning_rate: Real = _key("step size of AdamW", "1e-4 to 1e-3", default=1e-4, gt=0, le=1)
    lr_schedule: Literal["constant", "linear", "cosine"] = _key(
        "how the learning rate falls after warm-up", "constant", default="constant"
    )
    warmup_steps: int = _key("steps over which the learning rate rises from 0", "0 to 100", default=0, ge=0)
    weight_decay: Real = _key("AdamW's decoupled weight decay", "0 to 0.01", default=0.01, ge=0, le=1)
    max_grad_norm: Real = _key("clip the gradient's norm to this; 0: never", "1.0", default=1.0, ge=0, le=1e6)
    seed: int = _key("of the order, the noise and the adapter's start", "any", default=0, ge=0, lt=2**63)
    mixed_precision: Annotated[Literal["auto", "no", "bf16"], BeforeValidator(_precision)] = _key(
        "number format of the frozen base; the adapter is always fp32. auto: bf16 on CUDA",
        "auto",
        default="auto",
    )
    device: str = _key(
        "auto, cpu, cuda, cuda:N or mps", "auto", default="auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$"
    )
    save_steps: int = _key("a checkpoint every so many steps", "100 to 500", default=100, ge=1)
    keep_last: int = _key("how many checkpoints are kept", "2 to 5", default=3, ge=1, le=10_000)
    resume: str = _key(
        "auto: go on from the newest whole checkpoint in output_dir; never; or a checkpoint's folder",
        "auto",
        default="auto",
        min_length=1,
    )
    log_every: int = _key(
        "a line of progress every so many steps when not on a terminal", "10", default=10, ge=1
    )
    cache_dir: FilePath | None = _key(
        "shared cache; $LORA_OPS_CACHE or ~/.cache/lora-ops when unset", default=None
    )
    caption_column: str | None = _key(
        "column of the captions; text, caption or prompt when unset", default=None, min_length=1
    )
    on_bad_image: Literal["error", "skip"] = _key(
        "what a corrupt image or a missing caption means", "error", default="error"
    )
    resolution: int | None = _key(
        "side of the square training crop in pixels; unset: what the model was made for",
        "512",
        default=None,
        ge=16,
        le=4096,
        multiple_of=8,
    )
    flip: bool = _key("mirror half of the images at random", "false", default=False)
    caption_dropout: Real = _key(
        "share of captions replaced by the empty one", "0 to 0.1", default=0.0, ge=0, le=1
    )
    min_snr_gamma: Real | None = _key("min-SNR loss weighting; unset: off", "5", default=None, gt=0, le=100)
    noise_offset: Real = _key("per-channel offset added to the noise", "0 to 0.1", default=0.0, ge=0, le=1)
    max_length: int = _key(
        "longest row in tokens (language models)", "256 to 2048", default=512, ge=8, le=1_048_576
    )
    tracker: TrackerConfig = _key("loggers besides events.jsonl", default=TrackerConfig())

    @property
    def alpha(self) -> float:
        """The effective lora_alpha: lora_rank when unset."""
        return float(self.lora_rank) if self.lora_alpha is None else self.lora_alpha

    @property
    def cache_root(self) -> Path:
        """The effective cache folder."""
        return self.cache_dir if self.cache_dir is not None else default_cache_root()

    def to_yaml(self) -> str:
        """YAML of the keys that were given, and of no defaults: another release of the trainer may not
        know this one's newer keys. `parse_config` reads it back to an equal config."""
        return yaml.safe_dump(
            self.model_dump(mode="json", exclude_unset=True), sort_keys=False, allow_unicode=True
        )
