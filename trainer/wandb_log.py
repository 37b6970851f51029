"""Weights & Biases beside the training: never waited for, never a prompt, never fatal.

All calls to wandb happen in one daemon thread that reads a queue, so that neither its import (0.5 s), a
slow server nor a hang costs the training anything but the last seconds of `finish`.
"""

from __future__ import annotations

import importlib.util
import os
import queue
import secrets
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.config import TrackerConfig
from trainer.files import write_atomic

INIT_TIMEOUT_S = 30.0
FINISH_TIMEOUT_S = 15.0


class WandB:
    """`log` and `finish` are safe to call whatever state wandb is in. `resumed`: goes on with the run of
    `output_dir` where that is on line, in place of a second one."""

    def __init__(
        self, config: TrackerConfig, output_dir: Path, run_config: dict[str, Any], *, resumed: bool = False
    ) -> None:
        self._queue: queue.Queue[tuple[int, dict[str, Any]] | None] = queue.Queue()
        self._thread: threading.Thread | None = None
        if (
            config.wandb == "off"
            or os.environ.get("WANDB_MODE") == "disabled"
            or importlib.util.find_spec("wandb") is None
        ):
            return
        self._config, self._dir, self._run_config = config, output_dir.absolute(), run_config
        self._resumed = resumed
        self._thread = threading.Thread(target=self._run, name="wandb", daemon=True)
        self._thread.start()

    def log(self, step: int, values: dict[str, float]) -> None:
        """Queue the numbers of optimizer step `step`."""
        if self._thread is not None:
            self._queue.put((step, values))

    def samples(self, step: int, files: Sequence[Path]) -> None:
        """Queue pictures."""
        if self._thread is not None and files:
            self._queue.put((step, {"samples": list(files)}))

    def finish(self) -> None:
        """Let the queue drain and the run close, for at most FINISH_TIMEOUT_S seconds."""
        if self._thread is None:
            return
        self._queue.put(None)
        self._thread.join(FINISH_TIMEOUT_S)
        if self._thread.is_alive():
            _warn(f"did not finish within {FINISH_TIMEOUT_S:.0f} s and was left behind")
        self._thread = None

    def _mode(self) -> str:
        if self._config.mode != "auto":
            return self._config.mode
        return os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")

    def _identity(self) -> dict[str, Any]:
        """The id of this folder's run; a training that starts anew draws another."""
        file = self._dir / "wandb" / "run-id"
        if self._resumed and file.is_file():
            return {"id": file.read_text(encoding="ascii").strip(), "resume": "allow"}
        drawn = secrets.token_hex(4)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, drawn.encode())
        return {"id": drawn, "resume": "allow"}

    def _run(self) -> None:
        try:
            import wandb

            mode = self._mode()
            if mode == "online" and not os.environ.get("WANDB_API_KEY"):
                _warn("no WANDB_API_KEY: logging offline; `wandb sync` uploads it later")
                mode = "offline"
            run = wandb.init(
                project=self._config.project,
                name=self._config.name or self._dir.name,
                group=self._config.group,
                tags=list(self._config.tags),
                dir=str(self._dir),
                config=self._run_config,
                mode=mode,  # type: ignore[arg-type]
                **(self._identity() if mode == "online" else {}),
                settings=wandb.Settings(
                    console="off",
                    silent=True,
                    init_timeout=INIT_TIMEOUT_S,
                    x_disable_stats=True,
                    disable_git=True,
                    save_code=False,
                    disable_job_creation=True,
                ),
            )
            while (item := self._queue.get()) is not None:
                values = {
                    key: [wandb.Image(str(path)) for path in value] if key == "samples" else value
                    for key, value in item[1].items()
                }
                run.log(values, step=item[0])
            run.finish()
        except BaseException as error:  # noqa: BLE001 - a tracker must never end a training
            _warn(f"{type(error).__name__}: {error}; the run goes on, events.jsonl has everything")


def _warn(text: str) -> None:
    print(f"warning: wandb {text}", file=sys.stderr)
