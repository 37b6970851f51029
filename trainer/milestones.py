"""What is due between steps: validation, a checkpoint, samples."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer import checkpoint as checkpoints
from trainer import samples
from trainer.models.base import Family
from trainer.optim.state import Optimizer
from trainer.remote import Copies
from trainer.step_log import StepLog
from trainer.validation import Validation

if TYPE_CHECKING:
    from trainer.loop import LoRATrainer


class Milestones:
    """Of one run. `saved`: the step of its last checkpoint. Its trackers see what happens."""

    def __init__(
        self,
        run: LoRATrainer,
        family: Family,
        optimizer: Optimizer,
        log: StepLog,
        validation: Validation | None,
    ) -> None:
        self._run, self._family, self._optimizer = run, family, optimizer
        self._log, self._validation = log, validation
        self._copies = Copies(run.config.checkpoint_url, run.warn)
        self.saved = run.step if run.resumed_from else -1

    def after_step(self) -> None:
        """Validate, save and sample as the config wants it after `run.step` steps. The last step has all."""
        run, config, best = self._run, self._run.config, False
        every = config.save_steps
        last = run.step == run.steps
        if self._validation is not None and (last or run.step % (config.validation_steps or every) == 0):
            best = self._validate(self._validation)
            last = last or run.waited_enough
            if best and config.keep_best:
                self._optimizer.remember()
        if last or run.step % every == 0 or (best and config.keep_best):
            self.save()
        if config.sample_prompts and (last or run.step % (config.sample_every or every) == 0):
            self._sample()

    def save(self) -> None:
        """Write a checkpoint, and its copy."""
        self._log.flush()
        run, out = self._run, self._run.config.output_dir
        self.saved = run.step
        if not run.processes.main:
            return
        path = checkpoints.save(
            out,
            run.step,
            *self._optimizer.tensors(),
            run.identity,
            run.config.keep_last,
            run.journal.as_dict(),
            self._optimizer.plain(),
            self._optimizer.best if run.journal.best_step not in (0, run.step) else None,
        )
        run.events.write("checkpoint", step=run.step, path=str(path.relative_to(out)))
        self._copies.send(path, checkpoints.kept(out))

    def _validate(self, validation: Validation) -> bool:
        """Whether this is the best validation loss so far."""
        self._log.flush()
        run, journal = self._run, self._run.journal
        loss = validation.loss(run.micro_batch)
        best = journal.judge(run.step, loss)
        run.events.write(
            "validation", step=run.step, loss=loss, best_step=journal.best_step, best_loss=journal.best_loss
        )
        run.trackers.log(run.step, {"validation_loss": loss})
        run.say(f"step {run.step}/{run.steps}  validation loss {loss:.4f}{' (best)' if best else ''}")
        if run.waited_enough:
            run.say(f"early_stop: no better validation loss since step {journal.best_step}")
        return best

    def _sample(self) -> None:
        self._log.flush()
        run, config = self._run, self._run.config
        if not run.processes.main:
            return
        files = samples.take(
            self._family,
            config.sample_prompts,
            config.output_dir,
            run.step,
            config.seed,
            run.device,
            run.warn,
        )
        if files:
            named = [path.relative_to(config.output_dir).as_posix() for path in files]
            run.events.write("sample", step=run.step, files=named)
            run.trackers.samples(run.step, files)
