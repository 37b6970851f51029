"""What a LoRA file or folder is, from its header alone. Imports no torch."""

from __future__ import annotations

import json
import math
import re
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from trainer.errors import ModelError, UserError
from trainer.export.keys import COMPONENTS, PEFT_ROOT, Place, diffusers_key, kohya_key, peft_key, plausible
from trainer.export.names import Family, naming
from trainer.files import json_object
from trainer.models.sniff import read_header

Format = Literal["kohya", "diffusers", "peft"]
CONFIG, WEIGHTS, DIFFUSERS = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "pytorch_lora_weights.safetensors",
)
_WIDTHS: dict[int, Family] = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
_SCALARS = {"F32": ("<f", 4), "F16": ("<e", 2), "F64": ("<d", 8)}


@dataclass(frozen=True)
class Told:
    """`family` is unset for a language model, or when nothing tells it. `shapes`: {component: {module: {part:
    shape}}}, `alphas` likewise without the part; a language model's component is "". `folders` of a peft
    adapter by component; `bare` are the keys as they stand in the files."""

    path: Path
    format: Format
    family: Family | None
    shapes: dict[str, dict[str, dict[str, tuple[int, ...]]]]
    kinds: dict[str, int]
    alphas: dict[str, dict[str, float]]
    rslora: bool
    dtypes: dict[str, int]
    size: int
    metadata: dict[str, str]
    config: dict[str, Any] = field(default_factory=dict)
    folders: dict[str, Path] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    bare: tuple[str, ...] = ()

    def rank(self, component: str, module: str) -> int | None:
        """None for a lokr of two whole matrices."""
        return rank_of(self.shapes[component][module])

    def scale(self, component: str, module: str) -> float:
        """What the product of the tensors is multiplied with by a reader of this format."""
        rank = self.rank(component, module)
        alpha = self.alphas.get(component, {}).get(module)
        if rank is None or alpha is None:
            return 1.0
        return alpha / (math.sqrt(rank) if self.rslora else rank)


def rank_of(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """The rank, from the shapes of a module's parts."""
    for part in ("down", "w1_b", "w2_b"):
        if part in shapes:
            return shapes[part][0]
    return None


def tell(path: Path) -> Told:
    """Raises UserError if `path` is no LoRA, ModelError if it is damaged."""
    if path.is_dir():
        return _folder(path)
    if not path.exists():
        raise UserError(f"{path} does not exist.", "Name a .safetensors file, or the folder of an adapter.")
    if path.suffix.lower() != ".safetensors":
        raise UserError(
            f"{path} is no .safetensors file.", "Name a .safetensors file, or an adapter's folder."
        )
    if path.name == WEIGHTS and (path.parent / CONFIG).is_file():
        return _peft(path.parent, {"": path.parent})
    header = _header(path)
    keys = [key for key in header if key != "__metadata__"]
    metadata = {str(k): str(v) for k, v in (header.get("__metadata__") or {}).items()}
    if any(key.startswith(("lora_unet_", "lora_te")) for key in keys):
        return _file(path, "kohya", header, metadata)
    if any(key.split(".")[0] in COMPONENTS and "lora" in key for key in keys):
        return _file(path, "diffusers", header, metadata)
    if any(key.startswith(PEFT_ROOT) and peft_key(key) for key in keys):
        raise UserError(
            f"{path} holds a LoRA, but no {CONFIG} lies beside it: its alpha is not known.",
            "Copy the whole adapter folder.",
        )
    if any("lora" in key for key in keys):
        raise UserError(
            f"{path} is a LoRA of another kind of model (its first key is {sorted(keys)[0]}).",
            "Stable Diffusion 1.x, 2.x and XL, and peft folders of language models, are known.",
        )
    raise UserError(f"{path} is no LoRA (its first key is {sorted(keys)[0] if keys else 'none'}).")


def _header(path: Path) -> dict[str, Any]:
    header = read_header(path)
    for key, entry in header.items():
        if key != "__metadata__" and not (isinstance(entry.get("shape"), list) and "dtype" in entry):
            raise ModelError(f"{path}: {key} has no shape or no dtype.", "Copy or download it again.")
    return header


def _folder(path: Path) -> Told:
    if (path / CONFIG).is_file():
        return _peft(path, {"": path})
    folders = {part: path / part for part in COMPONENTS if (path / part / CONFIG).is_file()}
    if folders:
        return _peft(path, folders)
    if (path / DIFFUSERS).is_file():
        return tell(path / DIFFUSERS)
    raise UserError(
        f"{path} is no adapter: it holds neither {CONFIG} nor {DIFFUSERS}.", "Name the file itself."
    )


def _file(path: Path, kind: Format, header: Mapping[str, Any], metadata: dict[str, str]) -> Told:
    names = naming("sdxl")
    found = _Found()
    for key, entry in header.items():
        if key == "__metadata__":
            continue
        place = kohya_key(key, names) if kind == "kohya" else diffusers_key(key)
        found.add(key, place, entry)
    alphas = _stored_alphas(path, found.scalars) if kind == "kohya" else _described_alphas(metadata, found)
    rslora = any(part.get("use_rslora") for part in described_parts(metadata).values())
    family = family_of_shapes(found.shapes, tuple(header)) or _family_said(metadata)
    return Told(
        path,
        kind,
        family,
        found.shapes,
        dict(found.kinds),
        alphas,
        rslora,
        dict(found.dtypes),
        path.stat().st_size,
        metadata,
        unknown=tuple(sorted(found.unknown)),
        bare=tuple(key for key in header if key != "__metadata__"),
    )


def _peft(path: Path, folders: dict[str, Path]) -> Told:
    found = _Found()
    config: dict[str, Any] = {}
    metadata: dict[str, str] = {}
    alphas: dict[str, dict[str, float]] = {}
    size = 0
    for component, folder in folders.items():
        weights = folder / WEIGHTS
        if not weights.is_file():
            raise UserError(f"{folder} lacks {WEIGHTS}.", "Copy the whole adapter folder.")
        config = adapter_json(folder / CONFIG)
        size += weights.stat().st_size
        header = _header(weights)
        metadata |= header.get("__metadata__") or {}
        for key, entry in header.items():
            if key != "__metadata__":
                place = peft_key(key)
                found.add(key, place and place._replace(component=component), entry)
        for module, shapes in found.shapes.get(component, {}).items():
            alpha = alpha_of(module, rank_of(shapes) or 1, config)
            alphas.setdefault(component, {})[module] = alpha
    return Told(
        path,
        "peft",
        family_of_shapes(found.shapes, ()),
        found.shapes,
        dict(found.kinds),
        alphas,
        bool(config.get("use_rslora")),
        dict(found.dtypes),
        size,
        metadata,
        config,
        folders,
        tuple(sorted(found.unknown)),
    )


class _Found:
    """What the keys of a header add up to."""

    def __init__(self) -> None:
        self.shapes: dict[str, dict[str, dict[str, tuple[int, ...]]]] = {}
        self.scalars: dict[tuple[str, str], Mapping[str, Any]] = {}
        self.kinds: Counter[str] = Counter()
        self.dtypes: Counter[str] = Counter()
        self.unknown: list[str] = []

    def add(self, key: str, place: Place | None, entry: Mapping[str, Any]) -> None:
        if place is None or not plausible(place.part, entry["shape"]):
            self.unknown.append(key)
            return
        if place.part == "alpha":
            self.scalars[place.component, place.module] = entry
            return
        parts = self.shapes.setdefault(place.component, {}).setdefault(place.module, {})
        if place.kind is not None and not parts.keys() - {"magnitude"}:
            self.kinds[place.kind] += 1
        parts[place.part] = tuple(entry["shape"])
        self.dtypes[str(entry["dtype"])] += 1


def _stored_alphas(
    path: Path, entries: Mapping[tuple[str, str], Mapping[str, Any]]
) -> dict[str, dict[str, float]]:
    """The NAME.alpha scalars themselves."""
    alphas: dict[str, dict[str, float]] = {}
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        for (component, module), entry in entries.items():
            start, end = entry["data_offsets"]
            file.seek(8 + length + start)
            data = file.read(end - start)
            if entry["dtype"] == "BF16":
                value = struct.unpack("<f", b"\0\0" + data[:2])[0]
            elif entry["dtype"] in _SCALARS:
                code, width = _SCALARS[entry["dtype"]]
                value = struct.unpack(code, data[:width])[0]
            else:
                value = float(int.from_bytes(data, "little", signed=True))
            alphas.setdefault(component, {})[module] = value
    return alphas


def _described_alphas(metadata: Mapping[str, str], found: _Found) -> dict[str, dict[str, float]]:
    described = described_parts(metadata)
    return {
        component: {
            module: alpha_of(module, rank_of(shapes) or 1, described[component])
            for module, shapes in modules.items()
        }
        for component, modules in found.shapes.items()
        if component in described
    }


def described_parts(metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """{component: peft's config} of `lora_adapter_metadata`; empty without. Raises UserError if damaged."""
    text = metadata.get("lora_adapter_metadata")
    if not text:
        return {}
    described: dict[str, dict[str, Any]] = {}
    try:
        for key, value in json.loads(text).items():
            component, _, name = key.partition(".")
            described.setdefault(component, {})[name] = value
    except (ValueError, AttributeError):
        raise UserError("The file's lora_adapter_metadata is no JSON object.", "Export it again.") from None
    return described


def alpha_of(module: str, rank: int, described: Mapping[str, Any]) -> float:
    """The alpha that peft takes for `module`: alpha_pattern (keys are ends of paths, or patterns for them),
    then lora_alpha, then peft's own 8; `rank` if there is no description at all. Raises UserError."""
    if not described:
        return float(rank)
    alpha = described.get("lora_alpha", described.get("alpha", 8))
    patterns = described.get("alpha_pattern") or {}
    try:
        for key, value in patterns.items():
            if re.fullmatch(rf"(?:.*\.)?(?:{key})", module):
                alpha = value
                break
        return float(alpha)
    except (re.error, TypeError, ValueError, AttributeError):
        raise UserError(
            f"The adapter's alpha cannot be read: lora_alpha {alpha!r}, alpha_pattern {patterns!r}.",
            "Export the adapter again.",
        ) from None


def adapter_json(path: Path) -> dict[str, Any]:
    """Raises UserError."""
    return json_object(path, UserError, "Copy the adapter's folder again.")


def family_of_shapes(
    shapes: Mapping[str, Mapping[str, Mapping[str, tuple[int, ...]]]], keys: tuple[str, ...]
) -> Family | None:
    """The width that the UNet's cross attention reads tells the family; else what only SDXL has."""
    for module, parts in shapes.get("unet", {}).items():
        if module.endswith(("attn2.to_k", "attn2.to_v")):
            width = _width(parts)
            if width in _WIDTHS:
                return _WIDTHS[width]
    if "text_encoder_2" in shapes or any("input_blocks" in key or "lora_te2_" in key for key in keys):
        return "sdxl"
    for module, parts in shapes.get("text_encoder", {}).items():
        if module.endswith("q_proj") and _width(parts) in (768, 1024):
            return _WIDTHS[_width(parts) or 768]
    return None


def _width(parts: Mapping[str, tuple[int, ...]]) -> int | None:
    if "down" in parts:
        return parts["down"][1]
    if "w1_b" in parts and "w2_a" in parts and "w1_a" in parts:
        return parts["w1_b"][1]
    left = parts.get("w1", parts.get("w1_b"))
    right = parts.get("w2", parts.get("w2_b"))
    return left[1] * right[1] if left and right else None


def _family_said(metadata: Mapping[str, str]) -> Family | None:
    version = metadata.get("ss_base_model_version", "")
    return (
        "sdxl"
        if version.startswith("sdxl")
        else "sd2"
        if version.startswith("sd_v2")
        else "sd1"
        if version.startswith("sd_v1")
        else None
    )
