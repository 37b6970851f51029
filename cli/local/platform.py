"""`lora-ops up` and `lora-ops down`: what one machine needs, started and stopped."""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from lora_ops.errors import ConfigError, ConflictError, LoraOpsError, UnreachableError
from lora_ops.spec import PlatformSpec

PREFECT_START_S = 180.0
SERVE_START_S = 60.0
PREFECT_SECRET = "PREFECT_SERVER_API_AUTH_STRING"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Local:
    """The platform of one lora-ops.yaml on this machine."""

    spec: PlatformSpec
    spec_path: Path
    base: Path

    @property
    def prefect_url(self) -> str:
        return self.spec.prefect.api_url

    @property
    def serve_url(self) -> str:
        return f"http://{self.spec.serve.host}:{self.spec.serve.port}"

    @property
    def owns_prefect(self) -> bool:
        """Whether Prefect's server is to run here."""
        return urlsplit(self.prefect_url).hostname in LOOPBACK

    def env(self) -> dict[str, str]:
        """The environment of every process of the platform."""
        from tasks import home

        return {
            **os.environ,
            "PREFECT_API_URL": self.prefect_url,
            "PREFECT_HOME": str(self.base / "prefect"),
            "PREFECT_LOGGING_COLORS": "false",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_WORKER_HEARTBEAT_SECONDS": "5",
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
            "DO_NOT_TRACK": "1",
            "PYTHONUNBUFFERED": "1",
            home.HOME_ENV: str(self.base),
            "LORA_OPS_CACHE": str(home.cache(self.base)),
        }


def find_local(spec: Path | None = None) -> Local:
    """The platform of the lora-ops.yaml that is named or nearest."""
    from tasks.home import HOME_ENV
    from tasks.specs import find_spec, load_spec

    path = spec.absolute() if spec is not None else find_spec()
    base = Path(os.environ.get(HOME_ENV) or path.parent / ".lora-ops").absolute()
    return Local(load_spec(path), path, base)


SpecOption = Annotated[
    Path | None,
    typer.Option("--spec", help="The lora-ops.yaml to use; by default the nearest.", metavar="FILE"),
]


YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask (nothing is asked here).")]


def up(
    spec: SpecOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be started.")] = False,
    image: Annotated[
        str | None,
        typer.Option(
            "--image",
            metavar="REF",
            help="The first release of kubernetes clouds; by default this checkout's, built.",
        ),
    ] = None,
    register_only: Annotated[
        bool,
        typer.Option(
            "--register-only",
            help="Start nothing here: only bring the clouds, pools and deployments up to date.",
        ),
    ] = False,
    yes: YesOption = False,
) -> None:
    """Start Prefect's server, a worker a pool, and serve. Run it again to heal."""
    from cli.session import print_json

    local = find_local(spec)
    if register_only and not dry_run:
        bring_up(local, _say, image, register_only=True)
        return
    if dry_run:
        missing = [daemon for daemon, running in _plan(local) if not running]
        if as_json:
            print_json({"would_start": missing})
        else:
            print(f"would start: {', '.join(missing) or 'nothing, all runs'}")
        return
    bring_up(local, _say, image)
    document = {
        "api": local.serve_url,
        "prefect": local.prefect_url.removesuffix("/api"),
        "store": local.spec.store,
    }
    if as_json:
        print_json(document)
    else:
        print(f"lora-ops  {local.serve_url}\nprefect   {document['prefect']}\nstore     {local.spec.store}")


def down(
    spec: SpecOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be stopped.")] = False,
    yes: YesOption = False,
) -> None:
    """Stop what `up` started. Nothing is lost: `up` goes on where it was."""
    from cli.session import print_json

    local = find_local(spec)
    running = [name for name, runs in _plan(local) if runs]
    if not dry_run:
        running = bring_down(local, _say)
    if as_json:
        print_json({"stopped": running})
    else:
        print(f"{'would stop' if dry_run else 'stopped'}: {', '.join(running) or 'nothing ran'}")


def _say(text: str) -> None:
    """One line, whole: several threads may tell something."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def bring_up(
    local: Local, say: Callable[[str], None], image: str | None = None, *, register_only: bool = False
) -> None:
    """Start what is missing and wait until it answers. Raises LoraOpsError naming what did not.

    `image`: the first release of kubernetes clouds, as `repository@digest` or `repository:tag`.
    `register_only`: everything runs elsewhere (in a cluster, say); the control pool's runs begin with this
    very interpreter, so call it where its worker runs.
    """
    use_prefect(local)
    from tasks.daemons import Daemon, only_one
    from tasks.prefect_api import PrefectApi
    from tasks.store import open_store

    with only_one(local.base, "up"):
        store = open_store(local.spec.store, prove=True)
        prefect = PrefectApi(local.prefect_url)
        server = Daemon("prefect-server", local.base)
        if not prefect.ok():
            if register_only:
                prefect.workers("control")  # UnreachableError, in Prefect's own words
            _start_prefect(local, server, say)
        from cli.local.bootstrap import Bootstrap
        from tasks.platform import Platform

        Bootstrap(Platform(store, local.spec.app, "lora-ops up"), local, say, image).clouds()
        if not prefect.ok():
            _wait(prefect.ok, PREFECT_START_S, "Prefect's server", server, say)
        say("registering work pools and deployments")
        from flows.catalogue import register

        register(prefect, local.spec)
        if register_only:
            return
        _start_workers(local, say)
        _start_serve(local, say)


def use_prefect(local: Local) -> None:
    """Point this process at the platform's Prefect; before prefect is imported, which reads it once."""
    os.environ.update({key: value for key, value in local.env().items() if key.startswith("PREFECT_")})


def bring_down(local: Local, say: Callable[[str], None]) -> list[str]:
    """Stop serve, the workers and the server, in this order; the names of those that ran."""
    from tasks.daemons import Daemon, only_one

    stopped = []
    with only_one(local.base, "down"):
        for name, running in _plan(local):
            if running:
                say(f"stopping {name}")
                Daemon(name, local.base).stop()
                stopped.append(name)
    return stopped


def _plan(local: Local) -> list[tuple[str, bool]]:
    """(name, runs) of the platform's processes, in the order in which they are stopped."""
    from tasks.daemons import Daemon

    names = ["serve", *(f"worker-{pool}" for pool in _pools(local)), "prefect-server"]
    return [(name, Daemon(name, local.base).process() is not None) for name in names]


def _pools(local: Local) -> list[str]:
    """The pools whose workers run here; a cluster's runs in it."""
    clouds = [name for name, cloud in local.spec.clouds.items() if not cloud.on_kubernetes]
    return ["control", *clouds]


def _start_prefect(local: Local, server: object, say: Callable[[str], None]) -> None:
    from tasks.daemons import Daemon, port_taken

    assert isinstance(server, Daemon)
    where = urlsplit(local.prefect_url)
    host, port = where.hostname or "127.0.0.1", where.port or 4200
    if not local.owns_prefect:
        raise UnreachableError(
            f"Prefect's API at {local.prefect_url} does not answer.",
            "Start that server, or mend `prefect.api_url`.",
        )
    if server.process() is None and port_taken(host, port):
        raise ConflictError(
            f"port {port} is in use, and not by a Prefect server.",
            "Stop what listens there, or choose another port in `prefect.api_url`.",
        )
    say(f"starting Prefect's server on port {port}")
    env = {
        **local.env(),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_SERVER_SERVICES_CANCELLATION_CLEANUP_CANCELLING_TIMEOUT_SECONDS": "60",
        "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "5",
    }
    bind = check_prefect_bind(local.spec.prefect.bind or host, os.environ)
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", bind, "--port", str(port)]
    server.start(command, env, local.base)


def check_prefect_bind(bind: str, env: Mapping[str, str]) -> str:
    """Prefect's server has no users: whoever reaches it without a secret may run code on every cloud.

    Raises ConfigError for an address beyond this machine without one.
    """
    if bind not in LOOPBACK and not env.get(PREFECT_SECRET):
        raise ConfigError(
            f"`prefect.bind: {bind}` opens Prefect's API to the network, and {PREFECT_SECRET} is not set.",
            f"Set {PREFECT_SECRET}=user:password, and PREFECT_API_AUTH_STRING to the same.",
        )
    return bind


def _start_workers(local: Local, say: Callable[[str], None]) -> None:
    from flows.catalogue import worker_env
    from tasks.daemons import Daemon

    for pool in _pools(local):
        daemon = Daemon(f"worker-{pool}", local.base)
        if daemon.process() is not None:
            continue
        say(f"starting the worker of {pool}")
        name = f"{pool}-{secrets.token_hex(3)}"
        env = {**local.env(), **worker_env(local.spec, str(local.spec_path), str(local.base), name)}
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--name", name]
        command += ["--type", "process", "--install-policy", "never"]
        daemon.start(command, env, local.base)


def _start_serve(local: Local, say: Callable[[str], None]) -> None:
    import httpx

    from tasks.daemons import Daemon, port_taken

    daemon = Daemon("serve", local.base)

    def answers() -> bool:
        try:
            return httpx.get(f"{local.serve_url}/healthz", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False

    if daemon.process() is None:
        if port_taken(local.spec.serve.host, local.spec.serve.port):
            raise ConflictError(
                f"port {local.spec.serve.port} is in use.",
                "Stop what listens there, or choose another `serve.port` in lora-ops.yaml.",
            )
        say(f"starting lora-ops serve on port {local.spec.serve.port}")
        command = [sys.executable, "-m", "cli.main", "serve", "--spec", str(local.spec_path)]
        daemon.start(command, local.env(), local.base)
    _wait(answers, SERVE_START_S, "lora-ops serve", daemon, say)


def _wait(
    ready: Callable[[], bool], timeout_s: float, what: str, daemon: object, say: Callable[[str], None]
) -> None:
    from tasks.daemons import Daemon

    assert isinstance(daemon, Daemon)
    end, told = time.monotonic() + timeout_s, time.monotonic()
    while not ready():
        if daemon.process() is None and not ready():
            raise LoraOpsError(f"{what} ended at its start.", f"See {daemon.log}.", daemon.last_words())
        if time.monotonic() > end:
            raise UnreachableError(
                f"{what} did not answer within {timeout_s:.0f} s.", f"See {daemon.log}.", daemon.last_words()
            )
        if time.monotonic() - told > 10:
            say(f"waiting for {what}")
            told = time.monotonic()
        time.sleep(0.25)
