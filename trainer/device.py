"""Where the training runs and in which number format."""

from __future__ import annotations

import sys

import torch

from trainer.config import TrainConfig
from trainer.errors import ConfigError


def pick_device(name: str) -> torch.device:
    """`auto`: CUDA, else MPS, else the CPU. Raises ConfigError if the named device is not there."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            [f"`device` is {name}: torch {torch.__version__} sees {torch.cuda.device_count()} of them here."],
            "Use device: auto or cpu, or mend the driver.",
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(["`device` is mps: there is none here."], "Use device: auto.")
    return device


def pick_dtype(config: TrainConfig, device: torch.device) -> torch.dtype:
    """The frozen base's number format."""
    if config.mixed_precision == "fp16":
        return torch.float16
    if config.mixed_precision == "bf16" or (config.mixed_precision == "auto" and device.type == "cuda"):
        return torch.bfloat16
    return torch.float32


def tune(config: TrainConfig, device: torch.device) -> torch.dtype:
    """Let CUDA use its tensor cores for float32 products, too, where the base is in 16 bits anyway; returns
    `pick_dtype`."""
    dtype = pick_dtype(config, device)
    if device.type == "cuda" and dtype != torch.float32:
        torch.set_float32_matmul_precision("high")
    return dtype


def memory_bytes() -> int:
    """Peak bytes: of CUDA's allocator where it is used, else of this process's resident memory."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
