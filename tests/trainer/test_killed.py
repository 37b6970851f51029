"""Real SIGKILL at every step and within a checkpoint: the same bytes as never killed, in both worlds.

The children are forks of this process, which has torch loaded: a run of a tiny model takes a fraction of a
second. `test_command.py` kills whole processes.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer import LoRATrainer
from trainer import checkpoint as checkpoints
from trainer.files import sha256_file

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")

Make = Callable[..., dict[str, Any]]
STEPS = 3
OPTIONS: dict[str, Any] = {
    "max_steps": STEPS,
    "save_steps": 1,
    "gradient_accumulation": 2,
    "lr_schedule": "cosine",
    "keep_last": 2,
    "batch_size": 1,
    "lora_dropout": 0.1,
}


def train(config: dict[str, Any]) -> None:
    trainer = LoRATrainer(config)
    trainer.prepare_data()
    trainer.build_model()
    trainer.train()


def published(folder: Path) -> dict[str, str]:
    """Everything that a run publishes, but for its history."""
    files = [p for p in sorted(folder.iterdir()) if p.is_file() and p.name != "events.jsonl"]
    return {path.name: sha256_file(path) for path in files}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def forked(config: dict[str, Any], prepare: Callable[[], None] = lambda: None) -> int:
    """Train in a child that `prepare` has set a trap in; 0, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            sink = os.open(os.devnull, os.O_WRONLY)
            os.dup2(sink, 2)
            signal.alarm(120)
            prepare()
            train(config)
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def at_step(number: int) -> Callable[[], None]:
    """Die in the middle of the step after `number`."""

    def prepare() -> None:
        accumulate = LoRATrainer._accumulate

        def hit(self: LoRATrainer, family: Any) -> Any:
            result = accumulate(self, family)
            if self.step == number:
                die()
            return result

        LoRATrainer._accumulate = hit  # type: ignore[method-assign]

    return prepare


class Calls:
    """Counts the system calls that change what a checkpoint is, and dies before call `fatal`."""

    def __init__(self, fatal: int) -> None:
        self.fatal, self.count = fatal, 0

    def trap(self) -> None:
        for name in ("fsync", "replace", "unlink", "rmdir", "mkdir"):
            setattr(os, name, self.counting(getattr(os, name)))

    def counting(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            if "checkpoints" in _stack_files():
                self.count += 1
                if self.count == self.fatal:
                    die()
            return call(*args, **kwargs)

        return counted


def _stack_files() -> set[str]:
    """Whether a checkpoint is being written: the name of its module, from the callers."""
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_filename == checkpoints.__file__:
            return {"checkpoints"}
        frame = frame.f_back  # type: ignore[assignment]
    return set()


def test_killed_at_every_step(world: Make, tmp_path: Path) -> None:
    """Once at each step, one after the other, each time further than before; and only once, at each step."""
    whole = world(output_dir=tmp_path / "whole" / "x", **OPTIONS)
    train(whole)
    wanted = published(whole["output_dir"])
    again_and_again = world(output_dir=tmp_path / "again" / "x", **OPTIONS)
    for step in range(STEPS):
        assert forked(again_and_again, at_step(step)) == -signal.SIGKILL
        once = world(output_dir=tmp_path / f"once{step}" / "x", **OPTIONS)
        assert forked(once, at_step(step)) == -signal.SIGKILL
        assert forked(once) == 0
        assert published(once["output_dir"]) == wanted, step
    assert forked(again_and_again) == 0
    assert published(again_and_again["output_dir"]) == wanted


@pytest.mark.parametrize(("which", "stride"), [("images_config", 4), ("text_config", 1)])
def test_killed_within_a_checkpoint(
    request: pytest.FixtureRequest, tmp_path: Path, which: str, stride: int
) -> None:
    """Before calls that sync, rename or remove something while checkpoints are written: each of them in the
    first checkpoint, and every fifth later on."""
    world: Make = request.getfixturevalue(which)
    whole = world(output_dir=tmp_path / "whole" / "x", **OPTIONS)
    train(whole)
    wanted = published(whole["output_dir"])
    killed, point = 0, 0
    while True:
        point += 5 if point > 12 else stride
        config = world(output_dir=tmp_path / f"at{point}" / "x", **OPTIONS)
        code = forked(config, Calls(point).trap)
        if code == 0:
            break
        assert code == -signal.SIGKILL, point
        killed += 1
        assert forked(config) == 0
        assert published(config["output_dir"]) == wanted, point
    assert killed >= 6
