"""`python -m trainer.selfcheck`: the installed versions against the lock, then one real step for each world.

The steps run on tiny random models of the real classes, through the same LoRATrainer that trains a user's
config, in an output folder named `selfcheck`. Exit code 0 if all is well, else 1.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer.errors import explain
from trainer.fast_imports import lean_imports, own_process
from trainer.versions import PACKAGES, versions

_PIN = re.compile(r"^\s*([A-Za-z0-9._-]+)\s*(?:\[[^]]*\])?\s*==\s*([^\s;#]+)")


@dataclass(frozen=True)
class Package:
    """One line of the table. `expected` is None where the lock says nothing."""

    name: str
    expected: str | None
    found: str

    @property
    def ok(self) -> bool:
        """Local parts (`+cpu`, `+cu130`) count only when the lock names one."""
        if self.expected is None:
            return self.found != "missing"
        return self.found == self.expected or (
            "+" not in self.expected and self.found.split("+")[0] == self.expected
        )


def read_lock(path: Path) -> dict[str, str]:
    """{normalised name: pinned version} of a constraints file. Raises OSError."""
    pins = (_PIN.match(line) for line in path.read_text(encoding="utf-8").splitlines())
    return {match[1].lower().replace("_", "-"): match[2] for match in pins if match}


def check_packages(lock: dict[str, str]) -> list[Package]:
    """The packages that training depends on, found and expected."""
    found = versions()
    return [Package(name, lock.get(name), found[name]) for name in PACKAGES]


def cuda_version() -> str | None:
    """The CUDA that torch was built for; None for a CPU build."""
    with lean_imports():
        import torch
    return torch.version.cuda


def gpu_name() -> str | None:
    """The GPU that torch would train on; None when it sees none."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def training_step() -> None:
    """One step of a tiny Stable Diffusion and of a tiny language model; raises what goes wrong."""
    from PIL import Image

    with lean_imports():
        from trainer import tiny
        from trainer.loop import LoRATrainer

    with tempfile.TemporaryDirectory(prefix="lora-ops-selfcheck-") as name:
        root = Path(name)
        common: dict[str, Any] = {
            "lora_rank": 2,
            "max_steps": 1,
            "learning_rate": 1e-3,
            "cache_dir": root / "cache",
            "tracker": {"wandb": "off"},
            "resume": "never",
        }
        (root / "pictures").mkdir()
        Image.new("RGB", (32, 32), (200, 80, 20)).save(root / "pictures" / "a.png")
        (root / "pictures" / "a.txt").write_text("an orange square")
        tiny.make_sd(root / "sd")
        (root / "chats").mkdir()
        row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}
        (root / "chats" / "rows.jsonl").write_text(json.dumps(row) + "\n")
        tiny.make_lm(root / "lm")
        worlds: list[dict[str, Any]] = [
            {"train_data_dir": root / "pictures", "base_model": root / "sd", "resolution": 32},
            {"train_data_dir": root / "chats", "base_model": root / "lm"},
        ]
        for number, world in enumerate(worlds):
            trainer = LoRATrainer({**common, **world, "output_dir": root / str(number) / "selfcheck"})
            trainer.prepare_data()
            trainer.build_model()
            trainer.train()


def main(argv: Sequence[str] | None = None) -> int:
    """Check as `argv` says; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer.selfcheck", description="Check this installation."
    )
    parser.add_argument("--lock", type=Path, help="constraints file with the expected versions")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    args = parser.parse_args(argv)
    own_process()
    try:
        packages = check_packages(read_lock(args.lock) if args.lock else {})
    except OSError as error:
        print(f"error: the lock {args.lock} cannot be read: {error.strerror}", file=sys.stderr)
        return 1
    began = time.perf_counter()
    failure = cuda = gpu = None
    try:
        cuda = cuda_version()
        gpu = gpu_name()
        with contextlib.redirect_stderr(io.StringIO()):
            training_step()
    except Exception as error:  # noqa: BLE001 - whatever is broken is what the check is for
        failure = f"{type(error).__name__}: {explain(error, 'the training step').message}"
    step = {"ok": failure is None, "seconds": round(time.perf_counter() - began, 2), "error": failure}
    ok = failure is None and all(package.ok for package in packages)
    if args.json:
        listed = [{**asdict(package), "ok": package.ok} for package in packages]
        print(json.dumps({"ok": ok, "cuda": cuda, "gpu": gpu, "packages": listed, "step": step}))
    else:
        print(_table(packages, cuda, gpu, step))
    return 0 if ok else 1


def _table(packages: list[Package], cuda: str | None, gpu: str | None, step: dict[str, Any]) -> str:
    lines = [f"{'package':<14} {'expected':<14} {'found':<14}"]
    lines += [
        f"{p.name:<14} {p.expected or '-':<14} {p.found:<14} {'ok' if p.ok else 'DIFFERS'}" for p in packages
    ]
    lines.append(f"{'cuda':<14} {'-':<14} {cuda or 'none':<14} ok")
    lines.append(f"{'gpu':<14} {'-':<14} {gpu or 'none'}")
    lines.append(
        f"training step  {'ok' if step['ok'] else 'FAILED: ' + str(step['error'])} ({step['seconds']} s)"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    from trainer.__main__ import exit_now

    exit_now(main())
