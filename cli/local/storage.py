"""`lora-ops storage`: look at the store and its backup, bring the backup up to date, clear away garbage."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.local.platform import Local, SpecOption, find_local, use_prefect
from cli.session import Session
from cli.text import table
from lora_ops.errors import ConfigError, UsageError
from lora_ops.units import seconds

if TYPE_CHECKING:
    from tasks.backup import Progress
    from tasks.store import Store
    from tasks.store.checks import Finding
    from tasks.sweep import Found


def check(
    session: Session,
    spec: SpecOption = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Read every finished folder, not a few drawn by lot.")
    ] = False,
) -> int:
    """Try out the store and its backup. Exits 1 when one of them does not keep what it must."""
    from tasks.backup import verify
    from tasks.store.checks import Level, check_store
    from tasks.store.opening import store_address

    local = _local(spec)
    backup = local.spec.backup
    say = session.note if deep else lambda _: None

    def of_store(store: Store) -> Iterator[Finding]:
        yield verify.digests(store, deep=deep, say=say)

    def of_backup(store: Store) -> Iterator[Finding]:
        yield verify.digests(store, deep=deep, say=say)
        yield from verify.behind(_open(local), store)

    address = store_address(local.spec.store)
    roles = [("store", local.spec.store, list(check_store(lambda: _open(local), address, of_store)))]
    if backup is not None:
        address = store_address(backup.url, backup.credentials_block)
        roles.append(
            ("backup", backup.url, list(check_store(lambda: _open_backup(local), address, of_backup)))
        )
    ok = all(each.level is not Level.FAIL for _, _, found in roles for each in found)
    lines = []
    for role, url, found in roles:
        lines.append(f"{role}  {url}")
        width = max(len(each.name) for each in found)
        for each in found:
            lines.append(f"  {each.level.value:<4}  {each.name:<{width}}  {each.found}")
            lines += [f"        {'':<{width}}  -> {each.remedy}"] if each.remedy else []
    if backup is None:
        lines.append("backup  none: `backup: {url: …}` in lora-ops.yaml names one")
    stores = [
        {"role": role, "url": url, "checks": [asdict(each) for each in found]} for role, url, found in roles
    ]
    session.emit({"ok": ok, "stores": stores}, lines)
    return 0 if ok else 1


def sync(
    session: Session,
    spec: SpecOption = None,
    restore: Annotated[
        bool, typer.Option("--restore", help="The other way: from the backup into an empty store.")
    ] = False,
) -> int:
    """Copy to the backup what it lacks. Run it again after whatever stopped it. Exits 1 if not whole."""
    from tasks import backup

    local = _local(spec)
    store, copy = _open(local), _open_backup(local)
    if restore:
        session.confirm(f"Restore {copy.url} into {store.url}? Nothing else may use it.", destructive=True)
    with _bar(session) as bar:
        act = backup.restore if restore else backup.sync
        report = act(store, copy, dry_run=session.dry_run, progress=bar)
    rows = [(kind, each["objects"], _size(each["bytes"])) for kind, each in sorted(report.missing.items())]
    lines = table(("what", "objects", "size"), rows, "nothing is missing")
    if not session.dry_run:
        lines.append(f"copied {report.objects} objects, {_size(report.size)}")
    for problem in report.problems:
        session.note(f"warning: {problem}")
    document = {
        "dry_run": session.dry_run,
        "from": copy.url if restore else store.url,
        "to": store.url if restore else copy.url,
        "missing": report.missing,
        "copied": {"objects": report.objects, "bytes": report.size},
        "problems": report.problems,
    }
    session.emit(document, lines)
    return 1 if report.problems else 0


def gc(
    session: Session,
    spec: SpecOption = None,
    older_than: Annotated[
        str, typer.Option("--older-than", help="The age from which logs, releases and datasets go.")
    ] = "30d",
    datasets: Annotated[
        bool, typer.Option("--datasets", help="Datasets, too, that no open request names.")
    ] = False,
) -> None:
    """Delete what nothing can need any more: never a journal, nothing of an open request."""
    from lora_ops.garbage import Kind, Limits
    from tasks.sweep import Found, find, sweep

    try:
        limits = Limits(older_than_s=seconds(older_than), releases=True, datasets=datasets)
    except ValueError as error:
        raise UsageError(f"`--older-than`: {error}.", "Write 30d or 12h.") from None
    store = _open(_local(spec))
    found = find(store, limits)
    left = _refused(session, found)
    kept = Found([each for each in found.garbage if each.kind not in left])
    freed = 0
    if not session.dry_run and kept.garbage:
        with _bar(session) as bar:
            bar.begin(len(kept.garbage), kept.size)
            freed = sweep(store, kept.garbage, limits, bar.copied)
    counts = {
        kind.value: {"objects": len(found.of(kind)), "bytes": sum(each.size for each in found.of(kind))}
        for kind in Kind
        if found.of(kind)
    }
    kinds = [(kind, each["objects"], _size(each["bytes"])) for kind, each in counts.items()]
    rows = [(*row, "kept" if row[0] in left else "goes") for row in kinds]
    lines = table(("garbage", "objects", "size", "it"), rows, "there is no garbage")
    if not session.dry_run:
        lines.append(f"freed {_size(freed)}")
    document = {
        "dry_run": session.dry_run,
        "found": counts,
        "kept": sorted(left),
        "folders": {kind: found.folders(kind) for kind in (Kind.RELEASE, Kind.DATASET)},
        "freed_bytes": freed,
    }
    session.emit(document, lines)


def _refused(session: Session, found: Found) -> set[str]:
    """The kinds that want a person's word and did not get it: the rest goes on without them."""
    from lora_ops.garbage import Kind

    left: set[str] = set()
    for kind in (Kind.RELEASE, Kind.DATASET):
        folders = found.folders(kind)
        if not folders:
            continue
        shown = ", ".join(each.partition("/")[2][:40] for each in folders[:3])
        more = f" and {len(folders) - 3} more" if len(folders) > 3 else ""
        try:
            session.confirm(f"Delete {len(folders)} {kind.value}s ({shown}{more})?", destructive=True)
        except UsageError:
            session.note(f"{len(folders)} {kind.value}s are kept: add --yes to delete them.")
            left.add(kind)
        except typer.Abort:
            left.add(kind)
    return left


def _local(spec: Any) -> Local:
    local = find_local(spec)
    use_prefect(local)
    return local


def _open(local: Local) -> Store:
    from tasks.store import open_store

    return open_store(local.spec.store)


def _open_backup(local: Local) -> Store:
    from tasks.backup import open_backup

    backup = local.spec.backup
    if backup is None:
        raise ConfigError(
            f"{local.spec_path} names no backup.", "Add `backup: {url: s3://another-bucket/folder}` to it."
        )
    return open_backup(backup)


def _size(count: float) -> str:
    """Bytes, for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


@contextmanager
def _bar(session: Session) -> Iterator[Progress]:
    """A bar on a terminal; elsewhere one line that says how much there is to do."""
    if not sys.stderr.isatty() or session.dry_run:
        yield _Line(session)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn
    from rich.progress import Progress as Rich

    with Rich(BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as rich:
        yield _Bar(rich)


class _Line:
    def __init__(self, session: Session) -> None:
        self._session = session

    def begin(self, objects: int, size: int) -> None:
        if objects:
            self._session.note(f"{objects} objects, {_size(size)}")

    def copied(self, size: int) -> None:
        """Nothing: a line a file would be noise."""


class _Bar:
    def __init__(self, rich: Any) -> None:
        self._rich = rich
        self._task = rich.add_task("", total=None)

    def begin(self, objects: int, size: int) -> None:
        self._rich.update(self._task, total=objects)

    def copied(self, size: int) -> None:
        self._rich.advance(self._task)
