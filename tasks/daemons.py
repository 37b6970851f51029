"""Processes of the platform on this machine: started detached, found again by pid and start time, stopped."""

from __future__ import annotations

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

    def process(self) -> psutil.Process | None:
        """The running process; None when it is dead or its pid belongs to another by now."""
        try:
            known = json.loads(self._record.read_text())
            found = psutil.Process(known["pid"])
            same = abs(found.create_time() - known["created"]) < 1.0
            alive = found.is_running() and found.status() != psutil.STATUS_ZOMBIE
            return found if same and alive else None
        except (OSError, ValueError, KeyError, psutil.Error):
            return None

    def start(self, command: Sequence[str], env: Mapping[str, str], cwd: Path) -> psutil.Process:
        """Start it in a session of its own, unless it runs already."""
        running = self.process()
        if running is not None:
            return running
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._record.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as out:
            child = subprocess.Popen(
                command,
                cwd=cwd,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        started = psutil.Process(child.pid)
        temporary = self._record.with_suffix(".tmp")
        temporary.write_text(json.dumps({"pid": child.pid, "created": started.create_time()}))
        os.replace(temporary, self._record)
        return started

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
