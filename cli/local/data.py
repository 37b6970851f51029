"""`lora-ops data check`: the trainer's own checker, on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.session import Session
from lora_ops.errors import ConfigError


def check(
    session: Session,
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="The trainer's YAML file.", show_default=False)
    ],
) -> None:
    """Decode a config's whole dataset; list all that is wrong. Exits 3 when it cannot be trained on."""
    from trainer.config import load_config
    from trainer.data import check_dataset
    from trainer.errors import UserError

    try:
        report = check_dataset(load_config(config), session.note)
    except UserError as error:
        raise ConfigError(error.message, error.hint) from error
    for line in report.warnings:
        session.note(f"warning: {line}")
    if report.problems:
        count = f"{len(report.problems)} problem{'s' if len(report.problems) > 1 else ''}"
        raise ConfigError(
            f"The dataset of {config} has {count}.",
            "Mend or remove them, then check again.",
            [str(problem) for problem in report.problems],
        )
    found = [f"ok: {config}: {len(report.items)} items", *(f"  {line}" for line in report.notes)]
    session.emit({"config": str(config), **report.as_dict()}, found)
