"""TensorBoard files beside the training, where the package is installed; never fatal."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


class TensorBoard:
    """Writes to `folder`, where what an earlier run logged after `step` is shown no more. What goes wrong is
    said once, and the training goes on."""

    def __init__(self, folder: Path, warn: Callable[[str], None], step: int = 0) -> None:
        self._warn = warn
        self._writer: Any = None
        if importlib.util.find_spec("tensorboard") is None:
            warn("tracker.tensorboard: tensorboard is not installed (pip install tensorboard).")
            return
        with self._guard():
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def log(self, step: int, values: dict[str, float]) -> None:
        """The numbers of optimizer step `step`."""
        if self._writer is not None:
            with self._guard():
                for key, value in values.items():
                    self._writer.add_scalar(key, value, step)

    def samples(self, step: int, files: Sequence[Path]) -> None:
        """Pictures."""
        if self._writer is not None:
            with self._guard():
                import numpy as np
                from PIL import Image

                for number, path in enumerate(files):
                    pixels = np.asarray(Image.open(path).convert("RGB"))
                    self._writer.add_image(f"samples/{number}", pixels, step, dataformats="HWC")

    def finish(self) -> None:
        """Flush and close."""
        if self._writer is not None:
            with self._guard():
                self._writer.close()
            self._writer = None

    def _guard(self) -> _Guard:
        return _Guard(self)

    def failed(self, error: BaseException) -> None:
        """Say it, and write no more."""
        self._writer = None
        self._warn(f"tensorboard {type(error).__name__}: {error}; the run goes on without it.")


class _Guard:
    """Turns an exception into one warning."""

    def __init__(self, board: TensorBoard) -> None:
        self._board = board

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, Exception):
            return False
        self._board.failed(error)
        return True
