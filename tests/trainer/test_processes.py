"""Two gloo processes equal one process with accumulation 2; all of them stop together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from trainer import LoRATrainer
from trainer.config import config_from

ROOT = Path(__file__).parents[2]
Make = Callable[..., dict[str, Any]]

SIGTERM_ON_RANK_1 = """
import os, signal, sys
from trainer.__main__ import main
from trainer.loop import LoRATrainer

accumulate = LoRATrainer._accumulate

def hit(self, family):
    if self.step == 1 and self.processes.rank == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    return accumulate(self, family)

LoRATrainer._accumulate = hit
sys.exit(main(["--config", sys.argv[1]]))
"""


def launch(config: dict[str, Any], tmp_path: Path, script: str | None = None) -> tuple[int, str]:
    """Two processes as torchrun starts them; the exit code of the first, and what was said."""
    path = tmp_path / f"{Path(config['output_dir']).name}.yaml"
    path.write_text(config_from(config).to_yaml())
    if script is None:
        what = ["-m", "trainer", "--config", str(path)]
    else:
        (tmp_path / "hit.py").write_text(script)
        what = [str(tmp_path / "hit.py"), str(path)]
    port = 20000 + os.getpid() % 20000
    base = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "WORLD_SIZE": "2"}
    base |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    children = [
        subprocess.Popen(
            [sys.executable, *what],
            cwd=ROOT,
            env={**base, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [child.communicate(timeout=300)[1] for child in children]
    finally:
        for child in children:
            child.kill()
    codes = {child.returncode for child in children}
    assert len(codes) == 1, said
    return codes.pop(), said[0]


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines() if line]


def test_two_processes_equal_one_with_twice_the_accumulation(world: Make, tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_steps": 4, "batch_size": 1, "lr_schedule": "cosine", "warmup_steps": 1}
    one = world(output_dir=tmp_path / "one", gradient_accumulation=2, **options)
    trainer = LoRATrainer(one)
    trainer.prepare_data()
    trainer.build_model()
    trainer.train()
    two = world(output_dir=tmp_path / "two", gradient_accumulation=1, **options)
    code, said = launch(two, tmp_path)
    assert code == 0, said
    told = [[e for e in events(c["output_dir"]) if e["event"] == "step"] for c in (one, two)]
    assert [e["lr"] for e in told[0]] == [e["lr"] for e in told[1]], "pain 17: not multiplied by processes"
    assert [e["step"] for e in told[1]] == [1, 2, 3, 4], "one process writes"
    for first, second in zip(*told, strict=True):
        assert second["loss"] == pytest.approx(first["loss"], rel=1e-5)
    (start,) = [e for e in events(two["output_dir"]) if e["event"] == "start"]
    assert (start["processes"], start["steps"]) == (2, 4)
    name = (
        "pytorch_lora_weights"
        if (tmp_path / "one" / "pytorch_lora_weights.safetensors").exists()
        else "adapter_model"
    )
    single, both = (load_file(tmp_path / folder / f"{name}.safetensors") for folder in ("one", "two"))
    assert set(single) == set(both)
    for key, value in single.items():
        assert value.allclose(both[key], rtol=1e-5, atol=1e-5), key
    assert (
        start["config_hash"]
        == next(e for e in events(tmp_path / "one") if e["event"] == "start")["config_hash"]
    )


def test_a_signal_to_one_process_stops_all_and_the_run_goes_on(text_config: Make, tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_steps": 4, "batch_size": 1, "validation_split": 0.25}
    whole = text_config(output_dir=tmp_path / "whole", **options)
    assert launch(whole, tmp_path)[0] == 0
    stopped = text_config(output_dir=tmp_path / "stopped", **options)
    code, said = launch(stopped, tmp_path, SIGTERM_ON_RANK_1)
    assert code == 75, said
    assert "Stopped as asked after step 2 of 4" in said
    assert (tmp_path / "stopped" / "checkpoints" / "step-000002").is_dir()
    assert launch(stopped, tmp_path)[0] == 0
    one, two = (load_file(tmp_path / f / "adapter_model.safetensors") for f in ("whole", "stopped"))
    assert all(one[key].equal(two[key]) for key in one)
