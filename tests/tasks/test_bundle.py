"""Bundles: what a release is made of, and its digest."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from lora_ops.errors import BundleError
from tasks.bundle import build_bundle
from tasks.source_tree import BUNDLE_FOLDERS, digest_of_files, digest_of_running, tree_digest
from tests.tasks.source_trees import git, write_tree

# --- digest ---


def test_the_digest_is_that_of_paths_and_contents(tree: Path) -> None:
    before = tree_digest(tree)
    assert before == tree_digest(tree)
    assert before.startswith("sha256:")
    (tree / "README.md").write_text("other")
    for noise in ("flows/__pycache__/x.cpython-311.pyc", "flows/x.pyc", "trainer/__pycache__/note.txt"):
        (tree / noise).parent.mkdir(exist_ok=True)
        (tree / noise).write_bytes(b"noise")
    os.utime(tree / "flows" / "__init__.py", (1, 1))
    (tree / "flows" / "__init__.py").chmod(0o755)
    assert tree_digest(tree) == before


@pytest.mark.parametrize("change", ["edit", "add", "remove", "rename", "lock", "swap"])
def test_every_change_changes_the_digest(tree: Path, change: str) -> None:
    before = tree_digest(tree)
    file = tree / "trainer" / "__init__.py"
    match change:
        case "edit":
            file.write_text(file.read_text() + "#")
        case "add":
            (tree / "trainer" / "empty.py").write_text("")
        case "remove":
            file.unlink()
        case "rename":
            file.rename(file.with_name("other.py"))
        case "lock":
            (tree / "constraints.txt").write_text("")
        case "swap":
            other = tree / "flows" / "__init__.py"
            one, two = file.read_bytes(), other.read_bytes()
            file.write_bytes(two)
            other.write_bytes(one)
    assert tree_digest(tree) != before


def test_the_digest_never_changes_between_versions() -> None:
    """Releases are named by it: a new formula would give every old release a new name."""
    digest = digest_of_files({"b": "2" * 64, "a/c": "1" * 64})
    assert digest == "sha256:2740f38eef6b2b398dfe78a30c35ca103ec38b3169dde257bd5927ee55c2e570"


def test_a_link_in_the_tree_is_refused(tree: Path) -> None:
    (tree / "flows" / "link.py").symlink_to(tree / "flows" / "__init__.py")
    with pytest.raises(BundleError, match=r"link\.py"):
        tree_digest(tree)
    with pytest.raises(BundleError, match=r"link\.py"):
        build_bundle(tree)


def test_the_running_digest(tree: Path, tmp_path: Path) -> None:
    inits = [tree / name / "__init__.py" for name in ("flows", "trainer")]
    assert digest_of_running(*inits) == tree_digest(tree)
    other = write_tree(tmp_path / "other")
    with pytest.raises(BundleError, match="several places"):
        digest_of_running(inits[0], other / "trainer" / "__init__.py")


# --- build ---


def test_a_folder_without_git(tree: Path) -> None:
    bundle = build_bundle(tree)
    assert bundle.digest == tree_digest(tree)
    assert bundle.revision == "unversioned"
    assert bundle.source == "tree"
    assert build_bundle(tree).tar == bundle.tar


def test_a_revision_and_the_clean_folder_are_the_same_release(repo: Path) -> None:
    sha = git(repo, "rev-parse", "HEAD")
    for bundle in (build_bundle(repo), build_bundle(repo, "HEAD"), build_bundle(repo, sha[:10])):
        assert bundle.digest == tree_digest(repo)
        assert bundle.revision == sha


def test_a_revision_does_not_depend_on_the_checkout(repo: Path) -> None:
    before = build_bundle(repo, "main")
    (repo / "flows" / "__init__.py").write_text("raise SystemExit\n")
    (repo / "trainer" / "__init__.py").unlink()
    status = git(repo, "status", "--porcelain")
    index = (repo / ".git" / "index").stat().st_mtime_ns
    assert build_bundle(repo, "main") == before
    with pytest.raises(BundleError):
        build_bundle(repo, "no-such-thing")
    assert (repo / ".git" / "index").stat().st_mtime_ns == index
    assert git(repo, "status", "--porcelain") == status


def test_the_folder_as_it_is(repo: Path) -> None:
    sha = git(repo, "rev-parse", "HEAD")
    (repo / "README.md").write_text("changed outside of the release")
    (repo / "flows" / "ignored.py").write_text("x")
    assert build_bundle(repo).revision == sha
    (repo / "flows" / "new.py").write_text("untracked\n")
    (repo / "trainer" / "deep" / "ünïcode name.txt").unlink()
    bundle = build_bundle(repo)
    assert bundle.revision == f"{sha}+dirty"
    with tarfile.open(fileobj=io.BytesIO(bundle.tar)) as tar:
        names = tar.getnames()
    assert "flows/new.py" in names
    assert "flows/ignored.py" not in names
    assert "trainer/deep/ünïcode name.txt" not in names
    assert names == sorted(names)
    assert all(name.partition("/")[0] in (*BUNDLE_FOLDERS, "constraints.txt") for name in names)


def test_a_repository_without_commits(tree: Path) -> None:
    git(tree, "init", "-q")
    assert build_bundle(tree).revision == "unborn+dirty"


def test_a_source_tree_in_a_subfolder_of_a_repository(repo: Path) -> None:
    write_tree(repo / "sub")
    git(repo, "add", "-A")
    git(repo, "commit", "-q", "-m", "two")
    (repo / "sub" / "flows" / "__init__.py").write_text("x = 1\n")
    assert build_bundle(repo / "sub", "HEAD").digest == build_bundle(repo, "HEAD").digest
    assert build_bundle(repo / "sub").digest == tree_digest(repo / "sub") != tree_digest(repo)


def test_a_source_tree_that_an_outer_repository_ignores(repo: Path) -> None:
    write_tree(repo / "ignored-copy")
    assert build_bundle(repo / "ignored-copy").digest == tree_digest(repo / "ignored-copy")
    assert build_bundle(repo / "ignored-copy").revision == "unversioned"


def test_git_variables_of_a_hook_do_not_mislead(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = tree_digest(repo)
    monkeypatch.setenv("GIT_DIR", "/nonexistent")
    monkeypatch.setenv("GIT_INDEX_FILE", "/nonexistent")
    assert build_bundle(repo, "HEAD").digest == build_bundle(repo).digest == digest


def test_a_machine_without_git(repo: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    digest = tree_digest(repo)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build_bundle(repo).digest == digest
    with pytest.raises(BundleError, match="not a git repository"):
        build_bundle(repo, "HEAD")


def test_errors_name_what_is_wrong(repo: Path, tmp_path: Path) -> None:
    git(repo, "branch", "better-trainer")
    with pytest.raises(BundleError, match="no revision `better-trianer`") as caught:
        build_bundle(repo, "better-trianer")
    assert "better-trainer" in caught.value.hint
    for revision in ("", "--output=/nowhere/x", "HEAD:flows"):
        with pytest.raises(BundleError, match="no revision"):
            build_bundle(repo, revision)
    with pytest.raises(BundleError, match="no folder"):
        build_bundle(tmp_path / "nothing")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(BundleError, match="none of flows, tasks, lora_ops, trainer"):
        build_bundle(empty)
    with pytest.raises(BundleError, match="not a git repository"):
        build_bundle(empty, "HEAD")


@pytest.mark.parametrize("name", ["trainer", "constraints.txt"])
def test_a_missing_part_is_named(repo: Path, name: str) -> None:
    git(repo, "rm", "-q", "-r", name)
    git(repo, "commit", "-q", "-m", "less")
    for revision in (None, "HEAD"):
        with pytest.raises(BundleError, match=f"lacks {name}"):
            build_bundle(repo, revision)
    assert build_bundle(repo, "HEAD^").digest


def test_a_link_in_a_revision_is_refused(repo: Path) -> None:
    (repo / "flows" / "link.py").symlink_to("__init__.py")
    git(repo, "add", "-A")
    git(repo, "commit", "-q", "-m", "link")
    with pytest.raises(BundleError, match=r"link\.py"):
        build_bundle(repo, "HEAD")


def test_a_model_in_the_tree_is_refused(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.bundle._MAX_BYTES", 1000)
    (tree / "trainer" / "model.safetensors").write_bytes(b"0" * 2000)
    with pytest.raises(BundleError, match=r"model\.safetensors"):
        build_bundle(tree)
