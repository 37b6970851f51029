"""From a row to token ids and the mask of what is learnt: the assistant's words and the end of its turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

LossOn = Literal["answers", "all"]
Messages = Sequence[tuple[str, str]]

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The template for base models whose tokenizer has none."""

_WORD = "lora-ops-answer"
"""Stands for an answer to see what the template puts behind one."""


@dataclass(frozen=True)
class Sample:
    """Token ids of a row; `learnt[i]` says whether token i is a target. Both of the same length."""

    ids: tuple[int, ...]
    learnt: tuple[bool, ...]

    @property
    def targets(self) -> int:
        """How many tokens count in the loss: the first token of a row has nothing that predicts it."""
        return sum(self.learnt[1:])

    def cut(self, length: int) -> Sample:
        """The first `length` tokens."""
        return self if len(self.ids) <= length else Sample(self.ids[:length], self.learnt[:length])


class TemplateError(ValueError):
    """The chat template cannot be split into turns."""


def template_of(tokenizer: Any) -> str | None:
    """The template to use in place of the tokenizer's: None if that has one, else ChatML, whose mark of an
    end of turn is the tokenizer's own end of sequence where it knows no `<|im_end|>`."""
    if tokenizer.chat_template:
        return None
    if "<|im_end|>" in tokenizer.get_vocab() or not tokenizer.eos_token:
        return CHATML
    return CHATML.replace("<|im_end|>", str(tokenizer.eos_token))


def render(tokenizer: Any, messages: Messages, prompt: bool) -> str:
    """The conversation under the tokenizer's chat template; `prompt` adds the assistant's opening. Raises
    TemplateError."""
    from jinja2.exceptions import TemplateError as JinjaError

    try:
        text: str = tokenizer.apply_chat_template(
            [{"role": role, "content": content} for role, content in messages],
            tokenize=False,
            add_generation_prompt=prompt,
            chat_template=template_of(tokenizer),
        )
    except (JinjaError, ValueError, TypeError, KeyError) as error:
        raise TemplateError(f"the chat template refuses it: {error}") from None
    return text


@dataclass(frozen=True)
class _Text:
    """A text to tokenise, the stretches of it (in characters) that are learnt, and whether the template marks
    the end of a turn."""

    text: str
    spans: tuple[tuple[int, int], ...]
    marked: bool


def end_of_turn(tokenizer: Any) -> str:
    """What the template puts behind an answer; empty where it is nothing but white space."""
    said = render(tokenizer, [("user", _WORD), ("assistant", _WORD)], prompt=False)
    return said.rpartition(_WORD)[2].strip()


def _answers(tokenizer: Any, messages: Messages) -> list[_Text]:
    """Each assistant turn with its mark, without the white space after that. One text, or one for each turn
    where the template shows earlier turns otherwise once later ones follow (as those that hide thoughts do).
    """
    whole = render(tokenizer, messages, prompt=False)
    marked = bool(end_of_turn(tokenizer))
    turns: list[_Text] = []
    for number, (role, _) in enumerate(messages):
        if role != "assistant":
            continue
        before = render(tokenizer, messages[:number], prompt=True)
        after = render(tokenizer, messages[: number + 1], prompt=False)
        if not after.startswith(before):  # as where the prompt opens a thought that this answer has not
            probe = render(tokenizer, [*messages[:number], ("assistant", _WORD)], prompt=False)
            before = probe.rpartition(_WORD)[0]
            if not before or not after.startswith(before):
                raise TemplateError("the chat template does not put the answer behind its prompt")
        turns.append(_Text(after, ((len(before), len(after.rstrip())),), marked))
    if all(whole.startswith(turn.text.rstrip()) for turn in turns):
        return [_Text(whole, tuple(span for turn in turns for span in turn.spans), turns[-1].marked)]
    return turns


def tokenize(tokenizer: Any, messages: Messages, loss_on: LossOn = "answers") -> list[Sample]:
    """Token ids of a conversation with the mask from character offsets; mostly one sample, see `_answers`.

    A last turn that the template closes with no marker gets the end-of-sequence token, so that the model
    learns to stop. Raises TemplateError.
    """
    texts = _answers(tokenizer, messages)
    if loss_on == "all":
        whole = render(tokenizer, messages, prompt=False)
        texts = [_Text(whole, ((0, len(whole)),), texts[-1].marked if texts else True)]
    samples = []
    for text in texts:
        encoded = tokenizer(text.text, add_special_tokens=False, return_offsets_mapping=True)
        ids = list(encoded["input_ids"])
        learnt = [
            end > start and any(start < b and end > a for a, b in text.spans)
            for start, end in encoded["offset_mapping"]
        ]
        ends = len(texts) > 1 or messages[-1][0] == "assistant"
        if not text.marked and ends and tokenizer.eos_token_id is not None:
            ids.append(int(tokenizer.eos_token_id))
            learnt.append(True)
        samples.append(Sample(tuple(ids), tuple(learnt)))
    return samples


def tokenize_text(tokenizer: Any, text: str, max_length: int) -> list[Sample]:
    """A document with the tokenizer's own marks and an end of sequence, in pieces of at most `max_length`
    tokens. A piece begins with the last token of the one before it: each token but the first is a target
    exactly once."""
    ids: list[int] = list(tokenizer(text)["input_ids"])
    end = tokenizer.eos_token_id
    if end is not None and ids[-1:] != [int(end)]:
        ids.append(int(end))
    starts = range(0, max(1, len(ids) - 1), max_length - 1)
    pieces = [tuple(ids[start : start + max_length]) for start in starts]
    return [Sample(piece, (True,) * len(piece)) for piece in pieces]
