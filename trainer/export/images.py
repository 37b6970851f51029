"""All files of a Stable Diffusion adapter: written, read back and compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trainer
from trainer.export import diffusers, kohya, peft
from trainer.export.keys import COMPONENTS
from trainer.export.kohya_metadata import base_keys, metadata
from trainer.export.names import family_of, naming
from trainer.export.read import read
from trainer.export.tell import CONFIG, WEIGHTS
from trainer.export.verify import check
from trainer.lora import Adapter


@dataclass(frozen=True)
class ImageFacts:
    """What the files tell of the training. `unet` is the UNet's diffusers config, which also says the family;
    `prediction` is epsilon or v_prediction; `resolution` in pixels; `extra` are further `ss_*` keys."""

    name: str
    unet: Mapping[str, Any]
    base_model: str
    resolution: int
    prediction: str = "epsilon"
    captions: Iterable[str] = ()
    trigger: str | None = None
    extra: Mapping[str, str] = field(default_factory=dict)


def save_images(folder: Path, adapters: Mapping[str, Adapter], facts: ImageFacts) -> list[Path]:
    """Write `<name>.safetensors` (A1111, ComfyUI, kohya) and pytorch_lora_weights.safetensors (diffusers);
    LoHa and LoKr, which diffusers' loader cannot read, as one peft folder for each part (`unet/`, ...). Every
    file is read back: raises TrainerError if one does not say what `adapters` ({component: adapter}) say."""
    family = family_of(facts.unet)
    names = naming(family, facts.unet)
    v_prediction = facts.prediction == "v_prediction"
    written: list[Path] = []
    if all(layer.kind == "lora" for adapter in adapters.values() for layer in adapter.layers.values()):
        told = {**base_keys(family, v_prediction=v_prediction), "lora_ops_version": trainer.__version__}
        path = diffusers.save(folder, adapters, told)
        check(path, adapters, read(path).adapters)
        written.append(path)
    else:
        for component, adapter in adapters.items():
            (folder / component).mkdir(exist_ok=True)
            written += peft.save(folder / component, adapter, facts.base_model)
    path = folder / f"{facts.name}.safetensors"
    tensors = {
        key: tensor
        for component, adapter in adapters.items()
        for key, tensor in kohya.to_kohya(component, adapter, names).items()
    }
    meta = metadata(
        adapters,
        family=family,
        name=facts.name,
        resolution=facts.resolution,
        prediction=facts.prediction,
        captions=facts.captions,
        trigger=facts.trigger,
        extra={**facts.extra, "lora_ops_version": trainer.__version__},
    )
    kohya.save(path, tensors, meta)
    check(path, adapters, read(path, names).adapters)
    _forget(folder, written)
    return [*written, path]


def _forget(folder: Path, written: list[Path]) -> None:
    """Remove what an earlier training of another kind left in `folder` for diffusers and peft: whoever loads
    the folder would get that one."""
    peft_files = [folder / part / name for part in COMPONENTS for name in (CONFIG, WEIGHTS)]
    for path in (folder / diffusers.NAME, *peft_files):
        if path not in written:
            path.unlink(missing_ok=True)
