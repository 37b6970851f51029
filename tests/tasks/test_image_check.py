"""The self-check in an image: the node's driver, the lock, a step, and which code it is that runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tasks.image_check import complaints
from tasks.source_tree import tree_digest
from tests.stub.make import make_stub_source

ROOT = Path(__file__).resolve().parents[2]
KEYS = {"schema_version", "ok", "tree", "packages", "cuda", "driver", "gpu", "step", "problems"}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """What lies in an image of the stand-in trainer, and an empty folder of programs beside it."""
    (tmp_path / "bin").mkdir()
    return make_stub_source(tmp_path / "opt")


def check(image: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Run it as the Job does; its exit code and the one line that it printed."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(image),
        "PATH": str(image.parent / "bin"),
        "LORA_OPS_HOME": str(image.parent / "home"),
    }
    done = subprocess.run(
        [sys.executable, "-P", "-m", "tasks.image_check", *arguments],
        env=environment,
        cwd=image.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.count("\n") == 1, done.stderr
    return done.returncode, json.loads(done.stdout)


def nvidia_smi(image: Path, prints: str, code: int = 0) -> None:
    """A node's nvidia-smi."""
    script = image.parent / "bin" / "nvidia-smi"
    script.write_text(f"#!/bin/sh\necho '{prints}'\nexit {code}\n")
    script.chmod(0o755)


def trainer_says(image: Path, **changes: Any) -> None:
    """A trainer whose self-check reports on a GPU."""
    report = {
        "ok": True,
        "cuda": "12.8",
        "gpu": "NVIDIA H100",
        "packages": [{"name": "torch", "expected": "2.13.0", "found": "2.13.0", "ok": True}],
        "step": {"ok": True, "seconds": 1.0, "error": None},
        **changes,
    }
    (image / "trainer" / "selfcheck.py").write_text(
        f"import json, sys\nprint({json.dumps(report)!r})\nsys.exit({int(not report['ok'])})\n"
    )


def test_a_good_image_says_what_it_is(image: Path) -> None:
    code, report = check(image)
    assert (code, report["ok"], report["problems"]) == (0, True, [])
    assert report["tree"] == tree_digest(image)
    assert report.keys() == KEYS
    assert report["driver"] is None
    assert report["schema_version"] == 1


def test_other_versions_than_the_lock_are_not_ok(image: Path) -> None:
    (image / "trainer" / "behaviour.json").write_text(json.dumps({"selfcheck_fails": True}))
    code, report = check(image)
    assert (code, report["ok"]) == (1, False)
    assert [each for each in report["packages"] if not each["ok"]] == [
        {"name": "torch", "expected": "2.13.0", "found": "2.1.0", "ok": False}
    ]
    assert not report["step"]["ok"]


def test_a_trainer_that_dies_is_a_report_too(image: Path) -> None:
    (image / "trainer" / "selfcheck.py").write_text("raise SystemExit('libcudart.so.13 is missing')\n")
    code, report = check(image)
    assert (code, report["ok"], report["step"]) == (1, False, None)
    assert "libcudart.so.13 is missing" in report["problems"]


def test_code_from_elsewhere_is_found(image: Path, tmp_path: Path) -> None:
    """A package that another folder on the path hides."""
    stray = tmp_path / "stray"
    (stray / "flows").mkdir(parents=True)
    (stray / "flows" / "__init__.py").touch()
    code = "import sys, tasks.image_check as c; sys.exit(c.main([]))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={**os.environ, "PYTHONPATH": f"{stray}:{image}", "LORA_OPS_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=False,
    )
    report = json.loads(done.stdout)
    assert (done.returncode, report["tree"]) == (1, None)
    assert "several places" in report["problems"][0]


def test_a_node_with_a_gpu_that_fits(image: Path) -> None:
    trainer_says(image)
    nvidia_smi(image, "570.124.06, NVIDIA H100 80GB HBM3")
    code, report = check(image, "--gpus", "1")
    assert (code, report["driver"], report["cuda"], report["gpu"]) == (0, "570.124.06", "12.8", "NVIDIA H100")


def test_a_driver_that_is_too_old_says_what_it_needs(image: Path) -> None:
    trainer_says(image, cuda="13.0", gpu=None)
    nvidia_smi(image, "570.124.06, NVIDIA H100 80GB HBM3")
    code, report = check(image, "--gpus", "1")
    assert code == 1
    assert report["problems"] == ["driver: CUDA 13.0 of torch needs 580 or newer, found 570.124.06"]


def test_a_driver_that_answers_nothing_is_told(image: Path) -> None:
    trainer_says(image, gpu=None)
    nvidia_smi(image, "Failed to initialize NVML: Driver/library version mismatch", 18)
    code, report = check(image)
    assert code == 1
    assert "Driver/library version mismatch" in report["problems"][0]


def test_where_no_gpu_is_wanted_the_driver_does_not_matter(image: Path) -> None:
    trainer_says(image, cuda=None, gpu=None)
    nvidia_smi(image, "No devices were found", 6)
    assert check(image, "--gpus", "0")[0] == 0
    assert check(image)[0] == 1


def test_gpus_that_are_asked_for_must_be_seen(image: Path) -> None:
    trainer_says(image)
    nvidia_smi(image, "570.124.06, NVIDIA H100 80GB HBM3")
    code, report = check(image, "--gpus", "2")
    assert code == 1
    assert report["problems"] == ["2 GPUs are asked for, and nvidia-smi sees 1 in the container"]


@pytest.mark.parametrize(
    ("cuda", "gpu", "driver", "gpus", "complaint"),
    [
        (None, None, None, 0, ""),  # a CPU build on a node without a GPU
        (None, None, "580.65.06", 0, "CPU build"),
        (None, None, None, 1, "CPU build"),
        ("12.8", None, None, 0, ""),  # a CUDA build runs on a CPU, too
        ("12.8", "H100", "525.60.13", 1, ""),
        ("12.8", "H100", "580.65.06", 1, ""),  # a newer driver runs every older CUDA
        ("12.8", None, "524.99", 1, "needs 525"),
        ("13.1", "H100", "580.65.06", 1, ""),
        ("13.1", None, "579.99.99", 1, "needs 580"),
        ("11.8", "V100", "450.80.02", 1, ""),
        ("11.8", None, "450.36.06", 1, "needs 450.80.02"),
        ("99.0", "X", "1.0", 1, ""),  # a major that this table does not know is the training step's to judge
        ("12.8", None, "580.65.06", 1, "sees no GPU"),
    ],
)
def test_torch_the_driver_and_the_gpu_must_fit(
    cuda: str | None, gpu: str | None, driver: str | None, gpus: int, complaint: str
) -> None:
    found = complaints(cuda, gpu, driver, gpus)
    assert len(found) == bool(complaint)
    assert complaint in "".join(found)


@pytest.mark.models
def test_the_real_trainer_passes_with_the_real_lock(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "tasks.image_check"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "LORA_OPS_HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    report = json.loads(done.stdout)
    assert {each["name"] for each in report["packages"]} >= {"torch", "diffusers", "transformers", "peft"}
    assert report["step"]["ok"], report
    if not report["problems"]:  # the lock's torch may be a CPU build on a machine with a GPU
        assert (done.returncode, report["ok"]) == (0, True)


def test_the_report_outlives_the_log_in_the_pods_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A node may have cleared the log by the time that somebody asks for it."""
    from tasks import image_check

    status = tmp_path / "termination-log"
    monkeypatch.setattr(image_check, "TERMINATION_LOG", status)
    monkeypatch.setattr(image_check, "check", lambda *words: {"ok": True, "tree": "sha256:x"})
    assert image_check.main([]) == 0
    assert status.read_text() == capsys.readouterr().out.strip()
    monkeypatch.setattr(image_check, "TERMINATION_LOG", tmp_path / "no" / "such")
    assert image_check.main([]) == 0
