"""What the files of an image adapter tell of its training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.data.captions import plain
from trainer.export.images import ImageFacts
from trainer.models.base import RunFacts

if TYPE_CHECKING:
    from trainer.models.sd import StableDiffusion


def facts(family: StableDiffusion, name: str, run: RunFacts) -> ImageFacts:
    """The facts of `family` for files called `name`."""
    config, base = family.config, family.setup.base.path
    items = {sample.item.sha256: sample.item for sample in family.samples}
    extra = {
        "ss_learning_rate": str(config.learning_rate),
        "ss_seed": str(config.seed),
        "ss_steps": str(run.step),
        "ss_max_train_steps": str(run.steps),
        "ss_num_train_images": str(sum(not item.regularisation for item in items.values())),
        "ss_num_reg_images": str(sum(item.regularisation for item in items.values())),
        "ss_sd_model_hash": family.setup.base_digest[:8],
        "ss_sd_model_name": base.name,
    }
    if config.train_text_encoder:
        extra["ss_text_encoder_lr"] = str(config.text_encoder_lr or config.learning_rate)
    return ImageFacts(
        name=name,
        unet=family.unet_config,
        base_model=str(base),
        resolution=family.side,
        prediction=family.prediction,
        captions=[plain(item.caption, config) for item in items.values() if not item.regularisation],
        trigger=config.trigger_word,
        extra=extra,
    )
