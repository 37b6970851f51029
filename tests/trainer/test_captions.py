from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.config import TrainConfig, config_from
from trainer.data.captions import holds, parts, plain, texts

words = st.text("abcdeé ", min_size=1, max_size=8).map(str.strip).filter(bool)
captions = st.lists(words, min_size=1, max_size=7).map(", ".join)


def config(**changes: Any) -> TrainConfig:
    return config_from({"train_data_dir": "d", "base_model": "m", "output_dir": "o", **changes})


@given(captions)
def test_a_caption_stays_as_it_is_by_default(caption: str) -> None:
    assert texts(caption, config(), "k") == [caption]


@given(captions, st.integers(0, 4), st.integers(0, 99), st.integers(1, 8))
def test_every_shuffle_is_a_permutation_that_keeps_what_is_to_be_kept(
    caption: str, keep: int, seed: int, variants: int
) -> None:
    made = config(caption_shuffle=True, keep_tokens=keep, seed=seed, cache_variants=variants)
    found = texts(caption, made, "k")
    assert found == texts(caption, made, "k")
    assert 1 <= len(found) <= variants
    assert len(set(found)) == len(found)
    pieces = parts(caption, ",")
    for text in found:
        assert sorted(parts(text, ",")) == sorted(pieces)
        assert parts(text, ",")[:keep] == pieces[:keep]


def test_pictures_with_one_caption_are_shuffled_each_in_its_own_way() -> None:
    made, caption = config(caption_shuffle=True), "a, b, c, d, e, f, g, h"
    assert texts(caption, made, "one") != texts(caption, made, "other")
    assert len(texts(caption, made, "one")) > 1


@given(captions, st.booleans(), st.sampled_from(["", "photo of", "sks,"]), st.sampled_from(["", ", film"]))
def test_the_trigger_word_is_there_once(caption: str, shuffle: bool, prefix: str, suffix: str) -> None:
    made = config(trigger_word="sks", caption_shuffle=shuffle, caption_prefix=prefix, caption_suffix=suffix)
    for text in texts(caption, made, "k"):
        assert len(re.findall(r"\bsks\b", text)) == 1
        assert text.startswith("sks" if prefix != "photo of" else "sks, photo of")
        assert text.endswith(suffix)
    (held,) = texts("a photo of SKS dog", config(trigger_word="sks"), "k")
    assert held == "a photo of SKS dog"


@pytest.mark.parametrize(
    ("prefix", "suffix", "text"),
    [
        ("photo of ", "", "photo of a cat"),
        ("photo of", ", best", "photo of a cat, best"),
        ("", "on film", "a cat on film"),
    ],
)
def test_prefix_and_suffix(prefix: str, suffix: str, text: str) -> None:
    made = config(caption_prefix=prefix, caption_suffix=suffix)
    assert texts("a cat", made, "k") == [plain("a cat", made)] == [text]


def test_another_separator() -> None:
    made = config(caption_shuffle=True, caption_separator=";", keep_tokens=1, cache_variants=64)
    assert set(texts("a, b; c; d", made, "k")) == {"a, b; c; d", "a, b; d; c"}


def test_a_word_is_not_a_part_of_a_word() -> None:
    assert holds("a (sks) dog", "sks")
    assert holds("A Sks Dog", "sks dog")
    assert not holds("asks", "sks")
