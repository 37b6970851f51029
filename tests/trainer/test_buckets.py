from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.config import TrainConfig, config_from
from trainer.data.buckets import bucket_for, bucket_sizes, fitting_step, sizes_of

sides = st.integers(2, 256).map(lambda n: 8 * n)
steps = st.integers(1, 32).map(lambda n: 8 * n)
ratios = st.floats(1, 8)


@given(sides, steps, st.sampled_from([8, 16, 64]))
def test_the_step_divides_the_side_and_is_the_models(side: int, step: int, multiple: int) -> None:
    side *= multiple // 8
    unit = fitting_step(side, step, multiple)
    assert side % unit == 0
    assert unit % multiple == 0
    assert unit <= max(-(-step // multiple) * multiple, multiple)


@given(sides, steps, ratios)
def test_no_bucket_is_larger_than_the_square_or_much_smaller(side: int, step: int, ratio: float) -> None:
    unit, sizes = fitting_step(side, step), bucket_sizes(side, step, ratio)
    assert (side, side) in sizes
    assert list(sizes) == sorted(set(sizes))
    for width, height in sizes:
        assert width % unit == height % unit == 0
        assert side * side - max(width, height) * unit < width * height <= side * side
        assert max(width, height) <= ratio * min(width, height)
        assert (height, width) in sizes


@given(sides, steps, ratios, st.integers(1, 9000), st.integers(1, 9000))
def test_a_picture_gets_the_nearest_shape(
    side: int, step: int, ratio: float, width: int, height: int
) -> None:
    sizes = bucket_sizes(side, step, ratio)
    chosen = bucket_for(width, height, sizes)

    def off(size: tuple[int, int]) -> float:
        return abs(math.log(size[0] / size[1]) - math.log(width / height))

    assert chosen in sizes
    assert off(chosen) == min(map(off, sizes))
    assert off(bucket_for(height, width, sizes)[::-1]) == pytest.approx(off(chosen))


def test_the_buckets_of_sdxl_are_those_it_was_made_with() -> None:
    sizes = bucket_sizes(1024, 64, 2)
    assert {(1024, 1024), (1152, 896), (1216, 832), (1344, 768), (768, 1344)} <= set(sizes)
    assert bucket_for(1920, 1080, sizes) == (1344, 768)
    assert bucket_for(3000, 2000, sizes) == (1216, 832)
    assert bucket_for(100, 1000, sizes) == (704, 1408)


@pytest.mark.parametrize("side", [16, 24, 32, 48, 64, 72, 520])
def test_a_small_or_odd_resolution_has_buckets_with_the_default_step(side: int) -> None:
    sizes = bucket_sizes(side, 64, 2.0)
    assert (side, side) in sizes
    assert (len(sizes) > 1) == (side > 16)


def test_without_aspect_buckets_there_is_the_square_alone() -> None:
    config: TrainConfig = config_from(
        {"train_data_dir": "d", "base_model": "m", "output_dir": "o", "aspect_buckets": False}
    )
    assert sizes_of(config, 512) == ((512, 512),)
