"""Tell what a base model is from the model itself, before anything is loaded. Imports no torch."""

from __future__ import annotations

import difflib
import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trainer.errors import ModelError

Family = Literal["sd15", "causal-lm"]
Format = Literal["diffusers", "single-file", "gguf", "folder"]
_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


@dataclass(frozen=True)
class BaseModel:
    """A base model on disk."""

    path: Path
    family: Family
    format: Format

    @property
    def kind(self) -> Literal["images", "text"]:
        return "text" if self.family == "causal-lm" else "images"


def native_resolution(base: BaseModel) -> int:
    """The side in pixels that an image model was made for: sample_size times the VAE's factor."""
    if base.format != "diffusers":
        return 512
    unet, vae = (base.path / part / "config.json" for part in ("unet", "vae"))
    if not (unet.is_file() and vae.is_file()):
        return 512
    factor = 2 ** (len(_read_json(vae).get("block_out_channels", [0] * 4)) - 1)
    return int(_read_json(unet).get("sample_size") or 64) * int(factor)


def sniff(path: Path) -> BaseModel:
    """What the file or folder `path` is. Raises ModelError that names what was found and what to do."""
    if path.is_dir():
        return _folder(path)
    if not path.exists():
        raise _missing(path)
    suffix = path.suffix.lower()
    if suffix == ".gguf":
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise ModelError(f"{path} is not a GGUF file (or is damaged).", "Copy it again.")
        return BaseModel(path, "causal-lm", "gguf")
    if suffix == ".safetensors":
        return _single_file(path)
    if suffix in (".ckpt", ".pt", ".pth", ".bin"):
        raise ModelError(
            f"{path} is a pickle, which can run code when it is opened.",
            "Convert it to .safetensors and name that file in base_model.",
        )
    raise ModelError(
        f"{path} is no model that can be trained.",
        "base_model is a diffusers folder, an SD 1.5 .safetensors file, a .gguf file, or the folder of "
        "a causal language model.",
    )


def _missing(path: Path) -> ModelError:
    if path.parent.is_dir():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir()], n=1)
        hint = (
            f"Did you mean {path.parent / near[0]}?"
            if near
            else f"{path.parent} exists, but holds no such name."
        )
    else:
        hint = f"Its folder {path.parent} does not exist either."
    return ModelError(
        f"The base model {path} does not exist.",
        f"{hint} Models are never downloaded: base_model is a path on this machine.",
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}.", "Copy the model again.") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds no JSON object.", "Copy the model again.")
    return value


def _folder(path: Path) -> BaseModel:
    if (path / "model_index.json").is_file():
        name = str(_read_json(path / "model_index.json").get("_class_name"))
        if name != "StableDiffusionPipeline":
            raise ModelError(
                f"{path} is a {name}, which this trainer cannot train yet.",
                "Use a Stable Diffusion 1.x or 2.x pipeline.",
            )
        missing = [part for part in _PARTS if not (path / part).is_dir()]
        if missing:
            raise ModelError(
                f"{path} lacks the folders {', '.join(missing)}.", "Copy the whole pipeline again."
            )
        return BaseModel(path, "sd15", "diffusers")
    if (path / "adapter_config.json").is_file():
        raise ModelError(
            f"{path} is a LoRA adapter, not a base model.", "Name the model that it was trained on."
        )
    if (path / "config.json").is_file():
        architectures = _read_json(path / "config.json").get("architectures") or ["unknown"]
        if not str(architectures[0]).endswith(("ForCausalLM", "LMHeadModel")):
            raise ModelError(
                f"{path} is a {architectures[0]}, not a causal language model.",
                "Name the folder of a ...ForCausalLM model, or a diffusers pipeline's top folder.",
            )
        return BaseModel(path, "causal-lm", "folder")
    files = sorted(p.name for p in path.iterdir() if p.suffix.lower() in (".gguf", ".safetensors"))
    raise ModelError(
        f"{path} holds neither model_index.json nor config.json.",
        f"It holds {', '.join(files[:3])}: name the file itself."
        if files
        else "base_model is the folder that holds one of them.",
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


_OTHERS: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("lora_unet_", "lora_te", "lora_A.weight", "lora_down.weight", "lora.down.weight"),
        "is a LoRA adapter, not a base model. Name the model that it was trained on.",
    ),
    (("conditioner.embedders.",), "is an SDXL model, which this trainer cannot train yet. Use SD 1.5."),
    (
        ("cond_stage_model.model.",),
        "is an SD 2 single file, which this trainer cannot read. Use its diffusers folder.",
    ),
    (
        ("double_blocks.", "single_blocks."),
        "is a FLUX model, which this trainer cannot train yet. Use SD 1.5.",
    ),
    (("joint_blocks.",), "is an SD 3 model, which this trainer cannot train yet. Use SD 1.5."),
    (("control_model.",), "is a ControlNet, not a base model."),
    (
        ("model.layers.", "transformer.h."),
        "is one file of a language model. Name its folder (with config.json).",
    ),
    (("model.diffusion_model.",), "holds a UNet without the text encoder of SD 1.5. Use a full checkpoint."),
    (("encoder.conv_in", "first_stage_model."), "is a VAE, not a whole model."),
)


def _single_file(path: Path) -> BaseModel:
    header = read_header(path)
    keys = [key for key in header if key != "__metadata__"]

    def has(part: str) -> bool:
        return any(part in key for key in keys)

    if (
        has("model.diffusion_model.input_blocks.")
        and has("cond_stage_model.transformer.")
        and has("first_stage_model.")
        and not has("conditioner.embedders.")
    ):
        channels = header.get("model.diffusion_model.input_blocks.0.0.weight", {}).get("shape", [0, 4])[1]
        if channels != 4:
            raise ModelError(
                f"{path} is an inpainting or editing model ({channels} channels in).", "Use SD 1.5."
            )
        return BaseModel(path, "sd15", "single-file")
    for parts, message in _OTHERS:
        if any(has(part) for part in parts):
            raise ModelError(f"{path} {message}")
    raise ModelError(
        f"{path} is no model that this trainer knows (its first key is {keys[0] if keys else 'none'}).",
        "Use an SD 1.5 checkpoint, a diffusers folder, or a causal language model.",
    )
