"""skopeo and buildah as child processes, and what their complaints mean."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Sequence

from lora_ops.errors import (
    AuthError,
    ConfigError,
    ConflictError,
    LoraOpsError,
    NotFoundError,
    UnreachableError,
)

Say = Callable[[str], None]
_KEPT_LINES = 40
_FATAL = re.compile(r'level=(?:fatal|error) msg="((?:[^"\\]|\\.)*)"')


class DigestMismatch(LoraOpsError):
    """A registry answered with other content than the digest that it was asked for."""

    kind = "digest-mismatch"
    http_status = 502


class ProgramFailed(Exception):
    """A program ended with an exit code other than 0; the text is the newest part of what it printed."""


def run(command: Sequence[str], timeout_s: float) -> bytes:
    """A program's stdout. Raises ConfigError (not installed), ProgramFailed, subprocess.TimeoutExpired."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False
        )
    except FileNotFoundError:
        raise not_installed(command[0]) from None
    if done.returncode:
        raise ProgramFailed(done.stderr.decode(errors="replace").strip())
    return done.stdout


def follow(command: Sequence[str], timeout_s: float, on_line: Say) -> None:
    """Run a program and hand on each line that it prints, as it prints it.

    It is ended, with what it started, at `timeout_s` or when `on_line` raises. Raises as `run` does.
    """
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except FileNotFoundError:
        raise not_installed(command[0]) from None
    late = threading.Event()

    def end() -> None:
        late.set()
        _kill_group(process)

    watchdog = threading.Timer(timeout_s, end)
    watchdog.daemon = True
    watchdog.start()
    newest: deque[str] = deque(maxlen=_KEPT_LINES)
    with process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                newest.append(line.rstrip())
                on_line(line.rstrip())
            process.wait()
        except BaseException:
            _kill_group(process)
            process.wait()
            raise
        finally:
            watchdog.cancel()
    if late.is_set():
        raise subprocess.TimeoutExpired(list(command), timeout_s)
    if process.returncode:
        raise ProgramFailed("\n".join(newest))


def _kill_group(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # buildah's children, too


def not_installed(program: str) -> ConfigError:
    return ConfigError(
        f"{program} is not installed on this machine.",
        f"Install it where deploys run: apt-get install {program} (dnf, apk and brew have it, too).",
    )


def complaint(said: str) -> str:
    """The last thing that a program of the containers project complains about, in its own words."""
    found = _FATAL.findall(said)
    if found:
        return str(found[-1].replace('\\"', '"'))
    lines = [line for line in said.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


#: (what the complaint contains, in lower case; the error that it is), the first that fits
_MEANINGS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"does not match (provided|expected) (manifest )?digest|digest.* did not match"), "digest"),
    (re.compile(r"immutable|cannot be overwritten"), "immutable"),
    (re.compile(r"x509:|certificate|tls: |http response to https"), "tls"),
    (re.compile(r"unauthorized|authentication required|denied|forbidden|\b40[13]\b|credential"), "auth"),
    (re.compile(r"(manifest|name|blob|repository).* unknown|not found|\b404\b|no image found"), "absent"),
    (
        re.compile(
            r"connection (refused|reset)|no such host|time(d )?out|deadline exceeded|no route to host"
            r"|unreachable|name resolution|unexpected eof|\beof$|status.* 5\d\d|toomanyrequests|\b429\b"
            r"|broken pipe"
        ),
        "away",
    ),
)


def explain(said: str, image: str, host: str, doing: str) -> LoraOpsError:
    """The error that a program's complaint about `image` is. `doing`: what was tried, as in `reading`."""
    text = complaint(said)
    low = text.lower().replace(image.lower(), "").replace(image.lower().partition("@")[0], "")
    meaning = next((name for pattern, name in _MEANINGS if pattern.search(low)), "")
    details = [text]
    if meaning == "digest":
        return DigestMismatch(f"{host} answers with other content than {image} names.", _LIES_HINT, details)
    if meaning == "immutable":
        return ConflictError(
            f"The tag of {image} exists already and {host} lets nobody move it.",
            f"Deploy what is there: `--image {image}`; or commit a change first.",
            details,
        )
    if meaning == "tls":
        return ConfigError(
            f"There is no trusted TLS connection to {host}.",
            f"Put its CA's certificate into /etc/containers/certs.d/{host}/ca.crt, or name `{host}` in"
            " `insecure_registries` of lora-ops.yaml if it is a registry of your own network.",
            details,
        )
    if meaning == "auth":
        return AuthError(
            f"{host} does not let this machine do that: {doing} {image}.",
            f"Log in where deploys run: `docker login {host}` (or `skopeo login {host}`). Some registries"
            " also say so when the repository does not exist.",
            details,
        )
    if meaning == "absent":
        return NotFoundError(f"{host} does not have {image}.", _ABSENT_HINT, details)
    if meaning == "away":
        return unreachable(host, details)
    return LoraOpsError(f"{doing} {image} failed.", "Try it by hand: skopeo inspect docker://…", details)


_ABSENT_HINT = "Some registries (ECR) want a repository to be created before the first push to it."
_LIES_HINT = (
    "Something between here and the registry changes images: a proxy, a cache, or the registry itself."
)


def lies(host: str, repository: str, wanted: str, found: str) -> DigestMismatch:
    return DigestMismatch(
        f"{host} answers with another image: asked for {wanted} of {repository}, got {found}.", _LIES_HINT
    )


def unreachable(host: str, details: Sequence[str] = ()) -> UnreachableError:
    return UnreachableError(
        f"The registry {host} does not answer.",
        "Look at the network and the registry; then try again.",
        details,
    )
