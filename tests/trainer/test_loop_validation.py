"""Validation in the loop, with a family that can be followed by hand."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.trainer.runs import run
from tests.trainer.toy_family import Toy
from tests.trainer.toy_runs import family, of, weights
from trainer import LoRATrainer
from trainer import checkpoint as checkpoints
from trainer.errors import ConfigError, Stopped

Make = Callable[..., dict[str, Any]]
Read = Callable[[Path], list[dict[str, Any]]]


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
