"""The training engine: LoRA for Stable Diffusion and for language models, alone in a process or a container.

    from trainer import LoRATrainer
    t = LoRATrainer("configs/default.yaml")
    t.prepare_data(); t.build_model(); t.train()

Importing this package, `trainer.config` or `trainer.data` imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.loop import LoRATrainer

__all__ = ["LoRATrainer", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name == "LoRATrainer":
        from trainer.loop import LoRATrainer

        return LoRATrainer
    raise AttributeError(f"module 'trainer' has no attribute {name!r}")
