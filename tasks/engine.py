"""What a process worker starts for a run: Prefect's engine, which then tells the platform's faults apart.

The engine ends with 1 when it cannot load the run's code (the release's fault) and when it cannot reach
Prefect (the platform's): the latter gets an exit code of its own. And a run outlives its worker, which reads
its output: with the reader gone, the engine's console (rich) would end the process at its next line.

Run as a file of this installation, never from a release's bundle.
"""

from __future__ import annotations

import os
import runpy
import sys
import urllib.request
from typing import Any, TextIO

#: EX_TEMPFAIL of sysexits.h; lora_ops.reconcile knows it, too, which this file, run alone, does not import.
PREFECT_AWAY = 75


class Unbreakable:
    """A text stream that goes on into nothing when its reader is gone."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._drop()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._drop()

    def _drop(self) -> None:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, self._stream.fileno())
        os.close(nothing)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def main() -> None:
    """Run the engine; its exit code, or PREFECT_AWAY."""
    try:
        runpy.run_module("prefect.engine", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        if ended.code == 1 and not _answers(os.environ.get("PREFECT_API_URL", "")):
            sys.exit(PREFECT_AWAY)
        raise


def _answers(api_url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{api_url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError):
        return False


if __name__ == "__main__":
    sys.stdout, sys.stderr = Unbreakable(sys.stdout), Unbreakable(sys.stderr)
    main()
