"""The platform's processes: found again, also when whoever started them was killed before saying so."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tasks.daemons import Daemon

# They outlive the handle that started them, as they should outlive `up`.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]
PARENT = [
    sys.executable,
    "-c",
    f"import subprocess, time; subprocess.Popen({SLEEPER}); time.sleep(600)",
]
KILLED = """
import os, signal, sys
from pathlib import Path
from tasks.daemons import Daemon
Daemon._remember = lambda self, process: os.kill(os.getpid(), signal.SIGKILL)
base = Path(sys.argv[1])
Daemon("worker-east", base).start([sys.executable, "-c", "import time; time.sleep(600)"], os.environ, base)
"""


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    made = Daemon("worker-east", tmp_path)
    yield made
    while made.stop(0.5):
        pass


def test_start_is_once_and_stop_ends_the_family(daemon: Daemon) -> None:
    started = daemon.start(PARENT, os.environ, daemon.base)
    assert daemon.start(PARENT, os.environ, daemon.base).pid == started.pid
    while not started.children():
        assert started.is_running()
    child = started.children()[0]
    assert daemon.stop(0.5)
    assert not child.is_running()
    assert daemon.process() is None
    assert not daemon.stop(0.5)


def test_killed_before_its_record_was_written(daemon: Daemon, tmp_path: Path) -> None:
    """`kill -9` of `up` between start and record: the next `up` adopts the process, `down` ends it."""
    died = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert died.returncode == -9
    assert not list((tmp_path / "run").glob("*.json"))
    stray = daemon.process()
    assert stray is not None
    assert daemon.start(SLEEPER, os.environ, tmp_path).pid == stray.pid
    assert list((tmp_path / "run").glob("*.json"))
    assert daemon.stop(0.5)
    assert not stray.is_running()


def test_what_it_starts_and_others_are_not_taken_for_it(daemon: Daemon, tmp_path: Path) -> None:
    """A run outlives the worker that started it; another platform has a worker of the same name."""
    started = daemon.start(PARENT, os.environ, tmp_path)
    while not (children := started.children()):
        assert started.is_running()
    assert Daemon("worker-west", tmp_path).process() is None
    assert Daemon("worker-east", tmp_path / "other").process() is None
    started.kill()
    psutil.wait_procs([started])
    try:
        assert children[0].is_running()
        assert daemon.process() is None
    finally:
        children[0].kill()


def test_a_pid_that_belongs_to_another_by_now(daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "worker-east.json").write_text(f'{{"pid": {os.getpid()}, "created": 1.0}}')
    assert daemon.process() is None
