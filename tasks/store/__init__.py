"""The object store: a small protocol, its adapter over obstore, and the suite that every adapter passes."""

from tasks.store.base import Meta, Metas, Names, Object, Objects, Store
from tasks.store.names import digest_from_key, key_digest
from tasks.store.opening import open_store
from tasks.store.proof import prove_create_only

__all__ = [
    "Meta",
    "Metas",
    "Names",
    "Object",
    "Objects",
    "Store",
    "digest_from_key",
    "key_digest",
    "open_store",
    "prove_create_only",
]
