"""The trainer as a child process: started with the bundle on its path, followed by its events file."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

LOG_KEPT = 256 * 1024
_PR_SET_PDEATHSIG = 1


class TrainerChild:
    """`python -m trainer` in a folder of its own. It dies with its parent, however that dies."""

    def __init__(
        self, config: Path, output_dir: Path, log: Path, root: Path, *, resume: str, cache: Path
    ) -> None:
        """`root`: the folder that holds the bundle's `trainer`. `resume`: a checkpoint folder or `never`."""
        self.output_dir = output_dir
        self.log = log
        self._events = _Tail(output_dir / "events.jsonl")
        command = [sys.executable, "-P", "-m", "trainer", "--config", str(config)]
        command += ["--output-dir", str(output_dir), "--resume", resume]
        self._out: IO[bytes] = log.open("ab")
        self.process = subprocess.Popen(
            command,
            cwd=output_dir.parent,
            env=child_env(root, cache),
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=subprocess.STDOUT,
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )

    def poll(self) -> int | None:
        return self.process.poll()

    def events(self) -> Iterator[dict[str, Any]]:
        """The events that were added since the last call; a line that is still being written waits."""
        yield from self._events.read()

    def stop(self, grace_s: float) -> int:
        """SIGTERM, so that it saves a checkpoint; SIGKILL after `grace_s`. The exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(grace_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
        code = self.process.wait()
        self.close()
        return code

    def close(self) -> None:
        self._out.close()

    def printed(self) -> int:
        """How many bytes it has printed."""
        return self.log.stat().st_size

    def log_window(self, size: int = LOG_KEPT) -> tuple[int, bytes]:
        """(bytes before it, the newest part of what it printed), from a line's begin where there is one."""
        with self.log.open("rb") as file:
            dropped = max(0, file.seek(0, os.SEEK_END) - size)
            file.seek(dropped)
            text = file.read()
        rest = text.partition(b"\n")[2] if dropped else text
        return (dropped + len(text) - len(rest), rest) if rest else (dropped, text)


class _Tail:
    """A JSON-lines file that grows; foreign or torn lines are skipped."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read(self) -> Iterator[dict[str, Any]]:
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return
        whole, newline, _ = data.rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        for line in whole.splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict):
                yield event


def child_env(root: Path, cache: Path) -> Mapping[str, str]:
    """This process's environment with the bundle first on the path and the trainer's cache named."""
    return {
        **{key: value for key, value in os.environ.items() if not key.startswith("PREFECT")},
        "PYTHONPATH": str(root),
        "PYTHONUNBUFFERED": "1",
        "LORA_OPS_CACHE": str(cache),
    }


def _die_with_parent() -> None:
    """Linux: SIGTERM when the parent dies, so that no trainer outlives a killed attempt."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
