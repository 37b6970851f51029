"""One training at a time in an output folder: two would mix their checkpoints and their events."""

from __future__ import annotations

import os
import weakref
from pathlib import Path

from trainer.errors import FolderInUse


class Claim:
    """Holds the folder until nobody refers to it any more, or the process ends, however it ends. `sure`:
    false where the system or the file system has no locks; then nothing is held."""

    def __init__(self, folder: Path) -> None:
        self.sure = False
        try:
            import fcntl

            handle = os.open(folder, os.O_RDONLY)
        except (ImportError, OSError):
            return
        self._close = weakref.finalize(self, os.close, handle)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderInUse(
                f"`output_dir`: another training is running in {folder}.",
                "Wait for it or stop it, or set another output_dir.",
            ) from None
        except OSError:
            return
        self.sure = True


_held: weakref.WeakValueDictionary[tuple[int, int], Claim] = weakref.WeakValueDictionary()


def claim(folder: Path) -> Claim:
    """Make `folder` and claim it for this process, which shares what it holds already. Raises FolderInUse."""
    folder.mkdir(parents=True, exist_ok=True)
    found = folder.stat()
    key = (found.st_dev, found.st_ino)
    mine = _held.get(key)
    if mine is None:
        mine = _held[key] = Claim(folder)
    return mine
