"""Resolve, copy and verify against real registries, and against what is none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from lora_ops.errors import AuthError, ConfigError, LoraOpsError, NotFoundError, UnreachableError
from tasks.images import DigestMismatch, Registries
from tests.tasks.registry_site import (
    CONFIG,
    MANIFEST,
    Registry,
    answering,
    auth_file,
    certificate,
    frozen,
    need,
    registry,
    sha256,
)

pytestmark = pytest.mark.server
NOWHERE = f"sha256:{'0' * 64}"


@pytest.fixture(scope="module", autouse=True)
def _skopeo() -> None:
    need("skopeo")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with registry(tmp_path_factory.mktemp("home") / "r") as running:
        yield running


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with registry(tmp_path_factory.mktemp("cloud") / "r") as running:
        yield running


@pytest.fixture
def registries() -> Registries:
    return Registries(timeout_s=20)


# --- resolve, labels ---


def test_a_tag_and_a_digest_resolve_to_what_was_pushed(home: Registry, registries: Registries) -> None:
    digest = home.push("team/app", "1", team="blue")
    name = f"{home.host}/team/app"
    assert registries.resolve(f"{name}:1") == digest
    assert registries.resolve(f"{name}@{digest}") == digest
    assert registries.resolve(f"{name}:gone@{digest}") == digest
    assert registries.labels(f"{name}:1") == {"team": "blue"}


def test_a_list_resolves_to_its_own_digest_and_shows_the_labels_of_amd64(
    home: Registry, registries: Registries
) -> None:
    digest = home.push_list("team/many", "1", {"arm64": {"on": "arm"}, "amd64": {"on": "amd"}})
    name = f"{home.host}/team/many:1"
    assert registries.resolve(name) == digest
    assert registries.labels(name) == {"on": "amd"}


def test_an_unknown_tag_names_the_nearest(home: Registry, registries: Registries) -> None:
    home.push("team/tags", "v1.20")
    with pytest.raises(NotFoundError) as error:
        registries.resolve(f"{home.host}/team/tags:v1.2")
    assert "team/tags:v1.2" in error.value.message
    assert "`v1.20`" in error.value.hint
    with pytest.raises(NotFoundError, match="does not have") as error:
        registries.resolve(f"{home.host}/team/nothing:1")
    assert "no repository" in error.value.hint


@pytest.mark.parametrize("name", ["team/app", "127.0.0.1:1/app", "127.0.0.1:1/app@sha256:12", "-x/y:1", ""])
def test_what_names_no_image_is_refused_before_anything_is_asked(name: str, registries: Registries) -> None:
    with pytest.raises(ConfigError):
        registries.resolve(name)


# --- copy, verify ---


def test_a_copy_keeps_the_digest_and_is_done_once(
    home: Registry, cloud: Registry, registries: Registries
) -> None:
    digest = home.push("team/app", "2")
    said: list[str] = []
    for _ in range(2):
        registries.copy(f"{home.host}/team/app@{digest}", f"{cloud.host}/mirror/app", said.append)
        registries.verify(f"{cloud.host}/mirror/app", digest)
    assert sum(line.startswith("Writing") for line in said) == 1
    assert cloud.tags("mirror/app") == [f"lora-ops-{digest[7:19]}"]


def test_a_copied_list_has_every_platform(home: Registry, cloud: Registry, registries: Registries) -> None:
    digest = home.push_list("team/many", "2", {"amd64": {}, "arm64": {}, "riscv64": {}})
    registries.copy(f"{home.host}/team/many@{digest}", f"{cloud.host}/many")
    assert registries.resolve(f"{cloud.host}/many@{digest}") == digest
    registries.verify(f"{cloud.host}/many", digest)


@pytest.mark.parametrize("which", [0, 1])
def test_a_missing_blob_is_named_and_the_next_copy_brings_it_back(
    which: int, home: Registry, cloud: Registry, registries: Registries
) -> None:
    digest = home.push("team/app", "3", text=f"blob {which}", n=str(which))
    target = f"{cloud.host}/holes"
    registries.copy(f"{home.host}/team/app@{digest}", target)
    lost = cloud.blobs("holes", digest)[which]
    cloud.lose_blob(lost)
    with pytest.raises(NotFoundError, match="lacks 1 of its blobs") as error:
        registries.verify(target, digest)
    assert error.value.details == [lost]
    registries.copy(f"{home.host}/team/app@{digest}", target)
    registries.verify(target, digest)


def test_a_blob_of_one_platform_that_is_missing_is_found(home: Registry, registries: Registries) -> None:
    digest = home.push_list("team/holes", "1", {"amd64": {}, "s390x": {"only": "here"}})
    children = json.loads(home._ask("GET", f"/v2/team/holes/manifests/{digest}"))["manifests"]
    lost = home.blobs("team/holes", children[1]["digest"])[0]
    home.lose_blob(lost)
    with pytest.raises(NotFoundError) as error:
        registries.verify(f"{home.host}/team/holes", digest)
    assert error.value.details == [lost]


def test_a_tag_that_moved_does_not_change_what_is_copied(
    home: Registry, cloud: Registry, registries: Registries
) -> None:
    source = f"{home.host}/team/moving"
    home.push("team/moving", "latest", text="old")
    old = registries.resolve(f"{source}:latest")
    new = home.push("team/moving", "latest", text="new")
    assert old != new
    registries.copy(f"{source}@{old}", f"{cloud.host}/moved")
    registries.verify(f"{cloud.host}/moved", old)

    home.delete("team/moving", old)
    registries.copy(f"{source}@{old}", f"{cloud.host}/moved")  # it is there already
    with pytest.raises(NotFoundError, match=f"moving@{old}") as error:
        registries.copy(f"{source}@{old}", f"{cloud.host}/elsewhere")
    assert "may have moved" in error.value.hint


def test_a_tag_is_no_source_of_a_copy(home: Registry, registries: Registries) -> None:
    with pytest.raises(ConfigError, match="no digest"):
        registries.copy(f"{home.host}/team/app:1", f"{home.host}/b")


# --- registries that are wrong ---


def test_a_registry_that_answers_with_another_image_is_told_with_both_digests(registries: Registries) -> None:
    other = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "digest": NOWHERE, "size": 2},
            "layers": [],
        }
    ).encode()
    with answering(200, other) as host:
        for ask in (
            lambda: registries.verify(f"{host}/a", NOWHERE),
            lambda: registries.resolve(f"{host}/a@{NOWHERE}"),
            lambda: registries.labels(f"{host}/a@{NOWHERE}"),
        ):
            with pytest.raises(DigestMismatch) as error:
                ask()
            assert NOWHERE in error.value.message
            assert sha256(other) in error.value.message


@pytest.mark.parametrize("body", [b"not json", b"[]", b'{"schemaVersion": 1, "fsLayers": []}'])
def test_what_is_no_image_is_refused(body: bytes, registries: Registries) -> None:
    with answering(200, body) as host, pytest.raises(ConfigError, match="no image of a known kind"):
        registries.resolve(f"{host}/a:1")


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, AuthError),
        (403, AuthError),
        (404, NotFoundError),
        (500, UnreachableError),
        (503, UnreachableError),
    ],
)
def test_a_status_has_its_error(status: int, error: type[LoraOpsError], registries: Registries) -> None:
    with answering(status) as host, pytest.raises(error):
        registries.resolve(f"{host}/a:1")


def test_a_registry_that_does_not_answer(home: Registry) -> None:
    with frozen() as host, pytest.raises(UnreachableError, match=host):
        Registries(timeout_s=0.5).resolve(f"{host}/a:1")
    with pytest.raises(UnreachableError, match=host):
        Registries().resolve(f"{host}/a:1")
    with pytest.raises(UnreachableError, match=r"nowhere\.invalid"):
        Registries().verify("nowhere.invalid/a", NOWHERE)


def test_credentials_are_those_of_skopeo(
    tmp_path: Path, home: Registry, registries: Registries, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = home.push("team/private", "1", text="private")
    with registry(tmp_path / "r", data=home.data, htpasswd=True) as private:
        name = f"{private.host}/team/private"
        monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "none.json"))
        with pytest.raises(AuthError) as error:
            registries.resolve(f"{name}:1")
        assert f"docker login {private.host}" in error.value.hint
        with pytest.raises(AuthError):
            registries.copy(f"{home.host}/team/private@{digest}", f"{private.host}/copied")
        monkeypatch.setenv("REGISTRY_AUTH_FILE", str(auth_file(tmp_path / "b.json", private.host, "wrong")))
        with pytest.raises(AuthError):
            registries.resolve(f"{name}:1")
        monkeypatch.setenv("REGISTRY_AUTH_FILE", str(auth_file(tmp_path / "a.json", private.host)))
        assert registries.resolve(f"{name}:1") == digest
        registries.copy(f"{home.host}/team/private@{digest}", f"{private.host}/copied")
        registries.verify(f"{private.host}/copied", digest)


def test_a_certificate_must_be_trusted_or_the_host_named_insecure(
    tmp_path: Path, home: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = home.push("team/tls", "1", text="tls")
    anywhere = "0.0.0.0"  # this machine, by an address that is no loopback
    files = certificate(tmp_path, anywhere)
    with registry(tmp_path / "r", data=home.data, address=anywhere, tls=files) as secured:
        name = f"{secured.host}/team/tls"
        with pytest.raises(ConfigError) as error:
            Registries().resolve(f"{name}:1")
        assert "insecure_registries" in error.value.hint
        assert Registries(insecure=[secured.host]).resolve(f"{name}:1") == digest
        Registries(insecure=[secured.host]).verify(name, digest)
        monkeypatch.setenv("SSL_CERT_FILE", str(files[0]))
        assert Registries().resolve(f"{name}:1") == digest


def test_plain_http_needs_to_be_named_insecure(tmp_path: Path, home: Registry) -> None:
    digest = home.push("team/plain", "1", text="plain")
    with registry(tmp_path / "r", data=home.data, address="0.0.0.0") as plain:
        name = f"{plain.host}/team/plain"
        with pytest.raises(ConfigError, match="TLS"):
            Registries().resolve(f"{name}:1")
        assert Registries(insecure=[plain.host]).resolve(f"{name}:1") == digest


def test_without_skopeo_the_package_is_named(
    tmp_path: Path, registries: Registries, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="skopeo is not installed") as error:
        registries.resolve("127.0.0.1:1/a:1")
    assert "apt-get install skopeo" in error.value.hint
