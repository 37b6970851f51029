"""Object store servers of their own for tests: ministack (checks signatures), azurite, and a GCS stand-in.

What is not a part of this project's environment is installed once into a cache folder.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep

import pytest

MINISTACK = "ministack==1.5.33"  # it pins a botocore of its own: never into the project's environment
AZURITE = "azurite@3.37.0"
CI = bool(os.environ.get("LORA_OPS_CI"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def process(command: list[str], env: Mapping[str, str], url: str, log: Path) -> Iterator[None]:
    """The server, from its first answer of any kind to its end."""
    with log.open("wb") as out:
        child = subprocess.Popen(
            command, env={**os.environ, **env}, stdout=out, stderr=out, start_new_session=True
        )
    try:
        end = monotonic() + 120
        while not _answers(url):
            if child.poll() is not None or monotonic() > end:
                pytest.fail(f"{command[0]} did not start:\n{log.read_text()[-2000:]}")
            sleep(0.05)
        yield
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def ministack_folder() -> Path:
    return _installed(
        MINISTACK,
        lambda half: [sys.executable, "-m", "pip", "install", "-q", "--target", str(half), MINISTACK],
    )


def azurite_program() -> Path:
    npm = shutil.which("npm")
    if npm is None:
        if CI:
            pytest.fail("npm is not installed")
        pytest.skip("needs npm")
    folder = _installed(
        AZURITE,
        lambda folder: [
            npm,
            "install",
            "--silent",
            "--no-audit",
            "--no-fund",
            "--prefix",
            str(folder),
            AZURITE,
        ],
    )
    return folder / "node_modules" / ".bin" / "azurite-blob"


def _installed(what: str, command: Callable[[Path], list[str]]) -> Path:
    """The cache's folder of it; whole or not there. Without a registry: a skip, or in CI a failure."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lora-ops-tests"
    folder = base / what.replace("==", "-").replace("@", "-")
    base.mkdir(parents=True, exist_ok=True)
    with (base / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.is_dir():
            return folder
        half = folder.with_name(f"{folder.name}.half")
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir()
        done = subprocess.run(command(half), check=False, capture_output=True, text=True)
        if done.returncode != 0:
            message = f"{what} cannot be installed: {done.stderr[-1000:]}"
            pytest.fail(message) if CI else pytest.skip(message)
        half.rename(folder)
    return folder
