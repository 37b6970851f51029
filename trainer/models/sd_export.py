"""The files of an image adapter: kohya's, and diffusers' (for kinds that diffusers cannot read: peft's)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.export import diffusers as diffusers_file
from trainer.export import kohya, kohya_metadata, peft
from trainer.export.names import family_of, naming
from trainer.lora import Adapter
from trainer.models.base import RunFacts

if TYPE_CHECKING:
    from trainer.models.sd import StableDiffusion


def export(
    family: StableDiffusion, adapters: Mapping[str, Adapter], folder: Path, run: RunFacts
) -> list[Path]:
    """Write `adapters` ({component: adapter}) of `family` to `folder`; the files written."""
    name = folder.absolute().name
    config, items = family.config, {sample.item.sha256: sample.item for sample in family.samples}
    written = []
    if family.plan.kind == "lora":
        written.append(diffusers_file.save(folder, adapters))
    else:
        for component, adapter in adapters.items():
            (folder / component).mkdir(exist_ok=True)
            written += peft.save(folder / component, adapter, str(family.setup.base.path))
    kind = family_of(family.unet_config)
    meta = kohya_metadata.metadata(
        adapters,
        family=kind,
        name=name,
        resolution=family.side,
        prediction=family.prediction,
        captions=[item.caption for item in items.values()],
        trigger=config.trigger_word,
        extra={
            "ss_learning_rate": str(config.learning_rate),
            "ss_seed": str(config.seed),
            "ss_steps": str(run.step),
            "ss_max_train_steps": str(run.steps),
            "ss_num_train_images": str(len(items)),
            "ss_sd_model_hash": family.setup.base_digest[:8],
            "ss_sd_model_name": family.setup.base.path.name,
        },
    )
    names = naming(kind, family.unet_config)
    tensors = {
        key: tensor
        for component, adapter in adapters.items()
        for key, tensor in kohya.to_kohya(component, adapter, names).items()
    }
    kohya.save(folder / f"{name}.safetensors", tensors, meta)
    return [*written, folder / f"{name}.safetensors"]
