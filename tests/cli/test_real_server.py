"""The command line against the real API, served over a real socket: both sides mean the same shapes.

The store is in memory and Prefect is not there; nothing runs, so evidence is journalled as the flows do.
"""

import json
import socket
import subprocess
import threading

import pytest
import uvicorn

from console.app import create_app
from console.context import ServeContext
from lora_ops.spec import parse_spec
from tasks.platform import Platform
from tasks.prefect_api import PrefectApi
from tasks.store import open_store

OLD, NEW = f"sha256:{'a' * 64}", f"sha256:{'b' * 64}"
ID = "roll-06dk3v9z1q7a4bc"
SPEC = """
app: loras
clouds: {east: {size: 2}, west: {size: 1}}
rollout: {steps: [10, 50], gates: [{metric: error_rate, limit: 5%}]}
"""


class NoPrefect(PrefectApi):
    def ok(self):
        return False

    def workers(self, pool):
        return []


@pytest.fixture
def platform(tmp_path, monkeypatch):
    spec = parse_spec(SPEC, "lora-ops.yaml")
    platform = Platform(open_store("memory://"), spec.app, "serve")
    for name, cloud in spec.clouds.items():
        platform.record("cloud-set", {"name": name, "stable": OLD, "size": cloud.size, "share": cloud.share})
    context = ServeContext(
        spec=spec,
        spec_path=tmp_path / "lora-ops.yaml",
        platform=platform,
        prefect=NoPrefect("http://127.0.0.1:1/api"),
        home=tmp_path,
        token=None,
        run_url=lambda request, n: None,
        health=lambda: {"east": True, "west": True},
    )
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(create_app(context), log_level="critical"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        monkeypatch.setenv("LORA_OPS_SERVER", f"http://127.0.0.1:{listening.getsockname()[1]}")
        monkeypatch.delenv("LORA_OPS_TOKEN", raising=False)
        monkeypatch.chdir(tmp_path)
        yield platform
        server.should_exit = True
        thread.join()


@pytest.fixture
def canarying(platform):
    spec = parse_spec(SPEC, "lora-ops.yaml")
    platform.record(
        "rollout-started",
        {"id": ID, "source": {"path": "/src"}, "policy": spec.policy().model_dump(mode="json")},
        reason="new loss",
    )
    for kind, data in (
        ("validated", {}),
        ("built", {"release": NEW, "revision": "abc123"}),
        ("self-checked", {}),
        ("distributed", {"clouds": {"east": NEW, "west": NEW}}),
        ("step-started", {"wave": 0, "step": 0}),
    ):
        platform.record(kind, {"rollout": ID, **data})
    return platform


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_OPS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "facts").mkdir()
    (tmp_path / "base.gguf").write_bytes(b"GGUF" + bytes(64))
    row = {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ada."}]}
    (tmp_path / "facts" / "train.jsonl").write_text(f"{json.dumps(row)}\n" * 3)
    text = "train_data_dir: ./facts\nbase_model: ./base.gguf\noutput_dir: ./out\nlearning_rate: 2e-4\n"
    (tmp_path / "facts.yaml").write_text(text)
    return "facts.yaml"


def answer(result):
    status, out, err = result
    assert status == 0, err
    return json.loads(out)


def test_looking_round(cli, canarying):
    assert answer(cli("status", "--json"))["rollout"]["id"] == ID
    for said in ("loras", "canarying wave 1 step 1 10 %", "does not answer", "east"):
        assert said in cli("status")[1]
    assert cli("rollout", "ls", "-q")[1] == f"{ID}\n"
    shown = cli("rollout", "show")[1]
    for said in (ID, NEW, "abc123", "10 %", "0 bad of 0, 0 started", "No look yet"):
        assert said in shown
    assert "new loss" in cli("rollout", "history")[1]
    assert "drained" not in cli("cloud", "ls")[1]
    assert answer(cli("cloud", "show", "east", "--json"))["size"] == 2
    assert cli("gate", "explain")[0] == 0
    assert cli("release", "ls")[0] == 0
    assert "lora-ops train" in cli("runs", "ls")[1]


def test_steering(cli, canarying):
    assert answer(cli("rollout", "pause", "--json", "--reason", "look"))["paused"] is True
    assert "paused" in cli("rollout", "show")[1]
    assert cli("rollout", "resume")[0] == 0
    assert answer(cli("rollout", "rollback", "--dry-run", "--json"))["phase"] == "rolled-back"
    assert canarying.state().rollout is not None
    assert cli("rollout", "approve")[0] == 6
    assert (
        answer(cli("rollout", "rollback", "--yes", "--json", "--reason", "enough"))["phase"] == "rolled-back"
    )
    assert canarying.state().rollout is None
    assert cli("rollout", "watch", ID)[0] == 9
    status, _, err = cli("rollout", "abort", ID, "--yes")
    assert status == 6
    assert "already" in err
    status, _, err = cli("rollout", "show", ID[:-1] + "d")
    assert status == 5
    assert ID in err


def test_clouds(cli, platform):
    assert cli("cloud", "drain", "east", "--dry-run")[0] == 0
    assert not platform.state().clouds["east"].drained
    assert cli("cloud", "drain", "east", "--yes", "--reason", "upgrade")[0] == 0
    assert platform.state().clouds["east"].drained
    assert "drained" in cli("cloud", "ls")[1]
    assert cli("cloud", "undrain", "east")[0] == 0
    status, _, err = cli("cloud", "show", "eats")
    assert status == 5
    assert "`east`" in err


def test_requests(cli, platform, config):
    assert cli("train", config, "--dry-run")[0] == 0
    assert cli("runs", "ls", "-q")[1] == ""
    first = cli("train", config, "-q", "--idempotency-key", "k")[1].strip()
    assert cli("train", config, "-q", "--idempotency-key", "k")[1].strip() == first
    assert cli("runs", "ls", "-q")[1] == f"{first}\n"
    document = answer(cli("runs", "show", first, "--json"))
    assert (document["name"], document["state"]) == ("facts", "submitted")
    assert cli("runs", "watch", first, "--timeout", "0")[0] == 101
    assert cli("runs", "watch", "req-000000000000000")[0] == 102
    assert cli("runs", "logs", first) == (0, "", "")
    assert cli("runs", "cancel", first, "--yes")[0] == 0
    assert answer(cli("runs", "show", first, "--json"))["cancel_requested"] is True
    assert cli("runs", "retry", first)[0] == 6


def test_a_bad_config_is_told_line_by_line(cli, platform, config, tmp_path):
    (tmp_path / config).write_text("train_data_dir: ./facts\nbase_modle: ./base.gguf\noutput_dir: ./out\n")
    status, _, err = cli("train", config)
    assert status == 3
    assert "base_model" in err
    assert cli("runs", "ls", "-q")[1] == ""


def test_deploy(cli, platform, tmp_path):
    repository = tmp_path / "clone"
    for folder in ("flows", "tasks", "lora_ops", "trainer"):
        (repository / folder).mkdir(parents=True)
        (repository / folder / "__init__.py").write_text("")
    (repository / "constraints.txt").write_text("torch==2.8\n")
    for command in (
        ["init", "-q", "-b", "main"],
        ["add", "."],
        ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "first"],
    ):
        subprocess.run(["git", "-C", str(repository), *command], check=True)
    source = ["--source", str(repository)]
    planned = answer(cli("deploy", *source, "--dry-run", "--json", "--plan", "5,100"))
    assert planned["plans"] == {"east": [5, 100], "west": [5, 100]}
    assert platform.state().rollout is None
    first = cli("deploy", "--canary", *source, "--yes", "-q")[1].strip()
    assert platform.state().rollout.id == first
    status, _, err = cli("deploy", *source, "--yes")
    assert status == 6
    assert first in err
    second = cli("deploy", *source, "--yes", "--queue", "-q")[1].strip()
    assert [queued.id for queued in platform.state().queue] == [second]
    assert cli("rollout", "ls", "-q")[1].split() == [second, first]
    assert cli("rollout", "show")[1].startswith(f"rollout {first}")
    assert cli("deploy", "--source", str(tmp_path), "--yes", "--queue")[0] == 3
