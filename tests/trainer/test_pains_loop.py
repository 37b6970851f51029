"""What users of other trainers run into in the loop, by the numbers of the list, and what they see here."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from trainer import LoRATrainer
from trainer import checkpoint as checkpoints
from trainer.config import config_from
from trainer.errors import CheckpointError, NonFiniteError, Stopped
from trainer.files import sha256_file
from trainer.optim.schedule import lr_factor
from trainer.wandb_log import WandB

Make = Callable[..., dict[str, Any]]
Read = Callable[[Path], list[dict[str, Any]]]


def built(config: dict[str, Any]) -> LoRATrainer:
    trainer = LoRATrainer(config)
    trainer.prepare_data()
    trainer.build_model()
    return trainer


def run(config: dict[str, Any]) -> LoRATrainer:
    trainer = built(config)
    trainer.train()
    return trainer


def hook(trainer: LoRATrainer, monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], Any]) -> None:
    """Every training loss goes through `change`."""
    assert trainer.family is not None
    loss = trainer.family.loss
    monkeypatch.setattr(trainer.family, "loss", lambda *args, **more: change(loss(*args, **more)))


def test_pain_1_a_loss_that_is_no_number_names_step_and_files_and_keeps_the_last_checkpoint(
    world: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = world(save_steps=1, max_steps=4)
    trainer = built(config)
    hook(trainer, monkeypatch, lambda loss: loss * (float("nan") if trainer.step == 2 else 1))
    with pytest.raises(NonFiniteError, match="at step 3, on ") as caught:
        trainer.train()
    assert "Lower learning_rate" in caught.value.hint
    assert trainer.family is not None
    assert any(name in caught.value.message for name in trainer.family.sources(range(trainer.samples)))
    last = (
        config["output_dir"]
        / "checkpoints"
        / (config["output_dir"] / "checkpoints/latest").read_text().strip()
    )
    assert last.name == "step-000002"
    assert all(t.isfinite().all() for t in load_file(last / checkpoints.ADAPTER).values())


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_pain_2_what_is_trained_is_fp32_whatever_the_base_is(world: Make, precision: str) -> None:
    """No "Attempting to unscale FP16 gradients"."""
    trainer = run(world(mixed_precision=precision, max_steps=2))
    assert trainer._optimizer is not None
    assert {p.dtype for p in trainer._optimizer.parameters.values()} == {torch.float32}
    state = trainer._optimizer.tensors()[1]
    assert {value.dtype for value in state.values()} == {torch.float32}
    assert trainer.result["loss"] == pytest.approx(trainer.result["loss"])


def test_pain_16_a_resumed_run_has_its_step_its_rate_and_another_adapter(
    world: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, events: Read
) -> None:
    options: dict[str, Any] = {"max_steps": 6, "lr_schedule": "cosine_restarts", "lr_cycles": 2}
    whole = world(output_dir=tmp_path / "whole" / "x", **options)
    run(whole)
    config = world(output_dir=tmp_path / "part" / "x", **options)
    trainer = built(config)

    def ask(loss: Any) -> Any:
        if trainer.step == 3:
            trainer.request_stop()
        return loss

    hook(trainer, monkeypatch, ask)
    with pytest.raises(Stopped):
        trainer.train()
    stopped_with = load_file(config["output_dir"] / "checkpoints" / "step-000004" / checkpoints.ADAPTER)
    resumed = run(config)
    told = [e for e in events(config["output_dir"]) if e["event"] == "step"]
    rate = config["learning_rate"]
    assert [e["step"] for e in told] == [1, 2, 3, 4, 5, 6]
    assert [e["lr"] for e in told] == [rate * lr_factor(s, 6, "cosine_restarts", 0, 2) for s in range(6)]
    assert all(e["lr"] > 0 for e in told)
    assert resumed._optimizer is not None
    assert any(not torch.equal(p, stopped_with[n]) for n, p in resumed._optimizer.parameters.items())
    for path in whole["output_dir"].glob("*.safetensors"):
        assert sha256_file(path) == sha256_file(config["output_dir"] / path.name)


def test_pain_20_what_a_resumed_run_publishes_loads_without_a_missing_key(text_config: Make) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run(text_config(max_steps=1))
    config = text_config(max_steps=2)
    trainer = run(config)
    assert trainer.start_facts["resumed_from_step"] == 1
    base = AutoModelForCausalLM.from_pretrained(config["base_model"])
    with warnings.catch_warnings():  # peft uses a name that transformers will drop
        warnings.simplefilter("ignore", FutureWarning)
        model = PeftModel.from_pretrained(base, config["output_dir"])
    saved = load_file(config["output_dir"] / "adapter_model.safetensors")
    loaded = {n.replace(".default.", "."): p for n, p in model.named_parameters() if "lora_" in n}
    assert set(saved) == set(loaded)
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)


def test_pain_17_the_schedule_is_that_of_the_steps_whatever_the_number_of_processes(
    text_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two real processes: test_processes.py. Here: neither the steps nor the rates know of the number."""
    from trainer.distributed import Processes

    one = built(text_config(max_steps=8, lr_schedule="linear"))
    alone = one._window_size
    monkeypatch.setattr(Processes, "world", 4)
    four = built(text_config(max_steps=8, lr_schedule="linear", resume="never"))
    assert one.steps == four.steps == 8
    assert four._window_size == 4 * alone


@pytest.mark.parametrize("part", [checkpoints.ADAPTER, checkpoints.OPTIMIZER, checkpoints.STATE])
def test_pain_22_a_torn_checkpoint_is_named_and_the_one_before_is_used(
    world: Make, part: str, events: Read
) -> None:
    config = world(max_steps=3, save_steps=1)
    run(config)
    wanted = {p.name: sha256_file(p) for p in config["output_dir"].glob("*.safetensors")}
    torn = config["output_dir"] / "checkpoints" / "step-000003" / part
    torn.write_bytes(torn.read_bytes()[:-7])
    again = run(config)
    assert again.start_facts["resumed_from_step"] == 2
    assert "step-000003 is torn" in again.start_facts["refused_checkpoints"][0]
    assert {p.name: sha256_file(p) for p in config["output_dir"].glob("*.safetensors")} == wanted
    torn.write_bytes(b"")
    with pytest.raises(CheckpointError, match="torn"):
        checkpoints.load(torn.parent)


@pytest.mark.parametrize("state", ["missing", "broken", "no cuda"])
def test_pain_23_8_bit_adam_that_does_not_work_is_replaced_and_said(
    monkeypatch: pytest.MonkeyPatch, text_config: Make, state: str
) -> None:
    from trainer.optim import registry

    device = torch.device("cpu" if state == "no cuda" else "cuda")

    def find(name: str) -> Any:
        return None if state == "missing" else importlib.util.find_spec("json")

    def load(name: str) -> ModuleType:
        raise RuntimeError("CUDA Setup failed despite GPU being available")

    monkeypatch.setattr(registry, "find_spec", find)
    monkeypatch.setattr(registry, "importlib", SimpleNamespace(import_module=load))
    said: list[str] = []
    config = config_from(text_config(optimizer="adamw8bit"))
    factory, _ = registry._factory(config, device, said)
    assert factory is torch.optim.AdamW
    why = {"missing": "is not installed", "broken": "does not work here", "no cuda": "it needs CUDA"}[state]
    assert why in said[0]
    assert "adamw is used" in said[0]


def test_pain_23_the_run_goes_on_with_adamw(text_config: Make, capsys: pytest.CaptureFixture[str]) -> None:
    run(text_config(optimizer="adamw8bit", max_steps=1))
    assert "warning: optimizer adamw8bit" in capsys.readouterr().err


def test_pain_24_wandb_that_hangs_costs_seconds_not_the_run(
    text_config: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wandb = pytest.importorskip("wandb")
    from trainer import wandb_log

    for_ever = threading.Event()
    asked: dict[str, Any] = {}

    def hang(**arguments: Any) -> None:
        asked.update(arguments)
        for_ever.wait()
        raise RuntimeError("let go")

    monkeypatch.setattr(wandb, "init", hang)
    monkeypatch.setattr(wandb_log, "FINISH_TIMEOUT_S", 0.2)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    try:
        trainer = run(text_config(tracker={"wandb": "auto"}, max_steps=2))
        assert trainer.result["step"] == 2
        assert "wandb did not finish" in capsys.readouterr().err
    finally:
        for_ever.set()
    assert asked["mode"] == "offline", "no key: no prompt"


def test_pain_24_pictures_go_to_wandb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wandb = pytest.importorskip("wandb")
    logged: list[tuple[dict[str, Any], int]] = []
    one_run = SimpleNamespace(log=lambda values, step: logged.append((values, step)), finish=lambda: None)
    monkeypatch.setattr(wandb, "init", lambda **_: one_run)
    monkeypatch.setattr(wandb, "Image", lambda path: f"image {Path(path).name}")
    config = config_from({"train_data_dir": "d", "base_model": "m", "output_dir": str(tmp_path)})
    tracker = WandB(config.tracker, tmp_path, {})
    tracker.log(1, {"loss": 0.5})
    tracker.samples(1, [tmp_path / "0.png"])
    tracker.finish()
    assert logged == [({"loss": 0.5}, 1), ({"samples": ["image 0.png"]}, 1)]


def test_pain_24_a_resumed_run_is_the_same_run_on_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    ids: list[str] = []

    def init(**asked: Any) -> SimpleNamespace:
        assert asked["resume"] == "allow"
        ids.append(asked["id"])
        return SimpleNamespace(log=lambda *_, **__: None, finish=lambda: None)

    monkeypatch.setattr(wandb, "init", init)
    config = config_from({"train_data_dir": "d", "base_model": "m", "output_dir": str(tmp_path)})
    for resumed in (False, True, False):
        WandB(config.tracker, tmp_path, {}, resumed=resumed).finish()
    assert ids[0] == ids[1] != ids[2]


def test_pain_25_no_loader_process_that_could_hang(tmp_path: Path, text_config: Make) -> None:
    """The samples lie in memory and their order is a function: there is nothing to pickle, to spawn or to
    wait for, on any system."""
    config = tmp_path / "c.yaml"
    config.write_text(config_from(text_config(max_steps=2)).to_yaml())
    code = (
        "import os, sys, subprocess, multiprocessing.process as p\n"
        "def refuse(*a, **k):\n    raise SystemExit('a process was started')\n"
        "p.BaseProcess.start = refuse\n"
        "subprocess.Popen.__init__ = refuse\n"
        "os.fork = refuse\n"
        "from trainer.__main__ import main\n"
        f"sys.exit(main(['--config', {str(config)!r}]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (
        json.loads((text_config()["output_dir"] / "events.jsonl").read_text().splitlines()[-1])["step"] == 2
    )
