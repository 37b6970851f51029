"""Whether a registry still has the blobs of an image, without fetching them.

skopeo's image proxy opens a blob with skopeo's own credentials and certificates and hands over a pipe; the
pipe is closed unread. (`skopeo inspect` reads manifests only, and `skopeo copy` would fetch everything.)
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from tasks.images.programs import ProgramFailed, not_installed

_MAX_MESSAGE = 32 * 1024
_MAX_FDS = 4


def missing_blobs(image: str, flags: Sequence[str], sizes: Mapping[str, int], timeout_s: float) -> list[str]:
    """The digests among `sizes` (digest: bytes) that the registry of `image` (`repository@digest`) lacks.

    `image` must be one platform's image. `flags`: skopeo's. Raises ConfigError (no skopeo), ProgramFailed,
    subprocess.TimeoutExpired when an answer takes longer than `timeout_s`.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = ["skopeo", "experimental-image-proxy", *flags, "--sockfd", str(theirs.fileno())]
    with ours:
        ours.settimeout(timeout_s)
        with theirs:
            try:
                process = subprocess.Popen(
                    command,
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                )
            except FileNotFoundError:
                raise not_installed(command[0]) from None
        try:
            _ask(ours, "Initialize")
            opened = _ask(ours, "OpenImage", f"docker://{image}")
            return [digest for digest, size in sizes.items() if not _has(ours, opened, digest, size)]
        except TimeoutError:
            raise subprocess.TimeoutExpired(command, timeout_s) from None
        except OSError as error:
            process.kill()
            raise ProgramFailed(process.communicate()[1].decode(errors="replace") or str(error)) from None
        finally:
            process.kill()
            process.communicate()


def _has(proxy: socket.socket, opened: Any, digest: str, size: int) -> bool:
    try:
        _ask(proxy, "GetBlob", opened, digest, size)
    except ProgramFailed as error:
        if "404" in str(error) or "unknown" in str(error):
            return False
        raise
    return True


def _ask(proxy: socket.socket, method: str, *arguments: Any) -> Any:
    proxy.send(json.dumps({"method": method, "args": arguments}).encode())
    answer, pipes, _, _ = socket.recv_fds(proxy, _MAX_MESSAGE, _MAX_FDS)
    for pipe in pipes:
        os.close(pipe)
    if not answer:
        raise ConnectionResetError("skopeo's image proxy ended")
    said = json.loads(answer)
    if not said["success"]:
        raise ProgramFailed(said["error"])
    return said["value"]
