"""Bundles in the store and unpacked on this machine, whoever is killed meanwhile."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lora_ops.errors import BundleError, NotFoundError, StoreUnavailable, UsageError
from tasks.bundle import (
    Bundle,
    build_bundle,
    ensure_unpacked,
    publish,
)
from tasks.releases import find_release, list_releases
from tasks.source_tree import BUNDLE_FOLDERS, tree_digest
from tasks.store import Store, key_digest
from tasks.store.faulty import Fault, FaultyStore, Killed

# --- publish ---


def test_publish_and_find(memory_store: Store, repo: Path) -> None:
    one = build_bundle(repo)
    assert publish(memory_store, one, created_by="ann") == one.digest
    (repo / "flows" / "__init__.py").write_text("x = 1\n")
    two = build_bundle(repo)
    publish(memory_store, two)
    releases = list_releases(memory_store)
    assert [r.digest for r in releases] == [one.digest, two.digest]
    first = find_release(memory_store, one.digest)
    assert first == releases[0]
    assert (first.created_by, first.revision, first.size) == ("ann", one.revision, len(one.tar))
    assert find_release(memory_store, two.digest[7:19]) == releases[1]
    assert find_release(memory_store, two.digest[:19]) == releases[1]
    with pytest.raises(NotFoundError, match="There is no release") as caught:
        find_release(memory_store, one.digest[:-1] + ("0" if one.digest[-1] != "0" else "1"))
    assert one.digest in caught.value.hint
    for text in ("", "sha256:", "zz"):
        with pytest.raises(NotFoundError):
            find_release(memory_store, text)


def test_publishing_again_changes_nothing(memory_store: Store, tree: Path) -> None:
    bundle = build_bundle(tree)
    publish(memory_store, bundle, created_by="ann")
    before = [(m.key, memory_store.get(m.key)) for m in memory_store.list("")]
    publish(memory_store, bundle, created_by="bob")
    assert [(m.key, memory_store.get(m.key)) for m in memory_store.list("")] == before


@pytest.mark.parametrize("fault", [Fault.KILLED_BEFORE, Fault.KILLED_AFTER])
@pytest.mark.parametrize("call", [0, 1])
def test_publishing_after_a_kill(
    memory_store: Store, tree: Path, cache: Path, fault: Fault, call: int
) -> None:
    bundle = build_bundle(tree)
    dying = FaultyStore(memory_store, lambda method, key: fault if len(dying.calls) == call + 1 else None)
    with pytest.raises(Killed):
        publish(dying, bundle)
    publish(memory_store, bundle)
    assert [r.digest for r in list_releases(memory_store)] == [bundle.digest]
    assert tree_digest(ensure_unpacked(memory_store, bundle.digest, cache)) == bundle.digest


# --- unpack ---


@pytest.fixture
def published(file_store: Store, tree: Path) -> Bundle:
    bundle = build_bundle(tree)
    publish(file_store, bundle)
    return bundle


def test_unpacking(file_store: Store, published: Bundle, cache: Path, tree: Path) -> None:
    folder = ensure_unpacked(file_store, published.digest, cache)
    assert folder == cache / published.digest[7:]
    assert tree_digest(folder) == published.digest
    assert (folder / "flows" / "deep" / "ünïcode name.txt").read_bytes() == b"text\r\nlines\n"
    for path in folder.rglob("*.py"):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o222
    assert sorted(p.name for p in folder.iterdir()) == sorted([*BUNDLE_FOLDERS, "constraints.txt"])
    assert list(folder.glob("flows/__pycache__/__init__.*.pyc"))
    assert [p.name for p in cache.iterdir() if p.is_dir()] == [folder.name]


def test_the_second_time_asks_nothing_of_the_store(file_store: Store, published: Bundle, cache: Path) -> None:
    folder = ensure_unpacked(file_store, published.digest, cache)
    away = FaultyStore(file_store, lambda method, key: Fault.NO_REQUEST)
    assert ensure_unpacked(away, published.digest, cache) == folder
    assert away.calls == []
    with pytest.raises(StoreUnavailable):
        ensure_unpacked(away, "sha256:" + "0" * 64, cache)


def test_a_program_runs_from_it_with_the_right_file_names(
    file_store: Store, published: Bundle, cache: Path
) -> None:
    folder = ensure_unpacked(file_store, published.digest, cache)
    code = "import flows, trainer; print(flows.__file__, trainer.NAME, flows.__cached__)"
    done = subprocess.run(
        [sys.executable, "-v", "-c", code],
        env={**os.environ, "PYTHONPATH": str(folder)},
        cwd=cache,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split()[:2] == [str(folder / "flows" / "__init__.py"), "trainer"]
    assert f"code object from '{folder / 'flows' / '__pycache__'}" in done.stderr
    assert tree_digest(folder) == published.digest


@pytest.mark.parametrize("harm", ["edit", "delete", "add", "stray", "file", "link"])
def test_a_changed_cache_is_replaced(file_store: Store, published: Bundle, cache: Path, harm: str) -> None:
    folder = ensure_unpacked(file_store, published.digest, cache)
    victim = folder / "trainer" / "__init__.py"
    match harm:
        case "edit":
            victim.chmod(0o644)
            victim.write_text("evil = True\n")
        case "delete":
            victim.unlink()
        case "add":
            (folder / "trainer" / "extra.py").write_text("")
        case "stray":
            (folder / "torch.py").write_text("")
        case "link":
            victim.unlink()
            victim.symlink_to(folder / "flows" / "__init__.py")
        case "file":
            os.rename(folder, cache / "moved")
            folder.write_text("not a folder")
    again = ensure_unpacked(file_store, published.digest, cache)
    assert again == folder
    assert tree_digest(folder) == published.digest
    assert not (folder / "torch.py").exists()
    assert "evil" not in victim.read_text()


def test_many_unpack_at_once(file_store: Store, published: Bundle, cache: Path) -> None:
    counted = FaultyStore(file_store, lambda method, key: None)
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: ensure_unpacked(counted, published.digest, cache), range(8)))
    assert len(set(folders)) == 1
    assert tree_digest(folders[0]) == published.digest
    assert [method for method, _ in counted.calls] == ["get"]


UNPACK_AND_DIE = """
import os, sys, tarfile
from pathlib import Path
from tasks.bundle import ensure_unpacked
from tasks.store import open_store

left = int(sys.argv[4])

def countdown(event, args):
    global left
    if event in ("open", "os.rename", "os.mkdir", "os.chmod") and str(args[0]).startswith(sys.argv[3]):
        left -= 1
        if left < 0:
            os.kill(os.getpid(), 9)

sys.addaudithook(countdown)
ensure_unpacked(open_store(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
"""


@pytest.mark.parametrize("survived", [0, 1, 2, 3, 5, 8, 12, 20, 30])
def test_unpacking_after_kill_9(file_store: Store, published: Bundle, cache: Path, survived: int) -> None:
    cache.mkdir()
    args = [file_store.url, published.digest, str(cache), str(survived)]
    died = subprocess.run([sys.executable, "-c", UNPACK_AND_DIE, *args], check=False, capture_output=True)
    assert died.returncode == -9, died.stderr.decode()
    folder = cache / published.digest[7:]
    assert not folder.exists() or tree_digest(folder) == published.digest
    assert tree_digest(ensure_unpacked(file_store, published.digest, cache)) == published.digest
    assert [p.name for p in cache.iterdir() if p.is_dir()] == [folder.name]


def evil_tar(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname = kind, target
        tar.addfile(entry, io.BytesIO())
    return buffer.getvalue()


@pytest.mark.parametrize(
    "tar",
    [
        evil_tar("../evil.py"),
        evil_tar("flows/../../evil.py"),
        evil_tar("/nowhere/evil.py"),
        evil_tar("other/evil.py"),
        evil_tar("flows"),
        evil_tar("flows/"),
        evil_tar("evil.pth"),
        evil_tar("flows/evil.py", tarfile.SYMTYPE, "/etc/passwd"),
        evil_tar("flows/evil.py", tarfile.LNKTYPE, "../../evil"),
        evil_tar("flows/evil", tarfile.CHRTYPE),
        evil_tar("flows/evil", tarfile.FIFOTYPE),
        b"not a tar",
        b"",
    ],
)
def test_an_evil_bundle_is_refused(file_store: Store, cache: Path, tmp_path: Path, tar: bytes) -> None:
    digest = "sha256:" + "a" * 64
    file_store.put(f"releases/{key_digest(digest)}/bundle.tar", tar)
    said = "which no release may" if b"evil" in tar or b"flows" in tar else "cannot be unpacked"
    with pytest.raises(BundleError, match=said):
        ensure_unpacked(file_store, digest, cache)
    assert not any(p.is_dir() for p in cache.iterdir())
    assert not list(tmp_path.rglob("evil*"))


def test_a_bundle_under_another_name_is_refused(file_store: Store, published: Bundle, cache: Path) -> None:
    wrong = "sha256:" + "b" * 64
    file_store.put(f"releases/{key_digest(wrong)}/bundle.tar", published.tar)
    with pytest.raises(BundleError, match="not what its name says"):
        ensure_unpacked(file_store, wrong, cache)
    assert not any(p.is_dir() for p in cache.iterdir())


def test_an_unknown_release(file_store: Store, published: Bundle, cache: Path) -> None:
    with pytest.raises(NotFoundError) as caught:
        ensure_unpacked(file_store, "sha256:" + "c" * 64, cache)
    assert published.digest in caught.value.hint
    with pytest.raises(UsageError):
        ensure_unpacked(file_store, "latest", cache)


def test_a_file_that_does_not_compile_is_the_self_checks_business(
    file_store: Store, tree: Path, cache: Path
) -> None:
    (tree / "trainer" / "broken.py").write_text("def (:\n")
    bundle = build_bundle(tree)
    publish(file_store, bundle)
    assert tree_digest(ensure_unpacked(file_store, bundle.digest, cache)) == bundle.digest
