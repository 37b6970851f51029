"""Held-out, regularisation and mask folders: read, checked, and part of the dataset wherever it is copied."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.picture_sets import config, picture
from trainer.config import TrainConfig, config_from
from trainer.data import (
    DATA_PATHS,
    DataError,
    ImageItem,
    check_dataset,
    dataset_digest,
    dataset_files,
    relocate,
)


def images(items: list[Any]) -> list[ImageItem]:
    return [item for item in items if isinstance(item, ImageItem)]


def test_regularisation_pictures_are_marked_and_never_held_out(tmp_path: Path) -> None:
    for number in range(6):
        picture(tmp_path / "data" / f"{number}.png", f"sks {number}", (number, 0, 0))
        picture(tmp_path / "class" / "2_dog" / f"{number}.png", "dog", (number, 9, 0))
    report = check_dataset(config(tmp_path, reg_data_dir=tmp_path / "class", validation_split=0.5))
    assert report.ok
    trained = images(report.items)
    reg = [item for item in trained if item.regularisation]
    assert len(reg) == 6
    assert {(item.name.rpartition("/")[0], item.repeats) for item in reg} == {("class/2_dog", 2)}
    assert report.validation
    assert not any(item.regularisation for item in images(report.validation))
    assert len(trained) + len(report.validation) == 12


def test_a_regularisation_picture_without_a_caption_gets_one_of_its_own(tmp_path: Path) -> None:
    picture(tmp_path / "data" / "a.png", None, (1, 0, 0))
    picture(tmp_path / "class" / "1_big_dog" / "b.png", None, (2, 0, 0))

    def captions(**changes: Any) -> list[str]:
        report = check_dataset(config(tmp_path, reg_data_dir=tmp_path / "class", **changes))
        return [str(problem) for problem in report.problems] or [i.caption for i in images(report.items)]

    (said,) = captions(caption_fallback="a sks dog")
    assert said == "class/1_big_dog/b.png: has no caption (write one to b.txt, or set reg_caption: big dog)"
    assert captions(caption_fallback="a sks dog", reg_caption="a {concept}") == ["a sks dog", "a big dog"]
    assert captions(caption_fallback="a sks dog", reg_caption="") == ["a sks dog", ""]


def test_the_words_of_a_kohya_folder_are_a_caption_where_the_config_says_so(tmp_path: Path) -> None:
    picture(tmp_path / "data" / "10_sks_cat" / "a.png", None, (1, 0, 0))
    picture(tmp_path / "data" / "5_zwx_dog" / "b.png", None, (2, 0, 0))
    report = check_dataset(config(tmp_path, caption_fallback="a photo of {concept}"))
    assert report.ok
    assert [item.caption for item in images(report.items)] == ["a photo of sks cat", "a photo of zwx dog"]
    assert not any("caption" in text for text in report.warnings), report.warnings
    flat = tmp_path / "flat"
    picture(flat / "data" / "a.png")
    (problem,) = check_dataset(config(flat, caption_fallback="a {concept}")).problems
    assert "its folder is not named <repeats>_<name>" in problem.what
    (flat / "data" / "metadata.csv").write_text("file_name,text\na.png,\n")
    (problem,) = check_dataset(config(flat, caption_fallback="a {concept}")).problems
    assert "without {concept}, which is for kohya's folders" in problem.hint


def test_a_share_is_held_out_by_content_and_never_all(tmp_path: Path) -> None:
    for number in range(12):
        picture(tmp_path / "data" / f"{number}.png", f"{number}", (number, 0, 0))
    first = check_dataset(config(tmp_path, validation_split=0.25))
    held = {item.sha256 for item in images(first.validation)}
    assert 0 < len(held) < 12
    assert len(first.items) + len(first.validation) == 12
    assert f"held out for validation: {len(held)}" in first.notes
    for path in sorted((tmp_path / "data").iterdir()):
        path.rename(path.with_name(f"x{path.name}"))
    second = check_dataset(config(tmp_path, validation_split=0.25))
    assert {item.sha256 for item in images(second.validation)} == held
    one = tmp_path / "one"
    picture(one / "data" / "a.png", "a")
    alone = check_dataset(config(one, validation_split=0.5))
    assert (len(alone.items), alone.validation) == (1, [])
    assert any("validation_split holds out nothing" in text for text in alone.warnings)


def test_a_validation_folder_is_read_as_the_other_and_leaks_are_told(tmp_path: Path) -> None:
    picture(tmp_path / "data" / "a.png", "a")
    picture(tmp_path / "held" / "5_x" / "b.png", "a")
    (tmp_path / "held" / "5_x" / "c.png").write_bytes(b"broken")
    (tmp_path / "held" / "5_x" / "c.txt").write_text("c")
    report = check_dataset(config(tmp_path, validation_dir=tmp_path / "held", validation_split=0.5))
    assert [problem.file for problem in report.problems] == ["held/5_x/c.png"]
    (item,) = images(report.validation)
    assert (item.name, item.repeats) == ("held/5_x/b.png", 1)
    assert any(
        "held-out picture are trained on" in text or "trained on as well" in text for text in report.warnings
    )


@pytest.mark.parametrize("where", ["masks/a.png", "masks/10_x/a.jpg"])
def test_masks_are_found_by_the_pictures_name(tmp_path: Path, where: str) -> None:
    picture(tmp_path / "data" / "10_x" / "a.png", "a")
    picture(tmp_path / where, mode="L", colour=255, size=(40, 32))
    made = config(tmp_path, masked_loss="folder", mask_dir=tmp_path / "masks")
    report = check_dataset(made)
    assert report.ok
    assert [item.mask for item in images(report.items)] == [tmp_path / where]


def test_of_two_masks_with_one_stem_the_one_in_the_same_folder_counts(tmp_path: Path) -> None:
    for concept in ("1_x", "1_y"):
        picture(tmp_path / "data" / concept / "a.png", concept)
        picture(tmp_path / "masks" / concept / "a.png", mode="L", colour=255)
    report = check_dataset(config(tmp_path, masked_loss="folder", mask_dir=tmp_path / "masks"))
    assert [item.mask for item in images(report.items)] == [
        tmp_path / "masks" / concept / "a.png" for concept in ("1_x", "1_y")
    ]


def test_everything_wrong_with_masks_is_told(tmp_path: Path) -> None:
    for name in ("cat", "dog", "cow", "fox"):
        picture(tmp_path / "data" / f"{name}.png", name)
    picture(tmp_path / "masks" / "catt.png", mode="L", colour=255)
    picture(tmp_path / "masks" / "dog.png", mode="L", colour=255, size=(20, 40))
    picture(tmp_path / "masks" / "cow.png", mode="L", colour=0)
    (tmp_path / "masks" / "fox.png").write_bytes(b"no")
    made = config(tmp_path, masked_loss="folder", mask_dir=tmp_path / "masks")
    found = {problem.file: str(problem) for problem in check_dataset(made).problems}
    assert "did you mean catt.png?" in found["cat.png"]
    assert "its mask is 20x40, the picture 20x16" in found["dog.png"]
    assert "hides all of it" in found["cow.png"]
    assert "its mask fox.png: not an image" in found["fox.png"]
    gentle = check_dataset(made.model_copy(update={"unmasked_weight": 0.1})).problems
    assert "cow.png" not in {problem.file for problem in gentle}
    (problem,) = check_dataset(config(tmp_path, masked_loss="folder")).problems
    assert problem.file == "mask_dir"
    unread = check_dataset(config(tmp_path, mask_dir=tmp_path / "masks")).warnings
    assert any("mask_dir is not read" in text for text in unread)


def test_alpha_that_hides_all_of_a_picture_is_a_problem(tmp_path: Path) -> None:
    picture(tmp_path / "data" / "a.png", "a", (1, 2, 3, 0), mode="RGBA")
    picture(tmp_path / "data" / "b.png", "b", (1, 2, 3, 9), mode="RGBA")
    picture(tmp_path / "data" / "c.png", "c")
    (problem,) = check_dataset(config(tmp_path, masked_loss="alpha")).problems
    assert problem.file == "a.png"


def copied(here: TrainConfig, root: Path) -> TrainConfig:
    """A copy of the dataset below `root`, as the platform makes it."""
    for name, path in dataset_files(here):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, root / name)
    plain = relocate(here, Path()).model_dump(mode="json", exclude_unset=True)
    return config_from({**plain, **{key: root / plain[key] for key in DATA_PATHS if key in plain}})


LAYOUTS: dict[str, dict[str, str]] = {
    "side by side": {
        "train_data_dir": "s/t",
        "validation_dir": "s/v",
        "reg_data_dir": "s/r",
        "mask_dir": "s/m",
    },
    "inside": {"train_data_dir": "t", "validation_dir": "t/v", "reg_data_dir": "t/r", "mask_dir": "t/m"},
    "far apart": {
        "train_data_dir": "a/b/t",
        "validation_dir": "c/v",
        "reg_data_dir": "d/r",
        "mask_dir": "e/m",
    },
    "concepts": {"train_data_dir": "10_t", "validation_dir": "3_v", "reg_data_dir": "r", "mask_dir": "r/m"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("alone", [True, False])
def test_a_dataset_of_several_folders_is_the_same_wherever_it_is_copied(
    tmp_path: Path, layout: str, alone: bool
) -> None:
    paths = {key: tmp_path / "set" / part for key, part in LAYOUTS[layout].items()}
    picture(paths["train_data_dir"] / "a.png", "a")
    picture(paths["train_data_dir"] / "b.png", "b", (1, 1, 1))
    picture(paths["validation_dir"] / "c.png", "c", (2, 2, 2))
    picture(paths["reg_data_dir"] / "d.png", "d", (3, 3, 3))
    for name in "ab":
        picture(paths["mask_dir"] / f"{name}.png", mode="L", colour=200)
    picture(paths["mask_dir"] / "unused.png", mode="L", colour=200)
    if alone:
        here = config(tmp_path, train_data_dir=paths["train_data_dir"])
    else:
        here = config(tmp_path, masked_loss="folder", **paths)
    there = copied(here, tmp_path / "elsewhere" / "5f2_digest")
    assert dataset_digest(there) == dataset_digest(here)
    assert "unused" not in str(dataset_files(here))
    old, new = check_dataset(here), check_dataset(there)
    assert old.ok
    assert new.ok

    def facts(items: list[Any]) -> list[Any]:
        return [(i.caption, i.sha256, i.repeats, i.regularisation, bool(i.mask)) for i in images(items)]

    assert facts(new.items) == facts(old.items)
    assert facts(new.validation) == facts(old.validation)
    for key in DATA_PATHS:
        path = getattr(there, key)
        assert path is None or path.is_relative_to(tmp_path / "elsewhere")
    if not alone:
        (there.reg_data_dir / "d.txt").write_text("other")  # type: ignore[operator]
        assert dataset_digest(there) != dataset_digest(here)


def test_a_row_that_points_out_of_all_folders_is_refused(tmp_path: Path) -> None:
    picture(tmp_path / "secret.png")
    picture(tmp_path / "set" / "v" / "v.png", "v")
    (tmp_path / "set" / "data").mkdir()
    (tmp_path / "set" / "data" / "metadata.csv").write_text("file_name,text\n../../secret.png,x\n")
    made = config(tmp_path, train_data_dir=tmp_path / "set/data", validation_dir=tmp_path / "set/v")
    with pytest.raises(DataError, match="outside"):
        dataset_files(made)


def test_rows_are_held_out_too(tmp_path: Path) -> None:
    model = tmp_path / "lm"
    model.mkdir()
    (model / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')

    def rows(folder: str, *answers: str) -> None:
        (tmp_path / folder).mkdir()
        turns = [[("user", "q"), ("assistant", answer)] for answer in answers]
        lines = [{"messages": [{"role": r, "content": c} for r, c in each]} for each in turns]
        (tmp_path / folder / "x.jsonl").write_text("\n".join(map(json.dumps, lines)))

    rows("data", *"abcdefgh")
    rows("held", "z")
    made = config(tmp_path, base_model=model, validation_split=0.3)
    report = check_dataset(made)
    assert report.validation
    assert len(report.items) + len(report.validation) == 8
    both = made.model_copy(update={"validation_dir": tmp_path / "held"})
    report = check_dataset(both)
    assert (len(report.items), len(report.validation)) == (8, 1)
    assert [name for name, _ in dataset_files(both)] == ["data/x.jsonl", "held/x.jsonl"]
    (tmp_path / "held" / "x.jsonl").write_text("{oops")
    assert [problem.file for problem in check_dataset(both).problems] == ["held/x.jsonl"]
