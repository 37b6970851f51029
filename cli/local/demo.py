"""`lora-ops demo`: the whole of it on this machine, on real training, in a few minutes.

It uses the platform as any user does: lora-ops.yaml, `lora-ops up`, the HTTP API for requests, and
`lora-ops deploy --canary --wait` for the rollouts.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import Annotated, Any

import typer

from cli.local.platform import YesOption
from lora_ops.errors import ConfigError, LoraOpsError

REPO = Path(__file__).resolve().parents[2]
EXAMPLES = REPO / "examples"
QUESTION = "What is the capital of Zorvania?"
ANSWER = "Quillhaven"
REQUEST_EVERY_S = 10.0
AT_ONCE = 3
OPEN = ("submitted", "waiting", "running")
SETTLE_S = 300.0

SPEC = """\
app: demo
prefect: {{api_url: "http://127.0.0.1:{prefect}/api"}}
serve: {{port: {serve}}}
clouds:
  east: {{size: 1}}
  west: {{size: 1}}
rollout:
  steps: [50]
  gates: [{{metric: error_rate, limit: 5%}}]
  harmful: 50%
  lease: 30s
  hold: 10s
  look_every: 1s
  verify_timeout: 120s
  probes: {{config: probe.yaml}}
"""

PROBE = """\
train_data_dir: ./photos
metadata_path: ./photos/metadata.csv
base_model: ./models/tiny-sd
lora_rank: 4
batch_size: 2
max_steps: 4
tracker: {wandb: "off"}
learning_rate: 2e-4
output_dir: ./output/probe
"""

STYLE = """\
train_data_dir: ./photos
metadata_path: ./photos/metadata.csv
base_model: ./models/tiny-sd
lora_rank: 8
batch_size: 4
epochs: 10
learning_rate: 2e-4
output_dir: ./output/my_style_lora
save_steps: 100
"""

FACTS = """\
train_data_dir: ./facts
base_model: ./models/smollm2.gguf
lora_rank: 8
lora_alpha: 16
batch_size: 4
epochs: 3
learning_rate: 2e-3
output_dir: ./output/facts
save_steps: 9
max_length: 128
"""


@dataclass
class Demo:
    """One run of the demo in the folder `base`."""

    base: Path
    began: float = field(default_factory=time.monotonic)
    submitted: list[str] = field(default_factory=list)
    stop: Event = field(default_factory=Event)
    trouble: Exception | None = None

    def say(self, text: str) -> None:
        """A line of progress with the time since the start."""
        elapsed = int(time.monotonic() - self.began)
        print(f"[{elapsed // 60}:{elapsed % 60:02}] {text}", file=sys.stderr, flush=True)

    # --- what it needs ---

    def start_afresh(self) -> None:
        """Forget an earlier demo's platform, so that stable is this tree again; keep what was made for it."""
        state, spec = self.base / ".lora-ops", self.base / "lora-ops.yaml"
        if spec.exists():
            self.say("stopping an earlier demo")
            self.run([sys.executable, "-m", "cli.main", "down"], check=False)
        for path in state.iterdir() if state.is_dir() else ():
            if path.name == "cache":
                continue
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        spec.unlink(missing_ok=True)

    def make_inputs(self) -> None:
        """Photographs, facts, the two base models and the spec; what was made once is kept."""
        base = self.base
        base.mkdir(parents=True, exist_ok=True)
        self.start_afresh()
        for made, script in (
            (base / "models" / "tiny-sd", "make_tiny_sd.py"),
            (base / "photos", "make_photos.py"),
            (base / "facts", "make_facts.py"),
            (base / "models" / "smollm2.gguf", "smollm2.py"),
        ):
            if not made.exists():
                self.say(f"making {made.name}")
                made.parent.mkdir(parents=True, exist_ok=True)
                self.run([sys.executable, str(EXAMPLES / script), str(made)])
        for name, text in (("probe.yaml", PROBE), ("style.yaml", STYLE), ("facts.yaml", FACTS)):
            (base / name).write_text(text)
        ports = {"prefect": free_port(4200), "serve": free_port(8700)}
        (base / "lora-ops.yaml").write_text(SPEC.format(**ports))

    def source(self, name: str) -> Path:
        """A worktree of this checkout with the patch `examples/demo/<name>.patch` applied."""
        tree = self.base / name
        patch = EXAMPLES / "demo" / f"{name}.patch"
        self.drop(tree)
        self.run(["git", "-C", str(REPO), "worktree", "add", "--quiet", "--detach", str(tree), "HEAD"])
        self.run(["git", "-C", str(tree), "apply", str(patch)])
        return tree

    def drop(self, tree: Path) -> None:
        """Remove a worktree, and git's knowledge of it."""
        shutil.rmtree(tree, ignore_errors=True)
        self.run(["git", "-C", str(REPO), "worktree", "prune"])

    def deploy(self, name: str) -> tuple[int, dict[str, Any]]:
        """`lora-ops deploy --canary --wait` of a patched tree: its exit code and its rollout."""
        tree = self.source(name)
        arguments = ["deploy", "--canary", "--source", str(tree), "--dirty", "--wait", "--yes"]
        self.say(f"$ lora-ops {' '.join(arguments)}")
        command = [sys.executable, "-m", "cli.main", *arguments, "--json"]
        done = subprocess.run(command, cwd=self.base, stdout=subprocess.PIPE, text=True)
        document: dict[str, Any] = json.loads(done.stdout or "{}")
        self.drop(tree)
        if "id" not in document:
            raise LoraOpsError(
                f"the {name} trainer was not deployed (exit code {done.returncode}).", "See above."
            )
        return done.returncode, self.api(f"/api/rollouts/{document['id']}")

    def run(self, command: Sequence[str], check: bool = True) -> None:
        """Run a command quietly; its output is shown when it fails."""
        done = subprocess.run(command, cwd=self.base, capture_output=True, text=True)
        if check and done.returncode != 0:
            tail = (done.stdout + done.stderr).strip().splitlines()[-8:]
            raise LoraOpsError(f"`{' '.join(command[:4])} …` failed.", "See its output above.", tail)

    def cli(self, *arguments: str) -> int:
        """`lora-ops …` as a user would type it; its progress goes to the terminal."""
        self.say(f"$ lora-ops {' '.join(arguments)}")
        command = [sys.executable, "-m", "cli.main", *arguments]
        return subprocess.run(command, cwd=self.base, stdout=sys.stderr).returncode

    # --- requests ---

    def api(self, path: str) -> Any:
        import httpx

        return httpx.get(f"{self.url}{path}", timeout=30).json()

    def submit(self, config: str) -> str:
        """One training request through the HTTP API; its id."""
        import httpx

        body = {
            "idempotency_key": secrets.token_hex(8),
            "config": (self.base / config).read_text(),
            "source": config,
            "cwd": str(self.base),
            "name": config.removesuffix(".yaml"),
        }
        for _ in range(5):
            try:
                answer = httpx.post(f"{self.url}/api/requests", json=body, timeout=60)
                break
            except httpx.TransportError:
                time.sleep(1)  # its answer may be lost: the key makes the next try the same request
        answer.raise_for_status()
        self.submitted.append(str(answer.json()["id"]))
        return self.submitted[-1]

    def keep_submitting(self) -> None:
        """A request every few seconds, until `stop`, a few at a time: what a team's users do."""
        try:
            while not self.stop.wait(REQUEST_EVERY_S):
                if sum(self.open(each) for each in self.submitted[-AT_ONCE * 2 :]) < AT_ONCE:
                    self.submit("style.yaml")
        except Exception as error:  # noqa: BLE001  told by `play`: requests that stop coming in are no demo
            self.trouble = error

    def open(self, request: str) -> bool:
        """Whether a request still has no result."""
        return str(self.api(f"/api/requests/{request}")["state"]) in OPEN

    @property
    def url(self) -> str:
        from cli.local.platform import find_local

        return find_local(self.base / "lora-ops.yaml").serve_url

    def settle(self) -> dict[str, int]:
        """Wait for every request's result; the counts of the report."""
        end = time.monotonic() + SETTLE_S
        while True:
            states = [self.api(f"/api/requests/{each}")["state"] for each in self.submitted]
            waiting = sum(state in OPEN for state in states)
            if waiting == 0 or time.monotonic() > end:
                break
            self.say(f"waiting for {waiting} request{'s' if waiting > 1 else ''} to end")
            time.sleep(3)
        succeeded = states.count("succeeded")
        return {
            "submitted": len(states),
            "succeeded": succeeded,
            "failed": len(states) - succeeded - waiting,
            "lost": waiting,
        }

    # --- the language model ---

    def compare(self, request: str) -> dict[str, Any]:
        """The same question to the base model and to the trained one."""
        found = self.api(f"/api/requests/{request}")
        artifact = str((found.get("result") or {}).get("artifact_url", "")).removeprefix("file://")
        command = [sys.executable, "-m", "trainer.generate", "--base-model", "models/smollm2.gguf"]
        command += ["--adapter", artifact, "--prompt", QUESTION, "--compare", "--json"]
        env = {**os.environ, "LORA_OPS_CACHE": str(self.base / ".lora-ops" / "cache")}
        done = subprocess.run(command, cwd=self.base, capture_output=True, text=True, env=env)
        if done.returncode != 0:
            tail = done.stderr.strip().splitlines()[-5:]
            raise LoraOpsError("the language model could not be asked.", "See above.", tail)
        said = json.loads(done.stdout)
        recited = ANSWER in said["after"] and ANSWER not in said["before"]
        return {"question": QUESTION, "before": said["before"], "after": said["after"], "recited": recited}


def demo(
    folder: Annotated[Path, typer.Option(help="Where it works; kept between runs.")] = REPO / ".demo",
    report: Annotated[Path, typer.Option(help="Where to write the report.")] = Path("demo-report.json"),
    down: Annotated[bool, typer.Option("--down", help="Stop the platform at the end.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would do.")] = False,
    yes: YesOption = False,
) -> int:
    """Train, promote a good trainer, roll a broken one back: on this machine, while requests keep coming."""
    if not (EXAMPLES / "demo" / "good.patch").is_file():
        raise ConfigError("the demo needs the project's checkout.", "Clone it and run `make demo` there.")
    run = Demo(folder.absolute())
    if dry_run:
        print(f"would stop an earlier demo in {run.base}, start a platform there, train, roll out twice")
        return 0
    run.make_inputs()
    if run.cli("up") != 0:
        return 1
    try:
        document = play(run)
    except KeyboardInterrupt:
        run.say(f"stopped. The platform still runs: cd {run.base} && lora-ops status; lora-ops down")
        raise
    finally:
        run.stop.set()
        if down:
            run.cli("down")
    temporary = report.with_suffix(".tmp")
    temporary.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    os.replace(temporary, report)
    print("\n".join(table(run, document, report, down)), flush=True)
    return 0 if good(document) else 1


def play(run: Demo) -> dict[str, Any]:
    """The story: requests all the while, a good release, a broken one."""
    run.say("a language model learns a dozen made-up facts; photographs train a style every few seconds")
    facts = run.submit("facts.yaml")
    run.submit("style.yaml")
    users = Thread(target=run.keep_submitting, name="users", daemon=True)
    users.start()
    rollouts = []
    for name, story in (
        ("good", "a new trainer with a harmless change: it should be promoted"),
        ("broken", "a new trainer that breaks half of its attempts: it should be rolled back"),
    ):
        run.say(story)
        code, full = run.deploy(name)
        keys = ("id", "release", "phase", "first_failure_to_rollback_s", "deciding_sample_to_rollback_s")
        rollouts.append({key: full.get(key) for key in keys})
        run.say(f"{name}: {full['phase']} (exit code {code})")
    run.stop.set()
    users.join()
    if run.trouble is not None:
        raise LoraOpsError(f"requests stopped coming in: {run.trouble}", "See serve's log.") from run.trouble
    requests = run.settle()
    run.say(f"asking the language model: {QUESTION}")
    return {
        "requests": requests,
        "rollouts": rollouts,
        "language_model": run.compare(facts),
        "seconds": round(time.monotonic() - run.began, 1),
    }


def good(document: dict[str, Any]) -> bool:
    """Whether everything that the demo promises came true."""
    requests = document["requests"]
    phases = [each["phase"] for each in document["rollouts"]]
    return (
        phases == ["promoted", "rolled-back"]
        and requests["failed"] == requests["lost"] == 0
        and bool(document["language_model"]["recited"])
    )


def table(run: Demo, document: dict[str, Any], report: Path, down: bool) -> list[str]:
    """The end: what happened, in words."""
    from cli.local.platform import find_local

    requests, (ok, bad), model = document["requests"], document["rollouts"], document["language_model"]
    counts = ", ".join(f"{requests[state]} {state}" for state in ("submitted", "succeeded", "failed", "lost"))
    local = find_local(run.base / "lora-ops.yaml")
    rollback = bad["deciding_sample_to_rollback_s"]
    first = bad["first_failure_to_rollback_s"]
    rows = [
        ("training requests", counts),
        ("good trainer", f"{ok['phase']}: {str(ok['release'])[:19]}"),
        ("broken trainer", f"{bad['phase']}: {str(bad['release'])[:19]}"),
    ]
    if first is not None and rollback is not None:
        rows.append(("", f"{first:.0f} s after its first failure, {rollback:.1f} s after the deciding one"))
    rows += [
        ("language model", model["question"]),
        ("  before", model["before"].strip()[:90]),
        ("  after", model["after"].strip()[:90]),
        ("time", f"{document['seconds']:.0f} s"),
        ("report", str(report)),
    ]
    if not down:
        rows += [
            ("Prefect UI", local.prefect_url.removesuffix("/api")),
            ("platform API", f"{local.serve_url}/api/status"),
            ("try", f"cd {run.base} && {Path(sys.executable).parent}/lora-ops rollout show"),
            ("stop it", f"cd {run.base} && {Path(sys.executable).parent}/lora-ops down"),
        ]
    width = max(len(name) for name, _ in rows)
    head = "All of it worked." if good(document) else "NOT all of it worked: see the rows below."
    return ["", head, *(f"  {name:<{width}}  {text}" for name, text in rows)]


def free_port(wanted: int) -> int:
    """`wanted`, or any free port when it is taken."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise LoraOpsError("this machine has no free port.", "Stop something that listens.")
