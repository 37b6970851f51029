"""The published architectures, without weights (`meta`), and tiny ones of the same make."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

LINEAR_HOSTS = ("Transformer2DModel",)
CONV_HOSTS = ("ResnetBlock2D", "Downsample2D", "Upsample2D")
TEXT_HOSTS = ("CLIPAttention", "CLIPMLP")

SD15: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
SDXL: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
TINY_SD: dict[str, Any] = SD15 | {
    "block_out_channels": (16, 32, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": 32,
    "norm_num_groups": 8,
}
TINY_SDXL: dict[str, Any] = SDXL | {
    "block_out_channels": (16, 16, 32),
    "transformer_layers_per_block": (1, 1, 2),
    "cross_attention_dim": 64,
    "attention_head_dim": 8,
    "norm_num_groups": 8,
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 80,
}


def unet(config: dict[str, Any], device: str = "meta", seed: int = 0) -> Any:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        return UNet2DConditionModel(**config)


def text_encoder(width: int, layers: int, heads: int, device: str = "meta", projection: bool = False) -> Any:
    from transformers.models.clip.configuration_clip import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=100,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        projection_dim=width,
        eos_token_id=99,
        bos_token_id=98,
        pad_token_id=99,
    )
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(0)
        return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def hosted(model: nn.Module, hosts: tuple[str, ...]) -> list[str]:
    """Paths of the linear and convolution layers inside modules of these classes: kohya's way to choose."""
    found = set()
    for path, module in model.named_modules():
        if type(module).__name__ in hosts:
            for inner, layer in module.named_modules():
                if isinstance(layer, nn.Linear | nn.Conv2d):
                    found.add(f"{path}.{inner}")
    return sorted(found)
