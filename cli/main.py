"""The console script. The help of groups and `--version` are answered here, before anything is imported."""

from __future__ import annotations

import sys

from cli.registry import GROUPS, group_overview, overview


def main() -> int:
    """Run `lora-ops` on the command line's arguments; the exit status (see `lora-ops help exit-codes`)."""
    arguments = sys.argv[1:]
    if arguments in ([], ["--help"], ["-h"], ["help"]):
        sys.stdout.write(overview() + "\n")
        return 0
    if arguments[0] in GROUPS and arguments[1:] in ([], ["--help"], ["-h"]):
        sys.stdout.write(group_overview(arguments[0]) + "\n")
        return 0
    if arguments in (["--version"], ["version"]):
        from lora_ops import __version__

        sys.stdout.write(f"lora-ops {__version__}\n")
        return 0
    from cli.app import run

    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
