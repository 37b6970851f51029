"""The part of a source tree that is a release, its digest, and how to read it from git or from a folder."""

from __future__ import annotations

import hashlib
import io
import os
import re
import subprocess
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from lora_ops.errors import BundleError, nearest

BUNDLE_FOLDERS = ("flows", "tasks", "lora_ops", "trainer")
LOCK = "constraints.txt"

_GIT_LOCATION = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_OBJECT_DIRECTORY")


class SourceFiles(NamedTuple):
    """The files of a release (posix path below the root: content) and the revision that they came from."""

    files: dict[str, bytes]
    revision: str


def tree_digest(root: Path) -> str:
    """`sha256:…` of the release that lies in `root`: its folders' files and the lock.

    Bytecode does not count. Raises BundleError for anything that is neither a file nor a folder.
    """
    return digest_of_files(
        {path: hashlib.sha256((root / path).read_bytes()).hexdigest() for path in _walk(root)}
    )


def digest_of_files(sha256_by_path: Mapping[str, str]) -> str:
    """`sha256:…` over the sorted pairs of path and sha256 (hex) of the content.

    Hashed for each file: the path in UTF-8, a zero byte, the hex digits, a newline.
    """
    total = hashlib.sha256(b"lora-ops release 1\n")
    for path in sorted(sha256_by_path):
        total.update(os.fsencode(path) + b"\0" + sha256_by_path[path].encode() + b"\n")
    return f"sha256:{total.hexdigest()}"


def digest_of_running(*package_files: str | Path) -> str:
    """The digest of the tree that packages were really imported from; pass `flows.__file__` and the like.

    Raises BundleError when they came from different trees.
    """
    roots = {Path(file).resolve().parent.parent for file in package_files}
    if len(roots) != 1:
        raise BundleError(
            "The running code comes from several places: " + ", ".join(sorted(map(str, roots))) + ".",
            "A release runs from one folder. Look at PYTHONPATH and the working directory.",
        )
    return tree_digest(roots.pop())


def read_revision(repo: Path, revision: str, also: Sequence[str] = ()) -> SourceFiles:
    """The release's files at a git revision, without touching the checkout. Raises BundleError.

    `also`: further files and folders (posix paths) that must be there and come along.
    """
    if not _in_git(repo):
        raise BundleError(
            f"{repo} is not a git repository, so it has no revision `{revision}`.",
            "Leave the revision out to bundle the folder as it is, or give the path of a clone.",
        )
    sha = _resolve(repo, revision)
    inside = (*BUNDLE_FOLDERS, LOCK, *also)
    listed = _git(repo, "ls-tree", "-z", "--name-only", sha, "--", *inside)
    wanted = [name for name in os.fsdecode(listed).split("\0") if name]
    files: dict[str, bytes] = {}
    if wanted:
        archive = _git(repo, "-c", "core.autocrlf=false", "archive", "--format=tar", sha, "--", *wanted)
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as tar:
            for member in tar:
                if member.isdir() or _ignored(member.name):
                    continue
                content = tar.extractfile(member) if member.isreg() else None
                if content is None:
                    raise _not_plain(member.name, f"revision {sha[:12]}")
                files[member.name] = content.read()
    _check_complete(files, f"Revision {sha[:12]} of {repo}", also)
    return SourceFiles(files, sha)


def read_folder(repo: Path, also: Sequence[str] = ()) -> SourceFiles:
    """The release's files as they lie in `repo`: in git, the tracked and the untracked but not ignored ones.

    The revision is the checked-out commit, with `+dirty` when these files differ from it; `unversioned`
    without git. `also` as in `read_revision`. Raises BundleError.
    """
    if not repo.is_dir():
        raise BundleError(f"There is no folder {repo}.", "Give the path of a source tree of lora-ops.")
    paths: list[str] = []
    revision = "unversioned"
    if _in_git(repo):
        inside = [*BUNDLE_FOLDERS, LOCK, *also]
        listed = _git(repo, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *inside)
        names = sorted({n for n in os.fsdecode(listed).split("\0") if n and not _ignored(n)})
        paths = [n for n in names if os.path.lexists(repo / n)]
        head = _git(repo, "rev-parse", "--verify", "--quiet", "HEAD", ok=(0, 1, 128)).decode().strip()
        changed = _git(repo, "status", "--porcelain", "--untracked-files=all", "--", *inside)
        revision = f"{head or 'unborn'}{'+dirty' if changed else ''}"
    if not paths:  # also below a repository that ignores this folder
        paths, revision = list(_walk(repo, also)), "unversioned"
    files = {}
    for path in paths:
        if (repo / path).is_symlink() or not (repo / path).is_file():
            raise _not_plain(path, str(repo))
        files[path] = (repo / path).read_bytes()
    _check_complete(files, str(repo), also)
    return SourceFiles(files, revision)


def commit_time(repo: Path, revision: str) -> str:
    """When a revision (as `SourceFiles` names it) was committed, in ISO 8601; `unknown` without one."""
    sha = revision.removesuffix("+dirty")
    if not re.fullmatch(r"[0-9a-f]{40,64}", sha):
        return "unknown"
    return _git(repo, "show", "--no-patch", "--format=%cI", sha).decode().strip()


def origin(repo: Path) -> str:
    """The address of the remote `origin`; empty without one."""
    if not _in_git(repo):
        return ""
    return _git(repo, "config", "--get", "remote.origin.url", ok=(0, 1)).decode().strip()


def _walk(root: Path, also: Sequence[str] = ()) -> Iterable[str]:
    for name in (*BUNDLE_FOLDERS, *also):
        for folder, subfolders, files in os.walk(root / name):
            subfolders[:] = sorted(set(subfolders) - {"__pycache__"})
            below = Path(folder).relative_to(root)
            for entry in (*files, *(s for s in subfolders if (Path(folder) / s).is_symlink())):
                path = (below / entry).as_posix()
                if _ignored(path):
                    continue
                if (root / path).is_symlink() or not (root / path).is_file():
                    raise _not_plain(path, str(root))
                yield path
    yield from (path for path in (LOCK, *also) if (root / path).is_file())


def _ignored(path: str) -> bool:
    return path.endswith(".pyc") or "__pycache__" in path.split("/")


def _check_complete(files: Mapping[str, bytes], where: str, also: Sequence[str]) -> None:
    there = {path.partition("/")[0] for path in files}
    missing = [name for name in BUNDLE_FOLDERS if name not in there]
    if len(missing) == len(BUNDLE_FOLDERS):
        raise BundleError(
            f"{where} is not a source tree of lora-ops: it has none of {', '.join(BUNDLE_FOLDERS)}.",
            "Give the path of your clone or fork with --source.",
        )
    missing += [
        name
        for name in (LOCK, *also)
        if name not in files and not any(p.startswith(f"{name}/") for p in files)
    ]
    if missing:
        raise BundleError(
            f"{where} lacks {', '.join(missing)}.",
            f"A release needs all of {', '.join((*BUNDLE_FOLDERS, LOCK, *also))}."
            " Add what is missing, and commit it if you deploy a revision.",
        )


def _not_plain(path: str, where: str) -> BundleError:
    return BundleError(
        f"`{path}` in {where} is a link or something else that is not a plain file.",
        "A release holds plain files only: replace it by a copy of what it points to.",
    )


def _in_git(repo: Path) -> bool:
    if not repo.is_dir():
        raise BundleError(f"There is no folder {repo}.", "Give the path of a source tree of lora-ops.")
    try:
        answer = _git(repo, "rev-parse", "--is-inside-work-tree", ok=(0, 128))
    except FileNotFoundError:  # no git on this machine
        return False
    return answer.strip() in (b"true", b"false")  # false: a bare repository


def _resolve(repo: Path, revision: str) -> str:
    found = b""
    if revision and not revision.startswith("-"):
        found = _git(
            repo, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}", ok=(0, 1, 128)
        ).strip()
    if not found:
        refs = _git(repo, "for-each-ref", "--format=%(refname:short)").decode().split()
        raise BundleError(
            f"{repo} has no revision `{revision}`.",
            nearest(revision, refs) + " A shallow clone lacks old ones.",
        )
    return found.decode()


def _git(repo: Path, *args: str, ok: tuple[int, ...] = (0,)) -> bytes:
    """git's answer. Never takes the checkout's lock, and looks at `repo` even when a git hook runs us."""
    env = {k: v for k, v in os.environ.items() if k not in _GIT_LOCATION}
    done = subprocess.run(
        ["git", "-C", str(repo), *args],
        env=env | {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"},
        capture_output=True,
        check=False,
    )
    said = done.stderr.decode(errors="replace").strip()
    if "dubious ownership" in said:
        trust = f"git config --global --add safe.directory {repo}"
        raise BundleError(
            f"git refuses to read {repo}: it belongs to another user.", f"If you trust it: {trust}"
        )
    if done.returncode not in ok:
        raise BundleError(f"git {args[0]} failed in {repo}: {said}", "Run `git status` there and see.")
    return done.stdout
