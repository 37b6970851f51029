"""Runs in a pod, as `python -P -c`, whatever release the pod's image holds: does it reach store and Prefect?

Prints one JSON line: `{"store": {"ok", "found", "hint"}, "prefect": {…}}`.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import urllib.request
from collections.abc import Callable
from contextlib import suppress

ANSWER_S = 20.0
STATUS = "/dev/termination-log"
SHOWN = 800  # Kubernetes keeps 4096 bytes of what a pod says at its end
MARK_ENV = "LORA_OPS_CHECK_MARK"


def store(url: str) -> str:
    """Create an object once and only once, delete it, and find the one that the platform put there."""
    from lora_ops.errors import ConfigError, ObjectMissing
    from tasks.store import open_store

    opened = open_store(url, prove=True)
    if key := os.environ.get(MARK_ENV):
        try:
            opened.get(key)
        except ObjectMissing:
            hint = (
                "It is the pod's own: take s3://, gs:// or az://, which every cloud and this machine reach."
            )
            raise ConfigError("this is another store than the platform's.", hint) from None
    return f"{url}: written, create-only honoured, deleted"


def prefect(api: str) -> str:
    """Ask something that wants credentials, when the server wants any."""
    request = urllib.request.Request(f"{api}/admin/version")
    if secret := os.environ.get("PREFECT_API_AUTH_STRING"):
        request.add_header("Authorization", f"Basic {base64.b64encode(secret.encode()).decode()}")
    with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:
        return f"{api}: version {json.load(answer)}"


def tried(act: Callable[[str], str], url: str) -> dict[str, object]:
    """What came of it; whatever goes wrong is what was found."""
    try:
        return {"ok": True, "found": act(url)[:SHOWN], "hint": ""}
    except Exception as error:  # noqa: BLE001 - the finding is the message
        message = getattr(error, "message", "") or f"{type(error).__name__}: {error}"
        return {"ok": False, "found": f"{url}: {message}"[:SHOWN], "hint": getattr(error, "hint", "")}


if __name__ == "__main__":
    found = {"store": tried(store, sys.argv[1]), "prefect": tried(prefect, sys.argv[2])}
    line = json.dumps(found)
    sys.stdout.write(f"{line}\n")
    if os.path.exists(STATUS):  # in a pod: what stands there outlives the log
        with suppress(OSError), open(STATUS, "w", encoding="utf-8") as status:
            status.write(line)
