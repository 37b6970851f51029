"""Folders that are made once on this machine, whoever else makes them and whoever is killed meanwhile."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from lora_ops.errors import LoraOpsError, StoreFull


def materialise(target: Path, good: Callable[[Path], bool], fill: Callable[[Path], None]) -> Path:
    """The folder `target`, filled by `fill` unless it is there and `good`.

    `fill` gets an empty folder beside it, renamed to `target` when it is whole; one that is there and not
    good is replaced. One process works at a time (flock, which the kernel frees when its holder dies).
    Raises what `fill` raises, StoreFull when the disk is full, LoraOpsError for other trouble of the disk.
    """
    if target.is_dir() and good(target):
        return target
    beside = target.parent
    with disk_errors(beside):
        beside.mkdir(parents=True, exist_ok=True)
        with _locked(beside / f".{target.name}.lock"):
            if target.is_dir() and good(target):
                return target
            bad, half = beside / f".{target.name}.bad", beside / f".{target.name}.half"
            for leftover in (bad, half):
                shutil.rmtree(leftover, ignore_errors=True)
            if target.exists():
                target.rename(bad)
            half.mkdir()
            try:
                fill(half)
                half.rename(target)
            finally:
                for leftover in (bad, half):
                    shutil.rmtree(leftover, ignore_errors=True)
    return target


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turns the disk's own errors into ours, naming the folder."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull(
                f"There is no space left in {folder}.",
                "Free some (old releases and datasets in it may go), then run the same command again.",
            ) from error
        raise LoraOpsError(
            f"{error.filename or folder}: {error.strerror or error}.", f"Check {folder} and its rights."
        ) from error


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
