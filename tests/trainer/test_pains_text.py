"""What hurts users of other trainers of language models, and what they see here instead."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.language import Make, family_on, gradients, rngs, stir
from trainer.data import check_dataset
from trainer.errors import ConfigError, DataError, TrainerError
from trainer.models.llm import _GradientWatch, collate


def test_pain_l1_the_end_of_turn_is_learnt_though_it_is_the_pad_token(text_config: Make) -> None:
    """unsloth#416: pad = eos, masked as padding; the model never stops."""
    family = family_on(text_config())
    stop = family.tokenizer.eos_token_id
    assert stop == family.tokenizer.pad_token_id
    samples = [sample for rows in family.packs for sample in rows]
    for sample in samples:
        ends = [place for place, token in enumerate(sample.ids) if token == stop]
        assert any(sample.learnt[place] for place in ends)
    _, mask, labels = collate(samples)
    assert all(int(row.sum()) == len(sample.ids) for row, sample in zip(mask, samples, strict=True))
    assert all((row == stop).any() for row in labels)
    (first, *_) = samples
    quiet = type(first)(
        first.ids, tuple(w and t != stop for w, t in zip(first.learnt, first.ids, strict=True))
    )
    assert quiet.targets < first.targets
    family.packs = [(quiet,), (first,)]
    assert float(family.loss([1], rngs(1)).detach()) > float(family.loss([0], rngs(1)).detach())


def test_pain_l2_l4_packed_is_unpacked_is_accumulated(text_config: Make) -> None:
    """trl#805 (rows see each other), unsloth#1169 (means of means): loss and gradients are the same however
    the rows are cut."""
    packed = family_on(text_config(max_length=300, packing=True))
    single = family_on(text_config())
    for family in (packed, single):
        stir(family)
    assert len(packed.packs) == 1
    assert len(single.packs) == 4
    lengths = {sample.targets for rows in single.packs for sample in rows}
    assert len(lengths) > 1, "rows of one length would hide a mean of means"
    wanted, wanted_grads = gradients(single, [[0, 1, 2, 3]])
    for family, batches in ((packed, [[0]]), (single, [[0], [1], [2], [3]]), (single, [[0, 1, 2], [3]])):
        loss, grads = gradients(family, batches)
        assert loss == pytest.approx(wanted, rel=1e-5)
        for name, grad in wanted_grads.items():
            torch.testing.assert_close(grads[name], grad, rtol=1e-4, atol=1e-5)


def test_pain_l2_what_a_row_says_does_not_reach_its_neighbour(text_config: Make) -> None:
    family = family_on(text_config(max_length=300, packing=True))
    stir(family)
    first, *others = family.packs[0]
    changed = type(first)(tuple(reversed(first.ids)), (False,) * len(first.ids))
    silent = type(first)(first.ids, (False,) * len(first.ids))
    family.packs = [(silent, *others), (changed, *others)]
    before, after = (family.loss([index], rngs(1)).detach() for index in (0, 1))
    torch.testing.assert_close(before, after, rtol=1e-6, atol=0)


def _rows(folder: Path, *answers: str) -> Path:
    folder.mkdir()
    question = "x" * 60
    rows = [
        {
            "messages": [
                {"role": "user", "content": question[: 60 - n]},
                {"role": "assistant", "content": answer},
            ]
        }
        for n, answer in enumerate(answers)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_pain_l3_rows_without_a_target_are_told_and_refused_when_none_is_left(
    text_config: Make, tmp_path: Path
) -> None:
    """trl#6668: every label is -100, the loss is 0.0 or NaN, the run "succeeds"."""
    with pytest.raises(DataError, match=r"no token to learn within max_length 40 in 2 rows .*rows\.jsonl:1"):
        family_on(text_config(train_data_dir=_rows(tmp_path / "none", "a", "b"), max_length=40), build=False)
    folder = _rows(tmp_path / "some", "a", "b")
    with (folder / "rows.jsonl").open("a") as file:
        file.write(
            '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}\n'
        )
    family = family_on(text_config(train_data_dir=folder, max_length=40), build=False)
    report = check_dataset(family.config)
    family.prepare(report.items, report)
    assert any("rows.jsonl:1" in warning and "left out" in warning for warning in report.warnings)
    assert all(sample.targets for rows in family.packs for sample in rows)


def test_pain_l5_a_quantised_base_is_not_merged_into(
    text_config: Make, tiny_lm: Path, tmp_path: Path
) -> None:
    """transformers#31293: what was trained is rounded away."""
    import shutil

    base = tmp_path / "four-bit"
    shutil.copytree(tiny_lm, base)
    values = json.loads((base / "config.json").read_text())
    values["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (base / "config.json").write_text(json.dumps(values))
    for changes in ({"merge": True}, {"gguf": "f16"}):
        with pytest.raises(ConfigError, match="quantised"):
            family_on(text_config(base_model=base, **changes), build=False)


def test_pain_l6_checkpointing_trains_every_matrix_and_a_deaf_one_is_named(text_config: Make) -> None:
    """peft#1142: reentrant checkpointing behind frozen embeddings gives no gradient at all."""
    family = family_on(text_config(gradient_checkpointing=True, packing=True))
    plain = family_on(text_config(packing=True))
    assert all(layer.gradient_checkpointing for layer in family.model.model.layers)
    loss, grads = gradients(family, [[0]])
    wanted, wanted_grads = gradients(plain, [[0]])
    assert loss == pytest.approx(wanted, rel=1e-6)
    ups = [name for name in grads if "lora_B" in name]
    assert ups
    assert all(bool(grads[name].abs().sum() > 0) for name in ups)
    for name, grad in wanted_grads.items():
        torch.testing.assert_close(grads[name], grad, rtol=1e-5, atol=1e-7)
    family.loss([0], rngs(1))
    assert family._watch is None, "looked at once, after the first backward"

    heard, deaf = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
    watch = _GradientWatch({"a.lora_B": heard, "b.lora_B": deaf})
    heard.sum().backward()
    with pytest.raises(TrainerError, match=r"1 of 2 .*b\.lora_B"):
        watch.check()


def test_pain_l6_a_deaf_matrix_stops_the_second_step(text_config: Make) -> None:
    family: Any = family_on(text_config())
    name, parameter = next(iter(family.groups[0].parameters.items()))
    parameter.requires_grad_(False)
    family.loss([0], rngs(1)).backward()
    with pytest.raises(TrainerError, match="no gradient"):
        family.loss([0], rngs(1))
    assert name
