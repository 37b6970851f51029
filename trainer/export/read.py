"""Read a LoRA file or folder, whichever format it has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from trainer.export import diffusers, kohya, peft
from trainer.export.names import Family, Naming, naming
from trainer.export.tell import Format, tell
from trainer.lora import Adapter


@dataclass(frozen=True)
class LoraFile:
    """`adapters` by part: unet, text_encoder, text_encoder_2; a language model's has the name "". `metadata`
    is the file's own; `config` a peft folder's adapter_config.json."""

    format: Format
    family: Family | None
    adapters: dict[str, Adapter]
    metadata: dict[str, str]
    config: dict[str, Any]


def read(path: Path, names: Naming | None = None) -> LoraFile:
    """Raises UserError (no LoRA, unknown keys) or ModelError (a damaged file). `names` are those of a kohya
    file of a UNet with another number of layers than the published one."""
    told = tell(path)
    if told.format == "peft":
        adapters = {part: peft.load(folder) for part, folder in told.folders.items()}
        return LoraFile("peft", told.family, adapters, {}, told.config)
    tensors = load(told.path)
    if told.format == "kohya":
        adapters = kohya.from_kohya(tensors, names or naming(told.family or "sd1"))
    else:
        adapters = diffusers.from_diffusers(tensors, told.metadata)
    return LoraFile(told.format, told.family, adapters, told.metadata, {})


def load(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file that `tell` has found whole."""
    from safetensors.torch import load_file

    return dict(load_file(str(path)))
