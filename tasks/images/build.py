"""The trainer's image: built by buildah from the files of one git revision, and pushed."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from lora_ops.cloud_spec import ImageSpec
from lora_ops.errors import BundleError, ConfigError
from tasks.images import programs
from tasks.images.programs import ProgramFailed, Say
from tasks.images.reference import host_of
from tasks.images.registry import Registries
from tasks.source_tree import (
    BUNDLE_FOLDERS,
    LOCK,
    SourceFiles,
    commit_time,
    digest_of_files,
    origin,
    read_folder,
    read_revision,
)

DOCKERFILE = "deployments/Dockerfile"
FURTHER = ("pyproject.toml", "train.py", "configs", DOCKERFILE)
BUILD_ARGS_ENV = "LORA_OPS_BUILD_ARGS"
BUILD_TIMEOUT_S = 7200.0
PUSH_TIMEOUT_S = 3600.0

#: The time of every file, as in deployments/Dockerfile. Not the commit's: buildah's cache does not look at
#: times, so a digest would depend on which commit happened to fill the cache.
EPOCH = 315_532_800


@dataclass(frozen=True)
class Built:
    """An image that a registry holds. `tree`: what `tree_digest` gives for the code inside it."""

    digest: str
    repository: str
    revision: str
    source: str
    lock_sha256: str
    tree: str


def build_and_push(
    repo: Path, revision: str | None, image: ImageSpec, registries: Registries, say: Say
) -> Built:
    """Build the image of a git revision (None: of the folder as it is) and push it to `image.repository`.

    The same source, base and machine give the same digest. What the environment's LORA_OPS_BUILD_ARGS says is
    added to buildah's command line. Raises BundleError (no such revision, deployments/Dockerfile or another
    file missing in it, the build fails), ConfigError (no buildah, no skopeo, a wrong certificate), AuthError,
    UnreachableError, NotFoundError (the base image), ConflictError (the tag is there and immutable).
    """
    repo = repo.resolve()
    source = read_folder(repo, FURTHER) if revision is None else read_revision(repo, revision, FURTHER)
    hashes = {path: hashlib.sha256(content).hexdigest() for path, content in source.files.items()}
    inside = {p: h for p, h in hashes.items() if p == LOCK or p.partition("/")[0] in BUNDLE_FOLDERS}
    tree, lock = digest_of_files(inside), hashes[LOCK]
    where = _web_address(origin(repo)) or repo.name
    labels = {
        "REVISION": source.revision,
        "SOURCE": where,
        "CREATED": commit_time(repo, source.revision),
        "LOCK_SHA256": lock,
    }
    tag = f"{re.sub(r'[^A-Za-z0-9]', '-', source.revision)[:12]}-{tree.removeprefix('sha256:')[:12]}"
    target = f"{image.repository}:{tag}"
    with tempfile.TemporaryDirectory(prefix="lora-ops-image-") as folder:
        context, facts = Path(folder, "context"), Path(folder, "facts")
        _write(context, source)
        facts.mkdir()
        say(f"building {target} from {source.revision[:12]} on {image.base}")
        image_id = _build(context, facts, image, registries, labels, f"localhost/{image.name}:{tag}", say)
        digest = _push(image_id, facts, target, registries, say)
    registries.verify(image.repository, digest)
    say(f"{image.repository}@{digest}")
    return Built(digest, image.repository, source.revision, where, lock, tree)


def _write(context: Path, source: SourceFiles) -> None:
    for path, content in source.files.items():
        file = context / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    for entry in (context, *context.rglob("*")):  # whatever the umask: what the image's user may read
        entry.chmod(0o755 if entry.is_dir() else 0o644)


def _build(
    context: Path,
    facts: Path,
    image: ImageSpec,
    registries: Registries,
    labels: Mapping[str, str],
    name: str,
    say: Say,
) -> str:
    """Run buildah; the image's id in this machine's storage."""
    iidfile = facts / "iid"
    arguments = {**labels, **image.build_args, "BASE_IMAGE": image.base}
    command = ["buildah", "bud", "--layers", "--timestamp", str(EPOCH), "--iidfile", str(iidfile)]
    command += ["--file", str(context / DOCKERFILE), "--tag", name]
    for key, value in sorted(arguments.items()):
        command += ["--build-arg", f"{key}={value}"]
    if registries.is_insecure(image.base):
        command.append("--tls-verify=false")
    command += [*_more_arguments(), str(context)]
    try:
        programs.follow(command, BUILD_TIMEOUT_S, _tell_steps(say))
    except ProgramFailed as error:
        said = str(error)
        if re.search(r"creating build container|initializing source|pinging container registry", said):
            raise programs.explain(said, image.base, host_of(image.base), "pulling the base") from None
        raise BundleError(
            f"buildah cannot build {DOCKERFILE}: {programs.complaint(said)}",
            "The last lines that it printed are below; mend the Dockerfile or the lock, or set"
            f" {BUILD_ARGS_ENV}.",
            said.splitlines()[-15:],
        ) from None
    except subprocess.TimeoutExpired:
        raise BundleError(
            f"buildah did not end within {BUILD_TIMEOUT_S:g} s.", "Run it by hand and see where it waits."
        ) from None
    return iidfile.read_text().strip()


def _push(image_id: str, facts: Path, target: str, registries: Registries, say: Say) -> str:
    digest = facts / "digest"
    command = ["buildah", "push", "--digestfile", str(digest)]
    if registries.is_insecure(target):
        command.append("--tls-verify=false")
    host = host_of(target)
    say(f"pushing {target}")
    try:
        programs.follow([*command, image_id, f"docker://{target}"], PUSH_TIMEOUT_S, _tell_steps(say))
    except ProgramFailed as error:
        raise programs.explain(str(error), target, host, "pushing") from None
    except subprocess.TimeoutExpired:
        raise programs.unreachable(host, [f"the push did not end within {PUSH_TIMEOUT_S:g} s"]) from None
    return digest.read_text().strip()


def _more_arguments() -> list[str]:
    text = os.environ.get(BUILD_ARGS_ENV, "")
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"{BUILD_ARGS_ENV} cannot be read: {error}.", "Quote it as in a shell.") from None


def _tell_steps(say: Say) -> Say:
    """Of buildah's lines those that a person follows, shortened."""

    def tell(line: str) -> None:
        if line.startswith(("STEP ", "Trying to pull", "Copying ", "Writing manifest")):
            say(line if len(line) <= 120 else f"{line[:119]}…")

    return tell


def _web_address(remote: str) -> str:
    """A remote's address on the web, without credentials; empty for a path of this machine.

    So two clones of one repository, by ssh and by https, give the same label.
    """
    scp = re.fullmatch(r"(?:[^@/:]+@)?([^/:]+\.[^/:]+):(?!//)(.+)", remote)
    url = urlsplit(f"ssh://{scp[1]}/{scp[2]}" if scp else remote)
    if url.scheme not in ("http", "https", "ssh", "git") or not url.hostname:
        return ""
    port = f":{url.port}" if url.port and url.scheme in ("http", "https") else ""
    return f"https://{url.hostname}{port}/{url.path.strip('/').removesuffix('.git')}"
