"""Sample images while training: the model as it is now, the same start for the same seed."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.data.variants import View
from trainer.fast_imports import lean_imports
from trainer.files import write_atomic
from trainer.models.sd_latents import vae_factor
from trainer.models.sd_layers import resting
from trainer.models.sd_text import Embedded

if TYPE_CHECKING:
    from trainer.models.sd import StableDiffusion


class Sampler:
    """DDIM with classifier-free guidance (Ho & Salimans 2022) over a family's own networks. The VAE works in
    float32 and lies on the CPU between two samples."""

    def __init__(self, family: StableDiffusion) -> None:
        self._family = family
        self._vae: Any = None

    def image(self, prompt: str, seed: int) -> NDArray[np.uint8]:
        """The picture of `prompt`: (side, side, 3). The networks are as they were afterwards, whatever
        happens."""
        with resting(self._family.modules()), torch.no_grad():
            return self._decode(self._denoise(prompt, seed))

    def _denoise(self, prompt: str, seed: int) -> Tensor:
        family, config = self._family, self._family.config
        with lean_imports():
            from diffusers.schedulers.scheduling_ddim import DDIMScheduler
        zero = bool(family.scheduler["rescale_betas_zero_snr"])
        values = {
            **family.scheduler,
            "clip_sample": False,
            "timestep_spacing": "trailing" if zero else "leading",
        }
        scheduler: Any = DDIMScheduler.from_config(values)
        scheduler.set_timesteps(config.sample_steps, device=family.setup.device)
        guided = config.sample_guidance > 1
        text = family.text(["", prompt] if guided else [prompt])
        side = family.side // vae_factor(family.vae_config)
        shape = (1, int(family.vae_config.get("latent_channels", 4)), side, side)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed % 2**63))
        latent: Tensor = noise.to(family.setup.device) * scheduler.init_noise_sigma
        for step in scheduler.timesteps:
            predicted = self._predict(latent, step, text, config.sample_guidance)
            latent = scheduler.step(predicted, step, latent).prev_sample
        return latent / family.scaling

    def _predict(self, latent: Tensor, step: Tensor, text: Embedded, guidance: float) -> Tensor:
        family, count = self._family, len(text.states)
        size = (family.side, family.side)
        conditions = family.conditions([(size, View(size, size, (0, 0)))] * count)
        many = latent.expand(count, *latent.shape[1:])
        found = family.predict(many, step.expand(count), text, conditions).float()
        if count == 1:
            return found
        empty, full = found.chunk(2)
        return empty + guidance * (full - empty)

    def _decode(self, latent: Tensor) -> NDArray[np.uint8]:
        if self._vae is None:
            with lean_imports():
                self._vae = self._family.parts.load_vae().eval().requires_grad_(False)
            self._vae.enable_slicing()
        try:
            pixels = self._vae.to(latent.device).decode(latent.float()).sample[0]
        finally:
            self._vae.to("cpu")
        scaled = (pixels.float().clamp(-1, 1) + 1) * 127.5
        picture: NDArray[np.uint8] = scaled.round().permute(1, 2, 0).cpu().numpy().astype(np.uint8)
        return picture


def save_image(picture: NDArray[np.uint8], path: Path) -> Path:
    """Write a (height, width, 3) picture as PNG; returns `path`."""
    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(picture).save(data, "PNG")
    write_atomic(path, data.getvalue())
    return path
