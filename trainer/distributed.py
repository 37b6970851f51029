"""Several processes for one training: `accelerate launch -m trainer --config ...`, or torchrun.

A step's micro-batches are dealt out in turn (process r takes r, r + world, ...), each process sums its
gradients, and one all_reduce of a flat buffer after the window sums those: no wrapper around the model, no
traffic per micro-batch, and the same numbers as one process with more accumulation.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trainer.device import pick_device


class Processes:
    """One process: everything here is then free of charge."""

    rank, world = 0, 1

    def __init__(self, device: str) -> None:
        self.device = pick_device(device)

    @property
    def main(self) -> bool:
        """The one that writes."""
        return self.rank == 0

    def agree(self, *flags: int) -> list[int]:
        """The largest of each flag over all processes."""
        return list(flags)

    def sum_gradients(self, parameters: Iterable[nn.Parameter], loss: Tensor) -> Tensor:
        """Sum the gradients in place; the sum of the losses."""
        return loss

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes."""
        return value

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The main process runs the body first: the others find its cache filled."""
        yield

    def finish(self) -> None:
        """Wait for the others and let go of them."""


class Group(Processes):
    """One of several, through accelerate's PartialState (gloo, NCCL or what the machine has)."""

    def __init__(self, device: str) -> None:
        from accelerate import PartialState  # type: ignore[import-untyped]

        self._state: Any = PartialState(cpu=device == "cpu")
        self.rank, self.world = int(self._state.process_index), int(self._state.num_processes)
        self.device = self._state.device
        self._gloo = torch.distributed.new_group(backend="gloo")

    def agree(self, *flags: int) -> list[int]:
        shared = torch.tensor(flags, dtype=torch.int64)
        torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX, group=self._gloo)
        return [int(flag) for flag in shared]

    def sum_gradients(self, parameters: Iterable[nn.Parameter], loss: Tensor) -> Tensor:
        mine = list(parameters)
        flat = torch.cat(
            [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in mine]
            + [loss.detach().float().reshape(1)]
        )
        torch.distributed.all_reduce(flat)
        place = 0
        for parameter in mine:
            parameter.grad = flat[place : place + parameter.numel()].view_as(parameter)
            place += parameter.numel()
        return flat[-1]

    def sum(self, value: Tensor) -> Tensor:
        total = value.detach().clone()
        torch.distributed.all_reduce(total)
        return total

    @contextmanager
    def main_first(self) -> Iterator[None]:
        with self._state.main_process_first():
            yield

    def finish(self) -> None:
        torch.distributed.barrier(group=self._gloo)
        self._state.destroy_process_group()


def processes(device: str) -> Processes:
    """What the launcher's environment says. Raises ConfigError for a device that is not there."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return Group(device)
    return Processes(device)
