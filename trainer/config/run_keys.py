"""Where a run goes, what it leaves, and what it shows on the way."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator

from trainer.config.fields import AutoOff, FilePath, Paths, Real, Strict, Words, _word, key


class TrackerConfig(Strict):
    """Where a run is logged besides `events.jsonl`, which is always written."""

    wandb: AutoOff = key(
        "auto: log to Weights & Biases when it is installed, offline without WANDB_API_KEY", default="auto"
    )
    tensorboard: Annotated[Literal["on", "off"], BeforeValidator(_word)] = key(
        "write TensorBoard files to output_dir/tensorboard", default="off"
    )
    project: str = key("W&B project", default="lora-ops", min_length=1)
    name: str | None = key("W&B run name; the output folder's name when unset", default=None)
    group: str | None = key("W&B group", default=None)
    tags: Words = key("W&B tags", default=())
    mode: Literal["auto", "online", "offline"] = key(
        "auto: online when WANDB_API_KEY is set, else offline", default="auto"
    )


class RunKeys(Strict):
    """Model, files, checkpoints, samples."""

    base_model: FilePath = key(
        "diffusers folder, SD 1.5 or SDXL .safetensors, .gguf, or folder of a causal LM"
    )
    output_dir: FilePath = key("where the adapter, checkpoints and events.jsonl go")
    plugins: Paths = key("Python files of your own: augmentations, losses, optimizers, families", default=())
    device: str = key(
        "auto, cpu, cuda, cuda:N or mps", "auto", default="auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$"
    )
    save_steps: int = key("a checkpoint every so many steps", "100 to 500", default=100, ge=1)
    keep_last: int = key("how many checkpoints are kept", "2 to 5", default=3, ge=1, le=10_000)
    checkpoint_url: str | None = key(
        "a store that gets a copy of each checkpoint: s3://, gs://, az:// or file://",
        default=None,
        pattern=r"^[a-z0-9]+://.+",
    )
    resume: str = key(
        "auto: go on from the newest whole checkpoint in output_dir; never; or a checkpoint's folder",
        "auto",
        default="auto",
        min_length=1,
    )
    validation_steps: int | None = key(
        "validate every so many steps", "save_steps when unset", default=None, ge=1
    )
    early_stop: int | None = key(
        "stop after so many validations without a better loss", "3 to 5; unset: never", default=None, ge=1
    )
    keep_best: bool = key(
        "publish the adapter of the lowest validation loss, not the last one", "true", default=True
    )
    sample_prompts: Words = key("what to generate on the way, with fixed seeds", default=())
    sample_every: int | None = key(
        "generate every so many steps", "save_steps when unset", default=None, ge=1
    )
    sample_steps: int = key("denoising steps of a sample image", "20 to 30", default=20, ge=1, le=1000)
    sample_guidance: Real = key("guidance of a sample image", "7", default=7.0, ge=0, le=50)
    sample_tokens: int = key("tokens of a sample text", "64", default=64, ge=1, le=4096)
    merge: bool = key("write the merged model, too (language models)", "false", default=False)
    gguf: Annotated[Literal["off", "f16", "q8_0"], BeforeValidator(_word)] = key(
        "write the merged model as GGUF, too (language models)", "off", default="off"
    )
    log_every: int = key(
        "a line of progress every so many steps when not on a terminal", "10", default=10, ge=1
    )
    cache_dir: FilePath | None = key(
        "shared cache; $LORA_OPS_CACHE or ~/.cache/lora-ops when unset", default=None
    )
    cache_limit_gb: Real = key(
        "the least recently used entries go when the cache is larger; 0: never", "50", default=50.0, ge=0
    )
    tracker: TrackerConfig = key("loggers besides events.jsonl", default=TrackerConfig())
