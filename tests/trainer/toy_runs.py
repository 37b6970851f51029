"""The toy family in the loop's tests: what a run of it left, and what it told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.trainer.toy_family import Toy
from trainer import LoRATrainer

Make = Callable[..., dict[str, Any]]
Read = Callable[[Path], list[dict[str, Any]]]


def family(trainer: LoRATrainer) -> Toy:
    assert isinstance(trainer.family, Toy)
    return trainer.family


def weights(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    return load_file(config["output_dir"] / "toy.safetensors")


def close(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return all(torch.allclose(one[name], two[name], atol=1e-6, rtol=1e-5) for name in one)


def of(told: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in told if event["event"] == kind]
