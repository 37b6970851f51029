"""Put a LoRA into a frozen model, and take its weights out again. All through peft."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trainer.errors import ConfigError

ADAPTER = "default"


@dataclass(frozen=True)
class Adapter:
    """A LoRA without its model. `weights`: {module: (down, up)}, float32; `description`: peft's LoraConfig
    as plain JSON values, sets sorted."""

    rank: int
    alpha: float
    weights: dict[str, tuple[Tensor, Tensor]]
    description: dict[str, Any]


def is_layer(module: nn.Module) -> bool:
    """Whether a LoRA can be put on `module` (GPT-2's Conv1D is a linear layer)."""
    return isinstance(module, nn.Linear | nn.Conv2d) or type(module).__name__ == "Conv1D"


def inject(
    model: nn.Module, *, rank: int, alpha: float, targets: list[str], seed: int
) -> dict[str, nn.Parameter]:
    """Freeze `model`, add a LoRA to the modules whose names end with `targets`, return its parameters by
    name: float32, the start drawn from `seed` alone. Raises ConfigError if nothing matches."""
    from peft import LoraConfig, inject_adapter_in_model

    matched = [
        name
        for name, module in model.named_modules()
        if is_layer(module) and any(name == t or name.endswith(f".{t}") for t in targets)
    ]
    if not matched:
        ends = sorted({name.rsplit(".", 1)[-1] for name, module in model.named_modules() if is_layer(module)})
        raise ConfigError(
            [f"target_modules {targets} match no layer of the base model."],
            f"Its layers end with {', '.join(ends[:20])}.",
        )
    model.requires_grad_(False)
    config = LoraConfig(r=rank, lora_alpha=_whole(alpha), target_modules=matched, init_lora_weights=True)  # type: ignore[arg-type]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        inject_adapter_in_model(config, model, adapter_name=ADAPTER)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for parameter in parameters.values():
        parameter.data = parameter.data.float()
    model.peft_config = {ADAPTER: config}  # type: ignore[assignment]
    return parameters


def extract(model: nn.Module) -> Adapter:
    """The LoRA of a model that `inject` has worked on, on the CPU."""
    config: Any = model.peft_config[ADAPTER]  # type: ignore[index]
    downs: dict[str, Tensor] = {}
    ups: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        for part, into in ((f".lora_A.{ADAPTER}.weight", downs), (f".lora_B.{ADAPTER}.weight", ups)):
            if name.endswith(part):
                into[name.removesuffix(part)] = parameter.detach().float().cpu()
    return Adapter(
        rank=int(config.r),
        alpha=float(config.lora_alpha),
        weights={module: (downs[module], ups[module]) for module in sorted(downs)},
        description=_plain(config.to_dict()),
    )


def _whole(alpha: float) -> float | int:
    """peft documents lora_alpha as an integer; keep 8.0 as 8 for readers that insist."""
    return int(alpha) if float(alpha).is_integer() else alpha


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
