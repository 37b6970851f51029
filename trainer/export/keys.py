"""Which tensor of which module a key of a LoRA file is, in each format. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import prod
from typing import Literal, NamedTuple

from trainer.export.names import Naming

Kind = Literal["lora", "loha", "lokr"]

COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
KOHYA = {"down": "lora_down.weight", "up": "lora_up.weight", "magnitude": "dora_scale", "alpha": "alpha"}
PEFT = {"down": "lora_A.weight", "up": "lora_B.weight", "magnitude": "lora_magnitude_vector"}
PREFIX: dict[Kind, str] = {"loha": "hada_", "lokr": "lokr_"}
PEFT_ROOT = "base_model.model."

_PRODUCTS = {
    **{f"hada_{part}": ("loha", part) for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f"lokr_{part}": ("lokr", part) for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
}
_DIFFUSERS = {
    **{end: part for part, end in PEFT.items()},
    "lora_magnitude_vector.weight": "magnitude",
    "lora.down.weight": "down",
    "lora.up.weight": "up",
    "lora_linear_layer.down.weight": "down",
    "lora_linear_layer.up.weight": "up",
}
_ENDS = re.compile(rf"(?P<module>.+)\.(?P<end>{'|'.join(map(re.escape, _DIFFUSERS))})")
_PROCESSOR = re.compile(r"(?P<module>.+)\.processor\.(?P<to>to_[qkv]|to_out)_lora\.(?P<end>down|up)\.weight")


class Place(NamedTuple):
    """`kind` is unset for an alpha; `part` is a name in Layer.tensors, or `alpha`."""

    component: str
    module: str
    kind: Kind | None
    part: str


def kohya_key(key: str, names: Naming) -> Place | None:
    """`lora_unet_..._to_q.lora_down.weight`; None if the module or the kind is unknown."""
    name, _, end = key.partition(".")
    found = names.module(name)
    if found is None:
        return None
    for part, ending in KOHYA.items():
        if end == ending:
            return Place(*found, None if part in ("alpha", "magnitude") else "lora", part)
    return _product(*found, end)


def diffusers_key(key: str) -> Place | None:
    """`unet.....lora_A.weight`, and the names of older versions; None if it is none of them."""
    component, _, rest = key.partition(".")
    if component not in COMPONENTS:
        return None
    old = _PROCESSOR.fullmatch(rest)
    if old:
        to = "to_out.0" if old["to"] == "to_out" else old["to"]
        return Place(component, f"{old['module']}.{to}", "lora", old["end"])
    match = _ENDS.fullmatch(rest)
    return None if match is None else Place(component, match["module"], "lora", _DIFFUSERS[match["end"]])


def peft_key(key: str) -> Place | None:
    """`base_model.model.<module>.lora_A.weight`; None if it is none of LoRA, LoHa and LoKr."""
    path = key.removeprefix(PEFT_ROOT)
    match = _ENDS.fullmatch(path)
    if match:
        return Place("", match["module"], "lora", _DIFFUSERS[match["end"]])
    module, _, end = path.rpartition(".")
    return _product("", module, end)


def plausible(part: str, shape: Sequence[int]) -> bool:
    """Whether a tensor of this shape can be that part of a module: number, vector, or at least matrix."""
    if part == "alpha":
        return prod(shape) == 1
    return 0 not in shape and len(shape) >= (1 if part == "magnitude" else 2)


def coherent(kind: Kind, shapes: Mapping[str, Sequence[int]]) -> bool:
    """Whether plausible parts make up a whole module: none is missing, and the ranks agree."""
    have = shapes.keys()
    if kind == "lora":
        if not {"down", "up"} <= have or shapes["down"][0] != shapes["up"][1]:
            return False
        return "magnitude" not in have or prod(shapes["magnitude"]) in (shapes["up"][0], shapes["down"][1])
    for factor in ("w1", "w2"):
        if kind == "lokr" and factor in have:
            continue
        a, b, core = shapes.get(f"{factor}_a"), shapes.get(f"{factor}_b"), shapes.get(f"t{factor[1]}")
        if a is None or b is None:
            return False
        if core is None and a[1] != b[0]:
            return False
        if core is not None and (len(core) != 4 or tuple(core[:2]) != (a[0], b[0])):
            return False
    return True


def by_input(dora_scale: tuple[int, ...]) -> bool:
    """Whether kohya's `dora_scale` of this shape holds a magnitude for each input (older LyCORIS)."""
    return len(dora_scale) > 1 and dora_scale[0] == 1 and dora_scale[1] > 1


def _product(component: str, module: str, end: str) -> Place | None:
    if end not in _PRODUCTS:
        return None
    kind, part = _PRODUCTS[end]
    return Place(component, module, kind, part)  # type: ignore[arg-type]
