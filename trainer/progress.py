"""Progress for people, on stderr: a bar on a terminal, a line every so many steps elsewhere."""

from __future__ import annotations

import os
import sys
from typing import Any, TextIO


class Progress:
    """`step` counts optimizer steps; `note` prints a line without breaking the bar."""

    def __init__(
        self, steps: int, start: int, log_every: int, stream: TextIO | None = None, *, quiet: bool = False
    ) -> None:
        self._stream = stream or (open(os.devnull, "w", encoding="utf-8") if quiet else sys.stderr)  # noqa: SIM115
        self._steps, self._log_every = steps, log_every
        self._bar: Any = None
        if self._stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=steps, initial=start, unit="step", file=self._stream, dynamic_ncols=True)

    def step(self, step: int, loss: float, lr: float, step_s: float) -> None:
        """Report that optimizer step `step` (1-based) is done; `step_s` in seconds."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.4f}, lr {lr:.2e}", refresh=False)
            self._bar.update(step - self._bar.n)
        elif step % self._log_every == 0 or step == self._steps:
            self.note(f"step {step}/{self._steps}  loss {loss:.4f}  lr {lr:.2e}  {step_s:.2f} s/step")

    def note(self, text: str) -> None:
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)

    @staticmethod
    def say(text: str) -> None:
        """A line before there is a bar."""
        print(text, file=sys.stderr, flush=True)

    @staticmethod
    def warn(text: str) -> None:
        """A warning, before there is a bar."""
        print(f"warning: {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
