"""The parts of a Stable Diffusion model, from a diffusers folder or from a single file, loaded one by one:
with a warm cache only the UNet is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainer.errors import ModelError
from trainer.files import json_object
from trainer.models.base import Setup
from trainer.models.sniff import native_resolution
from trainer.quiet import quiet

ENCODERS = {
    "sd15": ("text_encoder",),
    "sd2": ("text_encoder",),
    "sdxl": ("text_encoder", "text_encoder_2"),
}
"""The text encoders of each family, in the order in which their outputs are joined."""


class Parts(ABC):
    """Loads parts in float32 (what fills the cache) or in the base's dtype (what is trained); never from the
    network."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.encoders = ENCODERS[setup.base.family]

    @property
    def side(self) -> int:
        """The side of a square picture, in pixels."""
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
    def load_vae(self) -> Any:
        """Always float32: SDXL's VAE overflows in half precision."""

    @abstractmethod
    def load_text(self, encoder: str, dtype: torch.dtype) -> nn.Module:
        """The text encoder of that name (see ENCODERS)."""

    @abstractmethod
    def load_tokenizer(self, encoder: str) -> Any:
        """The tokenizer that belongs to a text encoder."""


class FolderParts(Parts):
    """A diffusers folder."""

    @property
    def root(self) -> Path:
        return self.setup.base.path

    def config(self, part: str) -> dict[str, Any]:
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        return read_config(self.root / part / name)

    def identity(self, *parts: str) -> str:
        folders = [folder for part in parts for folder in (part, part.replace("text_encoder", "tokenizer"))]
        return "/".join(self.setup.cache.tree_digest(self.root / part) for part in dict.fromkeys(folders))

    def load_unet(self) -> nn.Module:
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        unet: nn.Module = self._load(UNet2DConditionModel, "unet", torch_dtype=self.setup.dtype)
        return unet

    def load_vae(self) -> Any:
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        return self._load(AutoencoderKL, "vae", torch_dtype=torch.float32)

    def load_text(self, encoder: str, dtype: torch.dtype) -> nn.Module:
        model: nn.Module = self._load(text_class(encoder), encoder, dtype=dtype)
        return model

    def load_tokenizer(self, encoder: str) -> Any:
        from transformers.models.clip.tokenization_clip import CLIPTokenizer

        return self._load(CLIPTokenizer, encoder.replace("text_encoder", "tokenizer"))

    def _load(self, kind: Any, part: str, **options: Any) -> Any:
        quiet()
        try:
            return kind.from_pretrained(str(self.root / part), local_files_only=True, **options)
        except (OSError, ValueError, KeyError) as error:
            text = str(error).strip().splitlines()[0]
            raise ModelError(
                f"{self.root / part} cannot be loaded: {text}", "Copy the whole pipeline again."
            ) from error


def text_class(encoder: str) -> Any:
    """transformers' class of a text encoder: SDXL's second one has a projection."""
    from transformers.models.clip import modeling_clip

    return (
        modeling_clip.CLIPTextModelWithProjection
        if encoder == "text_encoder_2"
        else modeling_clip.CLIPTextModel
    )


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ModelError."""
    return json_object(path, ModelError, "Copy the whole pipeline again.")


def parts_of(setup: Setup) -> Parts:
    """The parts of `setup.base`, by its format."""
    if setup.base.format == "diffusers":
        return FolderParts(setup)
    from trainer.models.sd_single_file import SingleFileParts

    return SingleFileParts(setup)
