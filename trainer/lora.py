"""Put an adapter into a frozen model, and take its weights out again. All through peft."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trainer.config import TrainConfig
from trainer.errors import ConfigError

ADAPTER = "default"
Kind = Literal["lora", "loha", "lokr"]


@dataclass(frozen=True)
class Layer:
    """The adapter of one module; float32 on the CPU.

    `tensors` of lora: `down` (r, in[, kh, kw]), `up` (out, r[, 1, 1]), with DoRA `magnitude` (out,); of
    loha: `w1_a`, `w1_b`, `w2_a`, `w2_b` and perhaps `t1`, `t2`; of lokr: `w1` or `w1_a`, `w1_b`, and `w2` or
    `w2_a`, `w2_b` and perhaps `t2`. The effective scale is alpha / rank; with rsLoRA alpha / sqrt(rank).
    """

    kind: Kind
    rank: int
    alpha: float
    tensors: dict[str, Tensor]


@dataclass(frozen=True)
class Adapter:
    """An adapter without its model, right on the untouched base. `layers`: by module path, sorted;
    `description`: peft's config as plain JSON values, sets sorted."""

    layers: dict[str, Layer]
    description: dict[str, Any]
    rslora: bool = False


@dataclass(frozen=True)
class Plan:
    """What kind of adapter to put in. `conv_*` are for kernels larger than 1x1."""

    rank: int
    alpha: float
    kind: Kind = "lora"
    conv_rank: int | None = None
    conv_alpha: float | None = None
    dora: bool = False
    rslora: bool = False
    init: str = "default"
    dropout: float = 0.0


def plan_of(config: TrainConfig) -> Plan:
    """The plan that the config's keys say. Raises ConfigError for keys that do not go together."""
    kind: Kind = "lora" if config.adapter in ("lora", "locon") else config.adapter  # type: ignore[assignment]
    wrong = []
    if kind != "lora":
        given = {"dora": config.dora, "rslora": config.rslora, "lora_dropout": config.lora_dropout}
        wrong = [f"`{name}` does not go with adapter: {kind}." for name, value in given.items() if value]
        if config.init != "default":
            wrong.append(f"`init` is {config.init}: adapter: {kind} has one start only.")
    if config.adapter != "locon" and (config.conv_rank or config.conv_alpha):
        wrong.append("`conv_rank` and `conv_alpha` are for adapter: locon.")
    if config.init == "orthogonal" and config.lora_rank % 2:
        wrong.append(f"`lora_rank` is {config.lora_rank}: init: orthogonal wants an even rank.")
    if wrong:
        raise ConfigError(wrong, "Leave one of the two out.")
    conv_rank = config.conv_rank or config.lora_rank
    return Plan(
        rank=config.lora_rank,
        alpha=config.alpha,
        kind=kind,
        conv_rank=conv_rank if config.adapter == "locon" else None,
        conv_alpha=(config.conv_alpha or float(conv_rank)) if config.adapter == "locon" else None,
        dora=config.dora,
        rslora=config.rslora,
        init=config.init,
        dropout=config.lora_dropout,
    )


def is_layer(module: nn.Module) -> bool:
    """Whether an adapter can be put on `module` (GPT-2's Conv1D is a linear layer)."""
    return isinstance(module, nn.Linear | nn.Conv2d) or type(module).__name__ == "Conv1D"


def inject(model: nn.Module, plan: Plan, targets: Sequence[str], seed: int) -> dict[str, nn.Parameter]:
    """Freeze `model`, add an adapter to the modules whose names end with `targets`, return its parameters by
    name: float32, the start drawn from `seed` alone. Raises ConfigError if nothing matches."""
    from peft import inject_adapter_in_model

    matched = {
        name: module
        for name, module in model.named_modules()
        if is_layer(module) and any(name == t or name.endswith(f".{t}") for t in targets)
    }
    if not matched:
        ends = sorted({name.rsplit(".", 1)[-1] for name, module in model.named_modules() if is_layer(module)})
        raise ConfigError(
            [f"target_modules {list(targets)} match no layer of the base model."],
            f"Its layers end with {', '.join(ends[:20])}.",
        )
    model.requires_grad_(False)
    config = _peft_config(plan, matched)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        inject_adapter_in_model(config, model, adapter_name=ADAPTER)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        start = _start(model, plan.init)
    model.peft_config = {ADAPTER: config}  # type: ignore[assignment]
    model.adapter_start = start  # type: ignore[assignment]
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _peft_config(plan: Plan, matched: dict[str, nn.Module]) -> Any:
    from peft import LoHaConfig, LoKrConfig, LoraConfig

    large = [name for name, module in matched.items() if max(getattr(module, "kernel_size", (1,))) > 1]
    ranks = {name: plan.conv_rank for name in large if plan.conv_rank not in (None, plan.rank)}
    alphas = {name: _whole(plan.conv_alpha) for name in large if plan.conv_alpha not in (None, plan.alpha)}
    common: dict[str, Any] = {
        "r": plan.rank,
        "target_modules": list(matched),
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
    }
    if plan.kind != "lora":
        return (LoHaConfig if plan.kind == "loha" else LoKrConfig)(alpha=_whole(plan.alpha), **common)
    return LoraConfig(
        lora_alpha=_whole(plan.alpha),
        lora_dropout=plan.dropout,
        use_dora=plan.dora,
        use_rslora=plan.rslora,
        init_lora_weights="gaussian" if plan.init == "gaussian" else True,
        **common,
    )


def _start(model: nn.Module, init: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Begin as `init` says, on the linear layers (peft has these for no others). {module: (A, B)} where the
    base's weight has given up what the adapter begins with, so that `extract` can take it off again."""
    start: dict[str, tuple[Tensor, Tensor]] = {}
    if init in ("default", "gaussian"):
        return start
    for name, layer in _layers(model):
        if not isinstance(layer.get_base_layer(), nn.Linear):
            continue
        if init == "orthogonal":
            layer.orthogonal_init(ADAPTER)
        elif init == "olora":
            layer.olora_init(ADAPTER)
        else:
            layer.pissa_init(ADAPTER, init)
        down, up = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        down.data, up.data = down.data.float().contiguous(), up.data.float().contiguous()
        if init != "orthogonal":
            start[name] = (down.detach().clone().cpu(), up.detach().clone().cpu())
    return start


def extract(model: nn.Module) -> Adapter:
    """The adapter of a model that `inject` has worked on, as a difference to the base model on the disk."""
    config: Any = model.peft_config[ADAPTER]  # type: ignore[index]
    start: dict[str, tuple[Tensor, Tensor]] = model.adapter_start  # type: ignore[assignment]
    rslora = bool(getattr(config, "use_rslora", False))
    layers = {name: _layer(module) for name, module in sorted(_layers(model), key=lambda item: item[0])}
    for name, (down, up) in start.items():
        layers[name] = _minus(layers[name], down, up, rslora)
    return Adapter(layers, _describe(config, layers), rslora)


def _layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """(module path, peft layer)."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            yield name, module


def _layer(module: Any) -> Layer:
    kind: Kind = "loha" if hasattr(module, "hada_w1_a") else "lokr" if hasattr(module, "lokr_w1") else "lora"
    if kind == "lora":
        named = {"down": module.lora_A[ADAPTER].weight, "up": module.lora_B[ADAPTER].weight}
        if ADAPTER in module.lora_magnitude_vector:
            named["magnitude"] = module.lora_magnitude_vector[ADAPTER].weight.flatten()
        alpha = module.lora_alpha[ADAPTER]
    else:
        prefix = "hada_" if kind == "loha" else "lokr_"
        named = {
            attribute.removeprefix(prefix): getattr(module, attribute)[ADAPTER]
            for attribute in module.adapter_layer_names
            if ADAPTER in getattr(module, attribute)
        }
        alpha = module.alpha[ADAPTER]
    tensors = {name: tensor.detach().float().cpu() for name, tensor in named.items()}
    return Layer(kind, int(module.r[ADAPTER]), float(alpha), tensors)


def _minus(layer: Layer, down: Tensor, up: Tensor, rslora: bool) -> Layer:
    """`layer` less (down, up), of twice the rank and the same scale."""
    tensors = {
        **layer.tensors,
        "down": torch.cat([layer.tensors["down"], down]),
        "up": torch.cat([layer.tensors["up"], -up], dim=1),
    }
    alpha = layer.alpha * (math.sqrt(2) if rslora else 2)
    return replace(layer, rank=2 * layer.rank, alpha=alpha, tensors=tensors)


def _describe(config: Any, layers: dict[str, Layer]) -> dict[str, Any]:
    """peft's config of `layers` as they are; it never starts from the base's weights again."""
    described: dict[str, Any] = _plain(config.to_dict())
    rank = Counter(layer.rank for layer in layers.values()).most_common(1)[0][0]
    alpha = Counter(layer.alpha for layer in layers.values()).most_common(1)[0][0]
    described |= {
        "r": rank,
        "rank_pattern": {name: la.rank for name, la in layers.items() if la.rank != rank},
        "alpha_pattern": {name: _whole(la.alpha) for name, la in layers.items() if la.alpha != alpha},
    }
    described["lora_alpha" if "lora_alpha" in described else "alpha"] = _whole(alpha)
    if "init_lora_weights" in described:
        described["init_lora_weights"] = True
    return described


def _whole(alpha: float | None) -> Any:
    """peft documents lora_alpha as an integer; keep 8.0 as 8 for readers that insist."""
    return int(alpha) if alpha is not None and float(alpha).is_integer() else alpha


def _plain(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "value") and not isinstance(value, int | float | str):
        return value.value
    try:
        json.dumps(value)
    except TypeError:
        return str(value)
    return value
