"""From a conversation to token ids and the mask of what is learnt: assistant's words, end of turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The template for base models whose tokenizer has none."""


@dataclass(frozen=True)
class Sample:
    """Token ids of a row; `learnt[i]` says whether token i is a target. Both of the same length."""

    ids: tuple[int, ...]
    learnt: tuple[bool, ...]

    @property
    def targets(self) -> int:
        """How many tokens count in the loss: the first token of a row has nothing that predicts it."""
        return sum(self.learnt[1:])


class TemplateError(ValueError):
    """The chat template cannot be split into turns."""


def render(tokenizer: Any, messages: Sequence[tuple[str, str]], prompt: bool) -> str:
    """The conversation under the tokenizer's chat template; `prompt` adds the assistant's opening."""
    from jinja2.exceptions import TemplateError as JinjaError

    try:
        text: str = tokenizer.apply_chat_template(
            [{"role": role, "content": content} for role, content in messages],
            tokenize=False,
            add_generation_prompt=prompt,
            chat_template=None if tokenizer.chat_template else CHATML,
        )
    except (JinjaError, ValueError, TypeError, KeyError) as error:
        raise TemplateError(f"the chat template refuses it: {error}") from None
    return text


def spans(tokenizer: Any, messages: Sequence[tuple[str, str]]) -> tuple[str, list[tuple[int, int]], bool]:
    """(text, [(start, end) in characters of what is learnt], whether the template marks the end of a turn):
    each assistant turn with its mark, without the white space after that. Raises TemplateError."""
    text = render(tokenizer, messages, prompt=False)
    found: list[tuple[int, int]] = []
    marked = True
    for number, (role, content) in enumerate(messages):
        if role != "assistant":
            continue
        before = render(tokenizer, messages[:number], prompt=True)
        after = render(tokenizer, messages[: number + 1], prompt=False)
        if not after.startswith(before) or not text.startswith(after.rstrip()):
            raise TemplateError("the chat template changes earlier turns when later ones are added")
        found.append((len(before), len(after.rstrip())))
        marked = bool(after[len(before) :].strip().removeprefix(content.strip()).strip())
    return text, found, marked


def tokenize(tokenizer: Any, messages: Sequence[tuple[str, str]], max_length: int) -> Sample:
    """Token ids, cut at `max_length`, with the mask from character offsets. A turn that the template closes
    with no marker gets the end-of-sequence token, so that the model learns to stop. Raises TemplateError."""
    text, learnt_spans, marked = spans(tokenizer, messages)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = list(encoded["input_ids"])
    learnt = [
        end > start and any(start < b and end > a for a, b in learnt_spans)
        for start, end in encoded["offset_mapping"]
    ]
    if not marked and messages[-1][0] == "assistant" and tokenizer.eos_token_id is not None:
        ids.append(int(tokenizer.eos_token_id))
        learnt.append(True)
    return Sample(tuple(ids[:max_length]), tuple(learnt[:max_length]))
