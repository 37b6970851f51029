"""A training from its config to its end, as a user of the Python API runs it."""

from __future__ import annotations

from typing import Any

from trainer import LoRATrainer


def run(config: dict[str, Any]) -> LoRATrainer:
    """The trainer after it has published."""
    trainer = LoRATrainer(config)
    trainer.prepare_data()
    trainer.build_model()
    trainer.train()
    return trainer
