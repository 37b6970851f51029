"""A platform as production scales it out: Prefect's servers on PostgreSQL, and further `lora-ops serve`.

The servers get the environment that deployments/helm/prefect-server-values.yaml gives them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import yaml
from prefect.settings import PREFECT_API_AUTH_STRING, temporary_settings

from tasks.prefect_api import PrefectApi
from tasks.specs import load_spec
from tests.flows.site import Site, eventually
from tests.ha.databases import PASSWORD, Redis
from tests.stub.make import REPO

AUTH = "admin:shared-by-all-of-us"
VALUES = REPO / "deployments" / "helm" / "prefect-server-values.yaml"


def values() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(VALUES.read_text())
    return document


def values_env() -> dict[str, str]:
    """What our values give to every process of the server."""
    return {entry["name"]: entry["value"] for entry in values()["global"]["prefect"]["env"]}


def chart_env(redis: Redis) -> dict[str, str]:
    """What the chart makes of `backgroundServices`, and what the Secret prefect-redis holds."""
    messaging = values()["backgroundServices"]["messaging"]
    return {
        "PREFECT_MESSAGING_BROKER": messaging["broker"],
        "PREFECT_MESSAGING_CACHE": messaging["cache"],
        "PREFECT_SERVER_EVENTS_CAUSAL_ORDERING": "prefect_redis.ordering",
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect_redis.lease_storage",
        "PREFECT_REDIS_MESSAGING_HOST": "127.0.0.1",
        "PREFECT_REDIS_MESSAGING_PORT": str(redis.port),
        "PREFECT_REDIS_MESSAGING_DB": str(messaging["redis"]["db"]),
        "PREFECT_REDIS_MESSAGING_PASSWORD": PASSWORD,
        "PREFECT_SERVER_DOCKET_URL": f"redis://:{PASSWORD}@127.0.0.1:{redis.port}/1",
    }


class Replica:
    """One process that a test kills and starts again. `command`: arguments of Python."""

    def __init__(self, name: str, command: list[str], env: dict[str, str], folder: Path) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._command = [sys.executable, *command]
        self._env = env
        self._folder = folder
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._folder,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def kill(self) -> None:
        """SIGKILL, to its children too, which would serve on; the process is gone when this returns."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(30)

    def stop(self) -> None:
        """SIGTERM; then SIGKILL to what is left of it."""
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(20)
        self.kill()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def last_words(self) -> str:
        return self.log.read_text(errors="replace")[-3000:]


def prefect_env(folder: Path, name: str, database: str, extra: dict[str, str]) -> dict[str, str]:
    """The environment of one process of Prefect's server, with a home of its own as a container has."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT", "LORA_OPS"))}
    return {
        **kept,
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        "PREFECT_HOME": str(folder / f"home-{name}"),
        "PREFECT_API_DATABASE_CONNECTION_URL": database,
        "PREFECT_SERVER_API_AUTH_STRING": AUTH,
        "PREFECT_LOGGING_COLORS": "false",
        **values_env(),
        **extra,
    }


def migrate(folder: Path, database: str) -> None:
    """What the chart's migration job does."""
    command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "-y"]
    env = prefect_env(folder, "migrate", database, {})
    done = subprocess.run(
        command, cwd=folder, env=env, check=False, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stdout + done.stderr


def api_server(folder: Path, name: str, port: int, env: dict[str, str], *words: str) -> Replica:
    command = ["-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port), *words]
    return Replica(name, command, env, folder)


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=3).status_code == 200
    except httpx.HTTPError:
        return False


#: Nothing here is lost, however slow the machine: what these would notice is not what is tested.
PATIENCE = {"start_deadline": "5m", "heartbeat_deadline": "2m", "spill_after": "10m"}


def patient(site: Site) -> None:
    """Give the site's attempts time; before it is up."""
    path = site.folder / "lora-ops.yaml"
    document = yaml.safe_load(path.read_text())
    document["requests"].update(PATIENCE)
    document["rollout"]["lease"] = "60s"
    path.write_text(yaml.safe_dump(document))
    site.spec = load_spec(path)


class ScaledSite(Site):
    """A site whose Prefect is already there, behind `spec.prefect.api_url`, and wants the shared password.

    `front`: the port of the balancer before its `lora-ops serve` replicas.
    """

    def __init__(self, folder: Path, front: int) -> None:
        super().__init__(folder)
        patient(self)
        self.prefect.close()
        self.api.close()
        with temporary_settings({PREFECT_API_AUTH_STRING: AUTH}):
            self.prefect = PrefectApi(self.spec.prefect.api_url)
        self.api = httpx.Client(base_url=f"http://127.0.0.1:{front}/api", timeout=30)

    def env(self) -> dict[str, str]:
        return {**super().env(), "PREFECT_API_AUTH_STRING": AUTH}

    def submit(self, seed: int | None = None, status: int = 201, **body: Any) -> str:
        """As the CLI does it: with an idempotency key, and again when the answer was lost."""
        text = self.config.read_text() + (f"seed: {seed}\n" if seed is not None else "")
        key = {"idempotency_key": uuid.uuid4().hex}
        wanted = {"config": text, "cwd": str(self.config.parent), **key, **body}

        def look() -> str | None:
            answer = self.api.post("/requests", json=wanted)
            if answer.status_code == httpx.codes.BAD_GATEWAY:
                return None
            assert answer.status_code == status, answer.text
            return str(answer.json()["id"])

        return eventually(look, "a request is taken", 60)

    def another_serve(self, port: int) -> Replica:
        """A further `lora-ops serve`; on a machine of its own, as far as folders go."""
        home = self.folder / "another-home"
        home.mkdir()
        own = {"PYTHONPATH": str(REPO), "PYTHONSAFEPATH": "1", "LORA_OPS_HOME": str(home)}
        spec = str(self.folder / "lora-ops.yaml")
        command = ["-m", "cli.main", "serve", "--spec", spec, "--port", str(port)]
        return Replica("another-serve", command, {**self.env(), **own}, self.folder)


def until_ready(replica: Replica, url: str, timeout_s: float = 120.0) -> None:
    def look() -> bool:
        assert replica.alive, f"{replica.name} ended: {replica.last_words()}"
        return answers(url)

    eventually(look, f"{replica.name} answers", timeout_s)
