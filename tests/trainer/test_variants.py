"""How a picture becomes pixels: views drawn beforehand, and what is rendered from them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from trainer.config import ConfigError, TrainConfig, config_from
from trainer.data import DataError, ImageItem
from trainer.data.buckets import bucket_for, bucket_sizes
from trainer.data.variants import render, render_all, render_mask, views
from trainer.files import sha256_bytes

lengths = st.integers(1, 3000)


def config(**changes: Any) -> TrainConfig:
    return config_from({"train_data_dir": "d", "base_model": "m", "output_dir": "o", **changes})


def item(width: int = 100, height: int = 80, sha: str = "0" * 64) -> ImageItem:
    return ImageItem(Path("a.png"), "a.png", "a", "a.txt", sha256=sha, width=width, height=height)


@pytest.fixture
def left_red(tmp_path: Path) -> ImageItem:
    """80x40, its left half red and opaque, its right half blue and transparent."""
    image = Image.new("RGBA", (80, 40), (0, 0, 255, 0))
    image.paste((255, 0, 0, 255), (0, 0, 40, 40))
    image.save(tmp_path / "a.png")
    sha = sha256_bytes((tmp_path / "a.png").read_bytes())
    return replace(item(80, 40, sha), path=tmp_path / "a.png")


@given(lengths, lengths, st.integers(0, 9), st.booleans(), st.sampled_from(["center", "random"]))
def test_a_view_is_inside_the_picture_and_drawn_the_same_again(
    width: int, height: int, seed: int, flip: bool, crop: str
) -> None:
    made = config(seed=seed, flip=flip, crop=crop)
    size = bucket_for(width, height, bucket_sizes(256, 64, 2))
    found = views(item(width, height), size, made)
    assert found == views(item(width, height), size, made)
    assert 1 <= len(found) <= made.cache_variants
    assert len(set(found)) == len(found)
    for view in found:
        left, top = view.offset
        assert left >= 0 <= top
        assert left + size[0] <= view.scaled[0]
        assert top + size[1] <= view.scaled[1]
        assert size[0] == view.scaled[0] or size[1] == view.scaled[1]
        assert view.size == size
        assert flip or not view.flip
    assert len({json.dumps(view.as_dict()) for view in found}) == len(found)
    (held_out,) = views(item(width, height), size, made, training=False)
    assert not held_out.flip
    assert held_out == views(item(width, height), size, config())[0]


def test_flip_alone_is_both_sides_and_nothing_random_is_one_view() -> None:
    assert [view.flip for view in views(item(), (64, 64), config(flip=True))] == [False, True]
    assert len(views(item(), (64, 64), config())) == 1
    assert len(views(item(64, 64), (64, 64), config(crop="random"))) == 1


def test_random_crops_differ_half_of_them_mirrored() -> None:
    made = config(crop="random", flip=True, cache_variants=8)
    found = views(item(900, 500), (64, 64), made)
    assert len({view.offset for view in found}) > 4
    assert sum(view.flip for view in found) * 2 == len(found)
    assert found != views(item(900, 500, "1" * 64), (64, 64), made)


def test_what_is_not_random_does_not_depend_on_the_seed() -> None:
    assert views(item(), (64, 64), config(seed=1)) == views(item(), (64, 64), config(seed=2))


def test_pixels_are_cut_mirrored_and_composited(left_red: ImageItem) -> None:
    made = config(flip=True, background="#00ff00")
    plain, mirrored = render_all(left_red, views(left_red, (16, 16), made), made)
    assert plain.shape == (16, 16, 3)
    assert plain.dtype == np.uint8
    assert tuple(plain[8, 1]) == (255, 0, 0)
    assert tuple(plain[8, 14]) == (0, 255, 0)
    assert np.array_equal(mirrored, plain[:, ::-1])
    (view,) = views(left_red, (32, 16), config())
    assert render(left_red, view, config()).shape == (16, 32, 3)


def test_a_mask_has_the_pictures_geometry(left_red: ImageItem, tmp_path: Path) -> None:
    made = config(flip=True, masked_loss="alpha")
    plain, mirrored = views(left_red, (16, 16), made)
    mask = render_mask(left_red, plain, made)
    assert mask.shape == (16, 16)
    assert mask.dtype == np.float32
    assert (mask[8, 1], mask[8, 14]) == (1.0, 0.0)
    assert np.array_equal(render_mask(left_red, mirrored, made), mask[:, ::-1])
    assert (render_mask(left_red, plain, config()) == 1).all()
    Image.new("L", (40, 20), 128).save(tmp_path / "m.png")
    grey = render_mask(replace(left_red, mask=tmp_path / "m.png"), plain, config(masked_loss="folder"))
    assert grey == pytest.approx(128 / 255)


def test_a_picture_that_changed_after_the_check_is_refused(left_red: ImageItem) -> None:
    (view,) = views(left_red, (16, 16), config())
    Image.new("RGB", (80, 40)).save(left_red.path)
    with pytest.raises(DataError, match="changed after it was checked"):
        render(left_red, view, config())
    left_red.path.unlink()
    with pytest.raises(DataError, match="no longer be read"):
        render(left_red, view, config())


PLUGIN = """
from PIL import Image
from trainer.plugins import augmentation

@augmentation("dim")
def dim(image, rng):
    share = rng.random()
    return image.point(lambda value: int(value * share))

@augmentation("shrink")
def shrink(image, rng):
    return image.resize((1, 1))

@augmentation("crash")
def crash(image, rng):
    raise KeyError("x")
"""


def test_augmentations_of_a_plugin_are_drawn_beforehand(left_red: ImageItem, tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(PLUGIN)
    made = config(plugins=[plugin], augmentations=["dim"], cache_variants=3)
    found = views(left_red, (16, 16), made)
    first = render_all(left_red, found, made)
    assert len({picture[8, 1, 0] for picture in first}) == 3
    again = render_all(left_red, views(left_red, (16, 16), made), made)
    assert all(np.array_equal(one, two) for one, two in zip(first, again, strict=True))
    plugin.write_text(PLUGIN + "\n# another version\n")
    assert views(left_red, (16, 16), made) != found


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("shrink", "returned an image of"),
        ("crash", "failed: KeyError"),
        ("dimm", "Known: crash, dim, shrink"),
    ],
)
def test_an_augmentation_that_is_wrong(left_red: ImageItem, tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "mine.py").write_text(PLUGIN)
    made = config(plugins=[tmp_path / "mine.py"], augmentations=[name])
    with pytest.raises(ConfigError) as caught:
        render(left_red, views(left_red, (16, 16), made)[0], made)
    assert said in str(caught.value)
