"""Stable Diffusion XL: two text encoders, and the sizes that a picture had and was cut to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.data.buckets import Size
from trainer.data.variants import View
from trainer.models.sd import StableDiffusion
from trainer.models.sd_layers import moved


class StableDiffusionXL(StableDiffusion):
    """As SD, with the second encoder's `text_embeds` and with `time_ids` (Podell et al. 2023, 2.2)."""

    def conditions(self, seen: Sequence[tuple[Size, View]]) -> dict[str, Tensor] | None:
        ids = [time_ids(original, view) for original, view in seen]
        return {"time_ids": moved(torch.tensor(ids, dtype=torch.float32), self.setup.device)}


def time_ids(original: Size, view: View) -> tuple[int, ...]:
    """Original size, crop and target size, as (height, width), (top, left), (height, width), in pixels. A
    mirrored view is a cut out of the mirrored picture."""
    left, top = view.offset
    if view.flip:
        left = view.scaled[0] - view.size[0] - left
    return (*original[::-1], top, left, *view.size[::-1])
