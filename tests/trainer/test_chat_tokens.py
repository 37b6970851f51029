"""What of a conversation is learnt: pinned on a byte-level tokenizer, where a token is a letter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainer.data.chat_tokens import Sample, TemplateError, template_of, tokenize, tokenize_text
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
    (sample,) = tokenize(tokenizer, turns)
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
    (sample,) = tokenize(tokenizer, turns)
    bytes_learnt = sum(len(word.encode()) for word in words)
    if not any(special in word for word in words for special in ("<|", "|>")):
        assert sum(sample.learnt) == bytes_learnt + len(words)


def test_cutting_keeps_the_beginning(tokenizer: Any) -> None:
    sample = tokenize(tokenizer, [("user", "q"), ("assistant", "abcdef")])[0].cut(24)
    assert len(sample.ids) == len(sample.learnt) == 24
    assert sample.targets < 7


def test_a_template_without_an_end_of_turn_gets_one(tokenizer: Any) -> None:
    import copy

    plain = copy.copy(tokenizer)
    plain.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    assert learnt(plain, tokenize(plain, [("user", "q"), ("assistant", "a")])[0])[-1].endswith("<|im_end|>")


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no') }}",
        "{% for m in messages|reverse %}{{ m['content'] }}{% endfor %}",
    ],
)
def test_templates_that_cannot_be_split_are_refused(tokenizer: Any, template: str) -> None:
    import copy

    odd = copy.copy(tokenizer)
    odd.chat_template = template
    with pytest.raises(TemplateError):
        tokenize(odd, [("user", "q"), ("assistant", "a")])


@pytest.mark.parametrize("opening", ["<|im_start|>assistant\n<think>\n", "<|im_start|>assistant\n\n\n"])
def test_an_answer_without_the_thought_that_the_prompt_opens_is_learnt(tokenizer: Any, opening: str) -> None:
    """As DeepSeek-R1's and Qwen3-Thinking's templates do."""
    import copy

    thinking = copy.copy(tokenizer)
    thinking.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}" + opening + "{% endif %}"
    )
    (sample,) = tokenize(
        thinking, [("user", "q"), ("assistant", "<b> yes"), ("user", "r"), ("assistant", "no")]
    )
    assert "".join(learnt(thinking, sample)) == "<b> yes<|im_end|>no<|im_end|>"


def test_labels_are_the_next_token_and_padding_is_told_by_length() -> None:
    ids, mask, labels = collate(
        [Sample((5, 2, 7, 2), (False, False, True, True)), Sample((4, 2), (True, True))]
    )
    assert ids.tolist() == [[5, 2, 7, 2], [4, 2, 0, 0]]
    assert mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert labels.tolist() == [[IGNORED, 7, 2, IGNORED], [2, IGNORED, IGNORED, IGNORED]]


def test_every_token_of_a_document_but_the_first_is_a_target_once(tokenizer: Any) -> None:
    text = "The quick brown fox, " * 20
    whole = tokenizer(text)["input_ids"]
    pieces = tokenize_text(tokenizer, text, 32)
    assert all(len(piece.ids) <= 32 for piece in pieces)
    assert [token for piece in pieces for token in piece.ids[1:]] == [*whole[1:], tokenizer.eos_token_id]
    assert sum(piece.targets for piece in pieces) == len(whole)


def test_all_tokens_of_a_conversation_are_learnt_when_asked(tokenizer: Any) -> None:
    (sample,) = tokenize(tokenizer, [("user", "q"), ("assistant", "a")], "all")
    assert all(sample.learnt)
    assert tokenizer.decode(sample.ids).startswith("<|im_start|>user\nq")


def test_a_template_that_hides_earlier_thoughts_gives_one_sample_for_each_answer(tokenizer: Any) -> None:
    """As Qwen 3's: the last answer is shown with an (empty) thought, earlier ones without."""
    import copy

    hiding = copy.copy(tokenizer)
    hiding.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{% if loop.last and m['role'] == 'assistant' %}<think></think>{% endif %}"
        "{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    samples = tokenize(hiding, [("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b")])
    assert [learnt(hiding, sample) for sample in samples] == [
        ["<think></think>a<|im_end|>"],
        ["<think></think>b<|im_end|>"],
    ]
    assert "<think></think>a" not in hiding.decode(samples[1].ids)


def test_chatml_closes_with_the_tokenizers_own_end_where_it_knows_no_other(tokenizer: Any) -> None:
    class Bare:
        chat_template = None
        eos_token = "</s>"

        def get_vocab(self) -> dict[str, int]:
            return {"</s>": 0}

    template = template_of(Bare())
    assert template is not None
    assert "{{ m['content'] }}</s>" in template
    assert template_of(tokenizer) is None
