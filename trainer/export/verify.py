"""Every file is read back after writing and compared with what was trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch

from trainer.errors import TrainerError
from trainer.export.effect import delta, scale
from trainer.export.names import classic
from trainer.lora import Adapter, Layer


def check(path: Path, written: Mapping[str, Adapter], read: Mapping[str, Adapter]) -> None:
    """Raises TrainerError that names the file and the first module whose tensors or scale differ."""
    for component, adapter in written.items():
        wanted = {classic(component, name) if component else name: la for name, la in adapter.layers.items()}
        found = read[component].layers if component in read else {}
        if wanted.keys() != found.keys():
            odd = sorted(wanted.keys() ^ found.keys())
            raise _wrong(path, f"{len(odd)} modules are not those trained (the first: {component} {odd[0]})")
        for module, layer in wanted.items():
            fault = _difference(layer, adapter.rslora, found[module], read[component].rslora)
            if fault:
                raise _wrong(path, f"{component} {module}: {fault}".strip())
    extra = read.keys() - written.keys()
    if extra:
        raise _wrong(path, f"it holds {', '.join(sorted(extra))}, which was not trained")


def _difference(layer: Layer, rslora: bool, other: Layer, other_rslora: bool) -> str:
    if layer.kind != other.kind or layer.tensors.keys() != other.tensors.keys():
        return "its tensors are of another kind"
    for name, tensor in layer.tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            return f"{name} is not a number"
    same = all(torch.equal(tensor, other.tensors[name]) for name, tensor in layer.tensors.items())
    one, two = scale(layer, rslora), scale(other, other_rslora)
    if same and math.isclose(one, two, rel_tol=1e-6):
        return ""
    if layer.kind == "lokr" and torch.allclose(delta(layer, rslora), delta(other, other_rslora), rtol=1e-5):
        return ""
    return f"its scale is {two:g} and not {one:g}" if same else "its tensors differ"


def _wrong(path: Path, what: str) -> TrainerError:
    return TrainerError(
        f"{path} was written, but does not say what was trained: {what}.",
        "The checkpoint is whole: run the same command again. If it fails again, the trainer is at fault.",
    )
