"""The original (LDM, sgm) layout of a checkpoint, written out of diffusers' and transformers' names."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
_RESNET = (
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("time_emb_proj", "emb_layers.1"),
    ("conv_shortcut", "skip_connection"),
)
_TEXT = (
    ("layer_norm1.", "ln_1."),
    ("layer_norm2.", "ln_2."),
    ("self_attn.out_proj.", "attn.out_proj."),
    ("mlp.fc1.", "mlp.c_fc."),
    ("mlp.fc2.", "mlp.c_proj."),
)


def unet_to_ldm(unet: Mapping[str, Tensor], config: Mapping[str, Any]) -> Tensors:
    """`model.diffusion_model....` of a UNet with this diffusers config."""
    depth, layers = len(config["block_out_channels"]), int(config["layers_per_block"])
    blocks: list[tuple[str, str]] = []
    for i in range(depth):
        step = layers + 1
        for j in range(layers):
            number = step * i + j + 1
            blocks += [
                (f"down_blocks.{i}.resnets.{j}.", f"input_blocks.{number}.0."),
                (f"down_blocks.{i}.attentions.{j}.", f"input_blocks.{number}.1."),
            ]
        for j in range(step):
            blocks += [
                (f"up_blocks.{i}.resnets.{j}.", f"output_blocks.{step * i + j}.0."),
                (f"up_blocks.{i}.attentions.{j}.", f"output_blocks.{step * i + j}.1."),
            ]
        place = 2 if "Attn" in config["up_block_types"][i] else 1
        blocks += [
            (f"down_blocks.{i}.downsamplers.0.conv.", f"input_blocks.{step * (i + 1)}.0.op."),
            (f"up_blocks.{i}.upsamplers.0.", f"output_blocks.{step * i + layers}.{place}."),
        ]
    blocks += [
        ("mid_block.attentions.0.", "middle_block.1."),
        ("mid_block.resnets.0.", "middle_block.0."),
        ("mid_block.resnets.1.", "middle_block.2."),
        ("time_embedding.linear_1.", "time_embed.0."),
        ("time_embedding.linear_2.", "time_embed.2."),
        ("add_embedding.linear_1.", "label_emb.0.0."),
        ("add_embedding.linear_2.", "label_emb.0.2."),
        ("conv_in.", "input_blocks.0.0."),
        ("conv_norm_out.", "out.0."),
        ("conv_out.", "out.2."),
    ]
    out: Tensors = {}
    for name, tensor in unet.items():
        start, new = next((a, b) for a, b in blocks if name.startswith(a))
        rest = name.removeprefix(start)
        if "resnets" in start:
            for ours, theirs in _RESNET:
                rest = rest.replace(f"{ours}.", f"{theirs}.") if rest.startswith(f"{ours}.") else rest
        out[f"model.diffusion_model.{new}{rest}"] = tensor
    return out


def vae_to_ldm(vae: Mapping[str, Tensor]) -> Tensors:
    """`first_stage_model....`"""
    out: Tensors = {}
    for name, tensor in vae.items():
        new = name
        for i in range(4):
            for j in range(3):
                new = new.replace(f"encoder.down_blocks.{i}.resnets.{j}.", f"encoder.down.{i}.block.{j}.")
                new = new.replace(f"decoder.up_blocks.{i}.resnets.{j}.", f"decoder.up.{3 - i}.block.{j}.")
            new = new.replace(f"down_blocks.{i}.downsamplers.0.", f"down.{i}.downsample.")
            new = new.replace(f"up_blocks.{i}.upsamplers.0.", f"up.{3 - i}.upsample.")
        for ours, theirs in (
            ("mid_block.resnets.0.", "mid.block_1."),
            ("mid_block.resnets.1.", "mid.block_2."),
            ("mid_block.attentions.0.", "mid.attn_1."),
            ("conv_norm_out", "norm_out"),
            ("conv_shortcut", "nin_shortcut"),
        ):
            new = new.replace(ours, theirs)
        if ".attn_1." in new:
            for ours, theirs in (
                ("group_norm", "norm"),
                ("to_q", "q"),
                ("to_k", "k"),
                ("to_v", "v"),
                ("to_out.0", "proj_out"),
            ):
                new = new.replace(f"attn_1.{ours}.", f"attn_1.{theirs}.")
            tensor = tensor[:, :, None, None] if tensor.ndim == 2 else tensor
        out[f"first_stage_model.{new}"] = tensor
    return out


def clip_to_ldm(text: Mapping[str, Tensor], prefix: str) -> Tensors:
    """CLIP-L behind `prefix` (`cond_stage_model.transformer.`, `conditioner.embedders.0.transformer.`)."""
    out = {f"{prefix}text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in text.items()}
    return {**out, f"{prefix}text_model.embeddings.position_ids": torch.arange(77)[None]}


def openclip_to_ldm(text: Mapping[str, Tensor], prefix: str) -> Tensors:
    """OpenCLIP behind `prefix` (`cond_stage_model.model.`, `conditioner.embedders.1.model.`)."""
    out: Tensors = {f"{prefix}logit_scale": torch.ones(())}
    short = {name.removeprefix("text_model."): tensor for name, tensor in text.items()}
    for name, tensor in short.items():
        if name == "text_projection.weight":
            out[f"{prefix}text_projection"] = tensor.T
        elif name.startswith("embeddings.token"):
            out[f"{prefix}token_embedding.weight"] = tensor
        elif name.startswith("embeddings.position"):
            out[f"{prefix}positional_embedding"] = tensor
        elif name.startswith("final_layer_norm."):
            out[f"{prefix}ln_final.{name.rpartition('.')[2]}"] = tensor
        elif ".q_proj." in name:
            joined = torch.cat([short[name.replace("q_proj", f"{part}_proj")] for part in "qkv"])
            layer, end = name.split(".")[2], name.rpartition(".")[2]
            out[f"{prefix}transformer.resblocks.{layer}.attn.in_proj_{end}"] = joined
        elif ".k_proj." not in name and ".v_proj." not in name:
            new = name.replace("encoder.layers.", "transformer.resblocks.")
            for ours, theirs in _TEXT:
                new = new.replace(ours, theirs)
            out[f"{prefix}{new}"] = tensor
    return out


def stream(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a .safetensors of fp16 or int64 tensors, which may share their memory."""
    header: dict[str, Any] = {}
    place = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        kind = {torch.float16: "F16", torch.float32: "F32", torch.int64: "I64"}[tensor.dtype]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [place, place + size]}
        place += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            file.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)


def contiguous(*parts: Tensors) -> Tensors:
    """One file's tensors."""
    return {name: tensor.contiguous() for part in parts for name, tensor in part.items()}
