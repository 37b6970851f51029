"""What users of other trainers suffer with data (reference: pains 4 to 11, 13 and D1), and what they see
here instead. The number of the pain is in each test's name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.trainer.picture_sets import ORIENTATION, config, encoded, picture
from trainer.data import DataError, ImageItem, check_dataset
from trainer.data.buckets import bucket_for, bucket_sizes
from trainer.data.captions import texts
from trainer.data.variants import render, views


def items(root: Path, **changes: object) -> list[ImageItem]:
    report = check_dataset(config(root, **changes))
    report.raise_if_bad()
    return [item for item in report.items if isinstance(item, ImageItem)]


def test_pain_4_a_picture_is_turned_as_its_exif_says_before_it_gets_a_bucket(tmp_path: Path) -> None:
    image = Image.new("RGB", (120, 60), (255, 255, 255))
    image.paste((255, 0, 0), (0, 0, 60, 60))
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.jpg").write_bytes(encoded(image, "JPEG", exif=exif, quality=95))
    (tmp_path / "data" / "a.txt").write_text("red above white")
    (item,) = items(tmp_path, resolution=64)
    assert (item.width, item.height) == (60, 120)
    size = bucket_for(item.width, item.height, bucket_sizes(64, 64, 2))
    assert size[0] < size[1]
    pixels = render(item, views(item, size, config(tmp_path))[0], config(tmp_path))
    assert pixels[2, size[0] // 2, 1] < 60
    assert pixels[-3, size[0] // 2, 1] > 200


@pytest.mark.parametrize("suffix", [".txt", ".caption"])
def test_pain_5_captions_of_both_suffixes_are_read(tmp_path: Path, suffix: str) -> None:
    picture(tmp_path / "data" / "a.png").with_suffix(suffix).write_text("a cat")
    report = check_dataset(config(tmp_path))
    assert [item.caption for item in report.items if isinstance(item, ImageItem)] == ["a cat"]
    assert "captions: 1 of 1 picture" in report.notes


def test_pain_5_captions_of_a_camera_or_of_windows_are_read(tmp_path: Path) -> None:
    picture(tmp_path / "data" / "A.PNG")
    (tmp_path / "data" / "A.TXT").write_text("a hill")
    (item,) = items(tmp_path)
    assert item.caption == "a hill"


def test_pain_5_a_picture_without_a_caption_stops_the_training_by_name(tmp_path: Path) -> None:
    picture(tmp_path / "data" / "10_my_cat" / "a.png")
    picture(tmp_path / "data" / "10_my_cat" / "b.png", "a cat")
    with pytest.raises(DataError) as caught:
        check_dataset(config(tmp_path)).raise_if_bad()
    assert "10_my_cat/a.png: has no caption" in caught.value.message
    assert "write one to a.txt, or set caption_fallback: my cat" in caught.value.message
    report = check_dataset(config(tmp_path, caption_fallback="my cat"))
    assert report.ok
    assert "captions: 1 of 2 pictures; the other 1 get caption_fallback" in report.notes


def test_pain_5_captions_that_are_not_read_are_told(tmp_path: Path) -> None:
    picture(tmp_path / "data" / "a.png", "beside")
    (tmp_path / "data" / "metadata.csv").write_text("file_name,text\na.png,listed\n")
    report = check_dataset(config(tmp_path))
    assert [item.caption for item in report.items if isinstance(item, ImageItem)] == ["listed"]
    assert any("captions come from metadata.csv" in text for text in report.warnings)


@pytest.mark.parametrize("level", ["data", "data/10_my_cat"])
def test_pain_6_both_levels_of_a_kohya_folder_work(tmp_path: Path, level: str) -> None:
    picture(tmp_path / "data" / "10_my_cat" / "a.png", "a cat")
    report = check_dataset(config(tmp_path, train_data_dir=tmp_path / level, repeats=2))
    assert report.ok
    (item,) = report.items
    assert isinstance(item, ImageItem)
    assert item.repeats == 20
    assert "10_my_cat: 1 picture, each 10 times an epoch (from the folder's name)" in report.notes


@pytest.mark.parametrize(
    ("inner", "said"),
    [
        ("img/10_cat", ["holds the folders 10_cat", "set train_data_dir to"]),
        ("cats", ["only folders of them without a number (cats)", "such as 1_cats"]),
        ("0_cats", ["says 0 repeats", "rename it to 1_cats"]),
    ],
)
def test_pain_6_a_wrong_level_or_name_is_told_with_what_was_found(
    tmp_path: Path, inner: str, said: list[str]
) -> None:
    picture(tmp_path / "data" / inner / "a.png", "a cat")
    (problem,) = check_dataset(config(tmp_path)).problems
    for part in said:
        assert part in str(problem)


def test_pain_6_pictures_that_are_passed_over_are_told(tmp_path: Path) -> None:
    picture(tmp_path / "data" / "10_cat" / "a.png", "a cat")
    picture(tmp_path / "data" / "dog" / "b.png", "a dog")
    picture(tmp_path / "data" / "c.png", "a cow")
    picture(tmp_path / "data" / "2024_trip" / "d.png", "a hill")
    warnings = "\n".join(check_dataset(config(tmp_path)).warnings)
    assert "the pictures in dog are not read" in warnings
    assert "1 picture beside the folders 10_cat, 2024_trip (the first: c.png) are not read" in warnings
    assert "2024_trip says 2,024 repeats" in warnings
    assert "10_cat itself" not in warnings
    picture(tmp_path / "data" / "10_cat" / "more" / "e.png", "a cat")
    warnings = "\n".join(check_dataset(config(tmp_path)).warnings)
    assert "the pictures in 10_cat/more are not read; move them into 10_cat itself." in warnings


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_pain_7_what_is_transparent_shows_the_chosen_background(tmp_path: Path, mode: str) -> None:
    hidden = Image.new("RGBA", (32, 32), (255, 0, 255, 0))
    (tmp_path / "data").mkdir()
    if mode == "P":
        data = encoded(Image.new("P", (32, 32), 0), "PNG", transparency=0)
    else:
        data = encoded(hidden.convert(mode), "PNG")
    (tmp_path / "data" / "a.png").write_bytes(data)
    (tmp_path / "data" / "a.txt").write_text("nothing")
    for background, seen in (("white", 255), ("#404040", 64)):
        (item,) = items(tmp_path, background=background)
        made = config(tmp_path, background=background)
        assert (render(item, views(item, (16, 16), made)[0], made) == seen).all()


def test_pain_8_every_bad_file_is_named_before_step_0_and_may_be_skipped(tmp_path: Path) -> None:
    data = tmp_path / "data"
    picture(data / "good.png", "good")
    whole = encoded(Image.effect_noise((64, 64), 50), "JPEG")
    for name, content in (("cut.jpg", whole[: len(whole) // 2]), ("empty.png", b""), ("page.png", b"<html>")):
        (data / name).write_bytes(content)
        (data / name).with_suffix(".txt").write_text("bad")
    with pytest.raises(DataError) as caught:
        check_dataset(config(tmp_path)).raise_if_bad()
    for name in ("cut.jpg", "empty.png", "page.png"):
        assert name in caught.value.message
    assert "on_bad_image: skip" in caught.value.hint
    report = check_dataset(config(tmp_path, on_bad_image="skip"))
    assert report.ok
    assert [item.name for item in report.items] == ["good.png"]
    assert any("3 of 4 pictures are left out" in text for text in report.warnings)


def test_pain_8_a_missing_folder_is_never_skipped(tmp_path: Path) -> None:
    picture(tmp_path / "data" / "good.png", "good")
    report = check_dataset(config(tmp_path, on_bad_image="skip", validation_dir=tmp_path / "gone"))
    with pytest.raises(DataError, match="no such folder") as caught:
        report.raise_if_bad()
    assert "skip" not in caught.value.hint


def test_pain_9_captions_with_a_mark_in_another_encoding_or_empty(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (picture(data / "bøm.png").with_suffix(".txt")).write_bytes("\ufeffun café".encode())
    (picture(data / "latin.png").with_suffix(".txt")).write_bytes("one\ncafé".encode("latin-1"))
    (picture(data / "猫.png").with_suffix(".txt")).write_text(" \n")
    report = check_dataset(config(tmp_path))
    assert [str(problem) for problem in report.problems] == [
        "latin.txt:2: not UTF-8 (save the file as UTF-8)",
        "猫.txt: the caption is empty (write what the picture shows, or set caption_fallback)",
    ]
    (item,) = report.items
    assert isinstance(item, ImageItem)
    assert (item.name, item.caption) == ("bøm.png", "un café")


def test_pain_10_what_is_cached_is_named_by_everything_that_makes_its_pixels(tmp_path: Path) -> None:
    picture(tmp_path / "data" / "a.png", "a", size=(300, 200))
    (before,) = items(tmp_path)

    def key(item: ImageItem, size: tuple[int, int] = (64, 64), **changes: object) -> str:
        made = config(tmp_path, **changes)
        return json.dumps([item.sha256, views(item, size, made)[0].as_dict()])

    keys = {key(before), key(before, (128, 128)), key(before, background="black"), key(before, crop="random")}
    assert len(keys) == 4
    picture(tmp_path / "data" / "a.png", "a", (9, 9, 9), size=(300, 200))
    (after,) = items(tmp_path)
    assert after.path == before.path
    assert key(after) not in keys


def test_pain_11_every_picture_keeps_its_own_caption(tmp_path: Path) -> None:
    for number in range(24):
        shade = (number * 37) % 240
        picture(tmp_path / "data" / f"{number}.png", str(shade), (shade, 0, 0), (16 + number, 20))
    found = items(tmp_path)
    assert len(found) == 24
    for item in found:
        made = config(tmp_path)
        pixels = render(item, views(item, (16, 16), made)[0], made)
        assert np.unique(pixels[..., 0]).tolist() == [int(item.caption)]


def test_pain_13_shuffled_captions_are_known_before_they_are_encoded_and_none_is_dropped(
    tmp_path: Path,
) -> None:
    made = config(tmp_path, caption_shuffle=True, caption_dropout=0.5, keep_tokens=1, cache_variants=6)
    known = texts("sks, red, blue, green", made, "k")
    assert 1 < len(known) <= 6
    assert "" not in known
    assert all(text.startswith("sks, ") for text in known)


@pytest.mark.parametrize("file_column", ["file_name", "image", "path"])
@pytest.mark.parametrize("text_column", ["text", "caption", "prompt"])
def test_pain_d1_the_usual_columns_and_paths_relative_to_the_metadata(
    tmp_path: Path, file_column: str, text_column: str
) -> None:
    picture(tmp_path / "data" / "train" / "a b.png")
    for name in ("train/a b.png", "train\\a b.png"):
        row = {file_column: name, text_column: "a cat", "width": 3}
        (tmp_path / "data" / "metadata.jsonl").write_text(json.dumps(row) + "\n")
        (item,) = items(tmp_path)
        assert item.caption == "a cat"


def test_pain_d1_the_first_bad_row_is_named_with_what_was_found(tmp_path: Path) -> None:
    picture(tmp_path / "data" / "cat.png")
    rows = [{"file": "cat.png", "label": "x"}, {"file_name": "cta.png", "text": "x"}]
    (tmp_path / "data" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    first, second = map(str, check_dataset(config(tmp_path)).problems)
    assert first == (
        "metadata.jsonl:1: names no image (one of the columns file_name, image, path; found: file, label)"
    )
    assert "metadata.jsonl:2: cta.png: no such file" in second
    assert "did you mean cat.png?" in second
    picture(tmp_path / "data" / "sub" / "dog.png")
    (tmp_path / "data" / "metadata.jsonl").write_text('{"file_name": "sub/dgo.png", "text": "x"}')
    assert "did you mean dog.png?" in str(check_dataset(config(tmp_path)).problems[0])


def test_pain_9_an_accent_is_found_however_the_disk_spells_it(tmp_path: Path) -> None:
    composed, apart = "caf\u00e9.png", "cafe\u0301.png"
    for there, said in ((composed, apart), (apart, composed)):
        root = tmp_path / str(len(there))
        picture(root / "data" / there)
        (root / "data" / "metadata.jsonl").write_text(json.dumps({"file_name": said, "text": "x"}))
        assert len(items(root)) == 1


@pytest.mark.parametrize("mark", [";", "\t"])
def test_pain_d1_what_a_spreadsheet_writes_in_place_of_commas(tmp_path: Path, mark: str) -> None:
    picture(tmp_path / "data" / "a;b.png")
    rows = f'\ufeff"File_Name"{mark}text\r\n"a;b.png"{mark}a cat, sitting\r\n'
    (tmp_path / "data" / "metadata.csv").write_text(rows, encoding="utf-8", newline="")
    (item,) = items(tmp_path)
    assert item.caption == "a cat, sitting"


@pytest.mark.parametrize("column", [None, "txt"])
def test_pain_d1_a_column_that_is_missing_is_told_once(tmp_path: Path, column: str | None) -> None:
    for name in "abc":
        picture(tmp_path / "data" / f"{name}.png", colour=(ord(name), 0, 0))
    (tmp_path / "data" / "metadata.csv").write_text("image,label\na.png,x\nb.png,y\nc.png,z\n")
    (problem,) = check_dataset(config(tmp_path, caption_column=column)).problems
    assert "for the caption in the header (image, label)" in problem.what
    assert problem.line == 1
    assert check_dataset(config(tmp_path, caption_column="Label")).ok
    assert check_dataset(config(tmp_path, caption_fallback="x")).ok
