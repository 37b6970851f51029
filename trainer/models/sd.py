"""Stable Diffusion 1.x: a LoRA on the UNet, trained on cached latents and cached text embeddings."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.data import DatasetReport, ImageItem
from trainer.data.report import Item
from trainer.errors import ConfigError
from trainer.export.images import ImageFacts, save_images
from trainer.fast_imports import lean_imports
from trainer.lora import extract, inject, plan_of
from trainer.losses import add_noise, alphas_cumprod, snr_weight, target
from trainer.models.base import Family, Group, RunFacts, Setup
from trainer.models.sd_encode import encode_captions, encode_images
from trainer.models.sd_parts import FolderParts, Parts

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"]
"""The 192 modules of SD 1.5 that kohya's networks.lora trains."""


class StableDiffusion(Family):
    """Latents are cached as (mean, std), so that every step still samples the VAE's posterior."""

    unit = "images"

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.parts: Parts = _parts_of(setup)
        self.unet_config: dict[str, Any] = self.parts.config("unet")
        self.vae_config: dict[str, Any] = self.parts.config("vae")
        scheduler = self.parts.config("scheduler")
        self.prediction = str(scheduler.get("prediction_type", "epsilon"))
        self.alphas = alphas_cumprod(scheduler).to(setup.device)
        self.side = self.parts.side
        self._check_resolution()
        self.items: list[ImageItem] = []
        self.latents: list[list[Tensor]] = []
        self.texts: dict[str, Tensor] = {}
        self.unet: Any = None

    def _check_resolution(self) -> None:
        vae, unet = (len(c["block_out_channels"]) - 1 for c in (self.vae_config, self.unet_config))
        multiple = 2 ** (vae + unet)
        if self.side % multiple:
            raise ConfigError([f"`resolution` is {self.side}: this model wants a multiple of {multiple}."])

    def prepare(
        self, items: Sequence[Item], report: DatasetReport, *, training: bool = True
    ) -> list[Hashable]:
        self.items = [item for item in items if isinstance(item, ImageItem)]
        flips = (False, True) if self.config.flip else (False,)
        self.latents = encode_images(self.parts, self.items, flips)
        captions = [item.caption for item in self.items]
        if self.config.caption_dropout:
            captions.append("")
        self.texts, truncated = encode_captions(self.parts, captions)
        if truncated:
            report.warnings.append(
                f"{len(truncated)} captions are longer than 75 tokens and were cut "
                f"(the first: {truncated[0][:60]!r}); put what matters first."
            )
        return [self.side] * len(self.items)

    def build(self) -> list[Group]:
        with lean_imports():
            self.unet = self.parts.load_unet()
        config = self.config
        targets = TARGETS if config.target_modules == "auto" else list(config.target_modules)
        parameters = inject(self.unet, plan_of(config), targets, config.seed)
        self.unet.to(self.setup.device).train()
        return [Group("unet", config.learning_rate, parameters)]

    def units(self, batch: Sequence[int]) -> float:
        return len(batch)

    def loss(self, batch: Sequence[int], rngs: Sequence[torch.Generator], *, training: bool = True) -> Tensor:
        device, config = self.setup.device, self.config
        stacked = torch.stack([self._draw_latent(i, rng) for i, rng in zip(batch, rngs, strict=True)])
        texts = torch.stack([self._draw_text(i, rng) for i, rng in zip(batch, rngs, strict=True)])
        clean = stacked.to(device) * float(self.vae_config.get("scaling_factor", 0.18215))
        noise = torch.stack([torch.randn(clean.shape[1:], generator=rng) for rng in rngs])
        if config.noise_offset:
            offset = torch.stack([torch.randn((clean.shape[1], 1, 1), generator=rng) for rng in rngs])
            noise += config.noise_offset * offset
        steps = torch.cat([torch.randint(0, len(self.alphas), (1,), generator=rng) for rng in rngs]).to(
            device
        )
        noise, alpha = noise.to(device), self.alphas[steps]
        noisy = add_noise(clean, noise, alpha)
        with torch.autocast(device.type, self.setup.dtype, enabled=self.setup.dtype != torch.float32):
            predicted = self.unet(
                noisy.to(self.setup.dtype), steps, texts.to(device, self.setup.dtype)
            ).sample
        error = (predicted.float() - target(clean, noise, alpha, self.prediction)) ** 2
        each: Tensor = error.mean(dim=(1, 2, 3))
        if config.min_snr_gamma is not None:
            each = each * snr_weight(alpha, config.min_snr_gamma, self.prediction)
        return each.sum()

    def _draw_latent(self, index: int, rng: torch.Generator) -> Tensor:
        variants = self.latents[index]
        choice = int(torch.randint(len(variants), (), generator=rng)) if len(variants) > 1 else 0
        mean, std = variants[choice]
        sampled: Tensor = mean + std * torch.randn(mean.shape, generator=rng)
        return sampled

    def _draw_text(self, index: int, rng: torch.Generator) -> Tensor:
        share = self.config.caption_dropout
        dropped = share > 0 and float(torch.rand((), generator=rng)) < share
        return self.texts["" if dropped else self.items[index].caption]

    def sources(self, batch: Sequence[int]) -> list[str]:
        return [self.items[index].name for index in batch]

    def export(self, folder: Path, run: RunFacts) -> list[Path]:
        facts = ImageFacts(
            name=folder.absolute().name,
            unet=self.unet_config,
            base_model=str(self.setup.base.path),
            resolution=self.side,
            prediction=self.prediction,
            captions=[item.caption for item in self.items],
            trigger=self.config.trigger_word,
            extra={
                "ss_learning_rate": str(self.config.learning_rate),
                "ss_seed": str(self.config.seed),
                "ss_num_train_images": str(len(self.items)),
                "ss_sd_model_hash": self.setup.base_digest[:8],
                "ss_sd_model_name": self.setup.base.path.name,
            },
        )
        return save_images(folder, {"unet": extract(self.unet)}, facts)


def _parts_of(setup: Setup) -> Parts:
    """The parts of `setup.base`, by its format."""
    if setup.base.format == "diffusers":
        return FolderParts(setup)
    from trainer.models.sd_single_file import SingleFileParts

    return SingleFileParts(setup)
