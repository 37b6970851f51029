"""A cache on disk, shared by runs and keyed by content: every entry is written to a temporary name and
renamed, so that two writers, or one that is killed, never leave half an entry."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

Key = Mapping[str, object]


def sha256_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_dir(path: Path) -> None:
    """Make a rename in `path` survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path`: whole, or not at all."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


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
        path = self.path(section, key, suffix)
        return path if path.exists() else None

    def put_bytes(self, section: str, key: Key, suffix: str, data: bytes) -> Path:
        path = self.path(section, key, suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data)
        return path

    def folder(self, section: str, key: Key, build: Callable[[Path], None]) -> Path:
        """The folder of `key`; `build` fills it the first time, one builder at a time."""
        path = self.path(section, key, "")
        if path.is_dir():
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_name(f".{path.name}.lock")):
            if path.is_dir():
                return path
            made = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
            try:
                build(made)
                for file in made.rglob("*"):
                    if file.is_file():
                        with file.open("rb") as handle:
                            os.fsync(handle.fileno())
                os.replace(made, path)
                fsync_dir(path.parent)
            except BaseException:
                shutil.rmtree(made, ignore_errors=True)
                raise
        return path

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


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that the system lets go when the holder dies; without fcntl, hold none."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
