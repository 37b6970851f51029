"""Files and folders that are there whole or not at all. What a killed writer leaves has a name of its own."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainer.errors import UserError

TEMPORARY = ".tmp-lora-ops-"


def sha256_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_object(path: Path, error: type[UserError], hint: str) -> dict[str, Any]:
    """The JSON object in `path`. Raises `error` with `hint` for what cannot be read or is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise error(f"{path} cannot be read: {fault}.", hint) from None
    if not isinstance(value, dict):
        raise error(f"{path} holds no JSON object.", hint)
    return value


def write_atomic(path: Path, data: bytes, sync: bool = True) -> None:
    """Write `data` to `path`; without `sync` "whole" is no promise after a power cut."""
    with whole_file(path, sync=sync) as made:
        made.write_bytes(data)


@contextmanager
def whole_file(path: Path, sync: bool = True) -> Iterator[Path]:
    """A file to fill, which gets the name `path` at the end. Its folder has to be there."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{TEMPORARY}{path.name}.")
    os.close(handle)
    made = Path(name)
    try:
        yield made
        made.chmod(0o644)
        if sync:
            _fsync(made)
        os.replace(made, path)
    except BaseException:
        made.unlink(missing_ok=True)
        raise


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of `path` at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=path.parent, prefix=f"{TEMPORARY}{path.name}."))
    try:
        yield made
        put_folder(made, path)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


def put_folder(made: Path, path: Path) -> None:
    """Give the filled folder `made`, which lies beside `path`, that name. A folder of that name is moved out
    of the way before: whoever dies in between leaves none."""
    made.chmod(0o755)
    for inside in [*made.rglob("*"), made]:
        _fsync(inside)
    if path.exists():
        aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=TEMPORARY))
        os.replace(path, aside / path.name)
        os.replace(made, path)
        shutil.rmtree(aside, ignore_errors=True)
    else:
        os.replace(made, path)
    _fsync(path.parent)


def clear_leftovers(folder: Path) -> None:
    """Remove what killed writers left anywhere below `folder`. Only for who has it to himself."""
    for left in list(folder.rglob(f"{TEMPORARY}*")):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def fsync_dir(path: Path) -> None:
    """Make a rename in `path` survive a power cut."""
    _fsync(path)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
