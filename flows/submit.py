"""Submitting a training request: whatever its user could have got wrong is told before a byte is written.

What is stored of the config names its data relative to the dataset, which is stored by content, so an
attempt needs nothing of the folder that it was submitted from but the base model.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lora_ops import SCHEMA_VERSION, ids, keys
from lora_ops.errors import (
    ConfigError,
    ConflictError,
    JournalError,
    LoraOpsError,
    NotFoundError,
    ObjectExists,
    ObjectMissing,
    Refused,
    nearest,
)
from lora_ops.request import Order, Pin, RequestState, ResultState
from tasks.datasets import store_dataset
from tasks.platform import Platform
from trainer.config import TrainConfig, parse_config
from trainer.data import DATA_PATHS, check_dataset, dataset_digest, dataset_files, relocate

PATHS = (*DATA_PATHS, "base_model", "output_dir", "cache_dir", "chat_template", "plugins")

_SAFE_NAME = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class Checked:
    """A dataset that was decoded. `kind`: images or text; `items`: how many can be trained on."""

    digest: str
    kind: str
    items: int
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Wish:
    """A config that is well-formed, with absolute paths, and the order that it would become."""

    config: TrainConfig
    text: str
    order: Order


_checked: dict[tuple[object, ...], Checked] = {}
_checked_lock = threading.Lock()


def submit(
    platform: Platform,
    config_text: str,
    *,
    source: str,
    cwd: str | Path,
    name: str = "",
    canary: bool = True,
    cloud: str | None = None,
    cloud_only: bool = False,
    pin: Pin | None = None,
    probe: str | None = None,
    verifies: str | None = None,
    retry_of: str | None = None,
    request_id: str | None = None,
    idempotency_key: str | None = None,
    max_attempts: int = 4,
    actor: str | None = None,
) -> RequestState:
    """Check, store the dataset, and journal the request. `source` names the config in errors.

    A `request_id` or an `idempotency_key` that was used for the same order is success. Raises ConfigError
    with every fault of the config and of the data, NotFoundError for an unknown cloud, ConflictError when
    the id or the key belongs to another order.
    """
    wish = read_wish(
        config_text,
        source=source,
        cwd=cwd,
        name=name,
        canary=canary,
        cloud=cloud,
        cloud_only=cloud_only,
        pin=pin,
        probe=probe,
        verifies=verifies,
        retry_of=retry_of,
        max_attempts=max_attempts,
    )
    known = ids.check_id(request_id) if request_id else _of_key(platform, idempotency_key)
    if known is not None:
        there = _follow(platform, known)
        if there.order is not None:
            return _same(there, wish.order)
    _check_clouds(platform, wish.order)
    checked = check(wish)
    order = wish.order.model_copy(update={"dataset_digest": checked.digest})
    with users_errors():
        files = dataset_files(wish.config)
    store_dataset(platform.store, str(order.dataset), files, checked.digest)
    if known is None and idempotency_key is not None:
        known = _claim_key(platform, idempotency_key)
    return _write(platform, order, wish.text, known, actor)


def submit_file(platform: Platform, path: str | Path) -> RequestState:
    """Submit a config file; its relative paths are those of its own folder."""
    file = Path(path).absolute()
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}.", "Name the trainer's YAML file.") from error
    return submit(platform, text, source=str(file), cwd=file.parent, name=file.stem)


def resubmit(platform: Platform, request_id: str, actor: str | None = None) -> RequestState:
    """A new request with the config and the stored dataset of one that is over. Refused while it is not."""
    order = check_over(platform.request(request_id)).model_copy(update={"retry_of": request_id})
    text = platform.store.get(keys.request_config(request_id)).data.decode()
    return _write(platform, order, text, None, actor)


def check_over(state: RequestState) -> Order:
    """The order of a request that a person submitted and that has its result. Refused otherwise."""
    if state.order is None:
        raise NotFoundError(f"There is no request `{state.id}`.", "`lora-ops runs ls` lists them.")
    if not state.order.users_own:
        raise Refused(f"request {state.id} is a rollout's own: it is never retried.")
    if state.result is None:
        raise Refused(
            f"request {state.id} is still under way.",
            f"Cancel it first: `lora-ops runs cancel {state.id}`.",
        )
    return state.order


def plan(
    platform: Platform, config_text: str, *, source: str, cwd: str | Path, **order: Any
) -> dict[str, Any]:
    """What `submit` would do, for a dry run: it checks everything and writes nothing."""
    wish = read_wish(config_text, source=source, cwd=cwd, **order)
    _check_clouds(platform, wish.order)
    checked = check(wish)
    return {
        "dry_run": True,
        "name": wish.order.name,
        "dataset": wish.order.dataset,
        "dataset_digest": checked.digest,
        "config_digest": wish.order.config_digest,
        "kind": checked.kind,
        "items": checked.items,
        "warnings": list(checked.warnings),
        "base_model": str(wish.config.base_model),
        "canary": wish.order.canary,
        "cloud": wish.order.cloud,
        "cloud_only": wish.order.cloud_only,
    }


def absolute_config(text: str, *, source: str, cwd: str | Path) -> tuple[str, TrainConfig]:
    """The config as YAML and parsed, its relative paths taken from `cwd`. ConfigError names its faults."""
    with users_errors():
        parsed = parse_config(text, source)
    base = Path(cwd)
    changes: dict[str, Any] = {}
    for key in PATHS:
        value = getattr(parsed, key)
        for path in value if isinstance(value, tuple) else [value]:
            if path is not None and not path.is_absolute() and not base.is_absolute():
                what = f"{source}: `{key}` is {path}, relative to no folder."
                raise ConfigError(what, "Write the whole path.")
        if value:
            changes[key] = tuple(base / each for each in value) if isinstance(value, tuple) else base / value
    config = parsed.model_copy(update=changes)
    return _yaml(config, {}), config


def read_wish(config_text: str, *, source: str, cwd: str | Path, **order: Any) -> Wish:
    """Parse a config for the platform. ConfigError for what can be told without the data.

    `order`: fields of Order.
    """
    _, config = absolute_config(config_text, source=source, cwd=cwd)
    with users_errors():
        moved = relocate(config, Path())
    data = {key: getattr(moved, key) for key in DATA_PATHS}
    text = _yaml(config, {key: path.as_posix() for key, path in data.items() if path is not None})
    digest = f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
    folder = _SAFE_NAME.sub("-", config.train_data_dir.resolve().name)[:80].strip("-.") or "dataset"
    return Wish(config, text, Order(dataset=folder, config_digest=digest, **order))


def check(wish: Wish) -> Checked:
    """Decode the dataset, once for the same bytes in one process. ConfigError lists all that is wrong."""
    config = wish.config
    with users_errors():
        digest = dataset_digest(config)
        key = (digest, wish.text, config.base_model)
        with _checked_lock:
            known = _checked.get(key)
        if known is not None and config.base_model.exists():
            return known
        report = check_dataset(config)
        report.raise_if_bad()
    found = Checked(digest, str(report.kind), len(report.items), tuple(str(each) for each in report.warnings))
    with _checked_lock:
        _checked[key] = found
    return found


# --- writing ------------------------------------------------------------------------------------


def _write(
    platform: Platform, order: Order, text: str, request_id: str | None, actor: str | None
) -> RequestState:
    """Marker, config, journal: in this order, so that a crash leaves what the reconciler clears away."""
    chosen = request_id or ids.new_id(ids.REQUEST, time.time(), secrets.randbits(30))
    while True:
        there = _follow(platform, chosen)
        if there.order is not None:
            return _same(there, order)
        chosen = there.id
        platform.store.put(keys.open_marker(chosen), b"{}")
        _write_config(platform, chosen, text)
        try:
            return platform.record_request(
                chosen, "submitted", {"order": order.model_dump(mode="json")}, actor=actor
            )
        except Refused:
            if platform.request(chosen).seq < 0:
                raise


def _write_config(platform: Platform, request_id: str, text: str) -> None:
    key = keys.request_config(request_id)
    try:
        platform.store.create(key, text.encode())
    except ObjectExists:
        if platform.store.get(key).data != text.encode():
            raise _another(request_id) from None


def _follow(platform: Platform, request_id: str) -> RequestState:
    """The request, or the one that took its place when it was abandoned half-written."""
    while True:
        state = platform.request(request_id)
        if state.result is None or state.result.state is not ResultState.ABANDONED:
            return state
        bits = int.from_bytes(hashlib.blake2b(request_id.encode(), digest_size=4).digest(), "big")
        request_id = ids.new_id(ids.REQUEST, ids.created_at(request_id), bits)


def _same(there: RequestState, order: Order) -> RequestState:
    """The request that is there, when it is this order's. A digest that is not known yet is not compared."""
    assert there.order is not None
    digest = order.dataset_digest or there.order.dataset_digest
    if there.order != order.model_copy(update={"dataset_digest": digest}):
        raise _another(there.id)
    return there


def _another(request_id: str) -> ConflictError:
    return ConflictError(
        f"request {request_id} exists, and it is another training.",
        "Its id or its idempotency key was used before: take a new one.",
    )


def _key_of(idempotency_key: str) -> str:
    return f"idempotency/{hashlib.sha256(idempotency_key.encode()).hexdigest()}"


def _of_key(platform: Platform, idempotency_key: str | None) -> str | None:
    """The request id that the key has been given, if any."""
    if idempotency_key is None:
        return None
    try:
        found = platform.store.get(_key_of(idempotency_key))
    except ObjectMissing:
        return None
    try:
        return ids.check_id(str(json.loads(found.data)["request"]))
    except (ValueError, KeyError, TypeError, LoraOpsError) as error:
        raise JournalError(f"`{found.key}` does not name a request.", "Take a new key.") from error


def _claim_key(platform: Platform, idempotency_key: str) -> str:
    """The request id of the key: a new one, or the one of whoever was faster."""
    mine = ids.new_id(ids.REQUEST, time.time(), secrets.randbits(30))
    document = {"schema_version": SCHEMA_VERSION, "request": mine}
    with contextlib.suppress(ObjectExists):
        platform.store.create(_key_of(idempotency_key), json.dumps(document).encode())
    claimed = _of_key(platform, idempotency_key)
    return claimed or mine


# --- helpers ------------------------------------------------------------------------------------


def _check_clouds(platform: Platform, order: Order) -> None:
    clouds = platform.state().clouds
    for name in (order.cloud, order.pin.cloud if order.pin else None):
        if name is not None and name not in clouds:
            raise NotFoundError(f"cloud `{name}` is unknown.", nearest(name, clouds))


def _yaml(config: TrainConfig, changes: dict[str, str]) -> str:
    """The keys that were set, in the schema's order: the same config is the same text."""
    return yaml.safe_dump({**config.model_dump(mode="json", exclude_unset=True), **changes}, sort_keys=True)


@contextlib.contextmanager
def users_errors() -> Iterator[None]:
    """The trainer's errors as ours, told by their shape: its error classes are not this floor's to import."""
    try:
        yield
    except LoraOpsError:
        raise
    except Exception as error:
        message, code = getattr(error, "message", None), getattr(error, "exit_code", None)
        if not isinstance(message, str) or not isinstance(code, int):
            raise
        kind = ConfigError if code == ConfigError.exit_code else LoraOpsError
        first, *details = [line.strip() for line in message.strip().splitlines()] or [""]
        raise kind(first, str(getattr(error, "hint", "")), details) from error
