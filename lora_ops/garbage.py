"""Which objects of a store nothing can need any more. Pure: keys and states in, what may be deleted out.

Nothing of an open request is ever garbage, nor any journal, nor what a rollout wrote.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from lora_ops.request import RequestState
from lora_ops.state import AppState, Source

MANIFEST = "MANIFEST.json"
TOMBSTONE = b'{"schema_version":1,"garbage":true}'
"""In the place of a manifest: this upload is given up, nobody may finish it any more. A manifest is longer:
it names at least one file with its sha256."""

_MOMENTARY = ("clock", "probe")  # written by living processes again and again
_TALES = ("log.txt", "heartbeat.json")


class Kind(StrEnum):
    """Why an object is garbage."""

    CHECKPOINT = "checkpoint"  # its request has its result
    ARTIFACT = "artifact"  # another attempt's is the result, or none
    LOG = "log"  # its request has its result, and it is old
    MOMENTARY = "momentary"  # a process that is long gone measured its clock, or proved the store
    UNFINISHED = "unfinished"  # an upload of a dataset that nobody finished
    RELEASE = "release"  # no cloud runs it or goes back to it, no rollout names it
    DATASET = "dataset"  # no open request names it


@dataclass(frozen=True, slots=True)
class Item:
    """An object. `age_s`: the least time that can have passed since it was written, in seconds."""

    key: str
    size: int
    age_s: float


@dataclass(frozen=True, slots=True)
class Garbage:
    """An object that may be deleted. `folder`: what goes as a whole, for datasets and releases."""

    kind: Kind
    key: str
    size: int
    folder: str = ""


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of the store. `open`: the ids with a marker below `open/`, listed before anything else.
    `requests`: the newest state of each that was read. `apps`: the state of every app of the store."""

    open: frozenset[str]
    requests: Mapping[str, RequestState] = field(default_factory=dict)
    apps: Sequence[AppState] = ()

    def over(self, request: str) -> bool:
        """Whether it has its result, which nothing takes back."""
        state = self.requests.get(request)
        return request not in self.open and state is not None and state.result is not None

    @property
    def still(self) -> bool:
        """Whether no rollout is about to build a release or to submit a probe that nothing names yet."""
        building = any(app.rollout is not None and app.rollout.release is None for app in self.apps)
        return not building and not any(app.queue for app in self.apps)


@dataclass(frozen=True, slots=True)
class Limits:
    """`older_than_s`: for logs, releases and datasets. `forgotten_s`: for what was left unfinished."""

    older_than_s: float = 30 * 86_400.0
    forgotten_s: float = 86_400.0
    releases: bool = False
    datasets: bool = False


def find_garbage(items: Iterable[Item], known: Known, limits: Limits) -> list[Garbage]:
    """What may be deleted, in the order of the items."""
    found: list[Garbage] = []
    folders: dict[str, list[Item]] = {}
    for item in items:
        parts = item.key.split("/")
        kind = _alone(parts, item, known, limits)
        if kind is not None:
            found.append(Garbage(kind, item.key, item.size))
        elif parts[0] == "releases" and len(parts) > 2:
            folders.setdefault("/".join(parts[:2]), []).append(item)
        elif parts[0] == "datasets" and len(parts) > 3:
            folders.setdefault("/".join(parts[:3]), []).append(item)
    return found + [
        each for name, members in folders.items() for each in _whole(name, members, known, limits)
    ]


def needed_releases(known: Known) -> set[str]:
    """What a cloud runs or goes back to, what a rollout names, what an open request is tried on."""
    named: set[str | None] = set()
    for app in known.apps:
        for cloud in app.clouds.values():
            named |= {cloud.stable, cloud.previous}
        if app.rollout is not None:
            named |= {app.rollout.release, *_named(app.rollout.source)}
            named |= {cloud.before for cloud in app.rollout.clouds.values()}
        for queued in app.queue:
            named |= _named(queued.source)
        named |= {ended.release for ended in app.finished}
    for request in known.open:
        state = known.requests.get(request)
        named |= {attempt.digest for attempt in state.attempts} if state is not None else set()
    return {digest for digest in named if digest is not None}


def _named(source: Source) -> set[str]:
    image = (source.image or "").rpartition("@")[2]
    return {text for text in (source.release, image) if text}


def _alone(parts: list[str], item: Item, known: Known, limits: Limits) -> Kind | None:
    """Why the object is garbage by itself, if it is."""
    match parts:
        case ["checkpoints", request, _, *_] if known.over(request):
            return Kind.CHECKPOINT
        case ["artifacts", request, attempt, *_] if known.over(request):
            result = known.requests[request].result
            return Kind.ARTIFACT if result is None or str(result.attempt) != attempt else None
        case ["requests", request, "attempts", _, name] if name in _TALES and known.over(request):
            return Kind.LOG if item.age_s >= limits.older_than_s else None
        case [first, _, *_] if first in _MOMENTARY and item.age_s >= limits.forgotten_s:
            return Kind.MOMENTARY
    return None


def _whole(folder: str, members: list[Item], known: Known, limits: Limits) -> Iterator[Garbage]:
    """A folder's members, when it goes as a whole."""
    kind = _release(folder, members, known, limits) or _dataset(folder, members, known, limits)
    return (Garbage(kind, item.key, item.size, folder) for item in members if kind is not None)


def _release(folder: str, members: list[Item], known: Known, limits: Limits) -> Kind | None:
    if not folder.startswith("releases/") or not limits.releases or not known.still:
        return None
    digest = folder.removeprefix("releases/").replace("sha256-", "sha256:", 1)
    old = min(item.age_s for item in members) >= limits.older_than_s
    return Kind.RELEASE if old and digest not in needed_releases(known) else None


def _dataset(folder: str, members: list[Item], known: Known, limits: Limits) -> Kind | None:
    if not folder.startswith("datasets/"):
        return None
    manifest = next((item for item in members if item.key == f"{folder}/{MANIFEST}"), None)
    age = min(item.age_s for item in members)
    if manifest is None or manifest.size == len(TOMBSTONE):
        given_up = manifest is not None or age >= limits.forgotten_s
        return Kind.UNFINISHED if given_up else None
    if not limits.datasets or age < limits.older_than_s:
        return None
    named = _named_datasets(known)
    return Kind.DATASET if named is not None and folder not in named else None


def _named_datasets(known: Known) -> set[str] | None:
    """The folders that open requests train on; None while that cannot be known, or a rollout may need any."""
    orders = [known.requests[each].order if each in known.requests else None for each in known.open]
    active = any(app.rollout is not None for app in known.apps)
    if active or not known.still or any(order is None for order in orders):
        return None
    return {
        f"datasets/{order.dataset}/{(order.dataset_digest or '').replace(':', '-', 1)}"
        for order in orders
        if order is not None
    }
