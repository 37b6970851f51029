"""`ss_*` and `modelspec.*` of a kohya file (sd-scripts train_network.py, sai_model_spec.py). A1111 tells the
family from `ss_base_model_version` and hides a file that has metadata without it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from statistics import mode

from trainer.export.effect import scale
from trainer.export.names import Family
from trainer.lora import Adapter

_ARCHITECTURES: dict[Family, str] = {
    "sd1": "stable-diffusion-v1/lora",
    "sd2": "stable-diffusion-v2-512/lora",
    "sdxl": "stable-diffusion-xl-v1-base/lora",
}
_VERSIONS: dict[Family, str] = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}


def base_keys(family: Family, *, v_prediction: bool = False) -> dict[str, str]:
    """What says which base model a file belongs to."""
    version, architecture = _VERSIONS[family], _ARCHITECTURES[family]
    if family == "sd2" and v_prediction:
        version, architecture = "sd_v2_v", "stable-diffusion-v2-768-v/lora"
    return {
        "ss_base_model_version": version,
        "ss_v2": str(family == "sd2"),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": architecture,
        "modelspec.implementation": "diffusers",
        "modelspec.prediction_type": "v" if v_prediction else "epsilon",
    }


def network_keys(adapters: Mapping[str, Adapter]) -> dict[str, str]:
    """What says which kind of network it is: its class, rank and alpha (as applied, rsLoRA or not), and those
    of the 3x3 convolutions if they differ."""
    layers = [(layer, a.rslora) for a in adapters.values() for layer in a.layers.values()]
    values = [(layer.rank, float(f"{scale(layer, rslora) * layer.rank:.6g}")) for layer, rslora in layers]
    kinds = {layer.kind for layer, _ in layers}
    dora = any("magnitude" in layer.tensors for layer, _ in layers)
    large = [
        value
        for value, (layer, _) in zip(values, layers, strict=True)
        if layer.kind == "lora" and layer.tensors["down"].dim() == 4 and layer.tensors["down"].shape[-1] > 1
    ]
    usual = mode([v for v in values if v not in large] or values)
    arguments: dict[str, str] = {}
    if large:
        arguments |= {"conv_dim": str(mode(large)[0]), "conv_alpha": str(mode(large)[1])}
    lycoris = dora or kinds != {"lora"}
    if lycoris:
        arguments["algo"] = "+".join(sorted(kinds))
    if dora:
        arguments |= {"dora_wd": "True", "wd_on_output": "True"}
    return {
        "ss_network_module": "lycoris.kohya" if lycoris else "networks.lora",
        "ss_network_dim": str(usual[0]),
        "ss_network_alpha": str(float(usual[1])),
        "ss_network_args": json.dumps(arguments, sort_keys=True),
    }


def metadata(
    adapters: Mapping[str, Adapter],
    *,
    family: Family,
    name: str,
    resolution: int,
    prediction: str,
    captions: Iterable[str],
    trigger: str | None = None,
    extra: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Everything but the hashes. No dates: the same training gives the same bytes."""
    tags = Counter(tag.strip() for caption in captions for tag in caption.split(",") if tag.strip())
    told = {"modelspec.trigger_phrase": trigger} if trigger else {}
    return {
        **network_keys(adapters),
        **base_keys(family, v_prediction=prediction == "v_prediction"),
        "ss_output_name": name,
        "ss_resolution": f"({resolution}, {resolution})",
        "ss_tag_frequency": json.dumps({name: dict(sorted(tags.items()))}, ensure_ascii=False),
        "modelspec.title": name,
        "modelspec.resolution": f"{resolution}x{resolution}",
        **told,
        **(extra or {}),
    }
