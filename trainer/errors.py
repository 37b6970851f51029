"""The errors of the trainer: each knows whose fault it is, its exit code and what to do next."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import ClassVar, Literal

Cause = Literal["user", "oom", "trainer", "resumable"]

EXIT_OK, EXIT_TRAINER, EXIT_USER, EXIT_RESUMABLE = 0, 1, 3, 75


class TrainerError(Exception):
    """Something the trainer can explain. `hint` says what to do next."""

    cause: ClassVar[Cause] = "trainer"
    exit_code: ClassVar[int] = EXIT_TRAINER

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class UserError(TrainerError):
    """The user's fault: another attempt with the same input would fail the same way."""

    cause = "user"
    exit_code = EXIT_USER


class ConfigError(UserError):
    """The config is wrong. `problems` holds one line for each fault, all of them."""

    def __init__(self, problems: Sequence[str], hint: str = "") -> None:
        self.problems = tuple(problems)
        head = (
            self.problems[0]
            if len(self.problems) == 1
            else "\n  ".join([f"{len(self.problems)} errors in the config:", *self.problems])
        )
        super().__init__(head, hint)


class FolderInUse(UserError):
    """Another process trains in the same output folder."""


class DataError(UserError):
    """The dataset cannot be trained on; the message lists every bad file and row."""


class ModelError(UserError):
    """The base model is missing, damaged, or of a kind that cannot be trained."""


class CheckpointError(TrainerError):
    """A checkpoint is torn, or belongs to another training."""


class NonFiniteError(TrainerError):
    """The loss or the gradient is no longer a number."""


class DiskFullError(TrainerError):
    """No space left where the trainer writes."""


class OutOfMemory(TrainerError):
    """The model and the batch do not fit."""

    cause = "oom"


class Stopped(TrainerError):
    """Asked to stop (SIGTERM or Ctrl-C); the same command goes on from the checkpoint."""

    cause = "resumable"
    exit_code = EXIT_RESUMABLE


def explain(error: BaseException, where: str = "") -> TrainerError:
    """The TrainerError that says what `error` means to a user; `error` itself if it is one already."""
    if isinstance(error, TrainerError):
        return error
    text = str(error).strip() or type(error).__name__
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        place = error.filename or where or "the output folder"
        return DiskFullError(
            f"The disk is full: nothing more could be written to {place}.",
            "The last whole checkpoint was kept. Free some space, or lower keep_last, and run it again.",
        )
    if is_out_of_memory(error):
        return OutOfMemory(
            f"Out of memory{f' in {where}' if where else ''}: {text.splitlines()[0]}",
            "Halve batch_size and double gradient_accumulation (the same effective batch), or lower "
            "resolution or max_length.",
        )
    return TrainerError(
        f"{type(error).__name__}{f' in {where}' if where else ''}: {text}",
        "This is a fault of the trainer or of its installation, not of your config; "
        "`python -m trainer.selfcheck` checks the installation, --debug shows the traceback.",
    )


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA's, MPS' or the CPU allocator's way of saying that there is no memory left."""
    text = str(error)
    said = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")
    return (
        isinstance(error, MemoryError | OutOfMemory)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and any(words in text for words in said))
    )
