"""Stable Diffusion 1.x and 2.x (and what SDXL shares with them): an adapter on the UNet, and on the text
encoders if wanted, trained on cached latents and cached text embeddings."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer.data import DatasetReport, ImageItem
from trainer.data.buckets import Size, bucket_for, sizes_of
from trainer.data.captions import plain, texts
from trainer.data.report import Item
from trainer.data.variants import View, views
from trainer.errors import ConfigError
from trainer.export.images import save_images
from trainer.fast_imports import lean_imports
from trainer.lora import extract, inject, plan_of
from trainer.losses import add_noise, alphas_cumprod, elementwise, snr_weight, target, zero_terminal_snr
from trainer.models.base import Family, Group, RunFacts, Setup
from trainer.models.sd_convs import as_products
from trainer.models.sd_export import facts
from trainer.models.sd_latents import Shown, encode_views, vae_factor
from trainer.models.sd_layers import drawn_from, moved, quicken, resting
from trainer.models.sd_parts import Parts, parts_of
from trainer.models.sd_sample import Sampler, save_image
from trainer.models.sd_text import ROOM, Embedded, Texts, Tokens

TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
"""The modules that kohya's networks.lora trains: 192 in SD 1.5, 722 in SDXL."""

CONV_TARGETS = (
    *TARGETS,
    *("conv1", "conv2", "time_emb_proj", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv"),
)
"""With conv_dim: 278 in SD 1.5, 788 in SDXL."""

TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "self_attn.out_proj", "fc1", "fc2")
"""72 in SD 1.5; 66 and 192 in the encoders of SDXL."""


@dataclass(frozen=True)
class Sample:
    """A picture in all its views, with all texts that may be drawn for it."""

    item: ImageItem
    shown: tuple[Shown, ...]
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Drawn:
    """What a step sees of a sample. `latent`: (C, h, w), drawn from the posterior, not scaled."""

    sample: Sample
    shown: Shown
    latent: Tensor
    caption: str


class StableDiffusion(Family):
    """Latents are cached as (mean, std), so that every step still samples the VAE's posterior."""

    unit = "images"

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        config = setup.config
        self.plan = plan_of(config)
        self.error = elementwise(config.loss, config.huber_delta)
        self.parts: Parts = parts_of(setup)
        self.unet_config: dict[str, Any] = self.parts.config("unet")
        self.vae_config: dict[str, Any] = self.parts.config("vae")
        self.scheduler = self._scheduler()
        self.prediction = str(self.scheduler["prediction_type"])
        alphas = alphas_cumprod(self.scheduler)
        zero = bool(self.scheduler["rescale_betas_zero_snr"])
        self.alphas = (zero_terminal_snr(alphas) if zero else alphas).to(setup.device)
        self.side = self.parts.side
        self.multiple = vae_factor(self.vae_config) * 2 ** (len(self.unet_config["block_out_channels"]) - 1)
        if self.side % self.multiple:
            raise ConfigError(
                [f"`resolution` is {self.side}: this model wants a multiple of {self.multiple}."]
            )
        self.samples: list[Sample] = []
        self.texts = Texts(self.parts, config.max_token_length // ROOM)
        self.embedded: dict[str, Embedded] = {}
        self.tokens: dict[str, Tokens] = {}
        self.encoders: dict[str, nn.Module] = {}
        self.unet: Any = None
        self.autocast = True
        self.sampler = Sampler(self)

    def _scheduler(self) -> dict[str, Any]:
        """The model's scheduler as the config wants it. Raises ConfigError for what cannot be learnt."""
        config, values = self.config, dict(self.parts.config("scheduler"))
        if config.prediction_type != "auto":
            values["prediction_type"] = config.prediction_type
        elif "prediction_type" not in values and self.setup.base.family == "sd2":
            raise ConfigError(
                ["`prediction_type` is auto, and a single file of SD 2 does not say what its UNet predicts."],
                "Set prediction_type: v_prediction for the 768 models, epsilon for the 512 ones (base).",
            )
        values.setdefault("prediction_type", "epsilon")
        zero = config.zero_terminal_snr or bool(values.get("rescale_betas_zero_snr"))
        if zero and values["prediction_type"] == "epsilon":
            raise ConfigError(
                ["`zero_terminal_snr` does not go with a model that predicts epsilon."],
                "At its last step the picture is pure noise, and there is nothing left to learn. "
                "Set zero_terminal_snr: false, or prediction_type: v_prediction for a model that predicts v.",
            )
        return {**values, "rescale_betas_zero_snr": zero}

    def prepare(
        self, items: Sequence[Item], report: DatasetReport, *, training: bool = True
    ) -> list[Hashable]:
        config = self.config
        pictures = [item for item in items if isinstance(item, ImageItem)]
        sizes = sizes_of(config, self.side, self.multiple)
        chosen = [
            views(item, bucket_for(item.width, item.height, sizes), config, training=training)
            for item in pictures
        ]
        wanted = [(item, view) for item, some in zip(pictures, chosen, strict=True) for view in some]
        shown = iter(encode_views(self.parts, wanted, config))
        buckets: list[Hashable] = []
        captions: list[str] = []
        for item, some in zip(pictures, chosen, strict=True):
            trigger = not item.regularisation  # or the class would be taught the trigger word's meaning
            own = [plain(item.caption, config)]
            if training:
                own = texts(item.caption, config, item.sha256, trigger=trigger)
            captions += own
            sample = Sample(item, tuple(next(shown) for _ in some), tuple(own))
            repeats = item.repeats if training else 1
            self.samples += [sample] * repeats
            buckets += [some[0].size] * repeats
        if config.caption_dropout or config.sample_prompts:
            captions.append("")
        self._prepare_texts([*captions, *config.sample_prompts], report if training else None)
        return buckets

    def _prepare_texts(self, captions: Sequence[str], report: DatasetReport | None) -> None:
        if self.config.train_text_encoder:
            self.tokens |= {caption: self.texts.tokenize(caption) for caption in dict.fromkeys(captions)}
            counts = {caption: tokens.count for caption, tokens in self.tokens.items()}
        else:
            embedded, counts = self.texts.through_cache(captions)
            self.embedded |= embedded
            self.texts.forget()
        room = self.config.max_token_length
        if report is not None and (long := [caption for caption, count in counts.items() if count > room]):
            remedy = "" if room == 225 else "set max_token_length: 225, or "
            report.warnings.append(
                f"{len(long)} of {len(counts)} captions are longer than {room} tokens and were cut "
                f"(the first: {long[0][:60]!r}); {remedy}put what matters first."
            )

    def build(self) -> list[Group]:
        config, device = self.config, self.setup.device
        with lean_imports():
            self.unet = self.parts.load_unet().to(device)
        if device.type == "cuda":  # on the CPU it is 5 % slower
            self.unet.to(memory_format=torch.channels_last)
        usual = CONV_TARGETS if config.adapter == "locon" else TARGETS
        targets = usual if config.target_modules == "auto" else config.target_modules
        parameters = inject(self.unet, self.plan, targets, config.seed)
        whole = quicken(self.unet.to(device))
        as_products(self.unet)
        groups = [Group("unet", config.learning_rate, _prefixed("unet", parameters))]
        if config.train_text_encoder:
            self.encoders = self.texts.load(self.setup.dtype)
            for place, (name, encoder) in enumerate(self.encoders.items(), 1):
                parameters = inject(
                    encoder, self.plan, self._text_targets(name, encoder), config.seed + place
                )
                encoder.to(device)
                whole = quicken(encoder) and whole
                rate = config.text_encoder_lr or config.learning_rate
                groups.append(Group(name, rate, _prefixed(name, parameters)))
        self.autocast = not whole
        for module in self.modules():
            if config.gradient_checkpointing:
                _checkpoint(module)
            module.train()
        return groups

    def _text_targets(self, name: str, encoder: Any) -> list[str]:
        """The modules of a text encoder. SDXL does not look at what the first one's last layer gives, so that
        this layer could not learn."""
        unused = name == "text_encoder" and len(self.parts.encoders) > 1
        last = f"encoder.layers.{encoder.config.num_hidden_layers - 1}." if unused else "-"
        return [
            path
            for path, _ in encoder.named_modules()
            if path.endswith(TEXT_TARGETS) and not path.removeprefix("text_model.").startswith(last)
        ]

    def modules(self) -> list[nn.Module]:
        return [self.unet, *self.encoders.values()]

    def units(self, batch: Sequence[int]) -> float:
        return len(batch)

    def loss(self, batch: Sequence[int], rngs: Sequence[torch.Generator], *, training: bool = True) -> Tensor:
        config, device = self.config, self.setup.device
        drawn = [self._draw(self.samples[i], rng, training) for i, rng in zip(batch, rngs, strict=True)]
        latents = torch.stack([one.latent for one in drawn])
        noise = torch.stack([torch.randn(latents.shape[1:], generator=rng) for rng in rngs])
        if config.noise_offset:
            offset = torch.stack([torch.randn((latents.shape[1], 1, 1), generator=rng) for rng in rngs])
            noise += config.noise_offset * offset
        steps = torch.cat([torch.randint(0, len(self.alphas), (1,), generator=rng) for rng in rngs])
        clean, noise, steps = (moved(tensor, device) for tensor in (latents * self.scaling, noise, steps))
        alpha = self.alphas[steps]
        noisy = add_noise(clean, noise, alpha)
        with ExitStack() as stack:
            if config.lora_dropout:
                stack.enter_context(drawn_from(rngs[0], device) if training else resting(self.modules()))
            text = self.text([one.caption for one in drawn])
            seen = [((s.item.width, s.item.height), one.shown.view) for one in drawn for s in [one.sample]]
            predicted = self.predict(noisy, steps, text, self.conditions(seen))
        error = self.error(predicted.float(), target(clean, noise, alpha, self.prediction))
        if any(one.shown.mask is not None for one in drawn):
            error = error * moved(torch.stack([_mask(one) for one in drawn]), device)
        each: Tensor = error.mean(dim=(1, 2, 3))
        if config.min_snr_gamma is not None:
            each = each * snr_weight(alpha, config.min_snr_gamma, self.prediction)
        if any(one.sample.item.regularisation for one in drawn):
            weights = [config.reg_weight if one.sample.item.regularisation else 1.0 for one in drawn]
            each = each * moved(torch.tensor(weights), device)
        return each.sum()

    @property
    def scaling(self) -> float:
        """What a latent is multiplied with before the UNet sees it."""
        return float(self.vae_config.get("scaling_factor", 0.18215))

    def _draw(self, sample: Sample, rng: torch.Generator, training: bool) -> Drawn:
        """Without `training` these are the first view and the first text, always."""
        share = self.config.caption_dropout
        shown = sample.shown[_choice(len(sample.shown), rng)]
        caption = sample.captions[_choice(len(sample.captions), rng)]
        if training and share > 0 and float(torch.rand((), generator=rng)) < share:
            caption = ""
        mean, std = shown.posterior
        return Drawn(sample, shown, mean + std * torch.randn(mean.shape, generator=rng), caption)

    def text(self, captions: Sequence[str]) -> Embedded:
        """Embeddings of `captions` on the device: of the encoders as they are now where they are trained,
        else out of the cache."""
        if self.encoders:
            tokens = [self.tokens.get(caption) or self.texts.tokenize(caption) for caption in captions]
            with self.mixed():
                return self.texts.embed(tokens)
        for caption in captions:
            if caption not in self.embedded:
                self.embedded |= self.texts.through_cache([caption])[0]
                self.texts.forget()
        return Embedded.stack([self.embedded[caption] for caption in captions])

    def predict(
        self, noisy: Tensor, steps: Tensor, text: Embedded, conditions: dict[str, Tensor] | None
    ) -> Tensor:
        """The UNet's output for `noisy` (B, C, h, w) at `steps` (B,)."""
        device, dtype = self.setup.device, self.setup.dtype
        text = text.to(device, dtype)
        if conditions is not None and text.pooled is not None:
            conditions = {**conditions, "text_embeds": text.pooled}
        inputs = noisy.to(dtype)
        if device.type == "cuda":
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        with self.mixed():
            found: Tensor = self.unet(inputs, steps, text.states, added_cond_kwargs=conditions).sample
        return found

    def mixed(self) -> torch.autocast:
        """Autocast, where there are adapter layers that need it."""
        dtype = self.setup.dtype
        return torch.autocast(self.setup.device.type, dtype, enabled=self.autocast and dtype != torch.float32)

    def conditions(self, seen: Sequence[tuple[Size, View]]) -> dict[str, Tensor] | None:
        """What the UNet is told of pictures besides their texts, by their sizes as they lie on the disk and
        what is shown of them: nothing, but for SDXL."""
        return None

    def sources(self, batch: Sequence[int]) -> list[str]:
        return [self.samples[index].item.name for index in batch]

    def export(self, folder: Path, run: RunFacts) -> list[Path]:
        adapters = {"unet": extract(self.unet)}
        adapters |= {name: extract(encoder) for name, encoder in self.encoders.items()}
        return save_images(folder, adapters, facts(self, folder.absolute().name, run))

    def sample(self, prompts: Sequence[str], folder: Path, seed: int) -> list[Path]:
        return [
            save_image(self.sampler.image(prompt, seed + number), folder / f"{number:02d}.png")
            for number, prompt in enumerate(prompts)
        ]


def _choice(count: int, rng: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=rng)) if count > 1 else 0


def _mask(drawn: Drawn) -> Tensor:
    return torch.ones(drawn.latent.shape[1:])[None] if drawn.shown.mask is None else drawn.shown.mask[None]


def _prefixed(name: str, parameters: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    return {f"{name}.{key}": parameter for key, parameter in parameters.items()}


def _checkpoint(module: Any) -> None:
    """Gradient checkpointing, not reentrant: the frozen inputs have no gradient."""
    if hasattr(module, "enable_gradient_checkpointing"):
        module.enable_gradient_checkpointing()
    else:
        enable = getattr(module, "activation_checkpointing_enable", None)
        (enable or module.gradient_checkpointing_enable)({"use_reentrant": False})
