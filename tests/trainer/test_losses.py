from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.losses import add_noise, alphas_cumprod, snr_weight, target
from trainer.optim.schedule import lr_at

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


@pytest.mark.parametrize("schedule", ["scaled_linear", "linear"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_noise_and_targets_are_those_of_diffusers(schedule: str, prediction: str) -> None:
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    values = {**SD, "beta_schedule": schedule}
    theirs = DDPMScheduler(**values, prediction_type=prediction)  # type: ignore[arg-type]
    alphas = alphas_cumprod(values)
    torch.testing.assert_close(alphas, theirs.alphas_cumprod)
    clean, noise = torch.randn(4, 2, 3, 3), torch.randn(4, 2, 3, 3)
    steps = torch.tensor([0, 10, 500, 999])
    torch.testing.assert_close(add_noise(clean, noise, alphas[steps]), theirs.add_noise(clean, noise, steps))
    wanted = noise if prediction == "epsilon" else theirs.get_velocity(clean, noise, steps)
    torch.testing.assert_close(target(clean, noise, alphas[steps], prediction), wanted)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_pain_12_min_snr_weights_are_the_formula_and_finite_at_the_ends(prediction: str) -> None:
    alpha = torch.tensor([0.0, 1e-9, 0.5, 0.9, 1 - 1e-7, 1.0])
    weight = snr_weight(alpha, 5.0, prediction)
    assert torch.isfinite(weight).all()
    snr = torch.tensor([1.0, 9.0])
    wanted = snr.clamp_max(5) / (snr if prediction == "epsilon" else snr + 1)
    torch.testing.assert_close(weight[2:4], wanted)


@given(
    st.integers(0, 500),
    st.integers(1, 500),
    st.floats(1e-6, 1),
    st.sampled_from(["constant", "linear", "cosine"]),
    st.integers(0, 100),
)
def test_the_learning_rate_stays_between_zero_and_its_base(
    step: int, steps: int, base: float, schedule: str, warmup: int
) -> None:
    value = lr_at(step, steps, base, schedule, warmup)
    assert 0 <= value <= base
    assert step >= warmup or value > 0


def test_learning_rates_by_hand() -> None:
    assert [lr_at(s, 10, 1.0, "constant", 3) for s in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert lr_at(5, 10, 1.0, "linear") == 0.5
    assert math.isclose(lr_at(5, 10, 1.0, "cosine"), 0.5)
    assert lr_at(9, 10, 1.0, "cosine") > 0
