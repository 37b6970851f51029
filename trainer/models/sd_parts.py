"""The parts of a Stable Diffusion model, from a diffusers folder or from a single file, loaded one by one:
with a warm cache only the UNet is."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainer.errors import ModelError
from trainer.models.base import Setup
from trainer.models.sniff import native_resolution
from trainer.quiet import quiet

Encoders = tuple[Any, nn.Module]


class Parts(ABC):
    """Loads parts in float32 (encoders) or in the base's dtype (UNet); never from the network."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup

    @property
    def side(self) -> int:
        """The side of the square training crop, in pixels."""
        return self.setup.config.resolution or native_resolution(self.setup.base)

    @abstractmethod
    def config(self, part: str) -> dict[str, Any]:
        """The diffusers config of `unet`, `vae` or `scheduler`, without loading the part."""

    @abstractmethod
    def identity(self, *parts: str) -> str:
        """A digest of everything that these parts' outputs depend on."""

    @abstractmethod
    def load_unet(self) -> nn.Module: ...

    @abstractmethod
    def load_vae(self) -> Any: ...

    @abstractmethod
    def load_text(self) -> Encoders:
        """(tokenizer, text encoder)."""


class FolderParts(Parts):
    """A diffusers folder."""

    @property
    def root(self) -> Path:
        return self.setup.base.path

    def config(self, part: str) -> dict[str, Any]:
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        return read_config(self.root / part / name)

    def identity(self, *parts: str) -> str:
        return "/".join(self.setup.cache.tree_digest(self.root / part) for part in parts)

    def load_unet(self) -> nn.Module:
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        unet: nn.Module = self._load(UNet2DConditionModel, "unet", torch_dtype=self.setup.dtype)
        return unet

    def load_vae(self) -> Any:
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        return self._load(AutoencoderKL, "vae", torch_dtype=torch.float32)

    def load_text(self) -> Encoders:
        from transformers.models.clip.modeling_clip import CLIPTextModel
        from transformers.models.clip.tokenization_clip import CLIPTokenizer

        model = self._load(CLIPTextModel, "text_encoder", dtype=torch.float32)
        return self._load(CLIPTokenizer, "tokenizer"), model

    def _load(self, kind: Any, part: str, **options: Any) -> Any:
        quiet()
        try:
            return kind.from_pretrained(str(self.root / part), local_files_only=True, **options)
        except (OSError, ValueError, KeyError) as error:
            text = str(error).strip().splitlines()[0]
            raise ModelError(
                f"{self.root / part} cannot be loaded: {text}", "Copy the whole pipeline again."
            ) from error


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ModelError."""
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}.", "Copy the whole pipeline again.") from None
    return value
