"""Source bundles: a release for local clouds, named by the digest of its content."""

from __future__ import annotations

import compileall
import contextlib
import hashlib
import io
import py_compile
import tarfile
from dataclasses import dataclass
from pathlib import Path

from lora_ops.errors import BundleError, ObjectExists, ObjectMissing
from tasks.cache import materialise
from tasks.releases import describe, find_release, where
from tasks.source_tree import BUNDLE_FOLDERS, LOCK, digest_of_files, read_folder, read_revision, tree_digest
from tasks.store import Store, key_digest

_MAX_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class Bundle:
    """A release in memory. `tar` is deterministic: the same files give the same bytes."""

    digest: str
    revision: str
    source: str
    lock_sha256: str
    tar: bytes

    @property
    def size(self) -> int:
        """Bytes of the tar file."""
        return len(self.tar)


def build_bundle(repo: Path, revision: str | None = None) -> Bundle:
    """The bundle of a git revision, or of the folder as it is when `revision` is None.

    The checkout is only read. Raises BundleError: no folder, no repository, no such revision (names the
    nearest), a folder or the lock missing, a link in it, more than 64 MiB.
    """
    repo = repo.resolve()
    files, label = read_folder(repo) if revision is None else read_revision(repo, revision)
    if sum(map(len, files.values())) > _MAX_BYTES:
        biggest = sorted(files, key=lambda path: -len(files[path]))[:3]
        raise BundleError(
            f"The source tree {repo} holds more than {_MAX_BYTES >> 20} MiB: {', '.join(biggest)}, …",
            "A release is source code. Keep models and data outside its folders, or have git ignore them.",
        )
    hashes = {path: hashlib.sha256(content).hexdigest() for path, content in files.items()}
    return Bundle(digest_of_files(hashes), label, repo.name, hashes[LOCK], _tar(files))


def publish(store: Store, bundle: Bundle, created_by: str = "") -> str:
    """Write the bundle into the store and return its digest. Idempotent: the first publisher's facts stay."""
    with contextlib.suppress(ObjectExists):
        store.create(f"{where(bundle.digest)}/bundle.tar", bundle.tar)
    describe(
        store,
        bundle.digest,
        revision=bundle.revision,
        source=bundle.source,
        created_by=created_by,
        lock_sha256=bundle.lock_sha256,
        size=bundle.size,
    )
    return bundle.digest


def ensure_unpacked(store: Store, digest: str, cache_dir: Path) -> Path:
    """The folder of this machine that holds the release, unpacked from the store when need be.

    `<cache_dir>/<hex>/`: files read-only, with bytecode, checked against the digest at every call; one that
    was changed is replaced. Safe with concurrent callers and kill -9. Raises NotFoundError, BundleError
    when the store's bundle is not what its name says, StoreUnavailable, StoreFull.
    """
    target = cache_dir.absolute() / key_digest(digest).removeprefix("sha256-")

    def good(folder: Path) -> bool:
        if {entry.name for entry in folder.iterdir()} != {*BUNDLE_FOLDERS, LOCK}:
            return False  # a stray module at the top would be importable
        try:
            return tree_digest(folder) == digest
        except (BundleError, OSError):
            return False

    def fill(folder: Path) -> None:
        try:
            tar = store.get(f"{where(digest)}/bundle.tar").data
        except ObjectMissing:
            find_release(store, digest)  # NotFoundError names the nearest
            raise BundleError(
                f"The bundle of release {digest} is gone from {store.url}.", "Deploy it again."
            ) from None
        _unpack(tar, folder, digest)
        found = tree_digest(folder)
        if found != digest:
            raise BundleError(
                f"The bundle in {store.url} is not what its name says: {found} instead of {digest}.",
                "Someone changed it. Delete that release's folder in the store and deploy it again.",
            )
        compileall.compile_dir(
            folder,
            quiet=2,  # a file that does not compile is the self-check's to find
            stripdir=str(folder),
            prependdir=str(target),
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )

    return materialise(target, good, fill)


def _tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(files):
            entry = tarfile.TarInfo(path)  # no time, no owner
            entry.size = len(files[path])
            entry.mode = 0o444
            tar.addfile(entry, io.BytesIO(files[path]))
    return buffer.getvalue()


def _unpack(data: bytes, folder: Path, digest: str) -> None:
    """Write the tar's plain files below `folder`; BundleError for any other member or name."""
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for member in tar:
                parts = member.name.split("/")
                content = tar.extractfile(member) if member.isreg() else None
                outside = member.name != LOCK and (len(parts) < 2 or parts[0] not in BUNDLE_FOLDERS)
                if content is None or outside or {"", ".", ".."} & set(parts) or "\0" in member.name:
                    raise BundleError(f"The bundle of {digest} holds `{member.name}`, which no release may.")
                path = folder / member.name
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("xb") as file:
                    file.write(content.read())
                path.chmod(0o444)
    except (tarfile.TarError, FileExistsError, NotADirectoryError) as error:
        raise BundleError(
            f"The bundle of {digest} cannot be unpacked: {error}.",
            "Delete that release's folder in the store and deploy it again.",
        ) from error
