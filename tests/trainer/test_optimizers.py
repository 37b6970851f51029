"""Any optimizer by name; its state restored bit for bit; a loss scale; groups with their own rates."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trainer import checkpoint as checkpoints
from trainer import plugins
from trainer.config import TrainConfig
from trainer.errors import CheckpointError, ConfigError
from trainer.models.base import Group
from trainer.optim.scale import GROWTH_STEPS, LossScale
from trainer.optim.state import Optimizer

CPU = torch.device("cpu")


def config(**changes: Any) -> TrainConfig:
    return TrainConfig(train_data_dir=Path("d"), base_model=Path("m"), output_dir=Path("o"), **changes)


def groups(seed: int = 0) -> list[Group]:
    torch.manual_seed(seed)
    one, two = nn.Linear(3, 4), nn.Linear(2, 2)
    return [
        Group("unet", 1e-2, {f"unet.{name}": p for name, p in one.named_parameters()}),
        Group("text", 5e-3, {f"text.{name}": p for name, p in two.named_parameters()}),
    ]


def advance(optimizer: Optimizer, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)
        for parameter in optimizer.parameters.values():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step(1.0 / (step + 1))


class Scalars(torch.optim.Optimizer):
    """Keeps plain values in its state and in its groups, as Prodigy does."""

    def __init__(self, params: Any, lr: float = 1.0) -> None:
        super().__init__(params, {"lr": lr, "d": 1e-6})

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["d"] *= 1.1
            for p in group["params"]:
                state = self.state[p]
                state["count"] = state.get("count", 0) + 1
                state["half"] = torch.full((3,), 0.1 * state["count"], dtype=torch.bfloat16)
                p.data.add_(
                    p.grad, alpha=-group["lr"] * group["d"] * state["count"] * float(state["half"][0])
                )


class Nested(Scalars):
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["history"] = [p.grad]


OPTIMIZERS = [
    {"optimizer": "adamw"},
    {"optimizer": "adamw", "optimizer_args": {"betas": [0.8, 0.9], "amsgrad": True}},
    {"optimizer": "adafactor"},
    {"optimizer": "torch.optim.SGD", "optimizer_args": {"momentum": 0.9}},
    {"optimizer": "torch.optim.NAdam"},
    {"optimizer": "torch.optim.RMSprop"},
    {"optimizer": "scalars"},
]


@pytest.fixture(autouse=True)
def plugged(monkeypatch: pytest.MonkeyPatch) -> None:
    known = dict(plugins._registered["optimizer"])
    monkeypatch.setitem(plugins._registered, "optimizer", known)
    plugins.optimizer("scalars")(Scalars)
    plugins.optimizer("nested")(Nested)


@pytest.mark.parametrize("choice", OPTIMIZERS, ids=lambda c: c["optimizer"])
def test_any_optimizer_goes_on_bit_for_bit(tmp_path: Path, choice: dict[str, Any]) -> None:
    whole = Optimizer(groups(), config(**choice), CPU)
    advance(whole, range(6))
    first = Optimizer(groups(), config(**choice), CPU)
    advance(first, range(3))
    path = checkpoints.save(tmp_path, 3, *first.tensors(), {}, 1, {}, first.plain())
    second = Optimizer(groups(seed=9), config(**choice), CPU)
    second.restore(path, json.loads((path / checkpoints.STATE).read_text())["optimizer"])
    advance(second, range(3, 6))
    for name, parameter in whole.parameters.items():
        assert torch.equal(parameter, second.parameters[name]), name
    assert {k: v for k, v in whole.plain().items() if k != "scale"} == {
        k: v for k, v in second.plain().items() if k != "scale"
    }
    for key, value in whole.tensors()[1].items():
        assert torch.equal(value, second.tensors()[1][key]), key
        assert value.dtype == second.tensors()[1][key].dtype


def test_each_group_has_its_own_rate() -> None:
    optimizer = Optimizer(groups(), config(optimizer="torch.optim.SGD", weight_decay=0, max_grad_norm=0), CPU)
    before = {name: p.detach().clone() for name, p in optimizer.parameters.items()}
    for parameter in optimizer.parameters.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step(0.5)
    moved = {name: float((before[name] - p.detach()).mean()) for name, p in optimizer.parameters.items()}
    assert moved["unet.weight"] == pytest.approx(0.5e-2)
    assert moved["text.weight"] == pytest.approx(0.25e-2)
    assert optimizer.learning_rates(0.5) == {"unet": 0.5e-2, "text": 0.25e-2}


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"optimizer": "adamv"}, "did you mean `adamw`"),
        ({"optimizer": "torch.optim.AdmaW"}, "did you mean `AdamW`"),
        ({"optimizer": "torch.nn.Linear"}, "is not a torch.optim.Optimizer"),
        ({"optimizer": "no_such_package.Lion"}, "Install no_such_package"),
        ({"optimizer": "torch.optim.LBFGS"}, "compute the loss again"),
        ({"optimizer": "adamw", "optimizer_args": {"beta": 0.9}}, "no argument `beta`; did you mean `betas`"),
        ({"optimizer": "adamw", "optimizer_args": {"lr": 1}}, "is set by `learning_rate`"),
        ({"optimizer": "adamw", "optimizer_args": {"betas": [2.0, 0.9]}}, "Invalid beta parameter"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(choice: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Optimizer(groups(), config(**choice), CPU)
    assert said in str(caught.value)


def test_a_state_that_cannot_be_saved_is_refused_at_the_first_step() -> None:
    optimizer = Optimizer(groups(), config(optimizer="nested"), CPU)
    with pytest.raises(ConfigError, match="keeps `history` as a list"):
        advance(optimizer, range(1))


def test_another_optimizer_does_not_take_over_a_state(tmp_path: Path) -> None:
    first = Optimizer(groups(), config(), CPU)
    advance(first, range(1))
    path = checkpoints.save(tmp_path, 1, *first.tensors(), {}, 1, {}, first.plain())
    other = Optimizer(groups(), config(optimizer="adafactor"), CPU)
    with pytest.raises(CheckpointError, match=r"was saved by torch.optim.adamw.AdamW; here it would be"):
        other.restore(path, first.plain())


def test_a_step_without_a_number_changes_nothing() -> None:
    optimizer = Optimizer(groups(), config(skip_nonfinite=1), CPU)
    before = [p.detach().clone() for p in optimizer.parameters.values()]
    for parameter in optimizer.parameters.values():
        parameter.grad = torch.full_like(parameter, float("nan"))
    assert optimizer.step(1.0)[1] is False
    assert all(torch.equal(a, b) for a, b in zip(before, optimizer.parameters.values(), strict=True))


def test_the_loss_scale_halves_at_an_overflow_and_doubles_after_a_while() -> None:
    scale = LossScale()
    assert scale.update(False) is False
    scale.start()
    assert scale.update(False)
    assert scale.value == 2.0**15
    for _ in range(GROWTH_STEPS):
        assert scale.update(True)
    assert (scale.value, scale.good_steps) == (2.0**16, 0)
    again = LossScale(on=True)
    again.restore(json.loads(json.dumps(scale.as_dict())))
    assert again == scale
    scale.value = 1.0
    assert scale.update(False) is False, "nothing left to halve: the gradient itself is no number"
