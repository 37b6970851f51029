"""Keep the libraries' progress bars and reports off our stderr; what matters is said by us."""

from __future__ import annotations

import sys


def quiet() -> None:
    """For the libraries that are loaded already, and cheap where none is."""
    for name in ("transformers", "diffusers"):
        if name in sys.modules:
            logs = sys.modules[f"{name}.utils.logging"]
            logs.set_verbosity_error()
            logs.disable_progress_bar()
