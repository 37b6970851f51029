"""The self-check of a built trainer: its versions against its lock, and one real training step, run in it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from lora_ops.errors import BundleError
from tasks import home
from tasks.child import child_env
from tasks.source_tree import LOCK

TIMEOUT_S = 600


def self_check(root: Path, base: Path) -> dict[str, Any]:
    """The report of `python -m trainer.selfcheck` in the bundle at `root`.

    Raises BundleError with one line a package when something does not fit, or the step fails.
    """
    report = run_self_check(root, base)
    if not report.get("ok"):
        raise BundleError(
            "the release does not pass its self-check.",
            "Install what its lock names, or mend the lock, and deploy again.",
            _complaints(report),
        )
    return report


def run_self_check(root: Path, base: Path) -> dict[str, Any]:
    """The report, whatever it says. Raises BundleError when there is none."""
    lock = root / LOCK
    command = [sys.executable, "-P", "-m", "trainer.selfcheck", "--json"]
    command += ["--lock", str(lock)] if lock.exists() else []
    with tempfile.TemporaryDirectory(prefix="selfcheck-") as folder:
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                env=child_env(root, home.cache(base)),
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired:
            raise BundleError(
                f"the self-check did not end within {TIMEOUT_S} s.", "Run it by hand."
            ) from None
    try:
        return dict(json.loads(done.stdout))
    except (TypeError, ValueError):
        tail = (done.stderr or done.stdout).strip().splitlines()[-5:]
        raise BundleError(
            f"the self-check ended with exit code {done.returncode} and no report.",
            f"Run it by hand: PYTHONPATH={root} python -m trainer.selfcheck.",
            tail,
        ) from None


def _complaints(report: dict[str, Any]) -> list[str]:
    lines = [
        f"{each.get('name')}: the lock wants {each.get('expected')}, found {each.get('found')}"
        for each in report.get("packages", [])
        if not each.get("ok")
    ]
    step = report.get("step") or {}
    if not step.get("ok", True):
        lines.append(f"one training step: {step.get('error')}")
    return lines
