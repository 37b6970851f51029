"""A cache on disk, shared by runs and keyed by content: every entry is written to a temporary name and
renamed, so that two writers, or one that is killed, never leave half an entry. An entry's modification time
says when it was last used: `trim` takes away those that were not for longest."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from trainer.files import sha256_bytes, sha256_file, whole_folder, write_atomic

Key = Mapping[str, object]


class Cache:
    """Entries below `root/<section>/<2 hex>/<60 hex><suffix>`; below the system's temporary folder where
    `root` cannot be written (a container's read-only home)."""

    def __init__(self, root: Path) -> None:
        try:
            root.mkdir(parents=True, exist_ok=True)
            usable = os.access(root, os.W_OK)
        except PermissionError:
            usable = False
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            usable = False
        self.root = root if usable else Path(tempfile.gettempdir()) / f"lora-ops-{os.getuid()}"

    def path(self, section: str, key: Key, suffix: str) -> Path:
        name = sha256_bytes(json.dumps(key, sort_keys=True, default=str).encode())
        return self.root / section / name[:2] / (name[2:62] + suffix)

    def find(self, section: str, key: Key, suffix: str) -> Path | None:
        """The entry, marked as used. `trim` leaves it for a day."""
        path = self.path(section, key, suffix)
        return path if _mark_used(path) else None

    def put_bytes(self, section: str, key: Key, suffix: str, data: bytes, sync: bool = True) -> Path:
        """Write an entry. Without `sync` (faster) its reader must know a damaged one."""
        path = self.path(section, key, suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data, sync)
        return path

    def folder(self, section: str, key: Key, build: Callable[[Path], None]) -> Path:
        """The folder of `key`; `build` fills it the first time, one builder at a time."""
        path = self.path(section, key, "")
        if path.is_dir() and _mark_used(path):
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_name(f".{path.name}.lock")):
            if path.is_dir():
                return path
            with whole_folder(path) as made:
                build(made)
        return path

    def trim(self, limit_bytes: float, now: float | None = None) -> int:
        """Remove entries, the least recently used first, until at most `limit_bytes` are left (0: no limit),
        and what killed writers left. Nothing that was used within a day of `now` (seconds since 1970) goes: a
        running training may read it. One process trims at a time, others return at once. Bytes removed; what
        may not be touched (another user's, say) is left."""
        removed = 0
        if limit_bytes > 0:
            before = (time.time() if now is None else now) - _DAY
            with suppress(OSError), _locked(self.root / ".trim.lock", wait=False) as mine:
                removed = _trim(self.root, limit_bytes, before) if mine else 0
        return removed

    def file_digest(self, path: Path) -> str:
        """Hex sha256 of a large file, remembered by its real path, size, time and inode."""
        stat = path.stat()
        key = {
            "path": os.path.realpath(path),
            "size": stat.st_size,
            "mtime": stat.st_mtime_ns,
            "inode": stat.st_ino,
        }
        known = self.find("digests", key, "")
        if known is not None and len(text := known.read_text()) == 64:
            return text
        digest = sha256_file(path)
        self.put_bytes("digests", key, "", digest.encode())
        return digest

    def tree_digest(self, folder: Path) -> str:
        """Hex sha256 over the names and contents of all files below `folder`."""
        files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
        lines = "".join(f"{p.relative_to(folder).as_posix()}\0{self.file_digest(p)}\n" for p in files)
        return sha256_bytes(lines.encode())


_DAY = 86_400.0
_HOUR = 3_600.0


def _mark_used(path: Path) -> bool:
    """Whether `path` is there; its time is set to now, at most once an hour."""
    try:
        if path.stat().st_mtime < time.time() - _HOUR:
            os.utime(path)
    except FileNotFoundError:
        return False
    except OSError:
        return path.exists()
    return True


def _trim(root: Path, limit_bytes: float, before: float) -> int:
    entries: list[tuple[float, int, Path]] = []
    for shelf in root.glob("*/??"):
        for path in shelf.iterdir():
            if path.suffix == ".lock":
                continue
            with suppress(OSError):
                used = path.stat().st_mtime
                if path.name.startswith("."):
                    if used < before:
                        _remove(path)
                else:
                    entries.append((used, _size(path), path))
    left, removed = sum(size for _, size, _ in entries), 0
    for used, size, path in sorted(entries):
        if left - removed <= limit_bytes or used >= before:
            break
        with suppress(OSError):
            if path.stat().st_mtime == used:
                gone = path.with_name(f".{path.name}.gone")
                os.replace(path, gone)
                _remove(gone)
                removed += size
    return removed


def _size(path: Path) -> int:
    if not path.is_dir():
        return path.stat().st_size
    return sum(each.stat().st_size for each in path.rglob("*") if each.is_file())


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold a lock that the system lets go when the holder dies; false where another holds it and `wait` is
    false. Without fcntl, hold none."""
    try:
        import fcntl
    except ImportError:
        yield True
        return
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
