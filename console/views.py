"""The shapes that every answer shares: documents, lists, times, numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from starlette.responses import JSONResponse

from lora_ops import SCHEMA_VERSION

Json = dict[str, Any]


class JsonAnswer(JSONResponse):
    """JSON without NaN and infinity, which a diverged loss would bring in: they become null."""

    def render(self, content: Any) -> bytes:
        return json.dumps(finite(content), ensure_ascii=False, allow_nan=False).encode()


def document(body: Mapping[str, Any]) -> Json:
    return {"schema_version": SCHEMA_VERSION, **body}


def listing(items: Iterable[Mapping[str, Any]]) -> Json:
    return {"schema_version": SCHEMA_VERSION, "items": list(items)}


def iso(epoch_s: float | None) -> str | None:
    """`2026-07-01T12:00:00.000Z` from seconds since the epoch."""
    if epoch_s is None:
        return None
    return datetime.fromtimestamp(epoch_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(each) for each in value]
    return value
