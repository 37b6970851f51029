"""Opens a store by its URL."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from obstore.store import MemoryStore

from lora_ops.errors import ConfigError, nearest
from lora_ops.storage_spec import REMOTE, Address, read_address
from tasks.store.base import Store
from tasks.store.file_store import FileStore
from tasks.store.obstore_store import ObstoreStore
from tasks.store.proof import prove_create_only
from tasks.store.remote import open_remote

_memory: dict[str, ObstoreStore] = {}
_memory_lock = threading.Lock()


def open_store(
    url: str,
    *,
    credentials_block: str | None = None,
    prove: bool = False,
    options: dict[str, Any] | None = None,
) -> Store:
    """Open a store by its URL: `file://…` or a path, `memory://[name]`, `s3://`, `gs://`, `az://`.

    A folder is made on demand. `memory://name` is one store in a process, `memory://` a new one each time.
    An s3 URL may end in options (`?encryption=sse-kms&kms_key=…`, lora_ops/storage_spec.py). Credentials come
    from the SDK's usual environment or from `credentials_block`, the name of a prefect-aws block
    (`aws-credentials/x`, `minio-credentials/x` or just `x`). `options` go to obstore as they are.
    `prove`: check that create-only is honoured. Raises ConfigError for a URL that cannot be,
    StoreUnavailable, StoreLies.
    """
    scheme, separator, rest = url.partition("://")
    store: Store
    if not url.strip():
        raise ConfigError("The store's URL is empty.", "Give a folder, or `s3://bucket/folder`.")
    if not separator:
        store = FileStore(Path(url))
    elif scheme == "file":
        store = FileStore(_file_path(url, rest))
    elif scheme == "memory":
        store = _open_memory(rest)
    elif scheme in REMOTE:
        address = store_address(url, credentials_block)
        store = ObstoreStore(
            address.url.rstrip("/"), open_remote(address, options or {}), time_resolution=1.0
        )
    else:
        known = ["file", "memory", *REMOTE]
        raise ConfigError(f"`{scheme}://` is not a kind of store ({url}).", nearest(scheme, known))
    if prove:
        prove_create_only(store)
    return store


def store_address(url: str, credentials_block: str | None = None) -> Address:
    """A store's URL taken apart; `credentials_block` goes before the one in it. Raises ConfigError."""
    try:
        address = read_address(url)
    except ValueError as error:
        raise ConfigError(f"The store {url} cannot be opened: {error}.", "See docs/storage.md.") from None
    if credentials_block is not None and not url.startswith("s3://"):
        raise ConfigError(
            f"A credentials block is for s3:// stores, not for {url}.",
            "Leave `credentials_block` out: GCS and Azure read their SDK's usual environment.",
        )
    return dataclasses.replace(address, credentials_block=credentials_block or address.credentials_block)


def _file_path(url: str, rest: str) -> Path:
    """`file:///a`, `file://./a` (relative to the working directory) and `file://localhost/a`."""
    if rest.startswith("."):
        return Path(unquote(rest))
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost") or not parts.path:
        raise ConfigError(
            f"`{url}` names a host, not a folder.",
            f"Write `file:///{rest}` for an absolute path, `file://./{rest}` for a relative one.",
        )
    return Path(unquote(rest if not parts.netloc else rest.removeprefix("localhost")))


def _open_memory(name: str) -> ObstoreStore:
    with _memory_lock:
        if name and name in _memory:
            return _memory[name]
        inner = MemoryStore()
        store = ObstoreStore(f"memory://{name or hex(id(inner))}", inner, time_resolution=0.001)
        if name:
            _memory[name] = store
        return store
