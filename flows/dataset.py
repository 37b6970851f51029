"""The `dataset` flow: a training config's dataset, decoded by the trainer's own checker."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from prefect import flow

from flows.submit import absolute_config, users_errors
from trainer.data import check_dataset, dataset_digest


@flow(name="dataset", flow_run_name="dataset of {config}")
async def dataset(config: str, checked_for: str = "") -> dict[str, Any]:
    """Check every image or row. Raises ConfigError that lists all that is wrong.

    Returns {kind, items, warnings, digest, text}: `text` is the config with absolute paths.
    """
    return await asyncio.to_thread(_check, Path(config))


def _check(path: Path) -> dict[str, Any]:
    text, parsed = absolute_config(path.read_text(), source=str(path), cwd=path.parent)
    with users_errors():
        report = check_dataset(parsed)
        report.raise_if_bad()
        digest = dataset_digest(parsed)
    return {
        "kind": str(report.kind),
        "items": len(report.items),
        "warnings": [str(each) for each in report.warnings],
        "digest": digest,
        "text": text,
    }
