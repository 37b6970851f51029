"""What images are called, what skopeo's and buildah's complaints mean, and how they are run."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ops.errors import (
    AuthError,
    ConfigError,
    ConflictError,
    LoraOpsError,
    NotFoundError,
    UnreachableError,
)
from tasks.images import DigestMismatch, Reference
from tasks.images.programs import ProgramFailed, complaint, explain, follow, run
from tasks.images.reference import host_of, is_loopback

IMAGE = "ghcr.io/team/app:1"
LABEL = st.from_regex(r"[a-z0-9]{1,8}([._-][a-z0-9]{1,8})?", fullmatch=True)
HOSTS = st.sampled_from(["ghcr.io", "127.0.0.1:5000", "localhost", "localhost:80", "[::1]:5000", "team"])
TAGS = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True)
DIGESTS = st.binary(min_size=32, max_size=32).map(lambda b: f"sha256:{b.hex()}")


@given(HOSTS, st.lists(LABEL, min_size=1, max_size=3), st.none() | TAGS, st.none() | DIGESTS)
def test_a_reference_is_read_into_its_parts(
    host: str, parts: list[str], tag: str | None, digest: str | None
) -> None:
    repository = "/".join([host, *parts])
    text = repository + (f":{tag}" if tag else "") + (f"@{digest}" if digest else "")
    if tag is None and digest is None:
        with pytest.raises(ConfigError, match="neither a tag nor a digest"):
            Reference.parse(text)
        return
    found = Reference.parse(text)
    assert found == (repository, tag, digest)
    again = Reference.parse(str(found))
    assert (again.repository, again.digest or again.tag) == (repository, digest or tag)


@given(st.text(max_size=40))
def test_any_text_is_a_reference_or_a_clear_error(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert Reference.parse(text).repository in text


@pytest.mark.parametrize(
    ("repository", "host", "loopback"),
    [
        ("ghcr.io/team/app", "ghcr.io", False),
        ("nvidia/cuda", "docker.io", False),
        ("127.0.0.1:5000/app", "127.0.0.1:5000", True),
        ("127.8.8.8/app", "127.8.8.8", True),
        ("localhost/app", "localhost", True),
        ("localhost:5000/app", "localhost:5000", True),
        ("[::1]:5000/app", "[::1]:5000", True),
        ("10.0.0.1:5000/app", "10.0.0.1:5000", False),
        ("localhost.evil.com/app", "localhost.evil.com", False),
    ],
)
def test_the_host_of_a_repository(repository: str, host: str, loopback: bool) -> None:
    assert host_of(repository) == host
    assert is_loopback(host) is loopback


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (
            "reading manifest 1 in ghcr.io/team/app: denied: requested access to the resource is denied",
            AuthError,
        ),
        ("unauthorized: authentication required", AuthError),
        ("Error: no basic auth credentials", AuthError),
        (
            'error getting credentials - err: exec: "docker-credential-ecr-login": executable file not found',
            AuthError,
        ),
        ("invalid status code from registry 403 (Forbidden)", AuthError),
        ("manifest unknown: manifest tagged by 1 is not found", NotFoundError),
        ("name unknown: The repository with name 'app' does not exist", NotFoundError),
        ("invalid status code from registry 404 (Not Found)", NotFoundError),
        ('Get "https://ghcr.io/v2/": dial tcp: lookup ghcr.io: no such host', UnreachableError),
        ('Get "https://ghcr.io/v2/": dial tcp 1.2.3.4:443: connect: connection refused', UnreachableError),
        ('Get "https://ghcr.io/v2/": dial tcp 1.2.3.4:443: i/o timeout', UnreachableError),
        ("context deadline exceeded", UnreachableError),
        ("net/http: TLS handshake timeout", UnreachableError),
        ("toomanyrequests: You have reached your pull rate limit.", UnreachableError),
        ("received unexpected HTTP status: 503 Service Unavailable", UnreachableError),
        ("unexpected EOF", UnreachableError),
        ("x509: certificate signed by unknown authority", ConfigError),
        ("http: server gave HTTP response to HTTPS client", ConfigError),
        ("tls: failed to verify certificate: x509: certificate has expired", ConfigError),
        ("tag invalid: The image tag '1' already exists and cannot be overwritten", ConflictError),
        ("Manifest does not match provided manifest digest sha256:00", DigestMismatch),
    ],
)
def test_a_complaint_has_its_error(said: str, error: type[LoraOpsError]) -> None:
    quoted = said.replace('"', '\\"')
    found = explain(f'time="2026" level=fatal msg="{quoted}"', IMAGE, "ghcr.io", "reading")
    assert type(found) is error, said
    assert found.details == [said]
    assert found.hint


def test_the_name_of_an_image_says_nothing_about_what_went_wrong() -> None:
    image = "ghcr.io/denied/certificate-404:unauthorized"
    assert type(explain(f"reading {image}: it is odd", image, "ghcr.io", "reading")) is LoraOpsError


def test_of_many_lines_the_last_fatal_one_counts() -> None:
    said = 'time=1 level=warning msg="a"\ntime=1 level=fatal msg="what \\"x\\" is"\n\n'
    assert complaint(said) == 'what "x" is'
    assert complaint("one\nError: two\n") == "Error: two"
    assert complaint("") == "it said nothing"


# --- running them ---


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_lines_arrive_as_they_are_printed(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    code = (
        "import pathlib, sys, time\nprint('first', flush=True)\n"
        f"while not pathlib.Path({str(gate)!r}).exists(): time.sleep(0.01)\nprint('second', file=sys.stderr)"
    )
    seen: list[str] = []

    def on_line(line: str) -> None:
        seen.append(line)
        gate.touch()

    follow(python(code), 60, on_line)
    assert seen == ["first", "second"]


def test_a_failure_carries_the_newest_lines() -> None:
    with pytest.raises(ProgramFailed) as error:
        follow(python("for n in range(100): print(n)\nraise SystemExit(3)"), 60, lambda _: None)
    assert str(error.value).splitlines()[-1] == "99"
    with pytest.raises(ProgramFailed, match="why"):
        run(python("import sys; sys.exit('why')"), 60)


@pytest.mark.parametrize("end", [subprocess.TimeoutExpired, KeyboardInterrupt, ValueError])
def test_what_is_ended_is_ended_with_its_children(end: type[BaseException]) -> None:
    """The grandchild holds the pipe: `follow` could not return while it lives."""
    child = "import time; print('up', flush=True); time.sleep(600)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"

    def on_line(line: str) -> None:
        if end is not subprocess.TimeoutExpired:
            raise end

    with pytest.raises(end):
        follow(python(code), 1.0 if end is subprocess.TimeoutExpired else 600, on_line)


@pytest.mark.parametrize("how", [lambda c: run(c, 1), lambda c: follow(c, 1, print)])
def test_a_program_that_is_not_there_names_its_package(how, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match="buildah is not installed") as error:
        how(["buildah", "bud"])
    assert "apt-get install buildah" in error.value.hint
