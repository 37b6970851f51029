"""Tell what a base model is from the model itself, before anything is loaded. Imports no torch (a family of
a plugin may)."""

from __future__ import annotations

import difflib
import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trainer.config import TrainConfig
from trainer.errors import ModelError
from trainer.files import json_object
from trainer.plugins import load_plugins, registered

Format = Literal["diffusers", "single-file", "gguf", "folder", "plugin"]
_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
_USABLE = "SD 1.x, SD 2.x and SDXL can be trained."
FAMILIES = {"sd15": "Stable Diffusion 1.x", "sd2": "Stable Diffusion 2.x", "sdxl": "Stable Diffusion XL"}
"""What people call the families of images."""
_NATIVE = {"sd15": 512, "sd2": 768, "sdxl": 1024}


@dataclass(frozen=True)
class BaseModel:
    """A base model on disk. `family`: sd15, sd2, sdxl, causal-lm, or the name of a plugin's family."""

    path: Path
    family: str
    format: Format
    kind: Literal["images", "text"] = "images"


def base_of(config: TrainConfig) -> BaseModel:
    """What `base_model` is, the families of the config's plugins included. Raises ConfigError, ModelError."""
    load_plugins(config.plugins)
    return sniff(config.base_model)


def native_resolution(base: BaseModel) -> int:
    """The side in pixels that an image model was made for: sample_size times the VAE's factor."""
    if base.format != "diffusers":
        return _NATIVE.get(base.family, 512)
    unet, vae = (base.path / part / "config.json" for part in ("unet", "vae"))
    if not (unet.is_file() and vae.is_file()):
        return 512
    factor = 2 ** (len(_read_json(vae).get("block_out_channels", [0] * 4)) - 1)
    return int(_read_json(unet).get("sample_size") or 64) * int(factor)


def side_multiple(base: BaseModel) -> int:
    """What the sides of an image model's pictures are multiples of, in pixels: the factor of its VAE times
    that of its UNet. 8 where its configs do not say."""
    if base.format != "diffusers":
        return 32 if base.family == "sdxl" else 64
    factor = 1
    for part, default in (("unet", [0]), ("vae", [0] * 4)):
        config = base.path / part / "config.json"
        blocks = _read_json(config).get("block_out_channels") if config.is_file() else None
        factor *= 2 ** (len(blocks or default) - 1)
    return int(factor)


def sniff(path: Path) -> BaseModel:
    """What the file or folder `path` is; a family of a loaded plugin is asked first. Raises ModelError that
    names what was found and what to do."""
    for name, family in registered("family").items():
        if path.exists() and family.claims(path):
            return BaseModel(path, name, "plugin", "images" if family.unit == "images" else "text")
    if path.is_dir():
        return _folder(path)
    if not path.exists():
        raise _missing(path)
    suffix = path.suffix.lower()
    if suffix == ".gguf":
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise ModelError(f"{path} is not a GGUF file (or is damaged).", "Copy it again.")
        return BaseModel(path, "causal-lm", "gguf", "text")
    if suffix == ".safetensors":
        return _single_file(path)
    if suffix in (".ckpt", ".pt", ".pth", ".bin"):
        raise ModelError(
            f"{path} is a pickle, which can run code when it is opened.",
            "Convert it to .safetensors and name that file in base_model.",
        )
    raise ModelError(
        f"{path} is no model that can be trained.",
        "base_model is a diffusers folder, an SD 1.5 or SDXL .safetensors file, a .gguf file, or the folder "
        "of a causal language model.",
    )


def _missing(path: Path) -> ModelError:
    if path.parent.is_dir():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir()], n=1)
        hint = (
            f"Did you mean {path.parent / near[0]}?"
            if near
            else f"{path.parent.absolute()} exists, but holds no such name."
        )
    else:
        hint = f"Its folder {path.parent} does not exist either."
    return ModelError(
        f"The base model {path} does not exist.",
        f"{hint} Models are never downloaded: base_model is a path on this machine.",
    )


def _read_json(path: Path) -> dict[str, Any]:
    return json_object(path, ModelError, "Copy the model again.")


def _folder(path: Path) -> BaseModel:
    if (path / "model_index.json").is_file():
        return _pipeline(path)
    if (path / "adapter_config.json").is_file():
        raise _adapter(path)
    if (path / "pytorch_lora_weights.safetensors").is_file():
        raise _adapter(path)
    if (path / "config.json").is_file():
        architectures = _read_json(path / "config.json").get("architectures") or ["unknown"]
        if not str(architectures[0]).endswith(("ForCausalLM", "LMHeadModel")):
            raise ModelError(
                f"{path} is a {architectures[0]}, not a causal language model.",
                "Name the folder of a ...ForCausalLM model, or a diffusers pipeline's top folder.",
            )
        return BaseModel(path, "causal-lm", "folder", "text")
    files = sorted(p.name for p in path.iterdir() if p.suffix.lower() in (".gguf", ".safetensors"))
    raise ModelError(
        f"{path} holds neither model_index.json nor config.json.",
        f"It holds {', '.join(files[:3])}: name the file itself."
        if files
        else "base_model is the folder that holds one of them.",
    )


def _pipeline(path: Path) -> BaseModel:
    name = str(_read_json(path / "model_index.json").get("_class_name"))
    if name not in ("StableDiffusionPipeline", "StableDiffusionXLPipeline"):
        raise ModelError(f"{path} is a {name}, which this trainer cannot train yet.", _USABLE)
    large = name == "StableDiffusionXLPipeline"
    parts = (*_PARTS, *(("text_encoder_2", "tokenizer_2") if large else ()))
    if missing := [part for part in parts if not (path / part).is_dir()]:
        raise ModelError(f"{path} lacks the folders {', '.join(missing)}.", "Copy the whole pipeline again.")
    unet = _read_json(path / "unet" / "config.json") if (path / "unet" / "config.json").is_file() else {}
    if (channels := unet.get("in_channels", 4)) != 4:
        raise _inpainting(path, int(channels))
    second = unet.get("cross_attention_dim") == 1024
    return BaseModel(path, "sdxl" if large else "sd2" if second else "sd15", "diffusers")


def _adapter(path: Path) -> ModelError:
    return ModelError(
        f"{path} is a LoRA adapter, not a base model.", "Name the model that it was trained on."
    )


def _inpainting(path: Path, channels: int) -> ModelError:
    return ModelError(
        f"{path} is an inpainting or editing model ({channels} channels in).",
        "Train on the text-to-image model that it was made from.",
    )


def read_header(path: Path) -> dict[str, Any]:
    """The JSON header of a .safetensors file. Raises ModelError if it is damaged or cut off."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > size - 8:
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        if max(ends, default=0) != size - 8 - length:
            raise ValueError("it is cut off")
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{path} is not a whole .safetensors file: {error}.", "Copy or download it again."
        ) from None
    assert isinstance(header, dict)
    return header


_LORA = (
    "lora_unet_",
    "lora_te",
    "lora_A.weight",
    "lora_down.weight",
    "lora.down.weight",
    "hada_w1_a",
    "lokr_w1",
    "lokr_w2",
)
_UNET, _VAE = "model.diffusion_model.input_blocks.", "first_stage_model."
_ONE_FILE: tuple[tuple[tuple[str, ...], str], ...] = (
    ((_UNET, _VAE, "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."), "sdxl"),
    ((_UNET, _VAE, "cond_stage_model.transformer."), "sd15"),
    ((_UNET, _VAE, "cond_stage_model.model."), "sd2"),
)
"""The families of a single file, by the key prefixes that it must have; the first that fits."""

_OTHERS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("conditioner.embedders.0.model.",), f"is an SDXL refiner, which cannot be trained. {_USABLE}"),
    (
        ("conditioner.embedders.",),
        "is an SDXL model without all of its parts (UNet, VAE, two text encoders). Use a full checkpoint.",
    ),
    (
        ("double_blocks.", "transformer_blocks.0.attn.add_q_proj"),
        f"is a FLUX model, which this trainer cannot train yet. {_USABLE}",
    ),
    (("joint_blocks.",), f"is an SD 3 model, which this trainer cannot train yet. {_USABLE}"),
    (("control_model.", "controlnet_"), "is a ControlNet, not a base model."),
    (
        ("model.layers.", "transformer.h."),
        "is one file of a language model. Name its folder (with config.json).",
    ),
    (
        ("model.diffusion_model.", "down_blocks.0.resnets."),
        "holds a UNet without its text encoder and VAE. Use a full checkpoint.",
    ),
    (("text_model.encoder.layers.",), "is a text encoder, not a whole model."),
    (("encoder.conv_in", _VAE), "is a VAE, not a whole model."),
)


def _single_file(path: Path) -> BaseModel:
    header = read_header(path)
    keys = [key for key in header if key != "__metadata__"]
    if any(part in key for key in keys for part in _LORA):
        raise _adapter(path)
    for prefixes, family in _ONE_FILE:
        if all(any(key.startswith(prefix) for key in keys) for prefix in prefixes):
            channels = header.get(f"{_UNET}0.0.weight", {}).get("shape", [0, 4])[1]
            if channels != 4:
                raise _inpainting(path, int(channels))
            return BaseModel(path, family, "single-file")
    for parts, message in _OTHERS:
        if any(part in key for key in keys for part in parts):
            raise ModelError(f"{path} {message}")
    raise ModelError(
        f"{path} is no model that this trainer knows (its first key is {keys[0] if keys else 'none'}).",
        "Use an SD 1.5 or SDXL checkpoint, a diffusers folder, or a causal language model.",
    )
