from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from trainer.config import TrainConfig, config_from
from trainer.data import (
    DataError,
    ModelError,
    check_dataset,
    dataset_digest,
    dataset_files,
    dataset_manifest,
    images,
    relocate,
)
from trainer.data.order import Order

ORIENTATION = 0x0112


@pytest.fixture
def sd_header(tmp_path: Path) -> Path:
    """A diffusers folder by its names alone: enough to tell the kind."""
    folder = tmp_path / "sd-model"
    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        (folder / part).mkdir(parents=True)
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    return folder


@pytest.fixture
def lm_header(tmp_path: Path) -> Path:
    folder = tmp_path / "lm-model"
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    return folder


def config(tmp_path: Path, model: Path, **changes: Any) -> TrainConfig:
    return config_from(
        {
            "train_data_dir": tmp_path / "data",
            "base_model": model,
            "output_dir": tmp_path / "out",
            "cache_dir": tmp_path / "cache",
            "resolution": 16,
            **changes,
        }
    )


def picture(
    path: Path, colour: tuple[int, ...] = (10, 200, 30), size: tuple[int, int] = (20, 16), mode: str = "RGB"
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_exif_orientation_is_applied() -> None:
    image = Image.new("RGB", (40, 20), (255, 255, 255))
    image.paste((255, 0, 0), (0, 0, 20, 20))
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    shown = images.open_rgb(encoded(image, "JPEG", exif=exif, quality=95))
    assert shown.size == (20, 40)
    assert shown.getpixel((10, 5))[0] > 200 > 100 > shown.getpixel((10, 5))[1]
    assert min(shown.getpixel((10, 35))) > 200


@pytest.mark.parametrize(
    ("image", "kind", "seen"),
    [
        (Image.new("RGBA", (9, 9), (255, 0, 0, 0)), "PNG", (255, 255, 255)),
        (Image.new("RGBA", (9, 9), (255, 0, 0, 255)), "PNG", (255, 0, 0)),
        (Image.new("LA", (9, 9), (0, 0)), "PNG", (255, 255, 255)),
        (Image.new("L", (9, 9), 128), "PNG", (128, 128, 128)),
        (Image.new("1", (9, 9), 1), "PNG", (255, 255, 255)),
        (Image.fromarray(np.full((9, 9), 257 * 100, np.uint16)), "PNG", (100, 100, 100)),
        (Image.fromarray(np.full((9, 9), 0.5, np.float32)), "TIFF", (128, 128, 128)),
        (Image.new("RGB", (9, 9), (1, 2, 3)), "BMP", (1, 2, 3)),
    ],
)
def test_modes_become_what_a_person_sees(image: Image.Image, kind: str, seen: tuple[int, int, int]) -> None:
    assert images.open_rgb(encoded(image, kind)).getpixel((4, 4)) == seen


def test_palette_with_transparency_cmyk_and_the_first_frame_of_a_gif() -> None:
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([255, 0, 0] + [0, 0, 255] * 255)
    assert images.open_rgb(encoded(palette, "PNG", transparency=0)).getpixel((0, 0)) == (255, 255, 255)
    assert images.open_rgb(encoded(palette, "PNG")).getpixel((0, 0)) == (255, 0, 0)
    red = images.open_rgb(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG")).getpixel((8, 8))
    assert red[0] > 200 > 60 > red[1]
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((0, 255, 0), (0, 0, 255))]
    gif = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert images.open_rgb(gif).getpixel((0, 0)) == (0, 255, 0)


@given(st.binary(max_size=64), st.integers(0, 200))
def test_damaged_files_raise_one_error(junk: bytes, cut: int) -> None:
    whole = encoded(Image.effect_noise((24, 24), 50), "PNG")
    for data in (junk, whole[:cut], whole[:50] + junk + whole[50 + len(junk) :]):
        try:
            images.open_rgb(data)
        except images.ImageError:
            continue


@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from([8, 16, 32]))
def test_square_is_square(width: int, height: int, side: int) -> None:
    assert images.square(Image.new("RGB", (width, height)), side).size == (side, side)


def test_csv_columns_bom_commas_and_unicode_names(tmp_path: Path, sd_header: Path) -> None:
    picture(tmp_path / "data" / "naïve café.png")
    text = '\ufeffPath,Caption,other\n"naïve café.png","one, two",x\n'
    (tmp_path / "data" / "metadata.csv").write_text(text, encoding="utf-8")
    report = check_dataset(config(tmp_path, sd_header))
    assert report.ok
    (item,) = report.items
    assert (item.name, item.caption, item.width, item.height) == ("naïve café.png", "one, two", 20, 16)


def test_every_bad_row_and_file_is_listed_at_once(tmp_path: Path, sd_header: Path) -> None:
    data = tmp_path / "data"
    picture(data / "good.png")
    (data / "broken.jpg").write_bytes(encoded(Image.effect_noise((64, 64), 50), "JPEG")[:300])
    (data / "empty.png").touch()
    (data / "text.png").write_text("hello")
    rows = [
        {"file_name": "good.png", "text": "fine"},
        {"file_name": "goood.png", "text": "typo"},
        {"image": "broken.jpg", "prompt": "cut"},
        {"file_name": "empty.png", "text": "e"},
        {"path": "text.png", "caption": "t"},
        {"file_name": "good.png"},
        {"text": "no file"},
    ]
    lines = [json.dumps(row) for row in rows]
    (data / "metadata.jsonl").write_text("\n".join([*lines, "{oops", "[1]", ""]))
    report = check_dataset(config(tmp_path, sd_header))
    found = {(p.file, p.line): p for p in report.problems}
    assert set(found) == {
        ("metadata.jsonl", 2),
        ("broken.jpg", None),
        ("empty.png", None),
        ("text.png", None),
        ("metadata.jsonl", 6),
        ("metadata.jsonl", 7),
        ("metadata.jsonl", 8),
        ("metadata.jsonl", 9),
    }
    assert "good.png" in found["metadata.jsonl", 2].hint
    with pytest.raises(DataError) as caught:
        report.raise_if_bad()
    for problem in report.problems:
        assert str(problem) in caught.value.message
    skipping = check_dataset(config(tmp_path, sd_header, on_bad_image="skip"))
    assert skipping.ok
    assert len(skipping.items) == 1
    assert sum(w.startswith("skipped: ") for w in skipping.warnings) == 8


def test_sidecars_and_pictures_without_a_caption(tmp_path: Path, sd_header: Path) -> None:
    for name in ("a.png", "b.PNG", "c.png", "d.png"):
        picture(tmp_path / "data" / name)
    (tmp_path / "data" / "a.txt").write_text("\ufeffa  cat\n", encoding="utf-8")
    (tmp_path / "data" / "b.caption").write_text("a dog")
    (tmp_path / "data" / "c.txt").write_text(" \n")
    report = check_dataset(config(tmp_path, sd_header))
    assert [item.caption for item in report.items] == ["a cat", "a dog"]
    assert [(p.file, p.what) for p in report.problems] == [
        ("c.txt", "the caption is empty"),
        ("d.png", "has no caption"),
    ]


@pytest.mark.parametrize(
    "content", [None, "", "\n", "file_name,text\n", "picture,words\na,b\n", b"file_name,text\n\xff,a\n"]
)
def test_unusable_metadata_is_one_problem(
    tmp_path: Path, sd_header: Path, content: str | bytes | None
) -> None:
    picture(tmp_path / "data" / "a.png")
    path = tmp_path / "data" / "metadata.csv"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    report = check_dataset(config(tmp_path, sd_header, metadata_path=path))
    assert len(report.problems) == 1
    assert report.problems[0].file.endswith("metadata.csv")


def test_a_changed_picture_is_decoded_again(tmp_path: Path, sd_header: Path) -> None:
    picture(tmp_path / "data" / "a.png")
    (tmp_path / "data" / "a.txt").write_text("a")
    assert check_dataset(config(tmp_path, sd_header)).ok
    whole = (tmp_path / "data" / "a.png").read_bytes()
    (tmp_path / "data" / "a.png").write_bytes(whole[: len(whole) // 2])
    assert not check_dataset(config(tmp_path, sd_header)).ok


def test_bad_chat_rows_are_listed_with_their_lines(tmp_path: Path, lm_header: Path) -> None:
    (tmp_path / "data").mkdir()
    good = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a\u2028b"}]}
    rows: list[str] = [
        json.dumps(good, ensure_ascii=False),
        "",
        "{",
        json.dumps({"question": "x", "answer": "y"}),
        json.dumps({"messages": [{"role": "usr", "content": "x"}]}),
        json.dumps({"messages": [{"role": "user", "content": ""}]}),
        json.dumps({"messages": [{"role": "user", "content": "x"}]}),
        json.dumps({"messages": [3]}),
        "null",
    ]
    (tmp_path / "data" / "b.jsonl").write_text("\ufeff" + "\n".join(rows), encoding="utf-8")
    (tmp_path / "data" / "a.jsonl").write_text("")
    report = check_dataset(config(tmp_path, lm_header))
    assert [(p.file, p.line) for p in report.problems] == [
        ("a.jsonl", None),
        *[("b.jsonl", line) for line in (3, 4, 5, 6, 7, 8, 9)],
    ]
    assert "answer, question" in report.problems[2].what
    assert [item.name for item in report.items] == ["b.jsonl:1"]


def test_metadata_path_names_the_jsonl(tmp_path: Path, lm_header: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x.jsonl").write_text("{bad")
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    (tmp_path / "data" / "y.txt").write_text(json.dumps(row))
    assert check_dataset(config(tmp_path, lm_header, metadata_path=tmp_path / "data" / "y.txt")).ok


@pytest.mark.parametrize("inside", [True, False])
def test_a_dataset_keeps_its_digest_wherever_it_is_copied(
    tmp_path: Path, sd_header: Path, inside: bool
) -> None:
    picture(tmp_path / "set" / "pictures" / "a.png")
    picture(tmp_path / "set" / "pictures" / "unused.png")
    metadata = tmp_path / "set" / ("pictures/metadata.csv" if inside else "captions.csv")
    metadata.write_text("file_name,text\na.png,hello\n")
    here = config(tmp_path, sd_header, train_data_dir=tmp_path / "set" / "pictures", metadata_path=metadata)
    files = dataset_files(here)
    assert [name for name, _ in files] == (
        ["a.png", "metadata.csv"] if inside else ["captions.csv", "pictures/a.png"]
    )
    there_root = tmp_path / "elsewhere"
    for name, path in files:
        (there_root / name).parent.mkdir(parents=True, exist_ok=True)
        (there_root / name).write_bytes(path.read_bytes())
    there = relocate(here, there_root)
    assert check_dataset(there).ok
    assert dataset_digest(there) == dataset_digest(here)
    assert dataset_manifest(there) == dataset_manifest(here)
    (there_root / files[0][0]).write_bytes(b"other")
    assert dataset_digest(there) != dataset_digest(here)


def test_files_outside_of_the_dataset_are_refused(tmp_path: Path, sd_header: Path) -> None:
    picture(tmp_path / "secret.png")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "metadata.csv").write_text("file_name,text\n../secret.png,x\n")
    with pytest.raises(DataError, match="outside"):
        dataset_files(config(tmp_path, sd_header))


def test_the_kind_of_files_is_known_without_the_base_model(tmp_path: Path) -> None:
    picture(tmp_path / "data" / "a.png")
    (tmp_path / "data" / "a.txt").write_text("a")
    missing = config(tmp_path, tmp_path / "gone")
    assert [name for name, _ in dataset_files(missing)] == ["a.png", "a.txt"]
    with pytest.raises(ModelError, match="does not exist"):
        check_dataset(missing)


@given(st.integers(0, 9), st.integers(1, 30), st.integers(1, 7))
def test_every_epoch_sees_every_sample_once_in_full_batches(seed: int, count: int, size: int) -> None:
    epochs, order = 3, Order(seed, [0] * count, size)
    stream = [i for n in range(order.batches(epochs)) for i in order.batch(n)]
    for epoch in range(epochs):
        assert sorted(stream[epoch * count : (epoch + 1) * count]) == list(range(count))
    assert order.steps(1, epochs, None) == order.batches(epochs)
    assert order.steps(1, epochs, 5) == 5


@given(st.integers(0, 9), st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(1, 7))
def test_a_batch_is_of_one_bucket_and_an_epoch_misses_nobody(
    seed: int, buckets: list[int], size: int
) -> None:
    epochs, order = 3, Order(seed, buckets, size)
    seen: Counter[int] = Counter()
    for number in range(order.batches(epochs)):
        batch = order.batch(number)
        (bucket,) = {buckets[index] for index in batch}
        assert len(batch) == min(size, buckets.count(bucket))
        assert batch == Order(seed, buckets, size).batch(number)
        seen.update(batch)
    assert all(epochs <= seen[index] <= epochs + 1 for index in range(len(buckets)))
