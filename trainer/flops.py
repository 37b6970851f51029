"""Model FLOPs utilisation: the arithmetic of a step over what the device could do in its time."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager

import torch

PEAKS = (
    ("B200", 2250.0),
    ("H200", 989.0),
    ("H100 PCIe", 756.0),
    ("H100 NVL", 835.0),
    ("H100", 989.0),
    ("A100", 312.0),
    ("L40S", 362.0),
    ("L40", 181.0),
    ("L4", 121.0),
    ("A10G", 70.0),
    ("A10", 125.0),
    ("RTX 5090", 209.0),
    ("RTX 4090", 165.0),
    ("RTX 4080", 97.0),
    ("RTX 3090", 71.0),
    ("RTX 6000 Ada", 364.0),
    ("A6000", 155.0),
    ("V100", 125.0),
    ("T4", 65.0),
)
"""Dense bf16/fp16 peaks in TFLOP/s by a part of the device's name, from the makers' data sheets."""


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """FLOP/s of `device` in `dtype`; None where no data sheet says it (a CPU, float32)."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak * 1e12 for part, peak in PEAKS if part in name), None)


class FlopMeter:
    """Counts the FLOPs (2 x MAC) of the first micro-batch of each shape; the others have the same."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.peak = peak_flops(device, dtype)
        self._known: dict[Hashable, int] = {}
        self.step = 0

    @contextmanager
    def micro_batch(self, shape: Hashable) -> Iterator[None]:
        """Around forward and backward of one micro-batch of `shape`; adds to `step`."""
        if self.peak is None:
            yield
            return
        if shape not in self._known:
            from torch.utils.flop_counter import FlopCounterMode

            counter = FlopCounterMode(display=False)
            with torch.compiler.set_stance("force_eager"), counter:  # compiled code cannot be looked into
                yield
            self._known[shape] = int(counter.get_total_flops())
        else:
            yield
        self.step += self._known[shape]

    def take(self) -> int:
        """The FLOPs since the last call."""
        flops, self.step = self.step, 0
        return flops
