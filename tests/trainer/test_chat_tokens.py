"""What of a conversation is learnt: pinned on a byte-level tokenizer, where a token is a letter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainer.data.chat_tokens import Sample, TemplateError, tokenize
from trainer.models.llm import IGNORED, collate


@pytest.fixture(scope="module")
def tokenizer(tiny_lm: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(tiny_lm), local_files_only=True)


def learnt(tokenizer: Any, sample: Sample) -> list[str]:
    """The learnt stretches as text."""
    runs: list[list[int]] = []
    before = False
    for token, wanted in zip(sample.ids, sample.learnt, strict=True):
        if wanted:
            runs = runs if before else [*runs, []]
            runs[-1].append(token)
        before = wanted
    return [tokenizer.decode(run) for run in runs]


def test_the_assistants_words_and_the_end_of_turn_and_nothing_else(tokenizer: Any) -> None:
    turns = [("system", "s"), ("user", "q"), ("assistant", "a b"), ("user", "r"), ("assistant", "c")]
    sample = tokenize(tokenizer, turns, 500)
    assert learnt(tokenizer, sample) == ["a b<|im_end|>", "c<|im_end|>"]
    assert tokenizer.pad_token_id == tokenizer.eos_token_id, (
        "the trap: end of turn must not be masked as padding"
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip),
        min_size=1,
        max_size=4,
    )
)
def test_whatever_is_said_the_mask_holds_the_answers(tokenizer: Any, words: list[str]) -> None:
    turns = [turn for word in words for turn in (("user", word), ("assistant", word))]
    sample = tokenize(tokenizer, turns, 100_000)
    bytes_learnt = sum(len(word.encode()) for word in words)
    if not any(special in word for word in words for special in ("<|", "|>")):
        assert sum(sample.learnt) == bytes_learnt + len(words)


def test_cutting_keeps_the_beginning(tokenizer: Any) -> None:
    sample = tokenize(tokenizer, [("user", "q"), ("assistant", "abcdef")], 24)
    assert len(sample.ids) == len(sample.learnt) == 24
    assert sample.targets < 7


def test_a_template_without_an_end_of_turn_gets_one(tokenizer: Any) -> None:
    import copy

    plain = copy.copy(tokenizer)
    plain.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    assert learnt(plain, tokenize(plain, [("user", "q"), ("assistant", "a")], 99))[-1].endswith("<|im_end|>")


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no') }}",
        "{% for m in messages %}{{ messages|length }}{{ m['content'] }}{% endfor %}",
    ],
)
def test_templates_that_cannot_be_split_are_refused(tokenizer: Any, template: str) -> None:
    import copy

    odd = copy.copy(tokenizer)
    odd.chat_template = template
    with pytest.raises(TemplateError):
        tokenize(odd, [("user", "q"), ("assistant", "a")], 99)


def test_labels_are_the_next_token_and_padding_is_told_by_length() -> None:
    ids, mask, labels = collate(
        [Sample((5, 2, 7, 2), (False, False, True, True)), Sample((4, 2), (True, True))]
    )
    assert ids.tolist() == [[5, 2, 7, 2], [4, 2, 0, 0]]
    assert mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert labels.tolist() == [[IGNORED, 7, 2, IGNORED], [2, IGNORED, IGNORED, IGNORED]]


def test_the_loss_is_transformers_own_on_the_same_tokens(tiny_lm: Path) -> None:
    """Only rows that predict a target reach the output layer; the value must not change."""
    from types import SimpleNamespace

    from transformers import AutoModelForCausalLM

    from trainer.models.llm import CausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(str(tiny_lm), local_files_only=True)
    samples = [
        Sample(tuple(range(3, 20)), tuple(n > 9 for n in range(17))),
        Sample((9, 8, 7, 6), (False, True, False, True)),
    ]
    family: Any = SimpleNamespace(
        samples=samples, model=model, setup=SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32)
    )
    mine = CausalLM.loss(family, [0, 1], [torch.Generator()] * 2).detach()
    wanted = 0.0
    for sample in samples:
        ids = torch.tensor([sample.ids])
        labels = torch.where(torch.tensor([sample.learnt]), ids, IGNORED)
        with torch.no_grad():
            wanted += float(model(ids, labels=labels).loss) * sample.targets
    assert float(mine) == pytest.approx(wanted, rel=1e-5)
