"""Real builds with buildah, of images FROM scratch, pushed into a real registry."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lora_ops.cloud_spec import ImageSpec
from lora_ops.errors import BundleError, ConfigError, NotFoundError, UnreachableError
from tasks.images import Built, Registries, build_and_push
from tasks.images.build import EPOCH, FURTHER, _web_address
from tasks.source_tree import (
    BUNDLE_FOLDERS,
    LOCK,
    commit_time,
    origin,
    read_folder,
    read_revision,
    tree_digest,
)
from tests.tasks.registry_site import Registry, frozen, need, registry
from tests.tasks.source_trees import git

pytestmark = pytest.mark.server
ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = """
ARG BASE_IMAGE
FROM ${BASE_IMAGE}
COPY constraints.txt /opt/lora-ops/
COPY lora_ops /opt/lora-ops/lora_ops
COPY trainer /opt/lora-ops/trainer
ARG REVISION
ARG SOURCE
ARG CREATED
ARG LOCK_SHA256
ARG TEAM=none
LABEL revision="${REVISION}" source="${SOURCE}" created="${CREATED}" lock="${LOCK_SHA256}" team="${TEAM}"
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with registry(tmp_path_factory.mktemp("home") / "r") as running:
        yield running


@pytest.fixture(autouse=True)
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A storage of its own for buildah."""
    need("buildah", "skopeo")
    lines = ['[storage]\ndriver = "vfs"', f'graphroot = "{tmp_path}/graph"', f'runroot = "{tmp_path}/run"']
    (tmp_path / "storage.conf").write_text("\n".join(lines))
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(tmp_path / "storage.conf"))
    monkeypatch.setenv("BUILDAH_ISOLATION", "chroot")
    monkeypatch.delenv("LORA_OPS_BUILD_ARGS", raising=False)


@pytest.fixture
def source(repo: Path) -> Path:
    """A repository that holds all that an image needs."""
    for path in FURTHER:
        file = repo / path if "." in path or "/" in path else repo / path / "default.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(DOCKERFILE if path.endswith("Dockerfile") else "# x\n")
    git(repo, "add", "-A")
    git(repo, "commit", "-q", "-m", "image")
    return repo


@pytest.fixture
def image(home: Registry) -> ImageSpec:
    return ImageSpec(repository=f"{home.host}/team/trainer", base="scratch")


def build(source: Path, image: ImageSpec, revision: str | None = "HEAD") -> tuple[Built, list[str]]:
    said: list[str] = []
    return build_and_push(source, revision, image, Registries(), said.append), said


def unpacked(image: ImageSpec, digest: str, folder: Path) -> Path:
    """The image's files."""
    layout = folder / "layout"
    name = f"docker://{image.repository}@{digest}"
    subprocess.run(["skopeo", "copy", "-q", "--src-tls-verify=false", name, f"dir:{layout}"], check=True)
    root = folder / "root"
    root.mkdir()
    for layer in json.loads((layout / "manifest.json").read_text())["layers"]:
        blob = layout / layer["digest"].removeprefix("sha256:")
        subprocess.run(["tar", "-xf", blob, "-C", root], check=True)
    return root


def test_a_revision_is_built_labelled_and_pushed(source: Path, image: ImageSpec, tmp_path: Path) -> None:
    sha = git(source, "rev-parse", "HEAD")
    git(source, "remote", "add", "origin", "git@git.example.org:team/trainer.git")
    (source / "trainer" / "__init__.py").write_text("not committed")
    built, said = build(source, image)
    assert (built.revision, built.repository) == (sha, image.repository)
    assert built.source == "https://git.example.org/team/trainer"
    reference = f"{image.repository}@{built.digest}"
    assert Registries().resolve(reference) == built.digest
    assert {key: value for key, value in Registries().labels(reference).items() if "." not in key} == {
        "revision": sha,
        "source": built.source,
        "created": git(source, "show", "-s", "--format=%cI", "HEAD"),
        "lock": built.lock_sha256,
        "team": "none",
    }
    assert any(line.startswith("STEP") for line in said)
    git(source, "checkout", "-q", "--", ".")
    assert built.tree == tree_digest(source)
    root = unpacked(image, built.digest, tmp_path) / "opt/lora-ops"
    assert (root / "trainer/__init__.py").read_bytes() == (source / "trainer/__init__.py").read_bytes()
    for entry in (root / "trainer").rglob("*"):
        assert entry.stat().st_mtime == EPOCH
        assert entry.stat().st_mode & 0o777 == (0o755 if entry.is_dir() else 0o644)


def test_the_same_revision_gives_the_same_digest_with_a_warm_and_with_a_cold_cache(
    source: Path, image: ImageSpec, tmp_path: Path
) -> None:
    first, _ = build(source, image)
    again, _ = build(source, image)
    assert again == first
    (tmp_path / "storage.conf").write_text(
        (tmp_path / "storage.conf").read_text().replace("/graph", "/other").replace("/run", "/further")
    )
    usual = os.umask(0o077)
    try:
        cold, _ = build(source, image)
    finally:
        os.umask(usual)
    assert cold == first


def test_the_folder_as_it_is(source: Path, image: ImageSpec) -> None:
    (source / "trainer" / "new.py").write_text("NEW = 1\n")
    built, _ = build(source, image, None)
    assert built.revision == f"{git(source, 'rev-parse', 'HEAD')}+dirty"
    assert built.tree == tree_digest(source)
    assert built.digest != build(source, image)[0].digest


def test_build_arguments_come_from_the_spec_and_the_environment(
    source: Path, image: ImageSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = image.model_copy(update={"build_args": {"TEAM": "blue"}})
    monkeypatch.setenv("LORA_OPS_BUILD_ARGS", "--label 'of=this site'")
    built, _ = build(source, image)
    labels = Registries().labels(f"{image.repository}@{built.digest}")
    assert (labels["team"], labels["of"]) == ("blue", "this site")
    monkeypatch.setenv("LORA_OPS_BUILD_ARGS", "--label 'open")
    with pytest.raises(ConfigError, match="LORA_OPS_BUILD_ARGS"):
        build(source, image)


def test_a_folder_without_git_has_the_same_files(source: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(source, bare, ignore=shutil.ignore_patterns(".git"))
    found = read_folder(bare, FURTHER)
    assert found.revision == "unversioned"
    assert found.files == read_revision(source, "HEAD", FURTHER).files
    assert commit_time(bare, found.revision) == "unknown"
    assert origin(bare) == ""


@pytest.mark.parametrize(
    "path", ["deployments/Dockerfile", "pyproject.toml", "configs", "train.py", "trainer"]
)
@pytest.mark.parametrize("dirty", [True, False])
def test_what_the_image_needs_and_the_revision_lacks_is_named(
    path: str, dirty: bool, source: Path, image: ImageSpec
) -> None:
    git(source, "rm", "-rq", path)
    git(source, "commit", "-q", "-m", "less")
    with pytest.raises(BundleError, match=f"lacks {path}"):
        build(source, image, None if dirty else "HEAD")


def test_a_dockerfile_that_fails_shows_its_last_lines(source: Path, image: ImageSpec) -> None:
    (source / "deployments/Dockerfile").write_text("FROM scratch\nCOPY nowhere /x\n")
    with pytest.raises(BundleError, match="cannot build deployments/Dockerfile") as error:
        build(source, image, None)
    assert any("nowhere" in line for line in error.value.details)


def test_a_base_that_is_not_there(source: Path, image: ImageSpec, home: Registry) -> None:
    absent = f"{home.host}/base/none:1"
    with pytest.raises(NotFoundError, match="base/none:1"):
        build(source, image.model_copy(update={"base": absent}))


def test_a_registry_that_freezes_at_the_push(
    source: Path, image: ImageSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.images.build.PUSH_TIMEOUT_S", 0.5)
    with frozen() as host, pytest.raises(UnreachableError, match=host):
        build(source, image.model_copy(update={"repository": f"{host}/team/trainer"}))


@pytest.mark.parametrize("moment", ["STEP 4", "pushing ", "Copying config"])
def test_a_kill_at_any_moment_leaves_nothing_that_the_next_run_trips_over(
    moment: str, source: Path, image: ImageSpec
) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom lora_ops.cloud_spec import ImageSpec\n"
        "from tasks.images import Registries, build_and_push\n"
        f"image = ImageSpec(repository={image.repository!r}, base='scratch')\n"
        f"build_and_push(Path({str(source)!r}), 'HEAD', image, Registries(), PRINT)\n".replace(
            "PRINT", "lambda line: print(line, flush=True)"
        )
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-P", "-c", code], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        seen = next(line for line in process.stdout if line.startswith(moment))
        process.send_signal(signal.SIGKILL)
    assert seen
    built, _ = build(source, image)
    Registries().verify(image.repository, built.digest)


def test_without_buildah_the_package_is_named(
    source: Path, image: ImageSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    os.symlink("/usr/bin/git", tmp_path / "bin/git")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(ConfigError, match="buildah is not installed"):
        build(source, image)


@pytest.mark.parametrize(
    ("remote", "address"),
    [
        ("git@github.com:team/app.git", "https://github.com/team/app"),
        ("ssh://git@git.example.org:2222/team/app", "https://git.example.org/team/app"),
        ("https://user:secret@github.com/team/app.git", "https://github.com/team/app"),
        ("http://git.local:3000/team/app/", "https://git.local:3000/team/app"),
        ("/srv/git/app.git", ""),
        ("file:///srv/git/app", ""),
        ("../app", ""),
        ("C:/src/app", ""),
        ("", ""),
    ],
)
def test_the_label_of_a_remote_holds_no_secret_and_no_path(remote: str, address: str) -> None:
    assert _web_address(remote) == address


# --- the Dockerfile ---


def instructions() -> list[str]:
    text = (ROOT / "deployments/Dockerfile").read_text().replace("\\\n", " ")
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def copied(lines: list[str]) -> set[str]:
    return {word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]}


def test_the_context_has_what_the_dockerfile_copies() -> None:
    wanted = {*BUNDLE_FOLDERS, LOCK, *FURTHER} - {"deployments/Dockerfile"}
    assert copied(instructions()) == wanted
    ignored = (ROOT / "deployments/Dockerfile.dockerignore").read_text().splitlines()
    assert {line.removeprefix("!") for line in ignored if line.startswith("!")} == wanted


def test_a_change_of_the_source_leaves_the_dependencies_layers_alone() -> None:
    lines = instructions()
    last_install = max(n for n, line in enumerate(lines) if "pip install" in line)
    assert copied(lines[:last_install]) == {LOCK, "pyproject.toml"}
    assert all("-c constraints.txt" in line for line in lines if "pip install" in line)
    first_label = next(n for n, line in enumerate(lines) if line.startswith("ARG REVISION"))
    assert first_label > max(n for n, line in enumerate(lines) if line.startswith(("RUN", "COPY")))


def test_the_image_runs_as_nobody_else_and_without_a_shell() -> None:
    lines = instructions()
    assert f"ARG SOURCE_DATE_EPOCH={EPOCH}" in lines
    assert lines[-2:] == [
        "USER 10001:10001",
        'CMD ["python", "train.py", "--config", "configs/default.yaml"]',
    ]
