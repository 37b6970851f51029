"""`lora-ops version`."""

from __future__ import annotations

import platform

from cli.session import Session
from lora_ops import __version__


def version(session: Session) -> None:
    """The version of lora-ops on this side."""
    document = {"version": __version__, "python": platform.python_version()}
    session.emit(document, [f"lora-ops {__version__}"])
