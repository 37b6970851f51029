"""What a module of Stable Diffusion is called in the file formats, both ways.

kohya's file flattens a path (`.` becomes `_`) behind a prefix for each part. SD 1.x and 2.x keep the names of
diffusers' UNet there, SDXL those of the original one ("sgm": input_blocks, middle_block, output_blocks).

transformers 5 flattened CLIPTextModel (`encoder.layers...`); A1111, ComfyUI and diffusers all expect
`text_model.encoder.layers...`, and the first two ignore anything else without a word.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, Literal

Family = Literal["sd1", "sd2", "sdxl"]

_PREFIXES: dict[Family, dict[str, str]] = {
    "sd1": {"unet": "lora_unet_", "text_encoder": "lora_te_"},
    "sd2": {"unet": "lora_unet_", "text_encoder": "lora_te_"},
    "sdxl": {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"},
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_out": "out.2",
}
_WORDS = """
    down_blocks up_blocks mid_block attentions resnets transformer_blocks downsamplers upsamplers attn1 attn2
    to_q to_k to_v to_out ff net proj proj_in proj_out conv conv1 conv2 conv_in conv_out conv_shortcut norm
    norm1 norm2 norm3 time_emb_proj time_embedding add_embedding linear_1 linear_2 text_model text_projection
    encoder layers self_attn q_proj k_proj v_proj out_proj mlp fc1 fc2 layer_norm1 layer_norm2
"""
_PATH = re.compile(rf"(?:{'|'.join(sorted(_WORDS.split(), key=len, reverse=True))}|\d+)(?=_|$)")


def classic(component: str, module: str) -> str:
    """The module's path as it was before transformers 5 (`text_model.` put back)."""
    if component == "unet" or module.startswith("text_model.") or module == "text_projection":
        return module
    return f"text_model.{module}"


def flat(component: str, module: str) -> str:
    """The path that ends every version's path of this module: without `text_model.`."""
    return module if component == "unet" else module.removeprefix("text_model.")


def sgm_names(layers: int, down_blocks: Sequence[str], up_blocks: Sequence[str]) -> dict[str, str]:
    """{path in diffusers' UNet: path in the original UNet} of resnets' layers, attentions, samplers and what
    lies outside the blocks, for `layers` resnets in a block and the blocks' class names.

    The original counts blocks through: one for conv_in, one for each resnet (with its attention behind it),
    one for each downsampler; an upsampler is the last entry of the block before it."""
    names = dict(_OUTSIDE)

    def resnet(ours: str, theirs: str) -> None:
        names.update({f"{ours}.{leaf}": f"{theirs}.{other}" for leaf, other in _RESNET.items()})

    number = 1
    for block in range(len(down_blocks)):
        for layer in range(layers):
            resnet(f"down_blocks.{block}.resnets.{layer}", f"input_blocks.{number}.0")
            names[f"down_blocks.{block}.attentions.{layer}"] = f"input_blocks.{number}.1"
            number += 1
        names[f"down_blocks.{block}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
        number += 1
    resnet("mid_block.resnets.0", "middle_block.0")
    names["mid_block.attentions.0"] = "middle_block.1"
    resnet("mid_block.resnets.1", "middle_block.2")
    for block, kind in enumerate(up_blocks):
        for layer in range(layers + 1):
            number = block * (layers + 1) + layer
            resnet(f"up_blocks.{block}.resnets.{layer}", f"output_blocks.{number}.0")
            names[f"up_blocks.{block}.attentions.{layer}"] = f"output_blocks.{number}.1"
        place = 2 if "Attn" in kind else 1
        names[f"up_blocks.{block}.upsamplers.0.conv"] = f"output_blocks.{number}.{place}.conv"
    return names


@dataclass(frozen=True)
class Naming:
    """The kohya names of one model's modules. `sgm` is empty where kohya keeps diffusers' names."""

    family: Family
    sgm: Mapping[str, str] = field(default_factory=dict)

    def kohya(self, component: str, module: str) -> str:
        """`lora_unet_down_blocks_0_...`, `lora_unet_input_blocks_4_1_...`, `lora_te1_text_model_...`."""
        path = classic(component, module)
        if component == "unet" and self.sgm:
            path = self._original(path)
        return _PREFIXES[self.family][component] + path.replace(".", "_")

    def module(self, name: str) -> tuple[str, str] | None:
        """(component, path in diffusers' or transformers' model, with `text_model.`) of a kohya name; None if
        it is of no kind that is known. Reads `lora_te_` and `lora_te1_`, sgm's and diffusers' names."""
        for prefix, component in (
            ("lora_unet_", "unet"),
            ("lora_te_", "text_encoder"),
            ("lora_te1_", "text_encoder"),
            ("lora_te2_", "text_encoder_2"),
        ):
            if name.startswith(prefix):
                path = _unflatten(name.removeprefix(prefix), self._backwards)
                return None if path is None else (component, path)
        return None

    def _original(self, path: str) -> str:
        end = len(path)
        while end > 0:
            if path[:end] in self.sgm:
                return self.sgm[path[:end]] + path[end:]
            end = path.rfind(".", 0, end)
        return path

    @cached_property
    def _backwards(self) -> dict[str, str]:
        return {theirs.replace(".", "_"): ours for ours, theirs in self.sgm.items()}


def family_of(unet: Mapping[str, Any]) -> Family:
    """Which Stable Diffusion a UNet with this diffusers config belongs to."""
    if unet.get("addition_embed_type") == "text_time":
        return "sdxl"
    return "sd2" if unet.get("cross_attention_dim") == 1024 else "sd1"


def naming(family: Family, unet: Mapping[str, Any] | None = None) -> Naming:
    """The names of `family`, for the UNet with the diffusers config `unet` (unset: the published one)."""
    if family != "sdxl":
        return Naming(family)
    if unet is None:
        return _published_sdxl()
    return Naming(
        family,
        sgm_names(int(unet["layers_per_block"]), unet["down_block_types"], unet["up_block_types"]),
    )


@cache
def _published_sdxl() -> Naming:
    down = ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")
    up = ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")
    return Naming("sdxl", sgm_names(2, down, up))


def _unflatten(path: str, sgm: Mapping[str, str]) -> str | None:
    """`down_blocks_0_attentions_1_proj_in` with its dots; None if it holds an unknown word."""
    end = len(path)
    while end > 0:
        if path[:end] in sgm:
            rest = path[end + 1 :]
            if not rest:
                return sgm[path[:end]]
            tail = _words(rest)
            return None if tail is None else f"{sgm[path[:end]]}.{tail}"
        end = path.rfind("_", 0, end)
    return _words(path)


def _words(path: str) -> str | None:
    words: list[str] = []
    place = 0
    while place < len(path):
        match = _PATH.match(path, place)
        if match is None:
            return None
        words.append(match.group())
        place = match.end() + 1
    return ".".join(words) or None
