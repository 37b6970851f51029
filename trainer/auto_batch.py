"""`batch_size: auto`: the largest micro-batch that fits, found in seconds.

On an accelerator a few forward and backward passes of the largest bucket are measured: memory grows nearly
linearly with the samples, so three of them tell how many fit, and a fourth tries it. On the CPU, where a
larger batch gains next to nothing, what one sample keeps for its backward pass is counted.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Hashable, Sequence

import torch

from trainer.errors import is_out_of_memory
from trainer.memory import available_bytes, free
from trainer.models.base import Family

MARGIN = 0.9
MOST, MOST_ON_CPU = 256, 8
SEARCH_S = 6.0


def largest_batch(family: Family, buckets: Sequence[Hashable], device: torch.device) -> int:
    """Samples of the largest micro-batch that leaves a tenth of the memory free, at most a bucket's worth.
    Gradients are cleared by the caller. Raises what a single sample raises."""
    most = min(max(Counter(buckets).values()), MOST)
    sample = heaviest(family, buckets)
    if device.type != "cuda":
        return min(most, MOST_ON_CPU, _by_estimate(family, sample))
    return _by_probing(family, sample, most, device)


def heaviest(family: Family, buckets: Sequence[Hashable]) -> int:
    """The sample of the largest bucket, and of these the one with the most units."""
    return max(range(len(buckets)), key=lambda index: (_area(buckets[index]), family.units([index])))


def _area(bucket: Hashable) -> int:
    """The product of the numbers that a bucket's key holds: pixels, or tokens."""
    if isinstance(bucket, bool | str):
        return 1
    if isinstance(bucket, int):
        return max(1, bucket)
    if isinstance(bucket, tuple):
        product = 1
        for part in bucket:
            product *= _area(part)
        return product
    return 1


def _pass(family: Family, sample: int, count: int) -> None:
    """Forward and backward of `count` copies of `sample`."""
    rngs = [torch.Generator().manual_seed(number) for number in range(count)]
    loss = family.loss([sample] * count, rngs) / max(1.0, family.units([sample]) * count)
    loss.backward()


def _by_estimate(family: Family, sample: int) -> int:
    """From the bytes that autograd keeps for one sample, twice over, in half of what is free."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = family.loss([sample], [torch.Generator().manual_seed(0)])
    del loss
    return max(1, int(0.5 * available_bytes() / max(1, 2 * sum(kept.values()))))


def _by_probing(family: Family, sample: int, most: int, device: torch.device) -> int:
    began = time.perf_counter()
    total = torch.cuda.get_device_properties(device).total_memory
    others = total - torch.cuda.mem_get_info(device)[0] - torch.cuda.memory_reserved(device)
    limit = MARGIN * (total - max(0, others))
    peaks: dict[int, int] = {}

    def fits(count: int) -> bool:
        free(device)
        torch.cuda.reset_peak_memory_stats(device)
        try:
            _pass(family, sample, count)
            peaks[count] = torch.cuda.max_memory_allocated(device)
            return peaks[count] <= limit
        except Exception as error:
            if not is_out_of_memory(error) or count == 1:
                raise
            return False

    fits(1)  # the first pass also allocates what stays: gradients, workspaces
    low, high = 1, most + 1
    while high - low > max(1, low // 16) and time.perf_counter() - began < SEARCH_S:
        if high <= most:
            guess = (low + high) // 2
        elif low < 4:
            guess = 2 * low
        else:
            before = max(count for count in peaks if count < low)
            slope = max(1.0, (peaks[low] - peaks[before]) / (low - before))
            guess = int(low + (limit - peaks[low]) / slope)
            if guess <= low:
                break
        guess = min(max(guess, low + 1), high - 1)
        if fits(guess):
            low = guess
        else:
            high = guess
    free(device)
    return low
