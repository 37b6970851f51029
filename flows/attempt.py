"""One attempt, from admission to its result. Reads from top to bottom in `Attempt.run`.

The store is told everything; Prefect only learns how it ended. Whatever kills this process, the journal of
the request is left at a point from which the reconciler goes on.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

import yaml

import flows
from flows.context import FlowContext
from flows.facts import Facts
from lora_ops import SCHEMA_VERSION, keys
from lora_ops.errors import ObjectExists, Refused, StoreError, StoreUnavailable
from lora_ops.gates.samples import Sample
from lora_ops.lease import canary_open, may_start
from lora_ops.request import Attempt as Record
from lora_ops.request import Order
from lora_ops.state import Rollout, Track
from tasks import home
from tasks.child import TrainerChild
from tasks.datasets import download_folder, fetch_dataset, newest_checkpoint, upload_folder
from tasks.source_tree import digest_of_running

POLL_S = 0.2
BEAT_S = 2.0
GRACE_S = 20.0
SILENT_S = 6 * 3600  # a bound on hanging, not a judgement of slowness: caching a large dataset takes hours


class Outcome(Exception):
    """How an attempt ended, for Prefect: `state` is the name of its final state."""

    def __init__(self, state: str, message: str) -> None:
        super().__init__(message)
        self.state = state
        self.message = message


class Duplicate(Exception):
    """Another process runs this attempt (Prefect may start two for one run): go without a word."""


class Attempt:
    """`request`, `n`: the attempt's record, which names the cloud, the track and the digest."""

    def __init__(self, context: FlowContext, request: str, n: int) -> None:
        self.platform = context.platform
        self.store = context.platform.store
        self.home = context.home
        self.worker = context.worker
        self.request = request
        self.n = n
        self.executor = secrets.token_hex(8)
        self.facts = Facts()
        self.horizon = 0
        self.started = self.heard = time.monotonic()
        self.parent = os.getppid()
        self.sampled = False
        self.folder = home.scratch(self.home) / f"{request}-{n}"
        self.output = self.folder / f"{request}-{n}"
        self.root = Path(flows.__file__).resolve().parent.parent

    async def run(self) -> str:
        """Raises Outcome when it ends without a result of its own, Duplicate when it is not the one."""
        record, order = self.read_record()
        self.check_code(record)
        self.admit(record, order)
        try:
            with self.pulse():
                return await self.train(record, order)
        except (Outcome, StoreUnavailable):
            raise
        except Exception as error:  # the release's own code: told at once, not left to a deadline
            cause = "store_away" if isinstance(error, StoreError) else "trainer_error"
            message = f"{type(error).__name__}: {error}"
            self.sample(record, cause=cause, message=message, order=order)
            self.end("attempt-lost" if cause == "store_away" else "attempt-failed", cause, message)
            raise Outcome("Failed", message) from error
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    async def train(self, record: Record, order: Order) -> str:
        """Prepare, run the trainer, publish. A checkpoint that this release cannot take is done without."""
        config, resume = self.prepare(order)
        code, child = await self.run_child(config, resume, record, order)
        if code != 0 and resume != "never" and (self.facts.failure or {}).get("type") == "CheckpointError":
            self.facts = Facts()
            shutil.rmtree(self.output)
            self.output.mkdir()
            code, child = await self.run_child(config, "never", record, order)
        if code == 0 and self.facts.result is not None:
            return self.publish(record, order, child)
        return self.fail(record, order, child, code)

    async def run_child(
        self, config: Path, resume: str, record: Record, order: Order
    ) -> tuple[int, TrainerChild]:
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
            code = await self.follow(child, record, order)
        except Exception as error:
            if isinstance(error, (Outcome, StoreUnavailable)):
                self.interrupted(child, record, order, error)
            else:
                child.stop(GRACE_S)  # the release's own code broke: `run` tells it
            raise
        except BaseException as interruption:
            self.interrupted(child, record, order, interruption)
            raise
        child.close()
        return code, child

    # --- before anything is trained ---

    def read_record(self) -> tuple[Record, Order]:
        state = self.platform.request(self.request)
        record = state.current
        if state.order is None or record is None or record.n != self.n:
            raise Outcome("Superseded", f"Attempt {self.n} of {self.request} is not under way any more.")
        return record, state.order

    def check_code(self, record: Record) -> None:
        """The digest of the code that really runs must be the record's (design: What Prefect gives)."""
        found = digest_of_running(flows.__file__)
        if found != record.digest:
            message = f"This process runs {found}, but the attempt is pinned to {record.digest}."
            self.sample(record, cause="wrong_code", message=message)
            self.end("attempt-lost", "wrong_code", message)
            raise Outcome("WrongCode", message)

    def check_child(self, package: str | None) -> None:
        """The child says where its `trainer` came from: it must be the tree whose digest was checked."""
        if package is None or Path(package).resolve().parent.parent == self.root:
            return
        raise Outcome("WrongCode", f"The trainer came from {package}, not from {self.root}.")

    def admit(self, record: Record, order: Order) -> None:
        """The first write, and the lease: a canary that may not start any more goes to stable."""
        rollout = self.active_rollout(record)
        if record.track is Track.CANARY and not self.may_run(
            record, rollout, self.platform.clock.now().latest
        ):
            self.supersede(record)
        key = keys.start(record.rollout, record.cloud, record.track.value, self.request, self.n)
        document = {
            "schema_version": SCHEMA_VERSION,
            "request": self.request,
            "attempt": self.n,
            "cloud": record.cloud,
            "track": record.track.value,
            "digest": record.digest,
            "probe": order.probe,
            "executor": self.executor,
            "worker": self.worker,
        }
        try:
            self.store.create(key, _bytes(document))
        except ObjectExists:
            if json.loads(self.store.get(key).data).get("executor") != self.executor:
                raise Duplicate from None
        if record.track is Track.CANARY:
            began = self.store.head(key).last_modified + self.store.time_resolution
            if not self.may_run(record, self.active_rollout(record), began):
                self.sample(record, cause="superseded", message="The canary's lease ran out.")
                self.supersede(record)
        self.horizon = rollout.policy.horizon if rollout is not None else 0

    def active_rollout(self, record: Record) -> Rollout | None:
        rollout = self.platform.state().rollout if record.rollout else None
        return rollout if rollout is not None and rollout.id == record.rollout else None

    def may_run(self, record: Record, rollout: Rollout | None, moment: float) -> bool:
        if record.rollout is None or rollout is None:
            return False
        return canary_open(rollout, record.rollout, record.cloud, record.digest) and may_start(
            moment, self.platform.lease_until(rollout)
        )

    def supersede(self, record: Record) -> None:
        message = "The canary's lease ran out, or its rollout ended, before the attempt started."
        self.end("attempt-superseded", "superseded", message)
        raise Outcome("Superseded", message)

    def prepare(self, order: Order) -> tuple[Path, str]:
        """The config with this machine's paths, and the checkpoint to resume from (or `never`)."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.output.mkdir(parents=True)
        text = self.store.get(keys.request_config(self.request)).data.decode()
        document = yaml.safe_load(text)
        if order.dataset and order.dataset_digest:
            where = fetch_dataset(self.store, order.dataset, order.dataset_digest, home.datasets(self.home))
            for key in ("train_data_dir", "metadata_path"):
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

    async def follow(self, child: TrainerChild, record: Record, order: Order) -> int:
        """Turn the trainer's events into heartbeats, checkpoints and the sample, until it exits."""
        beat_at = 0.0
        while True:
            code = child.poll()
            for event in child.events():
                self.take(event, record, order)
            if code is not None:
                return code
            if time.monotonic() - self.heard > SILENT_S:
                child.stop(GRACE_S)
                self.facts.failure = {"cause": "stuck", "message": f"It said nothing for {SILENT_S} s."}
                return 1
            if time.monotonic() >= beat_at:
                self.beat(child)
                self.still_wanted()
                beat_at = time.monotonic() + BEAT_S
            await asyncio.sleep(POLL_S)

    def take(self, event: dict[str, Any], record: Record, order: Order) -> None:
        facts = self.facts
        self.heard = time.monotonic()
        match event.get("event"):
            case "start":
                self.check_child(event.get("package"))
            case "phase":
                facts.phase = str(event.get("name", ""))
            case "step":
                facts.take_step(event, self.horizon, time.monotonic() - self.started)
                if self.horizon and len(facts.step_seconds) >= self.horizon and not self.sampled:
                    self.sample(record, at_horizon=True, order=order)
            case "checkpoint":
                self.upload_checkpoint(self.output / str(event["path"]))
            case "result":
                facts.result = event
            case "failure":
                facts.failure = event

    def upload_checkpoint(self, path: Path) -> None:
        if path.is_dir():
            upload_folder(self.store, f"{keys.checkpoints(self.request, self.n)}/{path.name}", path)

    @contextmanager
    def pulse(self) -> Iterator[None]:
        """Heartbeats from a thread, so that a long download or upload is not taken for a death."""
        over = Event()

        def go_on() -> None:
            while not over.wait(5 * BEAT_S):
                with suppress(StoreError):
                    self.heartbeat()

        thread = Thread(target=go_on, name="pulse", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def heartbeat(self) -> None:
        document = {
            "schema_version": SCHEMA_VERSION,
            "executor": self.executor,
            **self.facts.for_heartbeat(),
        }
        self.store.put(keys.heartbeat(self.request, self.n), _bytes(document))

    def beat(self, child: TrainerChild) -> None:
        """The heartbeat, and what the trainer printed."""
        self.heartbeat()
        self.store.put(keys.log(self.request, self.n), child.log_tail())

    def still_wanted(self) -> None:
        """Given up by the reconciler, or its worker is gone: no use in going on."""
        state = self.platform.request(self.request)
        if state.current is None or state.current.n != self.n:
            raise Outcome("Superseded", "The attempt was given up while it ran.")
        if os.getppid() != self.parent:
            raise Outcome("LostWorker", "The worker of this attempt is gone.")

    def interrupted(
        self, child: TrainerChild, record: Record, order: Order, interruption: BaseException
    ) -> None:
        """Stop the trainer, keep its checkpoint, and say why: never a fault of the release."""
        child.stop(GRACE_S)
        for event in child.events():
            self.take(event, record, order)
        lost = os.getppid() != self.parent
        cause = "lost_worker" if lost else "evicted"
        if isinstance(interruption, Outcome) and interruption.state == "WrongCode":
            cause = "wrong_code"
        message = f"Interrupted: {interruption or type(interruption).__name__}"
        state = self.platform.request(self.request)
        if state.current is not None and state.current.n == self.n:
            self.sample(record, cause=cause, message=message)
            self.end("attempt-lost", cause, message)

    # --- the end ---

    def publish(self, record: Record, order: Order, child: TrainerChild) -> str:
        """Artifact first, result last. Who was given up in between loses the race for the journal."""
        self.write_lineage(record, order)
        if record.rollout and not self.sampled:
            self.sample(record, ended=True, order=order)
        prefix = keys.artifacts(self.request, self.n)
        upload_folder(self.store, prefix, self.artifact())
        self.beat(child)
        files = (self.facts.result or {}).get("files", [])
        self.end_with(
            "result",
            {"state": "succeeded", "attempt": self.n, "files": files, "message": f"artifacts at {prefix}"},
        )
        return "succeeded"

    def fail(self, record: Record, order: Order, child: TrainerChild, code: int) -> str:
        """The sample at once, then the journal; the user reads what the trainer said."""
        tail = child.log_tail(2000).decode(errors="replace").strip().splitlines()
        cause, message, hint = self.facts.why_failed(code, tail[-1] if tail else "")
        self.sample(record, cause=cause, message=message, order=order)
        self.beat(child)
        self.end("attempt-failed", cause, f"{message} {hint}".strip())
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

    def write_lineage(self, record: Record, order: Order) -> None:
        """What this artifact was made from."""
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

    def sample(
        self,
        record: Record,
        *,
        cause: str | None = None,
        message: str = "",
        at_horizon: bool = False,
        ended: bool = False,
        order: Order | None = None,
    ) -> None:
        """The facts, create-only; a failure after the good sample is a `late` one. Only within rollouts."""
        if record.rollout is None:
            return
        late = self.sampled and cause is not None
        document = Sample(
            request=self.request,
            attempt=self.n,
            cloud=record.cloud,
            track=record.track.value,
            digest=record.digest,
            probe=order.probe if order else None,
            cause=cause,
            message=message[:2000],
            horizon=max(1, self.horizon),
            at_horizon=at_horizon or late,
            ended=ended,
            late=late,
            **self.facts.for_sample(),
        )
        key = keys.sample(record.rollout, record.cloud, record.track.value, self.request, self.n, late)
        with suppress(ObjectExists):
            self.store.create(key, document.model_dump_json().encode())
        self.sampled = True

    def end(self, kind: str, cause: str, message: str) -> None:
        self.end_with(kind, {"n": self.n, "cause": cause, "message": message[:2000]})

    def end_with(self, kind: str, data: dict[str, Any]) -> None:
        try:
            self.platform.record_request(self.request, kind, data)
        except Refused as refusal:
            raise Outcome(
                "Superseded", f"It was given up before it could publish: {refusal.message}"
            ) from None


def _bytes(document: dict[str, Any]) -> bytes:
    return json.dumps(document).encode()
