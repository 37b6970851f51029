"""Captions to what the UNet looks at: tokens in chunks, one or two CLIP encoders, through the cache."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trainer.fast_imports import lean_imports
from trainer.models import sd_cache
from trainer.models.sd_layers import moved
from trainer.models.sd_parts import Parts
from trainer.quiet import quiet

CODE = 2
"""Raise it when this file computes something else."""

ROOM = 75
"""Tokens of a chunk, without its start and its end: every CLIP was trained on 77 positions."""


BATCH = 64
"""Captions that the encoders read at once on an accelerator; one on the CPU, as with pictures."""


@dataclass(frozen=True)
class Embedded:
    """`states`: (B, tokens, width); `pooled`: (B, width of the second encoder), SDXL only."""

    states: Tensor
    pooled: Tensor | None = None

    @staticmethod
    def stack(each: Sequence[Embedded]) -> Embedded:
        """One batch out of several."""
        pooled = [one.pooled for one in each if one.pooled is not None]
        return Embedded(torch.cat([one.states for one in each]), torch.cat(pooled) if pooled else None)

    def to(self, device: torch.device, dtype: torch.dtype) -> Embedded:
        """In that format on that device; what comes from the CPU is not waited for."""
        pooled = None if self.pooled is None else _to(self.pooled, device, dtype)
        return Embedded(_to(self.states, device, dtype), pooled)


@dataclass(frozen=True)
class Tokens:
    """`ids`: for each encoder int64 (chunks, 77), each chunk with its own start and end; `count`: the tokens
    of the caption, which may be more than fit."""

    ids: tuple[Tensor, ...]
    count: int


class Texts:
    """The tokenizers and text encoders of a model. `chunks`: how many times 75 tokens a caption may have."""

    def __init__(self, parts: Parts, chunks: int) -> None:
        self.parts, self.chunks = parts, chunks
        self.models: dict[str, nn.Module] = {}
        self._tokenizers: list[Any] = []

    def load(self, dtype: torch.dtype = torch.float32) -> dict[str, nn.Module]:
        """The encoders by name, on the device; the first call decides on the number format."""
        if not self.models:
            with lean_imports():
                for name in self.parts.encoders:
                    model = self.parts.load_text(name, dtype).to(self.parts.setup.device)
                    self.models[name] = model.eval().requires_grad_(False)
        return self.models

    def forget(self) -> None:
        """Let the encoders go."""
        self.models = {}

    def tokenize(self, caption: str) -> Tokens:
        """Cut at 75 tokens a chunk, filled up with the tokenizer's own padding."""
        if not self._tokenizers:
            with lean_imports():
                self._tokenizers = [self.parts.load_tokenizer(name) for name in self.parts.encoders]
            quiet()
        ids, count = [], 0
        for tokenizer in self._tokenizers:
            words = tokenizer(caption, add_special_tokens=False, truncation=False).input_ids
            count = max(count, len(words))
            rows = []
            for chunk in range(self.chunks):
                part = words[chunk * ROOM : (chunk + 1) * ROOM]
                row = [tokenizer.bos_token_id, *part, tokenizer.eos_token_id]
                rows.append(row + [tokenizer.pad_token_id] * (ROOM + 2 - len(row)))
            ids.append(torch.tensor(rows))
        return Tokens(tuple(ids), count)

    def embed(self, tokens: Sequence[Tokens]) -> Embedded:
        """Run the encoders, chunk by chunk, outputs joined: SD takes the last layer after the final norm,
        SDXL the last but one of both encoders and the second one's projection of the first chunk."""
        states, pooled = [], None
        for place, (name, model) in enumerate(self.load().items()):
            ids = torch.stack([one.ids[place] for one in tokens]).to(self.parts.setup.device)
            double = len(self.parts.encoders) > 1
            output: Any = model(ids.flatten(0, 1), output_hidden_states=double)
            layer: Tensor = output.hidden_states[-2] if double else output.last_hidden_state
            states.append(layer.reshape(len(tokens), -1, layer.shape[-1]))
            if name == "text_encoder_2":
                pooled = output.text_embeds.reshape(len(tokens), self.chunks, -1)[:, 0]
        return Embedded(torch.cat(states, dim=-1), pooled)

    def through_cache(self, captions: Iterable[str]) -> tuple[dict[str, Embedded], dict[str, int]]:
        """({caption: float32 on the CPU, a batch of one}, {caption: its number of tokens})."""
        cache = self.parts.setup.cache
        identity = self.parts.identity(*self.parts.encoders)
        wanted = list(dict.fromkeys(captions))
        keys = [
            {"caption": caption, "encoder": identity, "chunks": self.chunks, "code": CODE}
            for caption in wanted
        ]
        kept = [sd_cache.find(cache, "texts", key) for key in keys]
        missing = [number for number, tensors in enumerate(kept) if tensors is None]
        size = 1 if self.parts.setup.device.type == "cpu" else BATCH
        for place in range(0, len(missing), size):
            batch = missing[place : place + size]
            for number, tensors in zip(batch, self._encode([wanted[n] for n in batch]), strict=True):
                kept[number] = tensors
                sd_cache.put(cache, "texts", keys[number], tensors)
        found = {caption: tensors for caption, tensors in zip(wanted, kept, strict=True) if tensors}
        return (
            {caption: Embedded(each["states"], each.get("pooled")) for caption, each in found.items()},
            {caption: int(each["count"]) for caption, each in found.items()},
        )

    def _encode(self, captions: Sequence[str]) -> list[sd_cache.Tensors]:
        tokens = [self.tokenize(caption) for caption in captions]
        with torch.no_grad():
            embedded = self.embed(tokens).to(torch.device("cpu"), torch.float32)
        each: list[sd_cache.Tensors] = []
        for place, one in enumerate(tokens):
            tensors = {"states": embedded.states[place : place + 1].clone(), "count": torch.tensor(one.count)}
            if embedded.pooled is not None:
                tensors["pooled"] = embedded.pooled[place : place + 1].clone()
            each.append(tensors)
        return each


def _to(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    if tensor.device.type == "cpu":
        return moved(tensor.to(dtype), device)
    return tensor.to(device, dtype)
