"""An optimizer over the adapter's parameters, with a state that is saved by name and restored bit for bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer import checkpoint
from trainer.config import TrainConfig
from trainer.errors import CheckpointError, ConfigError
from trainer.models.base import Group
from trainer.optim import registry
from trainer.optim.scale import LossScale

_PLAIN = (bool, int, float, str, type(None))


class Optimizer:
    """`config.optimizer` over `groups`. Every parameter is made float32 ("Attempting to unscale FP16
    gradients" cannot happen). `warnings`: what was replaced by what."""

    def __init__(
        self, groups: Sequence[Group], config: TrainConfig, device: torch.device, fp16: bool = False
    ) -> None:
        self.parameters: dict[str, nn.Parameter] = {}
        self._rates: dict[str, float] = {}
        torch_groups: list[dict[str, Any]] = []
        for group in groups:
            for name, parameter in group.parameters.items():
                if name in self.parameters:
                    raise ValueError(f"two groups have a parameter {name}")
                if parameter.dtype != torch.float32:
                    parameter.data = parameter.data.float()
                self.parameters[name] = parameter
            self._rates[group.name] = group.learning_rate
            torch_groups.append({"params": list(group.parameters.values()), "lr": group.learning_rate})
        self.inner, self.warnings = registry.make(config, torch_groups, device)
        self.kind = f"{type(self.inner).__module__}.{type(self.inner).__qualname__}"
        self._max_norm = config.max_grad_norm or float("inf")
        self._looks = device.type == "cpu" or fp16 or config.skip_nonfinite > 0
        self._seen = False
        self.best: dict[str, Tensor] = {}
        self.scale = LossScale()
        if fp16:
            self.scale.start()

    def learning_rates(self, factor: float) -> dict[str, float]:
        """Each group's, at this factor of the schedule."""
        return {name: factor * rate for name, rate in self._rates.items()}

    def step(self, factor: float) -> tuple[Tensor, bool]:
        """One update at `factor` of the groups' learning rates; gradients are clipped and cleared. Returns
        the gradient's norm before clipping and whether it was a number.

        A gradient that is none changes nothing. On an accelerator it is not looked at (that would wait for
        the device), unless the config wants such steps skipped: there the guard of the log stops the run.
        The first update raises ConfigError for an optimizer whose state cannot be saved.
        """
        parameters = list(self.parameters.values())
        if self.scale.on:
            gradients = [p.grad for p in parameters if p.grad is not None]
            torch._foreach_mul_(gradients, 1.0 / self.scale.value)
        norm = nn.utils.clip_grad_norm_(parameters, self._max_norm)
        finite = not self._looks or bool(torch.isfinite(norm))
        if finite:
            for group, rate in zip(
                self.inner.param_groups, self.learning_rates(factor).values(), strict=True
            ):
                group["lr"] = rate
            self.inner.step()
            if not self._seen:
                self._state()
                self._seen = True
        self.clear()
        return norm, finite

    def clear(self) -> None:
        """Forget the gradients."""
        self.inner.zero_grad(set_to_none=True)

    def tensors(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(adapter, optimizer state), both by parameter name. Raises ConfigError for an optimizer whose
        state is more than tensors and plain values."""
        return dict(self.parameters), {
            key: value for key, value in self._state().items() if isinstance(value, Tensor)
        }

    def plain(self) -> dict[str, Any]:
        """What of the state is no tensor, for JSON (which keeps floats exactly)."""
        values = {key: value for key, value in self._state().items() if not isinstance(value, Tensor)}
        return {"class": self.kind, "values": values, "scale": self.scale.as_dict()}

    def _state(self) -> dict[str, Any]:
        """Every entry of the inner state by name; `group:0.key` for what a group keeps (Prodigy's d)."""
        found: dict[str, Any] = {}
        for name, parameter in self.parameters.items():
            for key, value in self.inner.state.get(parameter, {}).items():
                if not isinstance(value, (Tensor, *_PLAIN)) or "." in str(key):
                    what = f"`optimizer` {self.kind} keeps `{key}` as a {type(value).__name__}"
                    raise ConfigError(
                        [f"{what}: that cannot be saved and restored exactly."],
                        f"Use another one, such as {', '.join(registry.BUILT_IN)}.",
                    )
                found[f"{name}.{key}"] = value
        for number, group in enumerate(self.inner.param_groups):
            for key, value in group.items():
                if key not in ("params", "lr") and isinstance(value, (Tensor, *_PLAIN)):
                    found[f"group:{number}.{key}"] = value
        return found

    def restore(self, folder: Path, plain: Mapping[str, Any], *, is_best: bool = False) -> None:
        """Load what `tensors` and `plain` gave. `is_best`: the lowest validation loss was this step's. Raises
        CheckpointError if names, shapes or the optimizer are others."""
        from safetensors.torch import load_file

        if plain.get("class", self.kind) != self.kind:
            raise CheckpointError(
                f"The checkpoint {folder} was saved by {plain['class']}; here it would be {self.kind}.",
                "Install what it needs, or use resume: never to start anew.",
            )
        adapter = load_file(folder / checkpoint.ADAPTER)
        self._put(adapter, folder)
        best = folder / checkpoint.BEST
        self.best = load_file(best) if best.exists() else adapter if is_best else {}
        saved: dict[str, Any] = {**load_file(folder / checkpoint.OPTIMIZER), **plain.get("values", {})}
        state: dict[str, dict[str, Any]] = {}
        for key, value in saved.items():
            name, _, entry = key.rpartition(".")
            if name in self.parameters:
                state.setdefault(name, {})[entry] = self._placed(entry, value, self.parameters[name])
            elif name.startswith("group:") and entry not in ("fused", "foreach", "capturable"):
                self.inner.param_groups[int(name.removeprefix("group:"))][entry] = value
        for name, entries in state.items():
            self.inner.state[self.parameters[name]] = entries
        self.scale.restore(plain.get("scale", {}))

    def remember(self) -> None:
        """Keep a copy of the weights as the best so far."""
        self.best = {name: p.detach().cpu().clone() for name, p in self.parameters.items()}

    def take_best(self) -> None:
        """Put the best weights into the model."""
        self._put(self.best, "memory")

    def _put(self, adapter: Mapping[str, Tensor], folder: object) -> None:
        """Overwrite the weights. Raises CheckpointError if they are of other modules."""
        mine = {name: tuple(p.shape) for name, p in self.parameters.items()}
        if mine != {name: tuple(t.shape) for name, t in adapter.items()}:
            raise CheckpointError(
                f"The checkpoint {folder} holds an adapter of other modules or another rank.",
                "Use resume: never to start anew.",
            )
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(adapter[name])

    def _placed(self, key: str, value: Any, parameter: nn.Parameter) -> Any:
        """On the parameter's device; torch's step counters stay on the CPU unless its kernels are fused."""
        if not isinstance(value, Tensor):
            return value
        group = self.inner.param_groups[0]
        counter = key == "step" and value.dim() == 0
        if counter and not (group.get("fused") or group.get("capturable")):
            return value
        return value.to(parameter.device)
