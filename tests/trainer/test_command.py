"""`python -m trainer` from outside: exit codes, signals, last words."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer import LoRATrainer
from trainer.config import config_from
from trainer.files import sha256_file

ROOT = Path(__file__).parents[2]
Make = Callable[..., dict[str, Any]]


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines() if line]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`main` in this process, without what it does to a process of its own."""
    from trainer import __main__ as program

    monkeypatch.setattr(program, "own_process", lambda: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)

    def run(config: dict[str, Any], *extra: str) -> int:
        path = Path(config["output_dir"]).parent / "config.yaml"
        path.write_text(config_from(config).to_yaml())
        return program.main(["--config", str(path), *extra])

    return run


SIGNAL_AT_STEP_2 = """
import os, signal, sys
from trainer.__main__ import main
from trainer.loop import LoRATrainer

accumulate = LoRATrainer._accumulate

def hit(self, family):
    if self.step == 2:
        os.kill(os.getpid(), signal.{name})
    return accumulate(self, family)

LoRATrainer._accumulate = hit
sys.exit(main(["--config", {path!r}]))
"""


def hit(config: dict[str, Any], name: str) -> tuple[int, str]:
    """Run in a process that gets the signal `name` during its third step."""
    path = Path(config["output_dir"]).parent / "config.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(config_from(config).to_yaml())
    done = subprocess.run(
        [sys.executable, "-c", SIGNAL_AT_STEP_2.format(name=name, path=str(path))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(("name", "resumed"), [("SIGTERM", 3), ("SIGINT", 3), ("SIGKILL", 2)])
def test_signals_cost_nothing(
    request: pytest.FixtureRequest, tmp_path: Path, command: Callable[..., int], name: str, resumed: int
) -> None:
    """Hit in the middle of a step, then run again: the same bytes as never disturbed."""
    make: Make = request.getfixturevalue("text_config" if name == "SIGINT" else "images_config")
    whole = make(output_dir=tmp_path / "whole" / "x", max_steps=5, save_steps=2)
    config = make(output_dir=tmp_path / "hit" / "x", max_steps=5, save_steps=2)
    out = config["output_dir"]
    code, said = hit(config, name)
    last = events(out)[-1]
    if name == "SIGKILL":
        assert code == -signal.SIGKILL
        assert last["event"] == "checkpoint"
        with (out / "events.jsonl").open("a") as file:
            file.write('{"event": "st')
    else:
        assert code == 75, said
        assert "stopped: Stopped as asked after step 3 of 5" in said
        assert (last["event"], last["cause"], last["step"]) == ("failure", "resumable", 3)
        assert (out / "checkpoints" / "step-000003").is_dir()
    assert command(config) == 0
    lines = [line for line in (out / "events.jsonl").read_text().splitlines() if line != '{"event": "st']
    told = [json.loads(line) for line in lines]
    assert [e["resumed_from_step"] for e in told if e["event"] == "start"] == [0, resumed]
    (tmp_path / "whole").mkdir()
    assert command(whole) == 0
    for file in told[-1]["files"]:
        assert file["sha256"] == sha256_file(whole["output_dir"] / file["path"])


def test_train_py_and_the_overrides(text_config: Make, tmp_path: Path) -> None:
    config = text_config(max_steps=1)
    (tmp_path / "c.yaml").write_text(config_from(config).to_yaml())
    done = subprocess.run(
        [
            sys.executable,
            "train.py",
            "--config",
            str(tmp_path / "c.yaml"),
            "--output-dir",
            str(tmp_path / "else"),
            "--resume",
            "never",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "else" / "adapter_config.json").is_file()
    assert not config["output_dir"].exists()
    assert "step 1/1" in done.stderr
    assert "arning" not in done.stderr


@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        ({"base_model": Path("no/such/model")}, "ModelError", "no/such/model does not exist"),
        ({"train_data_dir": Path("no/such/data")}, "DataError", "no such folder"),
        ({"device": "cuda:99"}, "ConfigError", "cuda:99"),
    ],
)
def test_the_users_faults_end_with_3_and_one_paragraph(
    text_config: Make,
    command: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    kind: str,
    said: str,
) -> None:
    config = text_config(**changes)
    assert command(config) == 3
    stderr = capsys.readouterr().err
    assert stderr.startswith("error: ")
    assert said in stderr
    assert "Traceback" not in stderr
    last = events(config["output_dir"])[-1]
    assert (last["event"], last["cause"], last["type"]) == ("failure", "user", kind)
    assert said in last["message"]
    assert "Traceback" in last["traceback"]


def test_a_bad_config_ends_with_3_before_anything_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("lora_rnk: 8\n")
    done = subprocess.run(
        [sys.executable, "-m", "trainer", "--config", str(path), "--output-dir", str(tmp_path / "out")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3
    assert f"{path}:1: unknown key `lora_rnk`; did you mean `lora_rank`?" in done.stderr
    assert events(tmp_path / "out")[-1]["type"] == "ConfigError"


@pytest.mark.parametrize(
    ("raised", "cause", "shown"),
    [
        (RuntimeError("CUDA error: no kernel image is available"), "trainer", "no kernel image"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), "oom", "Halve batch_size"),
        (MemoryError(), "oom", "Out of memory"),
        (OSError(28, "No space left on device", "x"), "trainer", "The disk is full"),
    ],
)
def test_other_faults_end_with_1_and_their_cause(
    text_config: Make,
    command: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    raised: Exception,
    cause: str,
    shown: str,
) -> None:
    def broken(_: LoRATrainer) -> None:
        raise raised

    monkeypatch.setattr(LoRATrainer, "build_model", broken)
    config = text_config()
    assert command(config, "--debug") == 1
    stderr = capsys.readouterr().err
    assert shown in stderr
    assert "Traceback" in stderr
    last = events(config["output_dir"])[-1]
    assert (last["cause"], last["phase"], last["type"]) == (cause, "build_model", type(raised).__name__)


def test_the_selfcheck_takes_a_step_and_compares_with_the_lock(tmp_path: Path) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text(f"# lock\nTorch=={version('torch').split('+')[0]}\npeft==0.0.1 ; python_version > '3'\n")
    done = subprocess.run(
        [sys.executable, "-m", "trainer.selfcheck", "--json", "--lock", str(lock)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    told = json.loads(done.stdout)
    assert (done.returncode, told["ok"]) == (1, False)
    assert (told["step"]["ok"], told["step"]["error"]) == (True, None)
    assert {p["name"] for p in told["packages"]} >= {
        "torch",
        "diffusers",
        "transformers",
        "peft",
        "safetensors",
    }
    assert [p for p in told["packages"] if not p["ok"]] == [
        {"name": "peft", "expected": "0.0.1", "found": version("peft"), "ok": False}
    ]


def test_the_selfcheck_fails_when_the_step_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from trainer import selfcheck

    def broken(_: LoRATrainer) -> None:
        raise RuntimeError("CUDA error: no kernel image is available")

    monkeypatch.setattr(selfcheck, "own_process", lambda: None)
    monkeypatch.setattr(LoRATrainer, "build_model", broken)
    assert selfcheck.main(["--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert "no kernel image" in told["step"]["error"]
    assert selfcheck.Package("torch", "2.13.0", "2.13.0+cpu").ok
    assert not selfcheck.Package("torch", "2.13.0+cu130", "2.13.0+cpu").ok
    assert not selfcheck.Package("torch", None, "missing").ok
