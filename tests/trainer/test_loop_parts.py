"""The loop with a family that can be followed by hand: memory, numbers, validation, samples, groups."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.runs import run
from tests.trainer.toy_family import Toy
from tests.trainer.toy_runs import close, family, of, weights
from trainer import LoRATrainer
from trainer.errors import CheckpointError, NonFiniteError, OutOfMemory, Stopped

Make = Callable[..., dict[str, Any]]
Read = Callable[[Path], list[dict[str, Any]]]


# --- memory ---


def test_what_does_not_fit_is_halved_and_trains_the_same(
    toy: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    events: Read,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = toy(batch_size=8, output_dir=tmp_path / "whole")
    run(whole)
    monkeypatch.setattr(Toy, "fits", 3)
    cut = toy(batch_size=8, output_dir=tmp_path / "cut")
    trainer = run(cut)
    assert family(trainer).sizes == [2] * 4 * 6
    assert close(weights(whole), weights(cut))
    curves = [[(e["loss"], e["lr"]) for e in of(events(c["output_dir"]), "step")] for c in (whole, cut)]
    for one, two in zip(*curves, strict=True):
        assert one == pytest.approx(two, rel=1e-5)
    told = of(events(cut["output_dir"]), "out_of_memory")
    assert [(e["samples"], e["micro_batch"]) for e in told] == [(8, 4), (4, 2)]
    assert "out of memory with 8 samples at once; from here on 4 at a time" in capsys.readouterr().err


def test_the_smaller_cut_is_kept_for_an_exact_resume(
    toy: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Toy, "fits", 3)
    whole = toy(batch_size=8, output_dir=tmp_path / "whole" / "x", save_steps=2)
    run(whole)
    part = toy(batch_size=8, output_dir=tmp_path / "part" / "x", save_steps=2)
    trainer = LoRATrainer(part)
    trainer.prepare_data()
    trainer.build_model()
    loss = family(trainer).loss

    def ask(*args: Any) -> torch.Tensor:
        if trainer.step == 3:
            trainer.request_stop()
        return loss(*args)

    monkeypatch.setattr(trainer.family, "loss", ask)
    with pytest.raises(Stopped):
        trainer.train()
    monkeypatch.setattr(Toy, "fits", 10**6)
    again = run(part)
    assert set(family(again).sizes) == {2}
    for name in ("net", "side"):
        assert torch.equal(weights(whole)[name], weights(part)[name])


def test_one_sample_that_does_not_fit_is_told_with_remedies(
    toy: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Toy, "fits", 0)
    with pytest.raises(OutOfMemory, match="step 1 with one sample at a time") as caught:
        run(toy(batch_size=2))
    assert "gradient_checkpointing" in caught.value.hint
    assert caught.value.cause == "oom"


def test_auto_takes_what_the_cpu_is_good_for_and_a_resume_takes_the_same(
    toy: Make, monkeypatch: pytest.MonkeyPatch, events: Read
) -> None:
    config = toy(batch_size="auto", save_steps=2)
    trainer = run(config)
    assert trainer.journal.batch_size == 8
    (start,) = of(events(config["output_dir"]), "start")
    assert (start["batch_size"], start["steps"]) == (8, 6)
    state = json.loads((config["output_dir"] / "checkpoints" / "step-000006" / "state.json").read_text())
    assert state["journal"]["batch_size"] == 8
    from trainer import auto_batch

    monkeypatch.setattr(auto_batch, "MOST_ON_CPU", 2)
    assert run(config).journal.batch_size == 8
    assert run(toy(batch_size="auto", resume="never")).journal.batch_size == 2


# --- numbers ---


def test_poisoned_steps_are_skipped_as_often_as_allowed(
    toy: Make, monkeypatch: pytest.MonkeyPatch, events: Read
) -> None:
    monkeypatch.setattr(Toy, "poison", {2, 3, 5})
    config = toy(skip_nonfinite=2, save_steps=1)
    run(config)
    steps = of(events(config["output_dir"]), "step")
    assert [bool(e.get("skipped")) for e in steps] == [False, True, True, False, True, False]
    assert all(torch.isfinite(t).all() for t in weights(config).values())
    monkeypatch.setattr(Toy, "poison", {2, 3, 4})
    with pytest.raises(NonFiniteError, match=r"at step 4, on sample-\d"):
        run(toy(skip_nonfinite=2, resume="never"))


def test_fp16_scales_the_loss_and_answers_an_overflow(
    toy: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, events: Read
) -> None:
    """The scale is a power of two: without an overflow the result is the same to rounding."""
    plain, half = (
        toy(output_dir=tmp_path / "plain"),
        toy(mixed_precision="fp16", output_dir=tmp_path / "half"),
    )
    run(plain)
    run(half)
    assert close(weights(plain), weights(half))
    from trainer.optim import scale

    monkeypatch.setattr(scale, "START", 2.0**127)
    config = toy(mixed_precision="fp16", output_dir=tmp_path / "over", max_steps=12)
    trainer = run(config)
    steps = of(events(config["output_dir"]), "step")
    skipped = [bool(e.get("skipped")) for e in steps]
    assert skipped[0]
    assert not skipped[-1]
    assert trainer._optimizer is not None
    assert trainer._optimizer.scale.value == 2.0 ** (127 - sum(skipped))
    state = json.loads((config["output_dir"] / "checkpoints" / "step-000012" / "state.json").read_text())
    assert state["optimizer"]["scale"]["value"] == trainer._optimizer.scale.value


def test_each_group_learns_at_its_own_rate(toy: Make, events: Read) -> None:
    config = toy(lr_schedule="linear", lr_end=0.5)
    run(config)
    for event in of(events(config["output_dir"]), "step"):
        rates = event["learning_rates"]
        assert rates == {"net": event["lr"], "side": event["lr"] / 2}


# --- samples ---


def test_samples_lie_by_step_and_use_up_no_randomness(toy: Make, tmp_path: Path, events: Read) -> None:
    plain, shown = (
        toy(output_dir=tmp_path / "a" / "x"),
        toy(output_dir=tmp_path / "b" / "x", sample_prompts=["one", "two"], sample_every=4),
    )
    run(plain)
    before = torch.get_rng_state()
    run(shown)
    out = shown["output_dir"]
    assert sorted(p.relative_to(out).as_posix() for p in (out / "samples").rglob("*.txt")) == [
        f"samples/step-{step:06d}/{number}.txt" for step in (4, 6) for number in (0, 1)
    ]
    assert [e["step"] for e in of(events(out), "sample")] == [4, 6]
    for name in ("net", "side"):
        assert torch.equal(weights(plain)[name], weights(shown)[name])
    assert before is not None
    card = (out / "model_card.md").read_text()
    assert "> one: 0" in card
    assert "samples/step-000006/1.txt" in {f["path"] for f in of(events(out), "result")[0]["files"]}


@pytest.mark.parametrize(
    "raised", [torch.OutOfMemoryError("CUDA out of memory."), ValueError("no such prompt")]
)
def test_pain_21_a_sample_that_fails_is_a_warning(
    toy: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], raised: Exception
) -> None:
    monkeypatch.setattr(Toy, "sampling", raised)
    config = toy(sample_prompts=["one"])
    run(config)
    assert f"no samples at step 6: {type(raised).__name__}" in capsys.readouterr().err
    assert not list((config["output_dir"] / "samples").iterdir())


# --- identity ---


@pytest.mark.parametrize(
    ("change", "foreign"),
    [
        ({"seed": 5}, True),
        ({"optimizer": "adafactor"}, True),
        ({"lr_end": 0.5}, True),
        ({"validation_split": 0.2}, True),
        ({"save_steps": 1}, False),
        ({"keep_last": 9, "keep_best": False}, False),
        ({"gradient_checkpointing": True, "compile": "off"}, False),
        ({"sample_prompts": ["x"], "resolution": 128}, False),
        ({"max_steps": 7}, True),
    ],
    ids=str,
)
def test_what_changes_numbers_makes_another_training(
    toy: Make, change: dict[str, Any], foreign: bool
) -> None:
    run(toy())
    trainer = LoRATrainer(toy(**change))
    trainer.prepare_data()
    assert (trainer._resume is None) is foreign


def test_an_edited_plugin_makes_another_training(toy: Make, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from trainer.plugins import loss\n\n\n@loss('mine')\ndef mine(a, b):\n    return (a - b) ** 2\n"
    )
    run(toy(plugins=[file]))
    file.write_text(file.read_text().replace("** 2", "** 4"))
    trainer = LoRATrainer(toy(plugins=[file]))
    trainer.prepare_data()
    assert trainer._resume is None
    assert "plugins was" in trainer.start_facts["refused_checkpoints"][0]


def test_an_optimizer_of_another_machine_is_named(toy: Make) -> None:
    config = toy(save_steps=6)
    run(config)
    path = config["output_dir"] / "checkpoints" / "step-000006" / "state.json"
    state = json.loads(path.read_text())
    state["optimizer"]["class"] = "bitsandbytes.optim.adamw.AdamW8bit"
    path.write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match="was saved by bitsandbytes"):
        run(config)
