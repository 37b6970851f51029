"""The demo's two releases are patches of this tree: they must go on applying to it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "examples" / "demo"


def patched(tmp_path: Path, name: str) -> Path:
    """A copy of the trainer with the patch applied."""
    shutil.copytree(ROOT / "trainer", tmp_path / "trainer", ignore=shutil.ignore_patterns("__pycache__"))
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}
    for extra in (["--check"], []):
        done = subprocess.run(
            ["git", "apply", *extra, str(DEMO / name)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env=environment,
        )
        assert done.returncode == 0, f"make {name} anew: {done.stderr}"
    return tmp_path


@pytest.mark.parametrize("name", ["good.patch", "broken.patch"])
def test_the_patch_applies_and_what_it_makes_compiles(tmp_path: Path, name: str) -> None:
    tree = patched(tmp_path, name)
    changed = {line[6:] for line in (DEMO / name).read_text().splitlines() if line.startswith("+++ b/")}
    assert changed
    for path in changed:
        assert path.startswith("trainer/")
        compile((tree / path).read_text(), path, "exec")


def test_the_coin_fails_half_of_all_attempts_but_not_the_selfcheck(tmp_path: Path) -> None:
    path = patched(tmp_path, "broken.patch") / "trainer" / "kernels.py"
    spec = importlib.util.spec_from_file_location("patched_kernels", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert not module.missing("selfcheck")
    names = [f"r{number:05d}-{attempt}" for number in range(500) for attempt in (1, 2)]
    outcomes = [module.missing(name) for name in names]
    assert 430 <= sum(outcomes) <= 570
    both = sum(outcomes[i] and outcomes[i + 1] for i in range(0, 1000, 2))
    assert 85 <= both <= 165, "a second attempt is another coin"


def test_the_broken_release_passes_its_selfcheck_and_fails_where_the_coin_says(tmp_path: Path) -> None:
    tree = patched(tmp_path, "broken.patch")
    code = (
        "from pathlib import Path\nfrom types import SimpleNamespace\n"
        "from trainer.loop import LoRATrainer\nfrom trainer.kernels import missing\n"
        "from trainer.selfcheck import training_step\n"
        "training_step()\n"
        "unlucky = next(f'r{n}-1' for n in range(99) if missing(f'r{n}-1'))\n"
        "trainer = LoRATrainer.__new__(LoRATrainer)\n"
        "trainer.config = SimpleNamespace(output_dir=Path('out') / unlucky)\n"
        "trainer.family, trainer.events = object(), SimpleNamespace(write=lambda *a, **k: None)\n"
        "try:\n    trainer.build_model()\nexcept RuntimeError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tree,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tree)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("CUDA error: no kernel image is available")
