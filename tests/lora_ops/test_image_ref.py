"""What people call an image, and what it means on this platform."""

from __future__ import annotations

import pytest

from lora_ops.errors import UsageError
from lora_ops.image_ref import full_reference, repository_of
from lora_ops.spec import PlatformSpec, parse_spec

OWN = "ghcr.io/team/lora-scripts"
DIGEST = f"sha256:{'0123456789abcdef' * 4}"


def spec(repository: str = OWN) -> PlatformSpec:
    text = f"image: {{repository: '{repository}'}}\nclouds: {{aws: {{kind: kubernetes, context: aws}}}}"
    return parse_spec(text, "f.yaml")


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("lora-scripts:latest", f"{OWN}:latest"),
        (f"lora-scripts@{DIGEST}", f"{OWN}@{DIGEST}"),
        (f"{OWN}:v2", f"{OWN}:v2"),
        ("localhost/x:1", "localhost/x:1"),
        ("127.0.0.1:5000/lora-scripts:latest", "127.0.0.1:5000/lora-scripts:latest"),
        (f"registry.example/a/b@{DIGEST}", f"registry.example/a/b@{DIGEST}"),
        (f"registry.example/a/b:v1@{DIGEST}", f"registry.example/a/b@{DIGEST}"),
    ],
)
def test_what_names_an_image(text: str, full: str) -> None:
    assert full_reference(text, spec()) == full
    assert full_reference(full, spec()) == full
    assert repository_of(full) == full.removesuffix(f"@{DIGEST}") if "@" in full else full.rpartition(":")[0]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "lora-script:latest",
            f"`lora-script` names no registry, and is not the name of `image.repository` ({OWN})",
        ),
        ("lora-scripts", "has neither a tag nor a digest; write lora-scripts:latest"),
        ("127.0.0.1:5000/lora-scripts", "has neither a tag nor a digest"),
        ("team/lora-scripts:latest", "for Docker Hub write docker.io/team/lora-scripts"),
        ("lora-scripts:", "`` is not a tag"),
        ("lora-scripts:-x", "`-x` is not a tag"),
        (f"lora-scripts@{DIGEST[:-1]}", "is not a digest: sha256: and 64"),
        ("lora-scripts@", "is not a digest"),
        ("ghcr.io/Team/x:1", "`ghcr.io/Team/x` is not a repository"),
        ("docker://ghcr.io/team/x:1", "is not a repository"),
        ("ghcr.io/team/x y:1", "is not a repository"),
        ("", "has neither a tag nor a digest"),
    ],
)
def test_what_names_none_says_why(text: str, told: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the words are compared below
        full_reference(text, spec())
    assert told in str(caught.value)


def test_a_repository_without_a_host_is_known_by_its_whole_name() -> None:
    assert full_reference("team/lora-scripts:v1", spec("team/lora-scripts")) == "team/lora-scripts:v1"


def test_local_clouds_run_no_images() -> None:
    local = parse_spec(f"clouds: {{east: {{}}}}\nimage: {{repository: {OWN}}}", "f.yaml")
    with pytest.raises(UsageError, match="clouds of this platform are local") as caught:
        full_reference(f"{OWN}:v1", local)
    assert "--source" in caught.value.hint
