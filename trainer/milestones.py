"""What is due between steps: validation, a checkpoint, samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from trainer import checkpoint as checkpoints
from trainer import samples
from trainer.errors import Stopped
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

    def catch_up(self) -> None:
        """What a run that was told to stop put off, before its next step."""
        run, config = self._run, self._run.config
        if run.resumed_from is None:
            return
        over = run.step >= run.steps or run.waited_enough
        if self._validates and run.journal.validated != run.step:
            self.after_step()
        elif over and config.sample_prompts and not samples.folder_of(config.output_dir, run.step).is_dir():
            self._sample()

    @property
    def _validates(self) -> bool:
        """Whether there is a validation at this step."""
        run, config = self._run, self._run.config
        due = run.step == run.steps or run.step % (config.validation_steps or config.save_steps) == 0
        return self._validation is not None and due

    def after_step(self) -> None:
        """Validate, save and sample as the config wants it after `run.step` steps. The last step has all.
        Raises Stopped where that was asked for; what is not done then is for `catch_up`."""
        run, config, best = self._run, self._run.config, False
        every = config.save_steps
        last = run.step == run.steps
        if self._validates:
            best = self._validate()
            last = last or run.waited_enough
            if best and config.keep_best:
                self._optimizer.remember()
        if last or run.step % every == 0 or (best and config.keep_best):
            self.save()
        if run.asked_to_stop:
            self.save_and_stop()
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

    def save_and_stop(self) -> NoReturn:
        """Raises Stopped, with the state of this step saved."""
        run = self._run
        self._log.flush()
        if self.saved != run.step and run.step > 0:
            self.save()
        run.processes.finish()
        raise Stopped(
            f"Stopped as asked after step {run.step} of {run.steps}; the state is saved.",
            "The same command goes on from there.",
        )

    def _validate(self) -> bool:
        """Whether this is the best validation loss so far."""
        assert self._validation is not None
        self._log.flush()
        run, journal = self._run, self._run.journal
        loss = self._validation.loss(run.micro_batch, lambda: run.asked_to_stop)
        if loss is None:
            self.save_and_stop()
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
