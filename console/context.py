"""What `lora-ops serve` hands to its HTTP app."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lora_ops.spec import PlatformSpec
from tasks.platform import Platform
from tasks.prefect_api import PrefectApi


@dataclass(frozen=True, slots=True)
class ServeContext:
    """`token`: what clients must present; None means that only this machine may ask.

    `run_url`: an attempt's flow run in Prefect's UI, from (request id, attempt number). `health`: whether
    each cloud is up, as the reconciler sees it. `problem`: why a cloud's cluster cannot be asked.
    `trouble`: why an attempt (cloud, request id, number) does not run there, in one sentence.
    `backup_problem`: why the backup is not up to date.
    """

    spec: PlatformSpec
    spec_path: Path
    platform: Platform
    prefect: PrefectApi
    home: Path
    token: str | None
    run_url: Callable[[str, int], str | None]
    health: Callable[[], dict[str, bool]]
    problem: Callable[[str], str] = lambda cloud: ""
    trouble: Callable[[str, str, int], str] = lambda cloud, request, n: ""
    backup_problem: Callable[[], str | None] = lambda: None
