"""The recipe: prepare the data, build the model, train, publish. Readable from top to bottom."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainer import checkpoint as checkpoints
from trainer.cache import Cache
from trainer.claim import Claim, claim
from trainer.config import TrainConfig, config_from
from trainer.data import DatasetReport, check_dataset
from trainer.data.digest import dataset_digest
from trainer.data.order import Order
from trainer.errors import ConfigError, TrainerError, is_out_of_memory
from trainer.events import Events, Silent
from trainer.fast_imports import lean_imports, settle
from trainer.files import clear_leftovers
from trainer.identity import config_hash, identity
from trainer.journal import Journal
from trainer.models.sniff import sniff
from trainer.optim.schedule import lr_factor
from trainer.plugins import load_plugins
from trainer.progress import Progress
from trainer.resume import checkpoint_to_resume, refusals
from trainer.versions import versions

with lean_imports():
    import torch

from trainer.device import pick_dtype, tune
from trainer.distributed import processes
from trainer.flops import FlopMeter
from trainer.memory import free, smaller
from trainer.milestones import Milestones
from trainer.models.base import Family, RunFacts, Setup
from trainer.models.families import family_of
from trainer.optim.state import Optimizer
from trainer.publish import publish
from trainer.step_log import Step, StepLog
from trainer.tracking import Trackers
from trainer.validation import Validation


class LoRATrainer:
    """Trains one config: `prepare_data()`, `build_model()`, `train()`, in this order.

    `config`: a TrainConfig, a dict, or the path of a YAML file. Raises ConfigError. The methods raise
    DataError, ModelError, CheckpointError, NonFiniteError, OutOfMemory, DiskFullError and Stopped;
    FolderInUse comes at once when another process trains in `output_dir`.
    """

    def __init__(self, config: TrainConfig | Mapping[str, Any] | str | Path) -> None:
        self.config = config_from(config)
        self._plugins = load_plugins(self.config.plugins)
        self.base = sniff(self.config.base_model)
        self.processes = processes(self.config.device)
        self.device = self.processes.device
        self._claim: Claim | None = claim(self.config.output_dir) if self.processes.main else None
        self.events = Events(self.config.output_dir) if self.processes.main else Silent()
        self.steps = self.step = self.samples = self.items = 0
        self.family: Family | None = None
        self.order: Order | None = None
        self.buckets: list[Hashable] = []
        self.identity: dict[str, Any] = {}
        self.journal = Journal()
        self.result: dict[str, Any] = {}
        self._stop = False
        self.start_facts: dict[str, Any] = {}
        self._resume: checkpoints.Checkpoint | None = None
        self._optimizer: Optimizer | None = None
        self._validation: Validation | None = None
        self._progress: Progress | None = None
        self._compiled: Any = None
        self._flops = FlopMeter(self.device, pick_dtype(self.config, self.device))
        self.trackers = Trackers(self.config, self.warn, on=False)

    def request_stop(self) -> None:
        """Ask the loop to save after the step it is in and to raise Stopped. Safe in a signal handler."""
        self._stop = True

    @property
    def resumed_from(self) -> Path | None:
        """The folder of the checkpoint that this run goes on from."""
        return self._resume.path if self._resume else None

    @property
    def stopping_between_steps(self) -> bool:
        """Whether the loop runs, so that `request_stop` will be heard."""
        return self._optimizer is not None and not self.result

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.events.write("phase", name=name, seconds=round(time.perf_counter() - began, 3))

    # --- prepare ---

    def prepare_data(self) -> None:
        """Check every file and row, encode what is not cached, and find the checkpoint to go on from."""
        with self._phase("prepare_data"), self.processes.main_first():
            config, cache = self.config, Cache(self.config.cache_root)
            report = check_dataset(config, self.say)
            report.raise_if_bad()
            whole = self.base.path.is_dir()
            digest = "sha256:" + (cache.tree_digest if whole else cache.file_digest)(self.base.path)
            data = dataset_digest(config)
            self.identity = identity(
                config, self.base.kind, digest, data, plugins=self._plugins, world=self.processes.world
            )
            if self._claim is not None and self._claim.sure:
                clear_leftovers(config.output_dir)
            self._resume, refused = checkpoint_to_resume(config, self.identity, self.processes)
            setup = Setup(config, self.base, digest, cache, self.device, pick_dtype(config, self.device))
            self.family = family_of(setup)
            self.buckets = self.family.prepare(report.items, report)
            self.samples, self.items = len(self.buckets), len(report.items)
            self._prepare_validation(self.family, report)
            for text in report.notes:
                self.say(text)
            for text in [*report.warnings, *refusals(refused, self._resume)]:
                self.warn(text)
            if self._resume is not None:
                self.say(f"going on after step {self._resume.step}, from {self._resume.path}")
            self.start_facts = {
                "package": str(Path(__file__).with_name("__init__.py")),
                "run": config.output_dir.absolute().name,
                "kind": self.base.kind,
                "config_hash": config_hash(self.identity),
                "samples": self.samples,
                "resumed_from_step": self._resume.step if self._resume else 0,
                "versions": versions(),
                "base_model": {"path": str(self.base.path), "family": self.base.family, "digest": digest},
                "dataset_digest": data,
                "warnings": report.warnings,
                "refused_checkpoints": refused,
            }
            if config.batch_size != "auto":
                self._lay_out(config.batch_size)
            elif self._resume is not None and "journal" in self._resume.state:
                self._lay_out(int(self._resume.state["journal"]["batch_size"]))

    def _prepare_validation(self, family: Family, report: DatasetReport) -> None:
        config = self.config
        if report.validation:
            held_out = family.prepare(report.validation, report, training=False)
            self._validation = Validation(family, self.samples, held_out, config.seed, self.processes)
        elif config.early_stop is not None or config.validation_steps is not None:
            key = "early_stop" if config.early_stop is not None else "validation_steps"
            raise ConfigError(
                [f"`{key}` is set, but there are no held-out samples to validate on."],
                "Set validation_dir or validation_split.",
            )

    def _lay_out(self, batch_size: int) -> None:
        """The order of the samples and the number of steps, once the size of a micro-batch is known."""
        config = self.config
        self.journal.batch_size = batch_size
        self.order = Order(config.seed, self.buckets, batch_size)
        self.steps = self.order.steps(self._window_size, config.epochs, config.max_steps)
        self.events.write(
            "start",
            **self.start_facts,
            steps=self.steps,
            batch_size=batch_size,
            processes=self.processes.world,
        )

    @property
    def _window_size(self) -> int:
        """Micro-batches of one step, over all processes."""
        return self.config.gradient_accumulation * self.processes.world

    # --- build ---

    def build_model(self) -> None:
        """Load the base model, add the adapter, and restore the checkpoint if there is one."""
        with self._phase("build_model"):
            if self.family is None:
                raise TrainerError(
                    "build_model was called before prepare_data.", "Call prepare_data() first."
                )
            groups = self.family.build()
            dtype = tune(self.config, self.device)
            optimizer = Optimizer(groups, self.config, self.device, fp16=dtype == torch.float16)
            for text in optimizer.warnings:
                self.warn(text)
            if self.order is None:
                self._find_batch_size(self.family, optimizer)
            if self._resume is not None:
                self._go_on_from(self._resume, optimizer)
            if self.config.compile == "on":
                from trainer.compiled import Compiled

                dynamic = False if self.family.unit == "images" else None
                self._compiled = Compiled(self.family.modules(), self.warn, dynamic=dynamic)
            self._optimizer = optimizer

    def _go_on_from(self, found: checkpoints.Checkpoint, optimizer: Optimizer) -> None:
        self.step = found.step
        self.journal.restore(found.state.get("journal", {}))
        is_best = self.journal.best_step == found.step
        optimizer.restore(found.path, found.state.get("optimizer", {}), is_best=is_best)
        if self.step > self.steps:
            self.warn(
                f"the checkpoint is of step {self.step}, and this training ends after {self.steps}: its "
                "weights are published as they are; resume: never trains anew."
            )

    def _find_batch_size(self, family: Family, optimizer: Optimizer) -> None:
        from trainer.auto_batch import largest_batch

        began = time.perf_counter()
        size = largest_batch(family, self.buckets, self.device)
        optimizer.clear()
        size = -self.processes.agree(-size)[0]
        self._lay_out(size)
        self.say(f"batch_size auto: {size} ({time.perf_counter() - began:.1f} s); {self.steps} steps")

    # --- train ---

    def train(self) -> dict[str, Any]:
        """Run the steps that are left, then write the adapter. Returns the `result` event's fields."""
        if self.family is None or self._optimizer is None:
            raise TrainerError(
                "train was called before build_model.", "Call prepare_data() and build_model() first."
            )
        settle()
        main = self.processes.main
        self._progress = Progress(self.steps, self.step, self.config.log_every, quiet=not main)
        self.trackers = Trackers(self.config, self.warn, on=main, step=self.step)
        try:
            with self._phase("train"):
                loss = self._loop(self.family, self._optimizer)
            with self._phase("export"):
                self.result = (
                    publish(self, self.family, self._optimizer, loss)
                    if main
                    else {"step": self.step, "loss": loss, "files": []}
                )
            self.events.write("result", **self.result)
        finally:
            self._progress.close()
            self.trackers.finish()
            self._claim = None
        if main:
            Cache(self.config.cache_root).trim(self.config.cache_limit_gb * 1e9)
        self.processes.finish()
        return self.result

    def _loop(self, family: Family, optimizer: Optimizer) -> float | None:
        config = self.config
        assert self._progress is not None
        log = StepLog(
            self.events,
            self.trackers,
            self._progress,
            steps=self.steps,
            every=1 if self.device.type == "cpu" else config.log_every,
            unit=family.unit,
            peak=self._flops.peak,
        )
        milestones = Milestones(self, family, optimizer, log, self._validation)
        milestones.catch_up()
        while self.step < self.steps and not self.waited_enough:
            if self._agreed_to_stop():
                log.flush()
                milestones.save_and_stop()
            began = time.perf_counter()
            factor = lr_factor(
                self.step,
                self.steps,
                config.lr_schedule,
                config.warmup_steps,
                config.lr_cycles,
                config.lr_end,
            )
            loss, sources, count, units = self._accumulate(family)
            norm, finite = optimizer.step(factor)
            self.step += 1
            skipped = self._skips(optimizer, finite, loss)
            rates = optimizer.learning_rates(factor)
            flops = self._flops.take() * self.processes.world
            log.add(Step(self.step, loss, norm, rates, began, count, units, flops, skipped, sources))
            if not finite and not skipped:
                log.flush()
            milestones.after_step()
        return log.last_loss

    def _accumulate(self, family: Family) -> tuple[torch.Tensor, Callable[[], list[str]], int, float]:
        """The gradients of one step, whatever it takes: a micro-batch that does not fit is halved from here
        on, a compiler that fails is left alone, and the step is done again from its start."""
        while True:
            try:
                return self._window(family)
            except Exception as error:
                compiler = self._compiled is not None and self._compiled.gave_up(error)
                if not compiler and not is_out_of_memory(error):
                    raise
                reason = str(error)
            assert self._optimizer is not None
            self._optimizer.clear()
            free(self.device)
            if not compiler:
                self._cut_smaller(reason)

    def _window(self, family: Family) -> tuple[torch.Tensor, Callable[[], list[str]], int, float]:
        """Gradients of one step: the mean over all units of its micro-batches, however they are cut and
        whoever computes them. Gives the loss, the sources on demand, the numbers of samples and of units."""
        assert self.order is not None
        assert self._optimizer is not None
        seed, window = self.config.seed, self._window_size
        batches = [self.order.batch(self.step * window + micro) for micro in range(window)]
        units = sum(family.units(batch) for batch in batches)
        scale = self._optimizer.scale
        total = torch.zeros((), device=self.device)
        place = 0
        for number, batch in enumerate(batches):
            for at in range(0, len(batch), self.micro_batch):
                piece = batch[at : at + self.micro_batch]
                if number % self.processes.world != self.processes.rank:
                    break
                rngs = [_generator(seed, self.step, place + at + nth) for nth in range(len(piece))]
                torch.manual_seed(rngs[0].initial_seed())  # for what takes no generator, dropout among it
                with self._flops.micro_batch((self.buckets[piece[0]], len(piece))):
                    loss = family.loss(piece, rngs) / units
                    (loss * scale.value if scale.on else loss).backward()
                total += loss.detach()
            place += len(batch)
        total = self.processes.sum_gradients(self._optimizer.parameters.values(), total)
        return total, lambda: [n for batch in batches for n in family.sources(batch)], place, units

    @property
    def micro_batch(self) -> int:
        """At most so many samples at once: `batch_size`, or less since memory ran out."""
        return min(self.journal.cut or self.journal.batch_size, self.journal.batch_size)

    def _cut_smaller(self, reason: str) -> None:
        """Halve what is computed at once. Raises OutOfMemory at one sample."""
        before = self.micro_batch
        self.journal.cut = smaller(before, reason, f"step {self.step + 1}")
        self.warn(
            f"step {self.step + 1}: out of memory with {before} samples at once; from here on "
            f"{self.micro_batch} at a time, accumulated more often: the effective batch stays the same."
        )
        self.events.write("out_of_memory", step=self.step + 1, samples=before, micro_batch=self.micro_batch)

    def _skips(self, optimizer: Optimizer, finite: bool, loss: torch.Tensor) -> bool:
        """Whether a step without a usable gradient is passed over: fp16's overflow is answered by a smaller
        scale; of others `skip_nonfinite` in a row are borne."""
        overflow = optimizer.scale.update(finite)
        if finite:
            self.journal.nonfinite = 0
            return False
        if overflow and math.isfinite(float(loss)):
            return True
        self.journal.nonfinite += 1
        return self.journal.nonfinite <= self.config.skip_nonfinite

    # --- stop ---

    @property
    def asked_to_stop(self) -> bool:
        """Whether this may end at once: several processes have to agree first."""
        return self._stop and self.processes.world == 1

    @property
    def waited_enough(self) -> bool:
        """Whether `early_stop` validations have brought nothing better."""
        limit = self.config.early_stop
        return limit is not None and self.journal.waited >= limit

    def _agreed_to_stop(self) -> bool:
        """Whether any process was asked to; and the smallest micro-batch of all is everyone's."""
        stop, cut = self.processes.agree(int(self._stop), self.journal.batch_size - self.micro_batch)
        self.journal.cut = self.journal.batch_size - cut if cut else self.journal.cut
        return bool(stop)

    # --- words ---

    def facts(self, step: int) -> RunFacts:
        """What an export of the weights of `step` may tell."""
        return RunFacts(
            step=step,
            steps=self.step,
            samples=self.items,
            config_hash=config_hash(self.identity),
            dataset_digest=str(self.identity.get("dataset", "")),
        )

    def warn(self, text: str) -> None:
        """A warning for people."""
        self.say(f"warning: {text}")

    def say(self, text: str) -> None:
        """A line for people, from the main process."""
        if self._progress is not None:
            self._progress.note(text)
        elif self.processes.main:
            Progress.say(text)


def _generator(seed: int, step: int, place: int) -> torch.Generator:
    """A CPU generator for sample `place` of a step: nothing of it needs saving, no device changes its
    numbers, and it is the same however a step is cut into micro-batches."""
    digest = hashlib.sha256(f"{seed}/{step}/{place}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
