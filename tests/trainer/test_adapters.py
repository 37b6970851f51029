"""Every kind of adapter and every start trains, and what it gives is right on the untouched base."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.trainer.family_contract import prepared
from trainer import LoRATrainer
from trainer.config import config_from
from trainer.errors import ConfigError
from trainer.export import peft as peft_folder
from trainer.lora import Plan, extract, inject, plan_of
from trainer.models.sd_layers import quicken

Make = Callable[..., dict[str, Any]]
KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "locon": {"adapter": "locon", "conv_rank": 3, "conv_alpha": 1},
    "dora": {"dora": True},
    "dora_locon": {"adapter": "locon", "dora": True},
    "rslora": {"rslora": True, "lora_alpha": 3},
    "loha": {"adapter": "loha"},
    "lokr": {"adapter": "lokr"},
    "gaussian": {"init": "gaussian"},
    "pissa": {"init": "pissa"},
    "pissa_niter": {"init": "pissa_niter_4", "rslora": True},
    "olora": {"init": "olora", "lora_alpha": 4},
    "orthogonal": {"init": "orthogonal"},
    "pissa_dora": {"init": "pissa", "dora": True},
    "dropout": {"lora_dropout": 0.5},
}


@pytest.mark.models
@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_trains_and_acts_the_same_on_the_untouched_base(
    kind: str, images_config: Make, tmp_path: Path
) -> None:
    from peft import PeftModel

    trainer = LoRATrainer(images_config(max_steps=3, learning_rate=0.02, **KINDS[kind]))
    trainer.prepare_data()
    trainer.build_model()
    trainer.train()
    family: Any = trainer.family
    inputs = (torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([500]))
    text = torch.randn(1, 77, 32, generator=torch.Generator().manual_seed(1))

    def effect(model: nn.Module) -> Tensor:
        with torch.no_grad():
            found: Tensor = model.eval()(*inputs, text).sample
        return found

    plain = effect(family.parts.load_unet())
    wanted = effect(family.unet)
    assert (wanted - plain).abs().max() > 1e-3
    adapter = extract(family.unet)
    (tmp_path / "peft").mkdir()
    peft_folder.save(tmp_path / "peft", adapter, "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        loaded = PeftModel.from_pretrained(family.parts.load_unet(), str(tmp_path / "peft"))
    torch.testing.assert_close(effect(loaded), wanted, rtol=1e-4, atol=2e-5)
    doubled = KINDS[kind].get("init", "").startswith(("pissa", "olora"))
    assert {layer.rank for layer in adapter.layers.values()} >= {4 if doubled else 2}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"adapter": "loha", "dora": True}, "`dora` does not go with adapter: loha"),
        ({"adapter": "lokr", "rslora": True}, "`rslora` does not go with adapter: lokr"),
        ({"adapter": "lokr", "init": "pissa"}, "has one start only"),
        ({"adapter": "loha", "lora_dropout": 0.1}, "`lora_dropout` does not go with adapter: loha"),
        ({"conv_rank": 4}, "are for adapter: locon"),
        ({"init": "orthogonal", "lora_rank": 3}, "wants an even rank"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(
    changes: dict[str, Any], said: str, images_config: Make
) -> None:
    with pytest.raises(ConfigError, match=said):
        plan_of(config_from(images_config(**changes)))


class Small(nn.Module):
    """A convolution, a 1 x 1 one and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.large = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.point = nn.Conv2d(6, 5, 1, bias=False)
        self.line = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.line(self.point(self.large(x)).flatten(2).transpose(1, 2))
        return found


def small(plan: Plan) -> tuple[Small, dict[str, nn.Parameter]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Small()
        parameters = inject(model, plan, ["large", "point", "line"], 5)
        for parameter in parameters.values():
            parameter.data += 0.1 * torch.randn(parameter.shape)
    return model, parameters


@pytest.mark.parametrize("plan", [Plan(2, 3), Plan(2, 3, conv_rank=4, conv_alpha=1, rslora=True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_faster_layers_give_pefts_numbers_and_gradients(plan: Plan, dtype: torch.dtype) -> None:
    (slow, theirs), (fast, ours) = small(plan), small(plan)
    assert quicken(fast)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    wanted = slow(x)
    for module in fast.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and not any(
            p.requires_grad for p in module.parameters()
        ):
            module.to(dtype)
    found = fast(x.to(dtype))
    assert found.dtype == dtype
    close = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 0.1, "atol": 0.1}
    torch.testing.assert_close(found.float(), wanted, **close)
    (wanted**2).mean().backward()  # type: ignore[no-untyped-call]
    (found.float() ** 2).mean().backward()
    for name, parameter in theirs.items():
        assert ours[name].grad is not None
        assert ours[name].grad.dtype == torch.float32
        torch.testing.assert_close(ours[name].grad, parameter.grad, **close)


def test_layers_that_are_not_plain_keep_pefts_forward() -> None:
    for plan in (Plan(2, 2, dora=True), Plan(2, 2, kind="loha")):
        model, _ = small(plan)
        assert not quicken(model)


@pytest.mark.models
def test_dropout_is_drawn_from_the_samples_generator_alone(images_config: Make) -> None:
    family, _, _ = prepared(images_config(lora_dropout=0.5))
    for parameter in family.build()[0].parameters.values():
        parameter.data += 0.05

    def loss(seed: int, training: bool = True) -> float:
        return float(family.loss([0], [torch.Generator().manual_seed(seed)], training=training).detach())

    torch.manual_seed(1)
    first = loss(3)
    state = torch.random.get_rng_state()
    torch.manual_seed(2)
    assert loss(3) == first
    torch.random.set_rng_state(state)
    without = images_config()
    other, _, _ = prepared(without)
    for parameter in other.build()[0].parameters.values():
        parameter.data += 0.05
    assert float(other.loss([0], [torch.Generator().manual_seed(3)]).detach()) != first
