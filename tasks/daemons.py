"""Processes of the platform on this machine: started detached, found again, stopped.

They are found by a record (pid and start time), and without one by a mark in their own arguments: whoever
started one may have been killed before it wrote the record.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from lora_ops.errors import ConflictError


@dataclass(frozen=True, slots=True)
class Daemon:
    """One named process of the platform below the folder `base`."""

    name: str
    base: Path

    @property
    def log(self) -> Path:
        return self.base / "logs" / f"{self.name}.log"

    @property
    def _record(self) -> Path:
        return self.base / "run" / f"{self.name}.json"

    @property
    def mark(self) -> str:
        """Names this process among all of the machine. An -X option of Python's, since its children would
        inherit an environment: a training must not be taken for its worker."""
        home = hashlib.sha256(str(self.base.resolve()).encode()).hexdigest()[:16]
        return f"lora-ops={home}/{self.name}"

    def process(self) -> psutil.Process | None:
        """The running process; None when it is dead."""
        return self._recorded() or self._stray()

    def _recorded(self) -> psutil.Process | None:
        """The process of the record, unless its pid belongs to another by now."""
        try:
            known = json.loads(self._record.read_text())
            found = psutil.Process(known["pid"])
            same = abs(found.create_time() - known["created"]) < 1.0
            return found if same and _alive(found) else None
        except (OSError, ValueError, KeyError, psutil.Error):
            return None

    def _stray(self) -> psutil.Process | None:
        """One that runs without a record: whoever started it was killed before writing that."""
        for each in psutil.process_iter():
            with suppress(psutil.Error):
                if self.mark in each.cmdline()[1:3] and _alive(each):
                    return each
        return None

    def start(self, command: Sequence[str], env: Mapping[str, str], cwd: Path) -> psutil.Process:
        """Start it in a session of its own, unless it runs already. `command`: an interpreter of Python and
        its arguments."""
        running = self.process()
        if running is not None:
            self._remember(running)
            return running
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as out:
            child = subprocess.Popen(
                [command[0], "-X", self.mark, *command[1:]],
                cwd=cwd,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        started = psutil.Process(child.pid)
        self._remember(started)
        return started

    def _remember(self, process: psutil.Process) -> None:
        self._record.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._record.with_suffix(".tmp")
        temporary.write_text(json.dumps({"pid": process.pid, "created": process.create_time()}))
        os.replace(temporary, self._record)

    def stop(self, grace_s: float = 15.0) -> bool:
        """SIGTERM, then SIGKILL after `grace_s`, to it and to what it started; False when it did not run."""
        found = self.process()
        if found is None:
            self._record.unlink(missing_ok=True)
            return False
        family = [found, *found.children(recursive=True)]
        with suppress(psutil.NoSuchProcess):
            found.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs(family, timeout=grace_s)
        for each in alive:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        psutil.wait_procs(alive, timeout=5)
        self._record.unlink(missing_ok=True)
        return True

    def last_words(self, lines: int = 8) -> list[str]:
        """The end of its log."""
        try:
            return self.log.read_text(errors="replace").strip().splitlines()[-lines:]
        except OSError:
            return []


def _alive(process: psutil.Process) -> bool:
    return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)


@contextmanager
def only_one(base: Path, what: str) -> Iterator[None]:
    """Hold the platform's lock on this machine. ConflictError when another `up` or `down` holds it."""
    base.mkdir(parents=True, exist_ok=True)
    lock = FileLock(base / "lock")
    try:
        lock.acquire(timeout=0.2)
    except Timeout:
        raise ConflictError(
            f"another lora-ops command works on {base}.",
            f"Wait for it to end, then run `lora-ops {what}` again.",
        ) from None
    try:
        yield
    finally:
        lock.release()


def port_taken(host: str, port: int) -> bool:
    """Whether something listens there."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, port)) == 0
