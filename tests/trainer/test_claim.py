"""One training at a time in an output folder."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from trainer import LoRATrainer
from trainer.claim import claim
from trainer.config import config_from
from trainer.errors import EXIT_USER, FolderInUse
from trainer.files import TEMPORARY

ROOT = Path(__file__).parents[2]
HOLD = """
import sys
from pathlib import Path
from trainer.claim import claim

held = claim(Path(sys.argv[1]))
print(held.sure, flush=True)
sys.stdin.read()
"""


@contextmanager
def another(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that trains in `folder`, until it is killed."""
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline().strip() == "True"
        try:
            yield child
        finally:
            child.kill()


def test_a_folder_is_one_processs_at_a_time_whatever_ends_it(tmp_path: Path) -> None:
    with another(tmp_path), pytest.raises(FolderInUse, match=str(tmp_path)):
        claim(tmp_path)
    mine = claim(tmp_path)  # it was killed
    assert claim(tmp_path) is mine, "one process may make several trainers, one after the other"
    del mine
    gc.collect()
    with another(tmp_path):
        pass


def test_the_second_run_is_told_and_leaves_the_first_alone(
    text_config: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    config = text_config(max_steps=1)
    out = Path(config["output_dir"])
    out.mkdir()
    (out / "events.jsonl").write_text("")
    (tmp_path / "c.yaml").write_text(config_from(config).to_yaml())
    with another(out):
        done = subprocess.run(
            [sys.executable, "-m", "trainer", "--config", str(tmp_path / "c.yaml")],
            cwd=ROOT,
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    assert done.returncode == EXIT_USER
    assert done.stderr.strip() == (
        f"error: `output_dir`: another training is running in {out}. "
        "Wait for it or stop it, or set another output_dir."
    )
    assert (out / "events.jsonl").read_text() == "", "its events are the first one's"


def test_a_finished_training_lets_go(text_config: Callable[..., dict[str, Any]]) -> None:
    trainer = LoRATrainer(text_config(max_steps=1))
    out = trainer.config.output_dir
    (out / "checkpoints" / f"{TEMPORARY}of-a-killed-one").mkdir(parents=True)
    (out / f"{TEMPORARY}merged.0").mkdir()
    (out / "samples").mkdir()
    (out / "samples" / f"{TEMPORARY}00.png.0").write_bytes(b"half")
    (out / "mine").mkdir()
    trainer.prepare_data()
    assert [str(left.relative_to(out)) for left in sorted(out.rglob("*")) if left.name != "events.jsonl"] == [
        "checkpoints",
        "mine",
        "samples",
    ]
    trainer.build_model()
    trainer.train()
    with another(trainer.config.output_dir):
        pass
