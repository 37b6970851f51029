"""What a process worker starts for a run: Prefect's engine, whose exit code tells when Prefect was away.

The engine ends with 1 when it cannot load the run's code (the release's fault) and when it cannot reach
Prefect (the platform's). Run as a file of this installation, never from a release's bundle.
"""

from __future__ import annotations

import os
import runpy
import sys
import urllib.request

#: EX_TEMPFAIL of sysexits.h
PREFECT_AWAY = 75


def main() -> None:
    """Run the engine; its exit code, or PREFECT_AWAY."""
    try:
        runpy.run_module("prefect.engine", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        if ended.code == 1 and not _answers(os.environ.get("PREFECT_API_URL", "")):
            sys.exit(PREFECT_AWAY)
        raise


def _answers(api_url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{api_url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError):
        return False


if __name__ == "__main__":
    main()
