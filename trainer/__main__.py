"""`python -m trainer --config FILE`: train one config. Exit codes: 0 done, 3 your input, 75 stopped and
resumable, 1 anything else. `python -m trainer inspect FILE` and `convert IN OUT` are about finished files."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from trainer.config import load_config
from trainer.errors import EXIT_OK, FolderInUse, Stopped, explain
from trainer.events import Events
from trainer.fast_imports import lean_imports, own_process

if TYPE_CHECKING:
    from trainer.loop import LoRATrainer


def main(argv: Sequence[str] | None = None) -> int:
    """Train as `argv` says, or run a command on finished files; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["inspect"]:
        from trainer.inspect_file import main as inspect

        return inspect(words[1:])
    if words[:1] == ["convert"]:
        from trainer.convert import main as convert

        return convert(words[1:])
    args = _parse(words)
    own_process()
    run = _Run(args.output_dir)
    try:
        run.go(args.config, args.resume)
    except KeyboardInterrupt:
        return run.failed(run.interrupted(), args.debug)
    except Exception as error:  # noqa: BLE001 - the last line of defence: every failure is explained
        return run.failed(error, args.debug)
    return EXIT_OK


class _Run:
    """One training in this process, with its signals and its last words."""

    def __init__(self, output_dir: Path | None) -> None:
        self.output_dir = output_dir
        self.phase = ""
        self.trainer: LoRATrainer | None = None

    def go(self, config_path: Path, resume: str | None) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._asked_to_stop)
        self.phase = "the config"
        changes: dict[str, object] = {}
        if self.output_dir is not None:
            changes["output_dir"] = self.output_dir
        if resume is not None:
            changes["resume"] = resume
        config = load_config(config_path).model_copy(update=changes)
        self.output_dir = config.output_dir
        with lean_imports():
            from trainer.loop import LoRATrainer

        self.trainer = LoRATrainer(config)
        self.phase = "prepare_data"
        self.trainer.prepare_data()
        self.phase = "build_model"
        self.trainer.build_model()
        self.phase = "train"
        result = self.trainer.train()
        for file in result["files"]:
            print(f"wrote {config.output_dir / file['path']}", file=sys.stderr)

    def _asked_to_stop(self, number: int, frame: FrameType | None) -> None:
        trainer = self.trainer
        if trainer is not None and trainer.result:
            return  # all is written: it ends by itself
        if trainer is not None and trainer.stopping_between_steps:
            if number == signal.SIGINT:
                signal.signal(signal.SIGINT, signal.default_int_handler)
            trainer.request_stop()
        else:
            raise KeyboardInterrupt

    def interrupted(self) -> Stopped:
        """What a second Ctrl-C, or one before the training, leaves."""
        trainer = self.trainer
        if trainer is None or not trainer.stopping_between_steps:
            return Stopped("Stopped before the first step.", "Run the same command again.")
        return Stopped(
            f"Stopped at once, in the step after step {trainer.step} of {trainer.steps}.",
            "The same command goes on from the last checkpoint.",
        )

    def failed(self, error: BaseException, debug: bool) -> int:
        """Say what happened on stderr and in events.jsonl; returns the exit code."""
        known = explain(error, self.phase)
        if debug:
            traceback.print_exception(error)
        print(f"{'stopped' if isinstance(known, Stopped) else 'error'}: {known}", file=sys.stderr, flush=True)
        trainer = self.trainer
        if isinstance(known, FolderInUse):
            return known.exit_code  # the events are the other one's
        try:
            events = trainer.events if trainer else Events(self.output_dir) if self.output_dir else None
            if events is not None:
                events.write(
                    "failure",
                    cause=known.cause,
                    type=type(error).__name__,
                    message=known.message,
                    hint=known.hint,
                    step=trainer.step if trainer else 0,
                    phase=self.phase,
                    traceback="".join(traceback.format_exception(error))[-4000:],
                )
        except OSError:
            pass
        return known.exit_code


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m trainer", description="Train a LoRA from a YAML config.")
    parser.add_argument(
        "--config", type=Path, required=True, help="YAML file; configs/default.yaml shows every key"
    )
    parser.add_argument("--output-dir", type=Path, help="takes the place of output_dir in the config")
    parser.add_argument("--resume", help="auto, never, or a checkpoint's folder; takes the place of resume")
    parser.add_argument("--debug", action="store_true", help="print tracebacks")
    return parser.parse_args(argv)


def exit_now(code: int) -> None:
    """Leave without tearing torch down piece by piece (0.2 s): everything is written and flushed."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    exit_now(main())
