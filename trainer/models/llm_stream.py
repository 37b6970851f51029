"""Rows one behind the other without padding, each seeing only itself: what every layer but attention takes as
one long row, attention takes row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.data.chat_tokens import Sample

ATTENTION = "rows"
"""The name that `use_rows` registers with transformers."""


@dataclass(frozen=True)
class Rows:
    """Where the rows of a stream end. `bounds`: int32 (rows + 1,), on the device: 0, then sums of lengths."""

    lengths: tuple[int, ...]
    bounds: Tensor
    longest: int


@dataclass(frozen=True)
class Stream:
    """T tokens of several rows. `ids`, `positions`: int64 (1, T), positions from 0 in each row; `kept`: int64
    (K,), the places in T that predict a target; `labels`: int64 (K,), those targets."""

    ids: Tensor
    positions: Tensor
    kept: Tensor
    labels: Tensor
    rows: Rows


def stream(samples: Sequence[Sample], device: torch.device) -> Stream:
    """The samples one behind the other. The last token of a row predicts nothing."""
    lengths = tuple(len(sample.ids) for sample in samples)
    bounds = torch.tensor((0, *lengths), dtype=torch.int32).cumsum(0, dtype=torch.int32)
    ids = torch.tensor([token for sample in samples for token in sample.ids])
    learnt = torch.tensor([wanted for sample in samples for wanted in (False, *sample.learnt[1:])])
    following = learnt.nonzero().flatten()
    positions = torch.cat([torch.arange(length) for length in lengths])

    def put(tensor: Tensor) -> Tensor:
        return tensor.to(device, non_blocking=True)

    rows = Rows(lengths, put(bounds), max(lengths))
    return Stream(put(ids[None]), put(positions[None]), put(following - 1), put(ids[following]), rows)


def use_rows(model: Any) -> None:
    """Make `model`'s attention respect `rows=` (see `Rows`), which is then to be given with every call."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, _attention)
    model.set_attn_implementation(ATTENTION)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    rows: Rows,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside each row. Query (1, H, T, D), key and value (1, G, T, D), H a multiple of G;
    gives (1, T, H, D). Attention dropout is left out: the base is frozen. Raises NotImplementedError for what
    some models need besides (soft caps, sinks, biases)."""
    unknown = [name for name in ("softcap", "s_aux", "position_bias") if others.get(name) is not None]
    if unknown or attention_mask is not None:
        raise NotImplementedError(f"attention with {', '.join(unknown) or 'a mask'}")
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and query.shape[-1] <= 256:
        return _varlen(query, key, value, rows, scaling, sliding_window), None
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    parts = []
    for q, k, v in zip(*(tensor.split(rows.lengths, dim=2) for tensor in (query, key, value)), strict=True):
        mask = _window(q.shape[2], sliding_window, q.device)
        parts.append(
            functional.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling
            )
        )
    return torch.cat(parts, dim=2).transpose(1, 2), None


def _window(length: int, window: int | None, device: torch.device) -> Tensor | None:
    """The mask of a row longer than its sliding window, bool (T, T)."""
    if window is None or length <= window:
        return None
    places = torch.arange(length, device=device)
    back = places[:, None] - places[None, :]
    return (back >= 0) & (back < window)


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, rows: Rows, scaling: float | None, window: int | None
) -> Tensor:
    """torch's own flash attention over rows of any length, in one kernel."""
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (tensor.squeeze(0).transpose(0, 1).contiguous() for tensor in (query, key, value))
    found = varlen_attn(
        q,
        k.to(q.dtype),
        v.to(q.dtype),
        rows.bounds,
        rows.bounds,
        rows.longest,
        rows.longest,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    assert isinstance(found, Tensor)
    return found[None]
