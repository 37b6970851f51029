"""`python -P -m tasks.image_check [--gpus N]`: the self-check of a built image, run in it, on a node.

It compares the installed versions with the lock, torch's CUDA with what the node's driver supports, takes one
real training step, and says which code it is that runs: one line of JSON on stdout. `problems` holds what
neither `packages` nor `step` says. Exit code 0 if all is well, else 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lora_ops.errors import BundleError, LoraOpsError
from tasks import home
from tasks.selfcheck import run_self_check
from tasks.source_tree import BUNDLE_FOLDERS, digest_of_running

#: The oldest Linux driver that runs any minor version of a CUDA major: NVIDIA, "CUDA Compatibility", table 1
#: of "Minor Version Compatibility". A newer driver runs every older CUDA.
OLDEST_DRIVER = {11: (450, 80, 2), 12: (525,), 13: (580,)}

#: Kubernetes keeps what stands here in the pod's status, where it outlives the container's log.
TERMINATION_LOG = Path("/dev/termination-log")
TERMINATION_BYTES = 4096

_ASK = ("nvidia-smi", "--query-gpu=driver_version,name", "--format=csv,noheader")
_ASK_TIMEOUT_S = 60.0


def check(root: Path, base: Path, gpus: int | None) -> dict[str, Any]:
    """The report on the code below `root`. `base`: where it may write.

    `gpus`: how many the container should see; with 0 the node's driver does not matter, with None it must fit
    where there is one.
    """
    problems: list[str] = []
    tree: str | None = None
    said: dict[str, Any] = {}
    try:
        tree = digest_of_running(*_packages())
    except BundleError as error:
        problems.append(error.message)
    try:
        said = run_self_check(root, base)
    except BundleError as error:
        problems += [error.message, *error.details]
    driver, seen, trouble = _driver()
    if gpus != 0:
        problems += trouble
        if "cuda" in said:
            problems += complaints(said["cuda"], said.get("gpu"), driver, gpus or 0)
    if gpus is not None and seen < gpus:
        problems.append(f"{gpus} GPUs are asked for, and nvidia-smi sees {seen} in the container")
    return {
        "schema_version": 1,
        "ok": not problems and bool(said.get("ok")),
        "tree": tree,
        "packages": said.get("packages", []),
        "cuda": said.get("cuda"),
        "driver": driver,
        "gpu": said.get("gpu"),
        "step": said.get("step"),
        "problems": problems,
    }


def complaints(cuda: str | None, gpu: str | None, driver: str | None, gpus: int) -> list[str]:
    """What does not fit between torch's CUDA, the node's driver and the GPUs that are asked for.

    `cuda`: of torch, None for a CPU build; `gpu`: what torch sees; `driver`: of the node, None without one.
    """
    if cuda is None:
        wanted = gpus or driver
        return ["torch is a CPU build: expected a CUDA build on a node with a GPU"] if wanted else []
    if driver is None:
        return []
    oldest = OLDEST_DRIVER.get(_version(cuda)[0])
    if oldest is not None and _version(driver) < oldest:
        needed = ".".join(f"{part:02}" if part < 10 else str(part) for part in oldest)
        return [f"driver: CUDA {cuda} of torch needs {needed} or newer, found {driver}"]
    return [] if gpu else [f"torch (CUDA {cuda}) sees no GPU, although the driver {driver} is there"]


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())


def _driver() -> tuple[str | None, int, list[str]]:
    """(the node's driver, how many GPUs the container sees, what is wrong with asking)."""
    try:
        done = subprocess.run(
            _ASK,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_ASK_TIMEOUT_S,
            check=False,
        )
    except OSError:  # no GPU, or a container that is not shown one
        return None, 0, []
    except subprocess.TimeoutExpired:
        return None, 0, [f"nvidia-smi gave no answer within {_ASK_TIMEOUT_S:g} s"]
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        said = " ".join((done.stdout + done.stderr).split())
        return None, 0, [f"nvidia-smi ended with exit code {done.returncode}: {said}"]
    return lines[0].partition(",")[0].strip(), len(lines), []


def _packages() -> Sequence[str]:
    """Where the release's packages would be imported from."""
    found: Mapping[str, Any] = {name: find_spec(name) for name in BUNDLE_FOLDERS}
    missing = [name for name, spec in found.items() if spec is None or spec.origin is None]
    if missing:
        raise BundleError(f"The image lacks {', '.join(missing)}.", "Look at its PYTHONPATH.")
    return [spec.origin for spec in found.values()]


def main(argv: Sequence[str] | None = None) -> int:
    """Check, print the report and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -P -m tasks.image_check", description=__doc__)
    parser.add_argument("--gpus", type=int, help="how many GPUs the container should see")
    options = parser.parse_args(argv)
    root = Path(__file__).resolve().parent.parent
    try:
        report = check(root, home.home(), options.gpus)
    except LoraOpsError as error:
        report = {"schema_version": 1, "ok": False, "problems": [error.message, *error.details]}
    line = json.dumps(report)
    sys.stdout.write(line + "\n")
    with suppress(OSError):  # outside of Kubernetes there is none
        TERMINATION_LOG.write_text(line[:TERMINATION_BYTES])
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
