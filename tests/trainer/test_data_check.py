"""What the check says besides problems: warnings with a remedy, the buckets, progress; and how it decodes."""

from __future__ import annotations

import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.trainer.picture_sets import config, encoded, picture
from trainer.config import ConfigError
from trainer.data import ImageItem, check_dataset, decode, images


def warned(root: Path, **changes: Any) -> str:
    report = check_dataset(config(root, **changes))
    assert report.ok, report.problems
    return "\n".join(report.warnings)


def captioned(root: Path, *captions: str, size: tuple[int, int] = (20, 16)) -> None:
    for number, caption in enumerate(captions):
        picture(root / "data" / f"{number}.png", caption, (number, 0, 0), size)


def test_the_kind_of_base_and_the_resolution_are_told(tmp_path: Path) -> None:
    captioned(tmp_path, "a", "b")
    assert (
        check_dataset(config(tmp_path)).notes[0] == "base model: Stable Diffusion 1.x, trained at 16 pixels"
    )


def test_more_regularisation_than_subject_is_told(tmp_path: Path) -> None:
    captioned(tmp_path, "sks a", "sks b")
    for number in range(3):
        picture(tmp_path / "class" / "2_dog" / f"{number}.png", "dog", (number, 9, 0))
    found = warned(tmp_path, reg_data_dir=tmp_path / "class")
    assert "an epoch has 6 regularisation samples and only 2 of your own" in found
    assert "(3 times as many)" in found
    (tmp_path / "class" / "2_dog").rename(tmp_path / "class" / "1_dog")
    assert "regularisation" not in warned(tmp_path, reg_data_dir=tmp_path / "class")


def test_an_alpha_mask_that_hides_nothing_is_told(tmp_path: Path) -> None:
    picture(tmp_path / "data" / "a.png", "a", (1, 2, 3))
    picture(tmp_path / "data" / "b.png", "b", (1, 2, 3, 128), mode="RGBA")
    found = warned(tmp_path, masked_loss="alpha")
    assert "masked_loss: alpha hides nothing of 1 of 2 pictures (the first: a.png has no" in found
    assert "masked_loss" not in warned(tmp_path)


def test_a_good_dataset_has_no_warning(tmp_path: Path) -> None:
    captioned(tmp_path, "a", "b")
    assert warned(tmp_path) == ""


@pytest.mark.parametrize(("size", "blurred"), [((600, 400), True), ((900, 600), False), ((512, 512), False)])
def test_small_pictures_are_told(tmp_path: Path, size: tuple[int, int], blurred: bool) -> None:
    captioned(tmp_path, "a", "b", size=size)
    said = warned(tmp_path, resolution=512)
    assert ("2 of 2 images are smaller than 512 pixels and will be blurred" in said) == blurred
    assert ("lower resolution" in said) == blurred


def test_a_high_rank_on_few_pictures_is_told(tmp_path: Path) -> None:
    captioned(tmp_path, "a", "b")
    assert "start with 4 to 8" in warned(tmp_path, lora_rank=32)
    assert "start with 4 to 8" not in warned(tmp_path, lora_rank=31)


def test_captions_that_say_nothing_are_told(tmp_path: Path) -> None:
    captioned(tmp_path, "a cat", "a cat")
    assert "all captions are the same ('a cat')" in warned(tmp_path)
    for path in (tmp_path / "data").glob("*.txt"):
        path.unlink()
    assert "no picture has a caption of its own" in warned(tmp_path, caption_fallback="x")


def test_pictures_that_are_there_twice_are_told(tmp_path: Path) -> None:
    for name, caption in (("a", "cat"), ("b", "dog"), ("c", "cat")):
        picture(tmp_path / "data" / f"{name}.png", caption)
    said = warned(tmp_path)
    assert "different captions for the same picture, 1 times (the first: a.png and b.png)" in said
    assert "the same picture more than once, 1 times (the first: a.png and c.png)" in said


def test_pictures_that_lose_much_to_the_cut_are_told(tmp_path: Path) -> None:
    captioned(tmp_path, "a", "b", size=(400, 100))
    assert "2 pictures lose more than a quarter to the cut" in warned(tmp_path, resolution=64)
    assert "to the cut" not in warned(tmp_path, resolution=64, bucket_max_ratio=4)


def test_files_that_look_like_pictures_and_are_not_read_are_told(tmp_path: Path) -> None:
    captioned(tmp_path, "a", "b")
    (tmp_path / "data" / "x.heic").write_bytes(b"x")
    (tmp_path / "data" / "._0.png").write_bytes(b"macOS")
    assert "1 file of a kind that is not read (the first: x.heic)" in warned(tmp_path)


def test_pictures_without_a_row_are_told(tmp_path: Path) -> None:
    picture(tmp_path / "data" / "a.png")
    picture(tmp_path / "data" / "b.png", colour=(1, 1, 1))
    (tmp_path / "data" / "metadata.csv").write_text("file_name,text\na.png,x\n")
    (tmp_path / "data" / "metadata.jsonl").write_text("{}\n")
    said = warned(tmp_path)
    assert "1 picture in the folder without a row in metadata.csv (the first: b.png)" in said
    picture(tmp_path / "data" / "sub" / "c.png", colour=(7, 7, 7))
    picture(tmp_path / "data" / "sub" / "d.png", colour=(8, 8, 8))
    (tmp_path / "data" / "metadata.csv").write_text("file_name,text\na.png,x\nb.png,y\nsub/../sub/c.png,z\n")
    assert "1 picture in the folder without a row in metadata.csv (the first: d.png)" in warned(tmp_path)
    assert "metadata.csv is read and metadata.jsonl is not" in said


def test_the_buckets_are_in_the_report(tmp_path: Path) -> None:
    for name, size in (("a", (600, 400)), ("b", (60, 40)), ("c", (50, 50)), ("d", (400, 600))):
        picture(tmp_path / "data" / f"{name}.png", name, size=size)
    report = check_dataset(config(tmp_path, resolution=64))
    assert report.buckets == {"48x80": 1, "64x64": 1, "80x48": 2}
    assert report.as_dict()["buckets"] == report.buckets
    assert "buckets: 1 of 48x80, 1 of 64x64, 2 of 80x48" in report.notes
    square = check_dataset(config(tmp_path, resolution=64, aspect_buckets=False))
    assert square.buckets == {"64x64": 4}


def test_an_unknown_augmentation_is_told_before_anything_is_decoded(tmp_path: Path) -> None:
    captioned(tmp_path, "a")
    with pytest.raises(ConfigError, match="`sepia` is registered by no file of `plugins`"):
        check_dataset(config(tmp_path, augmentations=["sepia"]))


def test_many_pictures_are_counted_aloud_and_few_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioned(tmp_path, *map(str, range(20)))
    said: list[str] = []
    check_dataset(config(tmp_path), said.append)
    assert said == []
    monkeypatch.setattr(decode, "_TOLD_FROM", 10)
    report = check_dataset(config(tmp_path), said.append)
    assert said[0] == "checked 2 of 20 pictures"
    assert len(said) == 10
    assert [item.name for item in report.items] == sorted(item.name for item in report.items)


def test_what_was_decoded_once_is_remembered_by_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioned(tmp_path, "a", "b")
    before = check_dataset(config(tmp_path)).items
    (tmp_path / "data" / "0.png").rename(tmp_path / "data" / "9.png")
    (tmp_path / "data" / "0.txt").rename(tmp_path / "data" / "9.txt")

    def never(*_: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(images, "open_rgb", never)
    after = check_dataset(config(tmp_path)).items
    assert {i.sha256 for i in before if isinstance(i, ImageItem)} == {
        i.sha256 for i in after if isinstance(i, ImageItem)
    }


def test_a_damaged_memory_is_no_memory(tmp_path: Path) -> None:
    captioned(tmp_path, "a")
    check_dataset(config(tmp_path))
    for path in (tmp_path / "cache").rglob("*.json"):
        path.write_text("\0\0\0")
    (item,) = check_dataset(config(tmp_path)).items
    assert isinstance(item, ImageItem)
    assert (item.width, item.height) == (20, 16)


def test_threads_that_decode_leave_the_warnings_as_they_were() -> None:
    before = list(warnings.filters)
    data = encoded(Image.effect_noise((64, 64), 50), "PNG")
    threads = [threading.Thread(target=lambda: [images.open_rgb(data) for _ in range(40)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before
