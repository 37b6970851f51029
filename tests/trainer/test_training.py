"""The loop, in both worlds, on tiny models of the real classes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.runs import run
from trainer import LoRATrainer
from trainer import checkpoint as checkpoints
from trainer.errors import CheckpointError, DataError, DiskFullError, NonFiniteError, Stopped, explain
from trainer.files import sha256_file

Make = Callable[..., dict[str, Any]]
Read = Callable[[Path], list[dict[str, Any]]]


def adapters(folder: Path) -> dict[str, str]:
    """The digests of what a training publishes."""
    return {
        path.name: sha256_file(path)
        for path in sorted(folder.iterdir())
        if path.suffix in (".safetensors", ".json")
    }


class Killed(Exception):
    """Stands for SIGKILL in the middle of a run."""


def test_a_run_writes_its_files_and_says_what_it_did(world: Make, events: Read) -> None:
    config = world(save_steps=2)
    run(config)
    out = config["output_dir"]
    told = events(out)
    assert [e["event"] for e in told] == [
        "start",
        "phase",
        "phase",
        "step",
        "step",
        "checkpoint",
        "step",
        "checkpoint",
        "phase",
        "phase",
        "result",
    ]
    (start,) = [e for e in told if e["event"] == "start"]
    assert (start["run"], start["steps"], start["resumed_from_step"]) == (out.name, 3, 0)
    assert start["dataset_digest"].startswith("sha256:")
    assert start["config_hash"].startswith("sha256:")
    assert start["versions"]["torch"] == torch.__version__
    assert [e["name"] for e in told if e["event"] == "phase"] == [
        "prepare_data",
        "build_model",
        "train",
        "export",
    ]
    steps = [e for e in told if e["event"] == "step"]
    assert [e["step"] for e in steps] == [1, 2, 3]
    for step in steps:
        assert {"step", "steps", "loss", "lr", "grad_norm", "step_s", "samples_per_s", "memory_bytes"} <= set(
            step
        )
        assert step["memory_bytes"] > 1e7
    (result,) = [e for e in told if e["event"] == "result"]
    assert result["step"] == 3
    told_of = {f["path"]: f["sha256"] for f in result["files"]}
    assert adapters(out).items() <= told_of.items()
    assert {"model_card.md", "loss_curve.png"} <= set(told_of)
    assert (out / "checkpoints" / "latest").read_text() == "step-000003\n"


def test_the_same_config_gives_the_same_bytes(world: Make, tmp_path: Path, events: Read) -> None:
    first, second = world(output_dir=tmp_path / "a" / "x"), world(output_dir=tmp_path / "b" / "x")
    run(first)
    run(second)
    assert adapters(first["output_dir"]) == adapters(second["output_dir"])
    curves = [[e["loss"] for e in events(c["output_dir"]) if e["event"] == "step"] for c in (first, second)]
    assert curves[0] == curves[1]
    other = world(output_dir=tmp_path / "c" / "x", seed=1)
    run(other)
    assert adapters(other["output_dir"]) != adapters(first["output_dir"])


@pytest.mark.parametrize(
    ("which", "curve"),
    [("images_config", [1.0313, 1.1190, 1.0224]), ("text_config", [6.4121, 6.4787, 6.1715])],
)
def test_the_loss_curve_is_that_of_the_reference_run(
    request: pytest.FixtureRequest, events: Read, which: str, curve: list[float]
) -> None:
    """Pinned loosely: kernels and versions change digits, a wrong mask, scale or schedule changes more."""
    config = request.getfixturevalue(which)(max_steps=3, learning_rate=1e-2)
    run(config)
    losses = [e["loss"] for e in events(config["output_dir"]) if e["event"] == "step"]
    assert losses == pytest.approx(curve, rel=0.01)


def test_it_learns_what_it_is_shown(world: Make) -> None:
    """The loss on fixed noise falls, for the adapter alone is trained."""
    trainer = LoRATrainer(world(max_steps=40, batch_size=4, learning_rate=1e-2, lora_rank=8))
    trainer.prepare_data()
    trainer.build_model()
    family = trainer.family
    assert family is not None
    everything = list(range(trainer.samples))

    def judge() -> float:
        with torch.no_grad():
            draws = [
                family.loss(everything, [torch.Generator().manual_seed(9 * seed + i) for i in everything])
                for seed in range(8)
            ]
        return float(sum(draws)) / (len(draws) * family.units(everything))

    before = judge()
    trainer.train()
    assert judge() < 0.96 * before


@pytest.mark.parametrize("killed_at", [1, 2, 3, 4])
def test_a_killed_run_ends_in_the_same_bytes(
    world: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, events: Read, killed_at: int
) -> None:
    options: dict[str, Any] = {
        "max_steps": 5,
        "save_steps": 1,
        "gradient_accumulation": 2,
        "lr_schedule": "cosine",
        "warmup_steps": 2,
    }
    whole = world(output_dir=tmp_path / "whole" / "x", **options)
    run(whole)
    broken = world(output_dir=tmp_path / "broken" / "x", **options)
    save = checkpoints.save

    def save_then_die(output_dir: Path, step: int, *rest: Any) -> Path:
        if step == killed_at:
            (output_dir / "checkpoints" / f".tmp-{step}").mkdir(parents=True)
            raise Killed
        return save(output_dir, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save", save_then_die)
        with pytest.raises(Killed):
            run(broken)
    run(broken)
    resumed = [e["resumed_from_step"] for e in events(broken["output_dir"]) if e["event"] == "start"]
    assert resumed == [0, killed_at - 1]
    assert adapters(broken["output_dir"]) == adapters(whole["output_dir"])


def test_asked_to_stop_it_saves_and_the_same_config_goes_on(world: Make, tmp_path: Path) -> None:
    whole = world(output_dir=tmp_path / "whole" / "x", max_steps=4)
    run(whole)
    stopped = world(output_dir=tmp_path / "stopped" / "x", max_steps=4)
    trainer = LoRATrainer(stopped)
    trainer.prepare_data()
    trainer.build_model()
    assert trainer.family is not None
    loss = trainer.family.loss

    def loss_and_ask(*args: Any) -> torch.Tensor:
        if trainer.step == 1:
            trainer.request_stop()
        return loss(*args)

    trainer.family.loss = loss_and_ask  # type: ignore[method-assign]
    with pytest.raises(Stopped) as caught:
        trainer.train()
    assert caught.value.exit_code == 75
    assert (stopped["output_dir"] / "checkpoints" / "step-000002").is_dir()
    assert not (stopped["output_dir"] / "pytorch_lora_weights.safetensors").exists()
    assert run(stopped)._resume.step == 2  # type: ignore[union-attr]
    assert adapters(stopped["output_dir"]) == adapters(whole["output_dir"])


def test_a_finished_run_run_again_ends_at_once_with_the_same_files(world: Make) -> None:
    config = world()
    run(config)
    before = adapters(config["output_dir"])
    again = run(config)
    assert again._resume is not None
    assert again._resume.step == 3
    assert adapters(config["output_dir"]) == before


def test_a_run_goes_on_from_a_checkpoint_brought_from_elsewhere(
    world: Make, tmp_path: Path, events: Read
) -> None:
    first = world(output_dir=tmp_path / "first" / "x", save_steps=1)
    run(first)
    brought = tmp_path / "downloaded"
    shutil.copytree(first["output_dir"] / "checkpoints" / "step-000002", brought)
    second = world(output_dir=tmp_path / "second" / "x", resume=str(brought))
    run(second)
    assert [e["step"] for e in events(second["output_dir"]) if e["event"] == "step"] == [3]
    assert adapters(second["output_dir"]) == adapters(first["output_dir"])


def test_accumulation_equals_one_large_batch_token_for_token(
    text_config: Make, tmp_path: Path, events: Read
) -> None:
    rows = [("x" * n, "y" * (9 * n % 23 + 1)) for n in range(1, 9)]
    data = tmp_path / "rows"
    data.mkdir()
    (data / "rows.jsonl").write_text(
        "".join(
            json.dumps({"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]})
            + "\n"
            for q, a in rows
        )
    )
    curves = []
    for size, accumulation in ((4, 1), (2, 2), (1, 4)):
        config = text_config(
            train_data_dir=data,
            batch_size=size,
            gradient_accumulation=accumulation,
            output_dir=tmp_path / f"{size}",
        )
        run(config)
        curves.append(
            [(e["loss"], e["grad_norm"]) for e in events(config["output_dir"]) if e["event"] == "step"]
        )
    for curve in curves[1:]:
        for (loss, norm), (wanted_loss, wanted_norm) in zip(curve, curves[0], strict=True):
            assert loss == pytest.approx(wanted_loss, rel=1e-4)
            assert norm == pytest.approx(wanted_norm, rel=1e-3)


def test_every_image_option_at_once(images_config: Make) -> None:
    run(
        images_config(
            flip=True,
            caption_dropout=0.5,
            min_snr_gamma=5,
            noise_offset=0.1,
            lora_alpha=4.5,
            target_modules=["to_q", "conv1"],
            max_grad_norm=0,
            lr_schedule="linear",
        )
    )


def test_bf16_base_keeps_the_adapter_in_fp32(world: Make) -> None:
    from safetensors.torch import load_file

    config = world(mixed_precision="bf16", max_steps=1)
    trainer = run(config)
    assert trainer.family is not None
    for file in config["output_dir"].glob("*.safetensors"):
        assert {t.dtype for t in load_file(file).values()} == {torch.float32}
    model: Any = getattr(trainer.family, "unet", None) or trainer.family.model  # type: ignore[attr-defined]
    assert torch.bfloat16 in {p.dtype for p in model.parameters() if not p.requires_grad}


def test_a_warm_cache_loads_neither_vae_nor_text_encoder(
    images_config: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from trainer.models.sd_parts import FolderParts

    own = tmp_path / "own-cache"
    run(images_config(max_steps=1, cache_dir=own))

    def refuse(self: FolderParts) -> Any:
        raise AssertionError("loaded")

    monkeypatch.setattr(FolderParts, "load_vae", refuse)
    monkeypatch.setattr(FolderParts, "load_text", refuse)
    run(images_config(max_steps=2, cache_dir=own))
    with pytest.raises(AssertionError, match="loaded"):
        run(images_config(max_steps=2, resolution=64, cache_dir=own))


def test_pain_11_cached_latents_and_captions_stay_together(images_config: Make) -> None:
    """The cache is keyed by content: another order of rows gives each picture its own latent and caption."""
    from trainer.models.sd import StableDiffusion

    def prepared(config: dict[str, Any]) -> StableDiffusion:
        trainer = LoRATrainer(config)
        trainer.prepare_data()
        assert isinstance(trainer.family, StableDiffusion)
        return trainer.family

    config = images_config()
    folder = config["output_dir"].parent / "turned"
    shutil.copytree(config["train_data_dir"], folder)
    header, *rows = (folder / "metadata.csv").read_text().splitlines()
    (folder / "metadata.csv").write_text("\n".join([header, *reversed(rows)]) + "\n")
    one, two = prepared(config), prepared(images_config(train_data_dir=folder))
    assert [s.item.name for s in one.samples] == [s.item.name for s in reversed(two.samples)]
    for first, second in zip(one.samples, reversed(two.samples), strict=True):
        assert first.captions == second.captions
        assert torch.equal(first.shown[0].posterior, second.shown[0].posterior)
    a, b, *_ = one.samples
    assert a.shown[0].posterior.shape != b.shown[0].posterior.shape or not torch.equal(
        a.shown[0].posterior, b.shown[0].posterior
    )
    assert not torch.equal(one.embedded[a.captions[0]].states, one.embedded[b.captions[0]].states)


def test_a_loss_that_is_not_a_number_names_step_and_files(world: Make, events: Read) -> None:
    trainer = LoRATrainer(world(max_steps=3, save_steps=1))
    trainer.prepare_data()
    trainer.build_model()
    assert trainer.family is not None
    loss = trainer.family.loss

    def poisoned(*args: Any) -> torch.Tensor:
        return loss(*args) * (float("nan") if trainer.step == 1 else 1.0)

    trainer.family.loss = poisoned  # type: ignore[method-assign]
    with pytest.raises(NonFiniteError, match="at step 2") as caught:
        trainer.train()
    names = trainer.family.sources(range(trainer.samples))
    assert any(name in caught.value.message for name in names)
    folder = trainer.config.output_dir
    assert sorted(p.name for p in (folder / "checkpoints").glob("step-*")) == ["step-000001"]
    assert events(folder)[-1]["loss"] is None


def test_a_full_disk_keeps_the_last_checkpoint(world: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    config = world(max_steps=3, save_steps=1)
    write = checkpoints.write_atomic

    def full(path: Path, data: bytes, sync: bool = True) -> None:
        if "optimizer" in path.name and full_now:
            raise OSError(28, "No space left on device", str(path))
        write(path, data, sync)

    full_now = False
    trainer = LoRATrainer(config)
    trainer.prepare_data()
    trainer.build_model()
    assert trainer.family is not None
    loss = trainer.family.loss

    def loss_then_full(*args: Any) -> torch.Tensor:
        nonlocal full_now
        full_now = trainer.step >= 1
        return loss(*args)

    trainer.family.loss = loss_then_full  # type: ignore[method-assign]
    monkeypatch.setattr(checkpoints, "write_atomic", full)
    with pytest.raises(OSError, match="No space left") as caught:
        trainer.train()
    error = explain(caught.value)
    assert isinstance(error, DiskFullError)
    folder = config["output_dir"] / "checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == ["latest", "step-000001"]
    checkpoints.load(folder / "step-000001")


def test_no_assistant_token_left_is_refused(text_config: Make) -> None:
    trainer = LoRATrainer(text_config(max_length=8))
    with pytest.raises(DataError, match="nothing to learn"):
        trainer.prepare_data()


def test_an_unusable_resume_path_is_named(world: Make, tmp_path: Path) -> None:
    trainer = LoRATrainer(world(resume=str(tmp_path / "nowhere")))
    with pytest.raises(CheckpointError, match="nowhere"):
        trainer.prepare_data()


def test_wandb_runs_offline_below_the_output_folder(
    text_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    config = text_config(tracker={"wandb": "auto", "project": "tests"}, max_steps=2)
    run(config)
    assert list((config["output_dir"] / "wandb").glob("offline-run-*/run-*.wandb"))


def test_a_broken_wandb_never_ends_a_training(
    text_config: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")

    def fail(**_: Any) -> None:
        raise RuntimeError("no service")

    monkeypatch.setattr(wandb, "init", fail)
    run(text_config(tracker={"wandb": "auto"}, max_steps=1))
    assert "warning: wandb RuntimeError: no service" in capsys.readouterr().err
