"""The trackers of a run, as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from trainer.config import TrainConfig

PICTURES = (".png", ".jpg", ".jpeg", ".webp")


class _Tracker(Protocol):
    def log(self, step: int, values: dict[str, float]) -> None: ...

    def samples(self, step: int, files: Sequence[Path]) -> None: ...

    def finish(self) -> None: ...


class Trackers:
    """What `config.tracker` asks for; `on` false (a process that does not write): none. Never fatal. `step`:
    where the run goes on; what was logged after it is done again."""

    def __init__(
        self, config: TrainConfig, warn: Callable[[str], None], *, on: bool = True, step: int = 0
    ) -> None:
        self._all: list[_Tracker] = []
        if on and config.tracker.wandb != "off":
            from trainer.wandb_log import WandB

            values = config.model_dump(mode="json")
            self._all.append(WandB(config.tracker, config.output_dir, values, resumed=step > 0))
        if on and config.tracker.tensorboard == "on":
            from trainer.tensorboard_log import TensorBoard

            self._all.append(TensorBoard(config.output_dir / "tensorboard", warn, step))

    def log(self, step: int, values: dict[str, float]) -> None:
        """The numbers of optimizer step `step`."""
        for tracker in self._all:
            tracker.log(step, {key: float(value) for key, value in values.items()})

    def samples(self, step: int, files: Sequence[Path]) -> None:
        """The pictures among `files`."""
        pictures = [path for path in files if path.suffix.lower() in PICTURES]
        for tracker in self._all:
            tracker.samples(step, pictures)

    def finish(self) -> None:
        """Flush and close all of them."""
        for tracker in self._all:
            tracker.finish()
