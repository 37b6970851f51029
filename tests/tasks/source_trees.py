"""Small source trees, with and without git."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tasks.source_tree import BUNDLE_FOLDERS


def git(repo: Path, *args: str) -> str:
    return subprocess.run(
        ["git", "-C", str(repo), "-c", "user.name=t", "-c", "user.email=t@t", *args],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull},
    ).stdout.strip()


def write_tree(root: Path) -> Path:
    for name in BUNDLE_FOLDERS:
        (root / name / "deep").mkdir(parents=True)
        (root / name / "__init__.py").write_text(f"NAME = {name!r}\n")
        (root / name / "deep" / "ünïcode name.txt").write_text("text\r\nlines\n")
    (root / "constraints.txt").write_text("obstore==0.12.1\n")
    (root / "README.md").write_text("not part of a release\n")
    return root
