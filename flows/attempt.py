"""One attempt, from admission to its result. Reads from top to bottom in `Attempt.run`.

The store is told everything; Prefect only learns how it ended. Whatever kills this process, the journal of
the request is left at a point from which the reconciler goes on.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

import flows
from flows.context import FlowContext
from flows.facts import Facts, cause_of
from flows.report import BEAT_S, Outcome, Report, patiently
from lora_ops import SCHEMA_VERSION, keys
from lora_ops.errors import StoreUnavailable
from lora_ops.lease import canary_open, may_start
from lora_ops.request import Attempt as Record
from lora_ops.request import Order
from lora_ops.state import Rollout, Track
from tasks import home
from tasks.child import TrainerChild
from tasks.datasets import download_folder, fetch_dataset, newest_checkpoint
from tasks.releases import read_release
from tasks.source_tree import digest_of_running

#: What of a stored config lies below its dataset: trainer.data's names, whose import costs half a second.
DATA_PATHS = ("train_data_dir", "metadata_path", "validation_dir", "reg_data_dir", "mask_dir")
POLL_S = 0.2
GRACE_S = 20.0
PUBLISH_S = 1800.0  # a training is worth waiting for its store; whoever is given up meanwhile loses the race


class Attempt:
    """`request`, `n`: the attempt's record, which names the cloud, the track and the digest."""

    report: Report

    def __init__(self, context: FlowContext, request: str, n: int, run: str | None = None) -> None:
        """`run`: the id of the flow run that this process serves."""
        self.context = context
        self.platform = context.platform
        self.store = context.platform.store
        self.home = context.home
        self.request = request
        self.n = n
        self.flow_run = run
        self.started = self.heard = time.monotonic()
        self.printed = 0
        self.begun = False
        self.parent = os.getppid()
        self.folder = home.scratch(self.home) / f"{request}-{n}"
        self.output = self.folder / f"{request}-{n}"
        self.root = Path(flows.__file__).resolve().parent.parent

    async def run(self) -> str:
        """Raises Outcome when it ends without a result of its own, Duplicate when it is not the one."""
        record, order = self.read_record()
        self.report = Report(self.platform, self.request, self.n, record, order)
        self.check_code(record)
        self.admit(record)
        try:
            with self.report.pulse():
                return await self.train(order)
        except (Outcome, StoreUnavailable):
            raise
        except Exception as error:  # told at once, not left to a deadline
            cause, message = cause_of(error), f"{type(error).__name__}: {error}"
            self.report.sample(cause=cause, message=message)
            kind = "attempt-failed" if cause == "trainer_error" else "attempt-lost"
            self.report.end(kind, cause, message)
            raise Outcome("Failed", message) from error
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    async def train(self, order: Order) -> str:
        """Prepare, run the trainer, publish. A checkpoint that this release cannot take is done without."""
        config, resume = self.prepare(order)
        code, child = await self.run_child(config, resume)
        if code != 0 and resume != "never" and (self.facts.failure or {}).get("type") == "CheckpointError":
            self.report.facts = Facts()
            shutil.rmtree(self.output)
            self.output.mkdir()
            code, child = await self.run_child(config, "never")
        if code == 0 and self.facts.result is not None:
            return self.publish(child)
        return self.fail(child, code)

    async def run_child(self, config: Path, resume: str) -> tuple[int, TrainerChild]:
        """The trainer, followed to its exit code."""
        child = TrainerChild(
            config,
            self.output,
            self.folder / "log.txt",
            self.root,
            resume=resume,
            cache=home.cache(self.home),
        )
        try:
            code = await self.follow(child)
        except Exception as error:
            if isinstance(error, (Outcome, StoreUnavailable)):
                self.interrupted(child, error)
            else:
                child.stop(GRACE_S)  # `run` tells it
            raise
        except BaseException as interruption:
            self.interrupted(child, interruption)
            raise
        child.close()
        return code, child

    @property
    def facts(self) -> Facts:
        return self.report.facts

    # --- before anything is trained ---

    def read_record(self) -> tuple[Record, Order]:
        state = self.platform.request(self.request)
        record = state.current
        if state.order is None or record is None or record.n != self.n:
            raise Outcome("Superseded", f"Attempt {self.n} of {self.request} is not under way any more.")
        return record, state.order

    def check_code(self, record: Record) -> None:
        """The digest of the code that really runs must be the record's (design: What Prefect gives).

        An image's digest cannot be seen from within: kubelet pulls by it, and the code must be what the
        self-check found in that image.
        """
        found, wanted = digest_of_running(flows.__file__), record.digest
        if self.context.image is not None:
            wanted = read_release(self.store, record.digest).tree
        pinned = self.context.image is None or self.context.image.endswith(f"@{record.digest}")
        if found != wanted or not pinned:
            where = f" in {self.context.image}" if self.context.image else ""
            message = f"This process runs {found}{where}, but the attempt is pinned to {record.digest}."
            self.report.sample(cause="wrong_code", message=message)
            self.report.end("attempt-lost", "wrong_code", message)
            raise Outcome("WrongCode", message)

    def check_child(self, package: str | None) -> None:
        """The child says where its `trainer` came from: it must be the tree whose digest was checked."""
        if package is None or Path(package).resolve().parent.parent == self.root:
            return
        raise Outcome("WrongCode", f"The trainer came from {package}, not from {self.root}.")

    def admit(self, record: Record) -> None:
        """The first write, and the lease: a canary that may not start any more goes to stable."""
        rollout = self.active_rollout(record)
        if record.track is Track.CANARY and not self.may_run(
            record, rollout, self.platform.clock.now().latest
        ):
            self.supersede()
        began = self.report.start(self.context.worker, self.flow_run)
        if record.track is Track.CANARY and not self.may_run(record, self.active_rollout(record), began):
            self.report.sample(cause="superseded", message="The canary's lease ran out.")
            self.supersede()
        self.report.horizon = rollout.policy.horizon if rollout is not None else 0

    def active_rollout(self, record: Record) -> Rollout | None:
        rollout = self.platform.state().rollout if record.rollout else None
        return rollout if rollout is not None and rollout.id == record.rollout else None

    def may_run(self, record: Record, rollout: Rollout | None, moment: float) -> bool:
        if record.rollout is None or rollout is None:
            return False
        return canary_open(rollout, record.rollout, record.cloud, record.digest) and may_start(
            moment, self.platform.lease_until(rollout)
        )

    def supersede(self) -> None:
        message = "The canary's lease ran out, or its rollout ended, before the attempt started."
        self.report.end("attempt-superseded", "superseded", message)
        raise Outcome("Superseded", message)

    def prepare(self, order: Order) -> tuple[Path, str]:
        """The config with this machine's paths, and the checkpoint to resume from (or `never`)."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.output.mkdir(parents=True)
        text = self.store.get(keys.request_config(self.request)).data.decode()
        document = yaml.safe_load(text)
        if order.dataset and order.dataset_digest:
            where = fetch_dataset(self.store, order.dataset, order.dataset_digest, home.datasets(self.home))
            for key in DATA_PATHS:
                if document.get(key) is not None:
                    document[key] = str(where / document[key])
        config = self.folder / "config.yaml"
        config.write_text(yaml.safe_dump(document, sort_keys=False))
        resume = "never"
        found = newest_checkpoint(self.store, self.request)
        if found is not None:
            target = self.folder / "resume" / found.rstrip("/").rpartition("/")[2]
            download_folder(self.store, found, target)
            resume = str(target)
        return config, resume

    # --- while it trains ---

    async def follow(self, child: TrainerChild) -> int:
        """Turn the trainer's events into heartbeats, checkpoints and the sample, until it exits.

        While the store does not answer the training goes on, for the heartbeat's deadline.
        """
        self.heard = tell_at = time.monotonic()
        self.printed, self.begun = 0, False
        away: float | None = None  # since when, counted from its first failure: an upload may take long
        while True:
            code = child.poll()
            self.hear(child)
            if code is not None:
                return code
            if time.monotonic() - self.heard > self.context.stall_s:
                if not self.caching():
                    return self.stalled(child)
                self.heard = time.monotonic()
            if os.getppid() != self.parent:
                raise Outcome("LostWorker", "The worker of this attempt is gone.")
            try:
                due = time.monotonic() >= tell_at
                if due or away is None:
                    self.report.settle()
                if due:
                    self.report.beat(child)
                    self.still_wanted()
                    away, tell_at = None, time.monotonic() + BEAT_S
            except StoreUnavailable:
                now = time.monotonic()
                away, tell_at = now if away is None else away, now + BEAT_S
                if now - away > self.context.heartbeat_s:
                    raise
            await asyncio.sleep(POLL_S)

    def hear(self, child: TrainerChild) -> None:
        """What it has told and printed since the last time."""
        for event in child.events():
            self.heard = time.monotonic()
            self.take(event)
        printed = child.printed()
        if printed != self.printed:
            self.heard, self.printed = time.monotonic(), printed

    def take(self, event: dict[str, Any]) -> None:
        facts, horizon = self.facts, self.report.horizon
        match event.get("event"):
            case "start":
                self.check_child(event.get("package"))
                self.begun = True
            case "phase":
                facts.phase = str(event.get("name", ""))
            case "step":
                facts.take_step(event, horizon, time.monotonic() - self.started)
                if horizon and len(facts.step_seconds) >= horizon:
                    self.report.owe_sample()
            case "checkpoint":
                self.report.owe_checkpoint(self.output / str(event["path"]))
            case "result":
                facts.result = event
            case "failure":
                facts.failure = event

    def caching(self) -> bool:
        """Before its first event a trainer encodes its dataset, maybe for hours: it fills its cache."""
        since = time.time() - self.context.stall_s
        return not self.begun and any(changed > since for changed in _changes(home.cache(self.home)))

    def stalled(self, child: TrainerChild) -> int:
        """It hangs: ended, with the checkpoint that it may still save. The exit code of a failure."""
        child.stop(GRACE_S)
        self.hear(child)
        silent = f"It gave no sign of life for {self.context.stall_s:.0f} s (requests.stall_deadline)."
        self.facts.failure = {"cause": "stuck", "type": "Stalled", "message": silent}
        return 1

    def still_wanted(self) -> None:
        """Given up by the reconciler: no use in going on."""
        state = self.platform.request(self.request)
        if state.current is None or state.current.n != self.n:
            raise Outcome("Superseded", "The attempt was given up while it ran.")

    def interrupted(self, child: TrainerChild, interruption: BaseException) -> None:
        """Stop the trainer, keep its checkpoint, and say why: never a fault of the release."""
        child.stop(GRACE_S)
        self.hear(child)
        self.report.settle()
        lost = os.getppid() != self.parent
        cause = "lost_worker" if lost else "evicted"
        if isinstance(interruption, StoreUnavailable):
            cause = "store_away"
        if isinstance(interruption, Outcome) and interruption.state == "WrongCode":
            cause = "wrong_code"
        message = f"Interrupted: {interruption or type(interruption).__name__}"
        state = self.platform.request(self.request)
        if state.current is not None and state.current.n == self.n:
            self.report.sample(cause=cause, message=message)
            self.report.end("attempt-lost", cause, message)

    # --- the end ---

    def publish(self, child: TrainerChild) -> str:
        """Artifact first, result last. Who was given up in between loses the race for the journal."""
        self.write_lineage()
        folder = self.artifact()
        patiently(lambda: self.report.publish(folder, child), PUBLISH_S)
        return "succeeded"

    def fail(self, child: TrainerChild, code: int) -> str:
        """The user reads what the trainer said."""
        tail = child.log_window(2000)[1].decode(errors="replace").strip().splitlines()
        cause, message, hint = self.facts.why_failed(code, tail[-1] if tail else "")
        patiently(lambda: self.report.failed(cause, message, hint, child), self.context.heartbeat_s)
        raise Outcome("Failed", f"{cause}: {message}")

    def artifact(self) -> Path:
        """What is kept: the plain files of the output, without checkpoints (those are in the store)."""
        folder = self.folder / "artifact"
        for path in sorted(self.output.rglob("*")):
            relative = path.relative_to(self.output)
            if path.is_file() and not path.is_symlink() and relative.parts[0] != "checkpoints":
                target = folder / relative
                target.parent.mkdir(parents=True, exist_ok=True)
                os.link(path, target)
        return folder

    def write_lineage(self) -> None:
        """What this artifact was made from."""
        record, order = self.report.record, self.report.order
        lineage = {
            "schema_version": SCHEMA_VERSION,
            "request": self.request,
            "attempt": self.n,
            "release": record.digest,
            "cloud": record.cloud,
            "track": record.track.value,
            "rollout": record.rollout,
            "dataset": order.dataset,
            "dataset_digest": order.dataset_digest,
            "config_digest": order.config_digest,
        }
        (self.output / "lineage.json").write_text(json.dumps(lineage, indent=2) + "\n")


def _changes(folder: Path) -> Iterator[float]:
    """When each file below it changed. Others write there, too: what vanishes meanwhile is left out."""
    for where, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                yield os.stat(os.path.join(where, name)).st_mtime
