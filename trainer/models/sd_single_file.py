"""Stable Diffusion 1.5 from one .safetensors file in the original (LDM) layout, wholly offline.

The configs ship with this package; the tokenizer comes from open-clip-torch, or from a `tokenizer` folder
beside the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainer.cache import sha256_file
from trainer.errors import ModelError
from trainer.models.clip_vocab import clip_tokenizer, vocabulary_file
from trainer.models.sd_parts import Encoders, Parts, read_config
from trainer.quiet import quiet

CONFIGS = Path(__file__).parent / "sd15"
TEXT_PREFIX = "cond_stage_model.transformer."


class SingleFileParts(Parts):
    """A checkpoint as the web knows it."""

    @property
    def file(self) -> Path:
        """The checkpoint."""
        return self.setup.base.path

    def config(self, part: str) -> dict[str, Any]:
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        return read_config(CONFIGS / part / name)

    def identity(self, *parts: str) -> str:
        found = [self.setup.base_digest]
        if "tokenizer" in parts:
            vocabulary = vocabulary_file()
            found.append(sha256_file(vocabulary) if vocabulary else str(self._tokenizer_folder()))
        return "/".join([*found, *parts])

    def load_unet(self) -> nn.Module:
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        unet: nn.Module = self._load(UNet2DConditionModel, "unet", self.setup.dtype)
        return unet

    def load_vae(self) -> Any:
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        return self._load(AutoencoderKL, "vae", torch.float32)

    def load_text(self) -> Encoders:
        from safetensors import safe_open
        from transformers.models.clip.configuration_clip import CLIPTextConfig
        from transformers.models.clip.modeling_clip import CLIPTextModel

        model = CLIPTextModel(CLIPTextConfig(**read_config(CONFIGS / "text_encoder" / "config.json")))
        wanted = {name.removeprefix("text_model."): name for name in model.state_dict()}
        with safe_open(str(self.file), framework="pt") as file:
            found = {
                wanted[short]: file.get_tensor(key).float()
                for key in file.keys()  # noqa: SIM118 - not a dict
                if key.startswith(TEXT_PREFIX)
                and (short := key.removeprefix(TEXT_PREFIX).removeprefix("text_model.")) in wanted
            }
        try:
            model.load_state_dict(found, strict=True)
        except RuntimeError as error:
            raise self._broken("text encoder", error) from error
        return self._tokenizer(), model

    def _tokenizer_folder(self) -> Path:
        return self.file.parent / "tokenizer"

    def _tokenizer(self) -> Any:
        if (vocabulary := vocabulary_file()) is not None:
            return clip_tokenizer(vocabulary)
        folder = self._tokenizer_folder()
        if folder.is_dir():
            from transformers.models.clip.tokenization_clip import CLIPTokenizer

            return CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
        raise ModelError(
            f"{self.file} carries no tokenizer, and the CLIP vocabulary is not installed.",
            f"pip install --no-deps open-clip-torch, or put a CLIP tokenizer's files into {folder}.",
        )

    def _load(self, kind: Any, part: str, dtype: torch.dtype) -> Any:
        quiet()
        try:
            return kind.from_single_file(
                str(self.file), config=str(CONFIGS), subfolder=part, torch_dtype=dtype, local_files_only=True
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise self._broken(part, error) from error

    def _broken(self, part: str, error: BaseException) -> ModelError:
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        return ModelError(
            f"The {part} of {self.file} cannot be loaded: {text}", "Is it a whole SD 1.5 checkpoint?"
        )
