"""The loop with a family that can be followed by hand: memory, numbers, validation, samples, groups."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.trainer.toy_family import Toy
from trainer import LoRATrainer
from trainer import checkpoint as checkpoints
from trainer import loop as loop_module
from trainer.errors import CheckpointError, ConfigError, NonFiniteError, OutOfMemory, Stopped

Make = Callable[..., dict[str, Any]]
Read = Callable[[Path], list[dict[str, Any]]]


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, text_config: Make, tmp_path: Path) -> Make:
    """A config that trains the toy on ten samples."""
    monkeypatch.setattr(loop_module, "family_of", Toy)
    for name, value in (("fits", 10**6), ("poison", set()), ("sampling", None), ("rises", 0.0)):
        monkeypatch.setattr(Toy, name, value)
    folder = tmp_path / "ten"
    folder.mkdir()
    rows = [
        {"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": f"a{n}"}]}
        for n in range(10)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(**changes: Any) -> dict[str, Any]:
        return text_config(**{"train_data_dir": folder, "max_steps": 6, "lr_schedule": "cosine", **changes})

    return make


def run(config: dict[str, Any]) -> LoRATrainer:
    trainer = LoRATrainer(config)
    trainer.prepare_data()
    trainer.build_model()
    trainer.train()
    return trainer


def family(trainer: LoRATrainer) -> Toy:
    assert isinstance(trainer.family, Toy)
    return trainer.family


def weights(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    return load_file(config["output_dir"] / "toy.safetensors")


def close(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return all(torch.allclose(one[name], two[name], atol=1e-6, rtol=1e-5) for name in one)


def of(told: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in told if event["event"] == kind]


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


# --- validation ---


def test_the_best_weights_are_published_and_outlive_keep_last(
    toy: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, events: Read
) -> None:
    monkeypatch.setattr(Toy, "rises", 10.0)
    config = toy(validation_split=0.3, validation_steps=2, save_steps=1, keep_last=1, max_steps=7)
    trainer = run(config)
    out = config["output_dir"]
    told = of(events(out), "validation")
    assert [e["step"] for e in told] == [2, 4, 6, 7]
    assert {e["best_step"] for e in told} == {2}
    assert told[0]["loss"] < told[1]["loss"] < told[2]["loss"]
    assert sorted(p.name for p in (out / "checkpoints").glob("step-*")) == ["step-000002", "step-000007"]
    best = load_file(out / "checkpoints" / "step-000002" / checkpoints.ADAPTER)
    assert torch.equal(weights(config)["net"], best["net.weight"])
    with safe_open(out / "toy.safetensors", "pt") as file:
        assert file.metadata()["step"] == "2"
    (result,) = of(events(out), "result")
    assert (result["step"], result["best_step"]) == (7, 2)
    assert "published is step 2" in (out / "model_card.md").read_text()
    assert run(config).result["files"] == trainer.result["files"]
    last = toy(validation_split=0.3, keep_best=False, save_steps=1, keep_last=1, max_steps=7, resume="never")
    run(last)
    assert not torch.equal(weights(last)["net"], best["net.weight"])


def test_one_checkpoint_is_enough_to_publish_the_best(
    toy: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Brought alone to another machine, where the best step's own folder is not."""
    monkeypatch.setattr(Toy, "rises", 10.0)
    options: dict[str, Any] = {"validation_split": 0.3, "validation_steps": 2, "save_steps": 1}
    whole = toy(output_dir=tmp_path / "whole" / "x", **options)
    published = run(whole).result
    brought = tmp_path / "brought"
    shutil.copytree(whole["output_dir"] / "checkpoints" / "step-000005", brought)
    away = toy(output_dir=tmp_path / "away" / "x", resume=str(brought), **options)
    second = LoRATrainer(away)
    second.prepare_data()
    second.build_model()
    family(second).calls = second.step
    result = second.train()
    assert (result["best_step"], published["best_step"]) == (2, 2)
    for name in ("net", "side"):
        assert torch.equal(weights(whole)[name], weights(away)[name])


def test_the_best_that_was_not_kept_is_not_claimed(
    toy: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Toy, "rises", 10.0)
    options: dict[str, Any] = {"validation_split": 0.3, "validation_steps": 1, "save_steps": 6}
    run(toy(keep_best=False, **options))
    config = toy(keep_best=True, **options)
    assert run(config).step == 6
    assert "the weights of step 1 were not kept" in capsys.readouterr().err
    assert "published is step" not in (config["output_dir"] / "model_card.md").read_text()


def test_a_checkpoint_beyond_the_end_keeps_its_number(
    toy: Make, capsys: pytest.CaptureFixture[str], events: Read
) -> None:
    run(toy(max_steps=5, lr_schedule="constant"))
    config = toy(max_steps=3, lr_schedule="constant")
    assert run(config).result["step"] == 5
    said = capsys.readouterr().err
    assert "going on after step 5" in said
    assert "the checkpoint is of step 5, and this training ends after 3" in said
    assert "trained for 5 steps" in (config["output_dir"] / "model_card.md").read_text()


def test_checkpoints_of_another_training_are_named_and_the_new_start_is_said(
    toy: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    run(toy(learning_rate=1e-3))
    capsys.readouterr()
    run(toy(learning_rate=1e-2))
    said = capsys.readouterr().err
    assert "belongs to another training: learning_rate was 0.001, is 0.01" in said
    assert "starts anew" in said


def test_early_stop_ends_the_run_and_stays_ended(
    toy: Make, monkeypatch: pytest.MonkeyPatch, events: Read
) -> None:
    monkeypatch.setattr(Toy, "rises", 10.0)
    config = toy(validation_split=0.3, validation_steps=1, early_stop=2, max_steps=50)
    first = run(config)
    assert (first.step, first.result["best_step"]) == (3, 1)
    again = run(config)
    assert again.step == 3
    assert len(of(events(config["output_dir"]), "step")) == 3
    assert again.result["files"] == first.result["files"]


def test_a_killed_run_with_validation_publishes_the_same(
    toy: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Toy, "rises", 0.02)
    options: dict[str, Any] = {
        "validation_split": 0.3,
        "validation_steps": 1,
        "save_steps": 2,
        "max_steps": 9,
        "keep_last": 1,
    }
    whole = toy(output_dir=tmp_path / "whole" / "x", **options)
    published = run(whole).result
    assert 1 < published["best_step"] < 9, "the test needs a minimum in the middle"
    for at in range(1, 9):
        part = toy(output_dir=tmp_path / f"part{at}" / "x", **options)
        trainer = LoRATrainer(part)
        trainer.prepare_data()
        trainer.build_model()
        loss = family(trainer).loss

        def die(
            *args: Any, trainer: LoRATrainer = trainer, loss: Any = loss, at: int = at, **more: Any
        ) -> torch.Tensor:
            if trainer.step == at and not more:
                raise KeyboardInterrupt
            result: torch.Tensor = loss(*args, **more)
            return result

        with monkeypatch.context() as patch:
            patch.setattr(trainer.family, "loss", die)
            with pytest.raises(KeyboardInterrupt):
                trainer.train()
        # the rise counts micro-batches, so the second part must count from where the first stopped
        second = LoRATrainer(part)
        second.prepare_data()
        second.build_model()
        family(second).calls = second.step
        result = second.train()
        assert result == published, at


@pytest.mark.parametrize("at", [2, 4, 6])
def test_asked_to_stop_within_a_validation_it_does_that_later(
    toy: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, events: Read, at: int
) -> None:
    """A long validation must not outlast the grace that a machine gives; the last step's (6) included."""
    monkeypatch.setattr(Toy, "rises", 0.05)
    options: dict[str, Any] = {
        "validation_split": 0.3,
        "validation_steps": 2,
        "save_steps": 5,
        "sample_prompts": ["one"],
    }
    whole = toy(output_dir=tmp_path / "whole" / "x", **options)
    wanted = run(whole).result
    part = toy(output_dir=tmp_path / "part" / "x", **options)
    first = LoRATrainer(part)
    first.prepare_data()
    first.build_model()
    loss = family(first).loss

    def ask(*args: Any, training: bool = True) -> torch.Tensor:
        if first.step == at and not training:
            first.request_stop()
        return loss(*args, training=training)

    monkeypatch.setattr(first.family, "loss", ask)
    with pytest.raises(Stopped):
        first.train()
    told = events(part["output_dir"])
    assert at not in [e["step"] for e in of(told, "validation")]
    assert of(told, "checkpoint")[-1]["step"] == at
    second = LoRATrainer(part)
    second.prepare_data()
    second.build_model()
    family(second).calls = second.step
    result = second.train()
    told, plain = (
        [(e["step"], e["loss"]) for e in of(events(c["output_dir"]), "validation")] for c in (part, whole)
    )
    assert told == plain
    assert result["files"] == wanted["files"]


def test_validation_keys_without_samples_are_refused(toy: Make) -> None:
    with pytest.raises(ConfigError, match="`early_stop` is set, but there are no held-out samples"):
        run(toy(early_stop=2))


def test_the_validation_loss_is_the_same_however_it_is_cut(toy: Make) -> None:
    trainer = LoRATrainer(toy(validation_split=0.4))
    trainer.prepare_data()
    trainer.build_model()
    assert trainer._validation is not None
    assert trainer._validation.loss(1) == pytest.approx(trainer._validation.loss(8), rel=1e-6)


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
