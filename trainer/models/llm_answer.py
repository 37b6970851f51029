"""Let a causal language model speak: greedy, or drawn with a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from trainer.data.chat_tokens import Messages, end_of_turn, render


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. A temperature of 0 takes the likeliest one and draws nothing."""

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int = 0


def answer(model: Any, tokenizer: Any, messages: Messages, sampling: Sampling) -> str:
    """The assistant's next turn, without special tokens. Raises TemplateError."""
    text = render(tokenizer, messages, prompt=True)
    mark = tokenizer(end_of_turn(tokenizer), add_special_tokens=False)["input_ids"]
    return _speak(model, tokenizer, text, sampling, special=False, stop=mark[:1] * (len(mark) == 1)).strip()


def go_on(model: Any, tokenizer: Any, text: str, sampling: Sampling) -> str:
    """What follows `text` in a document."""
    return _speak(model, tokenizer, text, sampling, special=True)


def _speak(
    model: Any, tokenizer: Any, text: str, sampling: Sampling, *, special: bool, stop: Sequence[int] = ()
) -> str:
    """`special`: let the tokenizer put its own beginning before `text`. `stop`: tokens that end it besides
    the tokenizer's and the model's own. The global random state is kept."""
    encoded = tokenizer(text, add_special_tokens=special, return_tensors="pt")
    ids = encoded["input_ids"].to(model.device)
    own = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own]), *stop} - {None}
    how: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if sampling.temperature > 0:
        how = {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
        }
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.inference_mode(), torch.random.fork_rng(devices=devices):
        torch.manual_seed(sampling.seed)
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=sampling.max_new_tokens,
            repetition_penalty=sampling.repetition_penalty,
            eos_token_id=sorted(ends) or None,
            pad_token_id=tokenizer.pad_token_id
            if tokenizer.pad_token_id is not None
            else min(ends, default=0),
            **how,
        )
    said: str = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    return said
