"""AdamW over the adapter's parameters, with a state that is saved by name and restored bit for bit."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from trainer import checkpoint
from trainer.errors import CheckpointError


class Optimizer:
    """Decoupled weight decay (Loshchilov & Hutter 2019), betas 0.9 and 0.999."""

    def __init__(self, parameters: dict[str, nn.Parameter], weight_decay: float) -> None:
        self.parameters = parameters
        self._adamw = torch.optim.AdamW(
            list(parameters.values()),
            lr=0.0,
            weight_decay=weight_decay,
            fused=next(iter(parameters.values())).device.type in ("cpu", "cuda"),
        )

    def step(self, lr: float, max_norm: float) -> Tensor:
        """One update; the gradient is clipped to `max_norm` (0: not) and cleared. Returns its norm before
        clipping. A gradient that is not finite changes nothing: the caller's guard names the step."""
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), max_norm or float("inf"))
        for group in self._adamw.param_groups:
            group["lr"] = lr
        if norm.device.type != "cpu" or bool(torch.isfinite(norm)):
            self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)
        return norm

    def tensors(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(adapter, optimizer state), both by parameter name."""
        moments = {
            f"{name}.{key}": value
            for name, parameter in self.parameters.items()
            for key, value in self._adamw.state.get(parameter, {}).items()
        }
        return dict(self.parameters), moments

    def restore(self, folder: Path) -> None:
        """Load what `tensors` gave. Raises CheckpointError if the names or shapes are others."""
        from safetensors.torch import load_file

        adapter = load_file(folder / checkpoint.ADAPTER)
        moments = load_file(folder / checkpoint.OPTIMIZER)
        mine = {name: tuple(p.shape) for name, p in self.parameters.items()}
        if mine != {name: tuple(t.shape) for name, t in adapter.items()}:
            raise CheckpointError(
                f"The checkpoint {folder} holds an adapter of other modules or another rank.",
                "Use resume: never to start anew.",
            )
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(adapter[name])
                self._adamw.state[parameter] = {
                    key: moments[f"{name}.{key}"].to(
                        "cpu" if key == "step" and not parameter.is_cuda else parameter.device
                    )
                    for key in ("step", "exp_avg", "exp_avg_sq")
                }
