"""Stable Diffusion 1.x, 2.x or XL from one .safetensors file in the original layout, wholly offline.

The configs ship with this package; the tokenizer comes from open-clip-torch, or from a `tokenizer` folder
beside the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer.errors import ModelError
from trainer.files import sha256_file
from trainer.models.base import Setup
from trainer.models.clip_vocab import clip_tokenizer, vocabulary_file
from trainer.models.openclip import from_openclip
from trainer.models.sd_parts import Parts, read_config, text_class
from trainer.quiet import quiet

CONFIGS = Path(__file__).parent
"""Holds a folder of configs for each family."""

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP = {
    ("sd15", "text_encoder"): "cond_stage_model.transformer.",
    ("sdxl", "text_encoder"): "conditioner.embedders.0.transformer.",
}
"""Text encoders with transformers' names, behind these prefixes."""
OPENCLIP = {
    ("sd2", "text_encoder"): "cond_stage_model.model.",
    ("sdxl", "text_encoder_2"): "conditioner.embedders.1.model.",
}
"""Text encoders with open_clip's names."""


class SingleFileParts(Parts):
    """A checkpoint as the web knows it."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.file = setup.base.path
        self.configs = CONFIGS / setup.base.family

    def config(self, part: str) -> dict[str, Any]:
        if part != "scheduler":
            return read_config(self.configs / part / "config.json")
        values = read_config(self.configs / part / "scheduler_config.json")
        marks = set(self._tensors("v_pred")) | set(self._tensors("ztsnr"))
        if "v_pred" in marks:
            values["prediction_type"] = "v_prediction"
        elif self.setup.base.family == "sd2":
            del values["prediction_type"]
        return {**values, "rescale_betas_zero_snr": "ztsnr" in marks}

    def identity(self, *parts: str) -> str:
        found = [self.setup.base_digest]
        if any(part in self.encoders for part in parts):
            vocabulary = vocabulary_file()
            found.append(sha256_file(vocabulary) if vocabulary else str(self._tokenizer_folder()))
        return "/".join([*found, *parts])

    def load_unet(self) -> nn.Module:
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        unet: nn.Module = self._load(UNet2DConditionModel, "unet", UNET, self.setup.dtype)
        return unet

    def load_vae(self) -> Any:
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        return self._load(AutoencoderKL, "vae", VAE, torch.float32)

    def load_text(self, encoder: str, dtype: torch.dtype) -> nn.Module:
        from transformers.models.clip.configuration_clip import CLIPTextConfig

        quiet()
        values = read_config(self.configs / encoder / "config.json")
        with torch.device("meta"):
            model: nn.Module = text_class(encoder)(CLIPTextConfig(**values))
        name = (self.setup.base.family, encoder)
        if name in CLIP:
            found = self._tensors(CLIP[name])
        else:
            found = from_openclip(self._tensors(OPENCLIP[name]), int(values["num_hidden_layers"]))
        short = {key.removeprefix("text_model."): tensor.to(dtype) for key, tensor in found.items()}
        wanted = {key: key.removeprefix("text_model.") for key in model.state_dict()}
        try:
            model.load_state_dict(
                {key: short[name] for key, name in wanted.items() if name in short}, strict=True, assign=True
            )
        except RuntimeError as error:
            raise self._broken(encoder, error) from error
        _count_positions(model)
        return model.eval()

    def load_tokenizer(self, encoder: str) -> Any:
        """CLIP's; OpenCLIP pads with 0 (`!`) where CLIP-L pads with the end token."""
        openclip = (self.setup.base.family, encoder) in OPENCLIP
        if (vocabulary := vocabulary_file()) is not None:
            return clip_tokenizer(vocabulary, pad="!" if openclip else None)
        folder = self._tokenizer_folder()
        if folder.is_dir():
            from transformers.models.clip.tokenization_clip import CLIPTokenizer

            pad: dict[str, Any] = {"pad_token": "!"} if openclip else {}
            return CLIPTokenizer.from_pretrained(str(folder), local_files_only=True, **pad)
        raise ModelError(
            f"{self.file} carries no tokenizer, and the CLIP vocabulary is not installed.",
            f"pip install --no-deps open-clip-torch, or put a CLIP tokenizer's files into {folder}.",
        )

    def _tokenizer_folder(self) -> Path:
        return self.file.parent / "tokenizer"

    def _tensors(self, prefix: str, *, keep: bool = False) -> dict[str, Tensor]:
        """The file's tensors behind `prefix`, which is cut off unless `keep`; nothing else is read."""
        from safetensors import safe_open

        with safe_open(str(self.file), framework="pt") as file:
            return {
                key if keep else key.removeprefix(prefix) or key: file.get_tensor(key)
                for key in file.keys()  # noqa: SIM118 - not a dict
                if key.startswith(prefix)
            }

    def _load(self, kind: Any, part: str, prefix: str, dtype: torch.dtype) -> Any:
        quiet()
        try:
            return kind.from_single_file(
                self._tensors(prefix, keep=True),
                config=str(self.configs),
                subfolder=part,
                torch_dtype=dtype,
                local_files_only=True,
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise self._broken(part, error) from error

    def _broken(self, part: str, error: BaseException) -> ModelError:
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        return ModelError(
            f"The {part} of {self.file} cannot be loaded: {text}",
            f"Is it a whole {self.setup.base.family} checkpoint?",
        )


def _count_positions(model: nn.Module) -> None:
    """The one buffer of CLIP's text model is no part of its weights: 0, 1, 2, ..., shape (1, positions)."""
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_meta:
                module.register_buffer(name, torch.arange(buffer.shape[-1])[None], persistent=False)
