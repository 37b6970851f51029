"""The noise schedule of a diffusion model, its errors, and how they are weighted over the timesteps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from trainer.errors import ConfigError, ModelError
from trainer.plugins import registered

Elementwise = Callable[[Tensor, Tensor], Tensor]
"""(predicted, target), float32 (B, C, H, W) both: the error of each element, of the same shape."""


def alphas_cumprod(scheduler: Mapping[str, Any]) -> Tensor:
    """The products of (1 - beta), float32 (T,), from a diffusers scheduler_config.json (DDPM, eq. 4)."""
    count = int(scheduler.get("num_train_timesteps", 1000))
    start, end = float(scheduler.get("beta_start", 0.0001)), float(scheduler.get("beta_end", 0.02))
    kind = scheduler.get("beta_schedule", "linear")
    if kind == "scaled_linear":
        betas = torch.linspace(start**0.5, end**0.5, count, dtype=torch.float32) ** 2
    elif kind == "linear":
        betas = torch.linspace(start, end, count, dtype=torch.float32)
    else:
        raise ModelError(
            f"The scheduler's beta_schedule is {kind!r}.", "scaled_linear and linear can be trained."
        )
    return torch.cumprod(1.0 - betas, dim=0)


def zero_terminal_snr(alphas: Tensor) -> Tensor:
    """`alphas` (T,) shifted and scaled so that the last one is 0 and the first stays (Lin et al. 2023,
    algorithm 1)."""
    roots = alphas.sqrt()
    first, last = roots[0], roots[-1]
    scaled: Tensor = ((roots - last) * first / (first - last)) ** 2
    return scaled


def elementwise(name: str, delta: float) -> Elementwise:
    """The loss of that name: l2, huber and smooth_l1 (Huber 1964; the latter divided by `delta`, and both
    lines beyond `delta`), or a plugin's. Raises ConfigError for an unknown one."""
    known: dict[str, Elementwise] = {
        "l2": partial(functional.mse_loss, reduction="none"),
        "huber": partial(functional.huber_loss, reduction="none", delta=delta),
        "smooth_l1": partial(functional.smooth_l1_loss, reduction="none", beta=delta),
        **registered("loss"),
    }
    if name not in known:
        raise ConfigError(
            [f"`loss` is {name}, which is registered by no file of `plugins`."],
            f"Known: {', '.join(sorted(known))}.",
        )
    return known[name]


def add_noise(clean: Tensor, noise: Tensor, alpha: Tensor) -> Tensor:
    """sqrt(a) x + sqrt(1 - a) noise; `alpha` of shape (B,), the others (B, C, H, W)."""
    alpha = alpha.view(-1, 1, 1, 1)
    return alpha.sqrt() * clean + (1.0 - alpha).sqrt() * noise


def target(clean: Tensor, noise: Tensor, alpha: Tensor, prediction: str) -> Tensor:
    """What the UNet should predict: the noise, or the velocity (Salimans & Ho 2022, appendix D)."""
    if prediction == "epsilon":
        return noise
    if prediction == "v_prediction":
        alpha = alpha.view(-1, 1, 1, 1)
        return alpha.sqrt() * noise - (1.0 - alpha).sqrt() * clean
    raise ModelError(
        f"The scheduler's prediction_type is {prediction!r}.", "epsilon and v_prediction can be trained."
    )


def snr_weight(alpha: Tensor, gamma: float, prediction: str) -> Tensor:
    """min-SNR weights (Hang et al. 2023, 3.4), shape (B,): min(snr, g)/snr for epsilon, min(snr, g)/(snr + 1)
    for v; finite where the SNR is 0 (epsilon: 1, its limit)."""
    snr = alpha / (1.0 - alpha).clamp_min(1e-12)
    if prediction == "v_prediction":
        return snr.clamp_max(gamma) / (snr + 1.0)
    return torch.where(snr > gamma, gamma / snr.clamp_min(1e-12), torch.ones_like(snr))
