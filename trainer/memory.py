"""What to do when a step does not fit into memory, and how much there is."""

from __future__ import annotations

import gc
import os

import torch

from trainer.errors import OutOfMemory


def free(device: torch.device) -> None:
    """Give back what nobody uses. Call it outside of the `except` that holds the failed step's frames."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def smaller(samples: int, reason: str, where: str) -> int:
    """Half of a micro-batch of `samples` that did not fit. Raises OutOfMemory when it is one sample."""
    if samples <= 1:
        raise OutOfMemory(
            f"Out of memory in {where} with one sample at a time: {(reason or 'no more').splitlines()[0]}",
            "Set gradient_checkpointing: true or mixed_precision: bf16, or lower resolution, max_length or "
            "lora_rank; and look what else uses this device.",
        )
    return -(-samples // 2)


def available_bytes() -> int:
    """Memory of this machine that is free for us, in bytes; a container's limit counts."""
    pages = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            known = dict(line.split(":", 1) for line in file)
        pages = int(known["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pass
    try:
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as limit:
            most = int(limit.read())
        with open("/sys/fs/cgroup/memory.current", encoding="ascii") as used:
            pages = min(pages, max(0, most - int(used.read())))
    except (OSError, ValueError):
        pass
    return pages
