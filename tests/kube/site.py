"""A platform of three clusters: its control part on this machine, workers and attempts in pods."""

from __future__ import annotations

import base64
import json
import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from lora_ops import keys
from lora_ops.gates.statistics import Verdict
from lora_ops.request import RequestState
from lora_ops.spec import PlatformSpec
from lora_ops.state import Source
from tasks.datasets import newest_checkpoint
from tasks.platform import Platform
from tasks.prefect_api import PrefectApi
from tasks.source_tree import BUNDLE_FOLDERS
from tasks.specs import load_spec
from tasks.store import open_store
from tests.console.prometheus_site import Site as Prometheus
from tests.flows.site import BY_SEED, Site, eventually, free_port
from tests.kube.regions import BASE, REPOSITORY, Region, host_address, kubectl
from tests.kube.thin_image import tag_image, thin_image
from tests.stub.make import REPO, make_stub_config, make_stub_source

CODE = "opt/lora-ops"
ROLLOUT: dict[str, Any] = {
    "steps": [50],
    "harmful": "90%",
    "lease": "30s",
    "hold": "2s",
    "look_every": "500ms",
    "verify_timeout": "120s",
    "deadline": "8m",
    "fresh_samples": 1,
    "probes": {"config": "cfg/stub.yaml"},
}
REQUESTS = {
    "max_attempts": 3,
    "start_deadline": "120s",
    "heartbeat_deadline": "45s",
    "spill_after": "90s",
    "pull_deadline": "15s",
    "dark_after": "15s",
    "stall_deadline": "45s",
}


class KubeSite(Site):
    """`real`: the digest of this checkout's own image in the shared repository."""

    def __init__(self, folder: Path, regions: list[Region], store_port: int, real: str) -> None:
        self.folder = folder
        self.base = folder / ".lora-ops"
        self.made = 0
        self.regions = {region.cloud: region for region in regions}
        self.namespace = f"lora-ops-{secrets.token_hex(3)}"
        self.secret = f"test:{secrets.token_hex(16)}"
        self.address = host_address()
        self.real = real
        self.store_pid = 0
        self.config = make_stub_config(folder / "cfg")
        self.prefect_port, self.store_port, self.serve_port = free_port(), store_port, free_port()
        self.prometheus = Prometheus(folder / "prometheus", free_port())
        shutil.copy(REPO / "examples" / "pipeline.json", folder)
        self.write_spec()
        self.good = self.image()
        os.environ.update(self.own_env())  # this process asks Prefect and the store, too
        httpx.put(f"http://127.0.0.1:{store_port}/stubs").raise_for_status()
        self.platform = Platform(open_store(self.spec.store), self.spec.app, "test")
        self.prefect = PrefectApi(self.spec.prefect.api_url)
        self.api = httpx.Client(base_url=f"http://127.0.0.1:{self.spec.serve.port}/api", timeout=30)

    # --- its documents ---

    def write_spec(self) -> None:
        clouds = {
            name: {
                "kind": "kubernetes",
                "context": region.context,
                "namespace": self.namespace,
                "registry": region.registry,
                "size": 2,
                "env_from": ["lora-ops-store"],
                "prefect_api_url": f"http://{self.address}:{self.prefect_port}/api",
                "resources": {"cpu": "500m", "memory": "1Gi", "scratch": "1Gi", "shm": "64Mi", "gpu": 0},
                "grace": "20s",
                "deadline": "10m",
            }
            for name, region in self.regions.items()
        }
        document = {
            "app": "stubs",
            "store": "s3://stubs/platform",
            "prefect": {"api_url": f"http://127.0.0.1:{self.prefect_port}/api", "bind": "0.0.0.0"},
            "serve": {"port": self.serve_port},
            "image": {"repository": REPOSITORY, "base": BASE},
            "clouds": clouds,
            "providers": {"prometheus-prod": {"url": self.prometheus.url, "timeout": "5s"}},
            "rollout": ROLLOUT,
            "requests": REQUESTS,
        }
        path = self.folder / "lora-ops.yaml"
        path.write_text(yaml.safe_dump(document, sort_keys=False))
        self.spec: PlatformSpec = load_spec(path)

    def own_env(self) -> dict[str, str]:
        """What every process of the control part needs beside its lora-ops.yaml."""
        return {
            "AWS_ENDPOINT_URL": f"http://{self.address}:{self.store_port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
            "PREFECT_SERVER_API_AUTH_STRING": self.secret,
            "PREFECT_API_AUTH_STRING": self.secret,
        }

    def env(self) -> dict[str, str]:
        kept = {
            key: value for key, value in os.environ.items() if not key.startswith(("PREFECT", "LORA_OPS"))
        }
        return {**kept, **self.own_env(), "OMP_NUM_THREADS": "1"}

    # --- images ---

    def image(self, files: dict[str, bytes] | None = None, **behaviour: Any) -> str:
        """The digest of a release that nobody has deployed yet: the stand-in trainer and this tree's code,
        one layer on the real image. `files`: further ones, by their path in the image."""
        self.made += 1
        facts = {"by_seed": BY_SEED, "number": self.made, "site": self.namespace, **behaviour}
        source = make_stub_source(self.folder / "sources" / str(self.made), **facts)
        layer = {
            f"{CODE}/{path.relative_to(source).as_posix()}": path.read_bytes()
            for path in source.rglob("*")
            if path.is_file()
        }
        folders = [f"{CODE}/{name}" for name in BUNDLE_FOLDERS]
        return thin_image(REPOSITORY, self.real, layer | (files or {}), folders)

    def layered(self, files: dict[str, bytes]) -> str:
        """This checkout's own image, the real trainer in it, with `files` (path: content) on top."""
        return thin_image(REPOSITORY, self.real, files)

    def deploy(self, digest: str, **rollout: Any) -> str:
        """Start a rollout of an image by its digest; its id."""
        spec = self.spec.model_copy(update={"rollout": self.spec.rollout.model_copy(update=rollout)})
        from flows.start import begin_rollout

        where = Source(kind="image", image=f"{REPOSITORY}@{digest}")
        return begin_rollout(self.platform, spec, where, actor="test")[0]

    def broken_image(self) -> str:
        """A digest that every registry holds and no node can unpack."""
        return thin_image(REPOSITORY, self.good, {f"{CODE}/x": secrets.token_bytes(8)}, torn=True)

    def tag(self, digest: str, tag: str) -> None:
        tag_image(REPOSITORY, digest, tag)

    def reference(self, digest: str) -> str:
        return f"{REPOSITORY}@{digest}"

    def active_id(self) -> str:
        rollout = self.platform.state().rollout
        assert rollout is not None
        return rollout.id

    def failing_gates(self, rollout: str) -> set[str]:
        """The gates that the newest look found failed."""
        results = self.platform.looks(rollout)[-1].look.results
        return {result.gate for result in results if result.verdict is Verdict.FAIL}

    # --- requests ---

    def told(self, words: str) -> str | None:
        """What an attempt under way says of itself, if it holds the words."""
        for each in self.open_requests():
            answer = self.api.get(f"/requests/{each}")
            for attempt in answer.json().get("attempts", []):
                if words in attempt["message"]:
                    return str(attempt["message"])
        return None

    def moved_from(self, request_id: str, cloud: str) -> RequestState | None:
        """The request once an attempt of it runs on another cloud."""
        state = self.platform.request(request_id)
        last = state.attempts[-1]
        moved = last.cloud != cloud and self.exists(keys.heartbeat(request_id, last.n))
        return state if moved else None

    def checkpointed(self, request_id: str, timeout_s: float = 120) -> RequestState:
        """The request once a checkpoint of it is in the store."""
        eventually(
            lambda: newest_checkpoint(self.platform.store, request_id), f"{request_id} saves", timeout_s
        )
        return self.platform.request(request_id)

    def resumed_from(self, request_id: str) -> int:
        """The step at which the successful attempt began."""
        state = self.platform.request(request_id)
        assert state.result is not None
        (began,) = [
            event
            for event in self.trainer_events(request_id, state.result.attempt or 0)
            if event["event"] == "start"
        ]
        return int(began["resumed_from_step"])

    # --- the clusters ---

    def up(self) -> None:
        for region in self.regions.values():
            self._prepare(region)
        done = self.cli("up", "--image", f"{REPOSITORY}@{self.good}", timeout_s=600)
        assert done.returncode == 0, done.stderr
        eventually(lambda: all(self.healthy().values()) or None, "every cloud is up", 180)
        self.prometheus.start(f"127.0.0.1:{self.serve_port}", every="3s")

    def _prepare(self, region: Region) -> None:
        """What its administrator does: the namespace, two secrets, and the rendered manifests."""
        image = f"{REPOSITORY}@{self.good}"
        rendered = self.cli("manifests", "render", "--cloud", region.cloud, "--image", image)
        assert rendered.returncode == 0, rendered.stderr
        kubectl(region.context, "create", "namespace", self.namespace)
        for name, data in {
            "lora-ops-store": {key: value for key, value in self.own_env().items() if key.startswith("AWS")},
            "lora-ops-prefect": {"auth-string": self.secret},
        }.items():
            encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
            secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": encoded}
            kubectl(region.context, "-n", self.namespace, "apply", "-f", "-", given=json.dumps(secret))
        kubectl(region.context, "apply", "-f", "-", given=rendered.stdout)

    def region(self, cloud: str, *args: str) -> str:
        """kubectl in the cloud's namespace."""
        return kubectl(self.regions[cloud].context, "-n", self.namespace, *args)

    def healthy(self) -> dict[str, bool]:
        answer = self.api.get("/clouds")
        assert answer.status_code == 200, answer.text
        return {item["name"]: bool(item["healthy"]) for item in answer.json()["items"]}

    def jobs(self, cloud: str) -> list[dict[str, Any]]:
        """The Jobs of attempts, as the cluster's API server holds them."""
        text = self.region(cloud, "get", "jobs", "-l", "lora-ops/request", "-o", "json")
        found: list[dict[str, Any]] = json.loads(text)["items"]
        return found

    def active_jobs(self) -> list[str]:
        return [name for cloud in self.regions for name in self.active_jobs_of(cloud)]

    def active_jobs_of(self, cloud: str) -> list[str]:
        jobs = [job for job in self.jobs(cloud) if job["status"].get("active")]
        return [f"{cloud}/{job['metadata']['name']}" for job in jobs]

    def kill_flow(self) -> None:
        """SIGKILL to the process of the deploy flow, as soon as there is one."""

        def flow() -> psutil.Process | None:
            children = self.daemon("worker-control").children(recursive=True)
            return next((each for each in children if "engine.py" in " ".join(each.cmdline())), None)

        eventually(flow, "the deploy flow runs", 60).kill()

    def stop(self) -> list[str]:
        left = super().stop()
        if self.prometheus.process is not None:
            self.prometheus.kill()
        for region in self.regions.values():
            kubectl(region.context, "delete", "namespace", self.namespace, "--wait=false", check=False)
        return left


def moto(port: int, log: Path) -> subprocess.Popen[bytes]:
    """An S3 server of its own process, which a test may stop and let go on."""
    command = [sys.executable, "-m", "moto.server", "-H", "0.0.0.0", "-p", str(port)]
    with log.open("wb") as out:
        return subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
