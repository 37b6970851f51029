"""Language models: rows in one stream, the output layer in pieces, the fused adapter: the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from tests.trainer.language import Make, family_on, gradients, rngs, stir, tiny
from trainer.data.packing import pack
from trainer.models import llm_head
from trainer.models.llm_head import cross_entropy


@given(st.lists(st.integers(1, 60), max_size=60), st.integers(20, 50))
def test_packing_loses_no_row_and_fills_no_bin_over(lengths: list[int], capacity: int) -> None:
    bins = pack(lengths, capacity)
    assert sorted(row for rows in bins for row in rows) == list(range(len(lengths)))
    assert all(len(rows) == 1 or sum(lengths[row] for row in rows) <= capacity for rows in bins)
    fitting = sum(min(length, capacity) for length in lengths)
    assert (
        len(bins)
        <= 11 / 9 * max(-(-fitting // capacity), sum(length > capacity / 2 for length in lengths)) * 1.3 + 4
    )


def test_packing_takes_the_fullest_bin_that_fits() -> None:
    assert pack([5, 3, 7, 2, 1], 10) == [(2, 1), (0, 3, 4)]


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "gpt2", "gemma2", "bloom"])
def test_the_loss_of_a_pack_is_transformers_own_of_its_rows(
    kind: str, trainer_home: Path, tiny_lm: Path, text_config: Make
) -> None:
    """Whatever way the family chose for this architecture."""
    from transformers import AutoModelForCausalLM

    base = tiny(trainer_home / f"tiny-{kind}", tiny_lm, kind)
    family = family_on(text_config(base_model=base, max_length=200, packing=True))
    assert len(family.packs) == 1
    model: Any = AutoModelForCausalLM.from_pretrained(
        str(base), local_files_only=True, attn_implementation="eager"
    ).eval()
    wanted = 0.0
    for sample in family.packs[0]:
        ids = torch.tensor([sample.ids])
        labels = torch.where(torch.tensor([sample.learnt]), ids, -100)
        with torch.no_grad():
            wanted += float(model(ids, labels=labels).loss) * sample.targets
    assert float(family.loss([0], rngs(1)).detach()) == pytest.approx(wanted, rel=1e-5)
    way = family._rows_loss.__name__
    assert way == {"gemma2": "_padded_loss", "bloom": "_padded_loss"}.get(kind, "_hidden_loss")


def test_the_output_layer_in_pieces_gives_the_same_loss_and_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm_head, "_FLOATS", {"cpu": 11 * 16})
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(50, 8, generator=generator).requires_grad_()
    weight, bias = torch.randn(11, 8, generator=generator), torch.randn(11, generator=generator)
    labels = torch.randint(11, (50,), generator=generator)
    wanted = functional.cross_entropy(functional.linear(hidden, weight, bias), labels, reduction="sum")
    (wanted_grad,) = torch.autograd.grad(wanted / 7, hidden)
    mine = cross_entropy(hidden, weight, bias, labels)
    (mine_grad,) = torch.autograd.grad(mine / 7, hidden)
    torch.testing.assert_close(mine, wanted)
    torch.testing.assert_close(mine_grad, wanted_grad)
    with torch.no_grad():
        torch.testing.assert_close(cross_entropy(hidden, weight, bias, labels), wanted)


def test_the_fused_adapter_is_pefts_with_its_gradients(
    text_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused = family_on(text_config(lora_alpha=6))
    monkeypatch.setattr("trainer.models.llm.fuse", lambda model: (0, 1))
    plain = family_on(text_config(lora_alpha=6))
    for family in (fused, plain):
        stir(family)
    (loss, grads), (wanted, wanted_grads) = gradients(fused, [[0]]), gradients(plain, [[0]])
    assert loss == pytest.approx(wanted, rel=1e-6)
    for name, grad in wanted_grads.items():
        torch.testing.assert_close(grads[name], grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"dora": True},
        {"rslora": True},
        {"init": "pissa"},
        {"lora_dropout": 0.5},
        {"target_modules": ["q_proj", "lm_head"]},
        {"adapter": "loha"},
        {"mixed_precision": "bf16"},
        {"mixed_precision": "bf16", "dora": True},
        {"gradient_checkpointing": True},
    ],
    ids=str,
)
def test_every_kind_of_adapter_learns_and_repeats_itself(changes: dict[str, Any], text_config: Make) -> None:
    first, again = (gradients(family_on(text_config(packing=True, **changes)), [[0]]) for _ in range(2))
    assert first[0] == again[0] > 0
    assert any(bool(grad.abs().sum() > 0) for grad in first[1].values())
    assert all(torch.equal(grad, again[1][name]) for name, grad in first[1].items())


def test_validation_drops_nothing_out_and_leaves_the_model_training(text_config: Make) -> None:
    family = family_on(text_config(lora_dropout=0.5))
    stir(family)
    one = family.loss([0], rngs(1), training=False)
    other = family.loss([0], [torch.Generator().manual_seed(9)], training=False)
    assert float(one.detach()) == float(other.detach())
    assert float(family.loss([0], rngs(1)).detach()) != float(one.detach())
    assert family.model.training


def test_held_out_rows_come_once_and_training_rows_as_often_as_asked(text_config: Make) -> None:
    from trainer.data import check_dataset

    family = family_on(text_config(repeats=3), build=False)
    assert len(family.packs) == 12
    report = check_dataset(family.config)
    assert len(family.prepare(report.items, report, training=False)) == 4
    assert len(family.sources([12, 13])) == 2


def test_generations_are_written_and_the_training_goes_on_as_before(
    text_config: Make, tmp_path: Path
) -> None:
    import json

    family = family_on(text_config(sample_tokens=5))
    before = float(family.loss([0], rngs(1)).detach())
    (file,) = family.sample(["hi", "bye"], tmp_path / "samples", 7)
    said = json.loads(file.read_text())
    assert [entry["prompt"] for entry in said] == ["hi", "bye"]
    (again,) = family.sample(["hi", "bye"], tmp_path / "again", 7)
    assert again.read_bytes() == file.read_bytes()
    assert family.model.training
    assert float(family.loss([0], rngs(1)).detach()) == before


def test_a_chat_template_of_ones_own_is_trained_and_kept(text_config: Make, tmp_path: Path) -> None:
    from trainer.models.base import RunFacts

    file = tmp_path / "mine.jinja"
    file.write_text(
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    family = family_on(text_config(chat_template=file))
    assert family.tokenizer.decode(family.packs[0][0].ids) == (
        "[user]hi<|im_end|>[assistant]Hello there.<|im_end|>"
    )
    written = family.export(tmp_path / "out", RunFacts())
    assert tmp_path / "out" / "chat_template.jinja" in written
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == file.read_text()


def test_an_answer_ends_at_the_templates_mark_though_it_is_not_the_end_of_sequence(
    text_config: Make, tmp_path: Path
) -> None:
    """As a base model under ChatML: its own end is `<|endoftext|>`, and what it learns is `<|im_end|>`."""
    from trainer.models.llm_answer import Sampling, answer

    family = family_on(text_config())
    mark = family.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert mark != family.tokenizer.unk_token_id
    family.tokenizer.eos_token = next(
        token for token in family.tokenizer.all_special_tokens if token != "<|im_end|>"
    )
    family.model.generation_config.eos_token_id = None
    asked: dict[str, Any] = {}

    def generate(**how: Any) -> torch.Tensor:
        asked.update(how)
        return how["input_ids"]

    family.model.generate = generate
    answer(family.model, family.tokenizer, [("user", "hi")], Sampling())
    assert asked["eos_token_id"] == sorted({mark, family.tokenizer.eos_token_id})


def test_no_row_is_longer_than_the_models_context(text_config: Make, tmp_path: Path) -> None:
    """Learned positions end there: the 513th token would be out of their range."""
    from trainer.models.llm_load import context_of

    folder = tmp_path / "long"
    folder.mkdir()
    (folder / "a.txt").write_text("so it goes on and on, " * 200)
    base = tiny(tmp_path / "gpt2", Path(text_config()["base_model"]), "gpt2")
    family = family_on(text_config(base_model=base, train_data_dir=folder, max_length=1024))
    assert context_of(base) == 512
    assert max(len(row.ids) for rows in family.packs for row in rows) == 512
    assert float(family.loss([0], rngs(1)).detach()) > 0


def test_a_chat_template_that_is_none_is_told_with_its_line(text_config: Make, tmp_path: Path) -> None:
    from trainer.errors import ConfigError

    file = tmp_path / "bad.jinja"
    file.write_text("one\n{% for %}")
    with pytest.raises(ConfigError, match=r"bad\.jinja:2"):
        family_on(text_config(chat_template=file), build=False)
