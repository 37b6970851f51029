"""The recipe: prepare the data, build the model, train, export. Readable from top to bottom."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainer import checkpoint as checkpoints
from trainer.cache import Cache
from trainer.config import TrainConfig, config_from
from trainer.data import check_dataset
from trainer.data.digest import dataset_digest
from trainer.data.order import Order
from trainer.errors import NonFiniteError, Stopped, TrainerError
from trainer.events import Events
from trainer.fast_imports import lean_imports, settle
from trainer.identity import config_hash, identity
from trainer.models.sniff import sniff
from trainer.optim.schedule import lr_at
from trainer.progress import Progress
from trainer.tracking import Tracker
from trainer.versions import versions

with lean_imports():
    import torch

from trainer.device import memory_bytes, pick_device, pick_dtype
from trainer.models.base import Family, RunFacts, Setup
from trainer.models.families import family_of
from trainer.optim.state import Optimizer
from trainer.results import describe_files


class LoRATrainer:
    """Trains one config: `prepare_data()`, `build_model()`, `train()`, in this order.

    `config`: a TrainConfig, a dict, or the path of a YAML file. Raises ConfigError. The methods raise
    DataError, ModelError, CheckpointError, NonFiniteError, OutOfMemory, DiskFullError and Stopped.
    """

    def __init__(self, config: TrainConfig | Mapping[str, Any] | str | Path) -> None:
        self.config = config_from(config)
        self.base = sniff(self.config.base_model)
        self.events = Events(self.config.output_dir)
        self.device = pick_device(self.config.device)
        self.steps = self.step = self.samples = 0
        self.family: Family | None = None
        self.order: Order | None = None
        self.identity: dict[str, Any] = {}
        self.result: dict[str, Any] = {}
        self._stop = False
        self._resume: checkpoints.Checkpoint | None = None
        self._optimizer: Optimizer | None = None
        self._tracker: Tracker | None = None

    def request_stop(self) -> None:
        """Ask the loop to save after the step it is in and to raise Stopped. Safe in a signal handler."""
        self._stop = True

    @property
    def stopping_between_steps(self) -> bool:
        """Whether the loop runs, so that `request_stop` will be heard."""
        return self._optimizer is not None and not self.result

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.events.write("phase", name=name, seconds=round(time.perf_counter() - began, 3))

    def prepare_data(self) -> None:
        """Check every file and row, encode what is not cached, and find the checkpoint to go on from."""
        with self._phase("prepare_data"):
            config, cache = self.config, Cache(self.config.cache_root)
            report = check_dataset(config)
            report.raise_if_bad()
            whole = self.base.path.is_dir()
            digest = "sha256:" + (cache.tree_digest if whole else cache.file_digest)(self.base.path)
            data = dataset_digest(config)
            self.identity = identity(config, self.base.kind, digest, data)
            self._resume, refused = checkpoints.find(config.output_dir, config.resume, self.identity)
            setup = Setup(config, self.base, digest, cache, self.device, pick_dtype(config, self.device))
            self.family = family_of(setup)
            buckets = self.family.prepare(report.items, report)
            self.samples = len(buckets)
            self.order = Order(config.seed, buckets, self.batch_size)
            self.steps = self.order.steps(config.gradient_accumulation, config.epochs, config.max_steps)
            for text in [*report.warnings, *refused]:
                Progress.warn(text)
            self.events.write(
                "start",
                package=str(Path(__file__).with_name("__init__.py")),
                run=config.output_dir.absolute().name,
                kind=self.base.kind,
                config_hash=config_hash(self.identity),
                steps=self.steps,
                samples=self.samples,
                resumed_from_step=self._resume.step if self._resume else 0,
                versions=versions(),
                base_model={"path": str(self.base.path), "family": self.base.family, "digest": digest},
                dataset_digest=data,
                warnings=report.warnings,
                refused_checkpoints=refused,
            )

    def build_model(self) -> None:
        """Load the base model, add the adapter, and restore the checkpoint if there is one."""
        with self._phase("build_model"):
            if self.family is None:
                raise TrainerError(
                    "build_model was called before prepare_data.", "Call prepare_data() first."
                )
            groups = self.family.build()
            parameters = {name: p for group in groups for name, p in group.parameters.items()}
            self._optimizer = Optimizer(parameters, self.config.weight_decay)
            if self._resume is not None:
                self._optimizer.restore(self._resume.path)
                self.step = min(self._resume.step, self.steps)

    def train(self) -> dict[str, Any]:
        """Run the steps that are left, then write the adapter. Returns the `result` event's fields."""
        if self.family is None or self._optimizer is None:
            raise TrainerError(
                "train was called before build_model.", "Call prepare_data() and build_model() first."
            )
        settle()
        config = self.config
        progress = Progress(self.steps, self.step, config.log_every)
        self._tracker = Tracker(config.tracker, config.output_dir, config.model_dump(mode="json"))
        try:
            with self._phase("train"):
                loss = self._loop(self.family, self._optimizer, progress)
            with self._phase("export"):
                files = self.family.export(config.output_dir, self._facts())
                self.result = {
                    "step": self.step,
                    "loss": loss,
                    "files": describe_files(config.output_dir, files),
                }
            self.events.write("result", **self.result)
        finally:
            progress.close()
            self._tracker.finish()
        return self.result

    def _loop(self, family: Family, optimizer: Optimizer, progress: Progress) -> float | None:
        config = self.config
        log = _StepLog(
            self.events,
            self._tracker,
            progress,
            self.steps,
            1 if self.device.type == "cpu" else config.log_every,
        )
        saved = self.step if self._resume else -1
        while self.step < self.steps:
            if self._stop:
                self._save_and_stop(optimizer, saved)
            began = time.perf_counter()
            lr = lr_at(self.step, self.steps, config.learning_rate, config.lr_schedule, config.warmup_steps)
            loss, sources, samples = self._accumulate(family)
            norm = optimizer.step(lr, config.max_grad_norm)
            self.step += 1
            log.add(self.step, loss, lr, norm, began, samples, sources)
            if self.step % config.save_steps == 0 or self.step == self.steps:
                log.flush()
                self._save(optimizer)
                saved = self.step
        if self._stop and saved != self.step:
            self._save_and_stop(optimizer, saved)
        return log.last_loss

    def _accumulate(self, family: Family) -> tuple[torch.Tensor, Callable[[], list[str]], int]:
        """Gradients of one step: the mean over all units of its micro-batches, however they are cut. Gives
        the loss, the sources on demand, and the number of samples."""
        assert self.order is not None
        config = self.config
        first = self.step * config.gradient_accumulation
        batches = [self.order.batch(first + micro) for micro in range(config.gradient_accumulation)]
        units = sum(family.units(batch) for batch in batches)
        total = torch.zeros((), device=self.device)
        place = 0
        for batch in batches:
            rngs = [_generator(config.seed, self.step, place + number) for number in range(len(batch))]
            place += len(batch)
            loss = family.loss(batch, rngs) / units
            loss.backward()
            total += loss.detach()
        return total, lambda: [name for batch in batches for name in family.sources(batch)], place

    def _facts(self) -> RunFacts:
        return RunFacts(
            step=self.step,
            steps=self.steps,
            samples=self.samples,
            config_hash=config_hash(self.identity),
            dataset_digest=str(self.identity.get("dataset", "")),
        )

    @property
    def batch_size(self) -> int:
        """Samples of a micro-batch."""
        size = self.config.batch_size
        return size if isinstance(size, int) else 1

    def _save(self, optimizer: Optimizer) -> None:
        path = checkpoints.save(
            self.config.output_dir, self.step, *optimizer.tensors(), self.identity, self.config.keep_last
        )
        self.events.write("checkpoint", step=self.step, path=str(path.relative_to(self.config.output_dir)))

    def _save_and_stop(self, optimizer: Optimizer, saved: int) -> None:
        if saved != self.step and self.step > 0:
            self._save(optimizer)
        raise Stopped(
            f"Stopped as asked after step {self.step} of {self.steps}; the state is saved.",
            "The same command goes on from there.",
        )


def _generator(seed: int, step: int, place: int) -> torch.Generator:
    """A CPU generator for sample `place` of a step: nothing of it needs saving, no device changes its
    numbers, and it is the same however a step is cut into micro-batches."""
    digest = hashlib.sha256(f"{seed}/{step}/{place}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


class _StepLog:
    """Writes one `step` event a step. On an accelerator the numbers are fetched every `every` steps only."""

    def __init__(
        self, events: Events, tracker: Tracker | None, progress: Progress, steps: int, every: int
    ) -> None:
        self._events, self._tracker, self._progress = events, tracker, progress
        self._steps, self._every = steps, every
        self._waiting: list[tuple[int, torch.Tensor, float, torch.Tensor, int, Callable[[], list[str]]]] = []
        self._began: float | None = None
        self.last_loss: float | None = None

    def add(
        self,
        step: int,
        loss: torch.Tensor,
        lr: float,
        norm: torch.Tensor,
        began: float,
        samples: int,
        sources: Callable[[], list[str]],
    ) -> None:
        """Note step `step` (1-based), which began at `began` seconds of perf_counter."""
        self._began = began if self._began is None else self._began
        self._waiting.append((step, loss, lr, norm, samples, sources))
        if len(self._waiting) >= self._every:
            self.flush()

    def flush(self) -> None:
        """Fetch and write what is waiting. Raises NonFiniteError naming the step and its files."""
        if not self._waiting or self._began is None:
            return
        values = [(float(loss), float(norm)) for _, loss, _, norm, _, _ in self._waiting]
        step_s = (time.perf_counter() - self._began) / len(self._waiting)
        memory = memory_bytes()
        for (step, _, lr, _, samples, sources), (loss, norm) in zip(self._waiting, values, strict=True):
            numbers = {
                "loss": loss,
                "lr": lr,
                "grad_norm": norm,
                "step_s": round(step_s, 4),
                "samples_per_s": round(samples / step_s, 3),
                "memory_bytes": memory,
            }
            self._events.write("step", step=step, steps=self._steps, **numbers)
            if not (abs(loss) < float("inf") and norm < float("inf")):
                what = "gradient" if abs(loss) < float("inf") else "loss"
                raise NonFiniteError(
                    f"The {what} is not a number at step {step}, on {', '.join(sources()[:8])}.",
                    "Lower learning_rate (usual: 1e-4), use mixed_precision: no, and look at these samples. "
                    "The last checkpoint is from before.",
                )
            if self._tracker is not None:
                self._tracker.log(step, {key: float(value) for key, value in numbers.items()})
            self._progress.step(step, loss, lr, step_s)
            self.last_loss = loss
        self._waiting, self._began = [], None
