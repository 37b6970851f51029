"""Optimizers by name: our own choices, a plugin's, or a class of any installed package."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import torch

from trainer import plugins
from trainer.config import TrainConfig
from trainer.errors import ConfigError

BUILT_IN = ("adamw", "adamw8bit", "adafactor")
_OURS = {
    "lr": "learning_rate",
    "params": "target_modules",
    "weight_decay": "weight_decay",
    "fused": "device",
}
"""Arguments that keys of the config set."""

Groups = Sequence[Mapping[str, Any]]


def make(
    config: TrainConfig, groups: Groups, device: torch.device
) -> tuple[torch.optim.Optimizer, list[str]]:
    """The optimizer of `config` over torch parameter groups that have their `lr`, and warnings.

    Raises ConfigError: an unknown name (with the nearest), an argument that it does not take, a package that
    is not installed, or an optimizer that needs more than gradients.
    """
    warnings: list[str] = []
    factory, arguments = _factory(config, device, warnings)
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}
    _check_arguments(config.optimizer, factory, config.optimizer_args)
    _check_step(config.optimizer, factory)
    try:
        made = factory([dict(group) for group in groups], **given)
    except (TypeError, ValueError, RuntimeError, ImportError) as error:
        raise ConfigError(
            [f"`optimizer` {config.optimizer} with optimizer_args {config.optimizer_args}: {error}."],
            "Correct optimizer_args, or use another one.",
        ) from error
    if not isinstance(made, torch.optim.Optimizer):
        raise ConfigError(
            [f"`optimizer`: {config.optimizer} made a {type(made).__name__}, not a torch.optim.Optimizer."]
        )
    return made, warnings


def _factory(
    config: TrainConfig, device: torch.device, warnings: list[str]
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """What makes the optimizer, and its arguments."""
    name, arguments = config.optimizer, dict(config.optimizer_args)
    known = plugins.registered("optimizer")
    if name in known:
        return known[name], arguments
    if name == "adamw8bit":
        eight_bit = _adamw8bit(device, warnings)
        if eight_bit is not None:
            return eight_bit, {"weight_decay": config.weight_decay, **arguments}
        name = "adamw"
    if name == "adamw":
        fused = device.type in ("cpu", "cuda")
        return torch.optim.AdamW, {"weight_decay": config.weight_decay, "fused": fused, **arguments}
    if name == "adafactor":
        return torch.optim.Adafactor, {"weight_decay": config.weight_decay, **arguments}
    if "." not in name:
        near = difflib.get_close_matches(name.lower(), [*BUILT_IN, *known], n=1, cutoff=0.5)
        hint = f"; did you mean `{near[0]}`?" if near else "."
        raise ConfigError(
            [f"`optimizer` {name} is not known{hint}"],
            f"There are {', '.join([*BUILT_IN, *known])}, and package.Class of any installed package.",
        )
    found = _class(name)
    if "weight_decay" in inspect.signature(found).parameters:
        arguments = {"weight_decay": config.weight_decay, **arguments}
    return found, arguments


def _adamw8bit(device: torch.device, warnings: list[str]) -> Callable[..., Any] | None:
    """bitsandbytes' class where it works; else a warning that says what is used."""
    why = ""
    if device.type != "cuda":
        why = f"it needs CUDA, and this is {device.type}"
    elif find_spec("bitsandbytes") is None:
        why = "bitsandbytes is not installed (pip install bitsandbytes)"
    else:
        try:
            found: Callable[..., Any] = importlib.import_module("bitsandbytes.optim").AdamW8bit
            probe = torch.nn.Parameter(torch.zeros(4096, device=device))
            probe.grad = torch.zeros_like(probe)
            found([probe]).step()
            return found
        except Exception as error:  # noqa: BLE001 - a library for another CUDA fails in many ways
            why = f"bitsandbytes does not work here ({type(error).__name__}: {str(error)[:100]})"
    warnings.append(f"optimizer adamw8bit: {why}; adamw is used, with 32-bit states.")
    return None


def _class(name: str) -> type[torch.optim.Optimizer]:
    module_name, _, class_name = name.rpartition(".")
    package = module_name.split(".")[0]
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        installed = find_spec(package) is not None
        raise ConfigError(
            [f"`optimizer` {name}: {error}."],
            "Correct the name." if installed else f"Install {package}, or use one of {', '.join(BUILT_IN)}.",
        ) from None
    found = getattr(module, class_name, None)
    if isinstance(found, type) and issubclass(found, torch.optim.Optimizer):
        return found
    offered = [
        key
        for key, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer)
    ]
    near = difflib.get_close_matches(class_name, offered, n=1, cutoff=0.4)
    what = "is not a torch.optim.Optimizer" if found is not None else f"is not in {module_name}"
    raise ConfigError(
        [f"`optimizer` {name}: {class_name} {what}" + (f"; did you mean `{near[0]}`?" if near else ".")],
        f"{module_name} has {', '.join(sorted(offered)[:12]) or 'no optimizers'}.",
    )


def _check_step(name: str, factory: Callable[..., Any]) -> None:
    """L-BFGS and its like want a closure."""
    if not isinstance(factory, type) or not issubclass(factory, torch.optim.Optimizer):
        return
    closure = inspect.signature(factory.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ConfigError(
            [f"`optimizer`: {name} wants to compute the loss again within a step."],
            f"Use one that works from gradients alone, such as {', '.join(BUILT_IN)}.",
        )


def _check_arguments(name: str, factory: Callable[..., Any], given: Mapping[str, Any]) -> None:
    problems = []
    parameters = inspect.signature(factory).parameters
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    offered = [key for key in list(parameters)[1:] if key not in _OURS]
    for key in given:
        if key in _OURS and key in ("lr", "params"):
            problems.append(f"`optimizer_args`: {key} is set by `{_OURS[key]}`.")
        elif key not in parameters and not open_ended:
            near = difflib.get_close_matches(key, offered, n=1, cutoff=0.5)
            said = f"; did you mean `{near[0]}`?" if near else f"; it takes {', '.join(offered)}."
            problems.append(f"`optimizer_args`: {name} has no argument `{key}`{said}")
    if problems:
        raise ConfigError(problems)
