"""What a copy of a platform must be: the truth, and whole."""

from __future__ import annotations

import hashlib
import json

from lora_ops import keys
from lora_ops.request import ResultState
from tasks.journal import Journal
from tasks.platform import Platform
from tasks.store import Store
from tests.tasks.backup_world import contents

MOMENTARY = ("clock/", "probe/", "open/", "mirror/", "rollouts/roll-1/flow.json")


def truth(store: Store) -> dict[str, bytes]:
    return {key: data for key, data in contents(store).items() if not key.startswith(MOMENTARY)}


def check_whole(copy: Store) -> None:
    """Nothing in the copy speaks of what is not there."""
    for app in copy.list_folders("journal"):
        Journal(copy, keys.journal(app)).read_all()
        for cloud in Platform(copy, app, "check").state().clouds.values():
            assert copy.get(f"releases/{cloud.stable.replace(':', '-')}/bundle.tar").data
    platform = Platform(copy, "team", "check")
    for request in copy.list_folders("requests"):
        entries = platform.request_history(request)
        if not entries:
            continue
        state = platform.request(request)
        assert state.order is not None
        assert copy.get(keys.request_config(request)).data
        assert copy.list(f"datasets/{state.order.dataset}")
        if state.result is not None and state.result.state is ResultState.SUCCEEDED:
            check_folder(copy, keys.artifacts(request, state.result.attempt or 0))
    for meta in copy.list(""):
        if meta.key.endswith("/MANIFEST.json"):
            prefix = meta.key.removesuffix("/MANIFEST.json")
            check_folder(copy, prefix, "files/" if prefix.startswith("datasets/") else "")


def check_folder(store: Store, prefix: str, below: str = "") -> None:
    for file in json.loads(store.get(f"{prefix}/MANIFEST.json").data)["files"]:
        data = store.get(f"{prefix}/{below}{file['path']}").data
        assert hashlib.sha256(data).hexdigest() == file["sha256"]
