"""Proof that it learns: a LoRA on 20 pictures, judged by classifiers that know only real pictures."""

from __future__ import annotations

import numpy as np
import pytest

from examples import learn_style as example
from examples.make_digits_model import WORDS, digits, painted

pytest.importorskip("sklearn", reason="the digits and the classifiers come with scikit-learn")

PROMPTS = example.PROMPTS * 3
"""30 pictures, each from noise of its own."""


def classifier(pictures, classes):
    """Plain logistic regression on pixels."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=200).fit(flat(pictures), classes)


def flat(pictures):
    return pictures.reshape(len(pictures), -1).astype(np.float64) / 255


@pytest.fixture(scope="module")
def real():
    """Real digits in the base's style and in the new one, and what they are; none of the 20 among them."""
    ink, classes = digits()
    ink, classes = ink[100:1100], classes[100:1100]
    return painted(ink), painted(ink, example.INK, example.PAPER), classes


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    return example.train(tmp_path_factory.mktemp("learns") / "run")


@pytest.fixture(scope="module")
def samples(adapter):
    """What diffusers paints of the same prompts and noise: (without the LoRA, with it)."""
    return example.paint(PROMPTS), example.paint(PROMPTS, adapter)


@pytest.mark.models
def test_samples_carry_the_style_with_the_lora_and_not_without(real, samples):
    plain, styled, _ = real
    judge = classifier(np.concatenate([plain[:300], styled[:300]]), np.repeat([0, 1], 300))
    assert judge.score(flat(np.concatenate([plain[300:600], styled[300:600]])), np.repeat([0, 1], 300)) == 1
    without, carried = (float(judge.predict(flat(each)).mean()) for each in samples)
    assert carried >= 0.9, f"{carried:.2f} of the samples with the LoRA carry the style"
    assert without <= 0.6, f"{without:.2f} of the samples without the LoRA carry the style"


@pytest.mark.models
def test_the_digits_of_the_prompts_stay_what_they_are(real, samples):
    """One in ten by chance. The judge of each half has seen real digits in that half's colours only."""
    plain, styled, classes = real
    wanted = np.arange(len(PROMPTS)) % len(WORDS)
    for painted_ones, shown in ((plain, samples[0]), (styled, samples[1])):
        right = float((classifier(painted_ones, classes).predict(flat(shown)) == wanted).mean())
        assert right >= 0.7, f"{right:.2f} of the samples show the digit of their prompt"
