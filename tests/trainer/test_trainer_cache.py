from __future__ import annotations

import multiprocessing
import os
import tempfile
from pathlib import Path

import pytest

from trainer.cache import Cache
from trainer.files import write_atomic


def build_slowly(root: str, log: str) -> None:
    def build(folder: Path) -> None:
        with open(log, "a") as file:
            file.write("built\n")
        (folder / "part").write_text("whole")

    Cache(Path(root)).folder("things", {"k": 1}, build)


def test_two_builders_of_one_folder_build_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=build_slowly, args=(str(tmp_path / "c"), str(log))) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert log.read_text() == "built\n"
    found = Cache(tmp_path / "c").find("things", {"k": 1}, "")
    assert found is not None
    assert (found / "part").read_text() == "whole"


def test_a_builder_that_fails_leaves_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    def fail(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        cache.folder("things", {"k": 1}, fail)
    assert cache.find("things", {"k": 1}, "") is None
    assert not list(tmp_path.rglob("half"))


def test_a_write_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "f"
    write_atomic(target, b"old")

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="No space"):
            write_atomic(target, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
    assert target.read_bytes() == b"old"


def test_digests_follow_the_content(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "c")
    file = tmp_path / "model"
    file.write_bytes(b"one")
    first = cache.file_digest(file)
    assert cache.file_digest(file) == first
    file.write_bytes(b"two!")
    assert cache.file_digest(file) != first
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a").write_text("1")
    before = cache.tree_digest(folder)
    (folder / "a").rename(folder / "b")
    assert cache.tree_digest(folder) != before


def test_a_read_only_home_falls_back_to_the_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert Cache(tmp_path / "c").root.parent == Path(tempfile.gettempdir())
