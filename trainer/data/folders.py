"""Pictures with captions beside them: a flat folder, or kohya's `N_concept` folders."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from trainer.config import TrainConfig
from trainer.data.listing import Listing, counted, folders_in, pictures_in, unread_in
from trainer.data.report import ImageItem, Problem
from trainer.data.text_files import read_text

CAPTIONS = (".txt", ".caption")
CONCEPT = "{concept}"
"""Stands in caption_fallback for the words of the folder's name: what kohya's tools take."""
_CONCEPT = re.compile(r"(\d{1,9})_(.+)")
_MANY = 200


@dataclass(frozen=True)
class Concept:
    """What the name of a kohya folder says: `10_mycat` is 10 repeats of mycat."""

    repeats: int
    words: str


def concept_of(name: str) -> Concept | None:
    """The concept of a folder's name, if it is of that kind."""
    match = _CONCEPT.fullmatch(name)
    return Concept(int(match[1]), match[2].replace("_", " ")) if match else None


def read_pictures(folder: Path, config: TrainConfig, others: Collection[Path] = ()) -> Listing:
    """The pictures of a flat folder, of one concept folder, or of a folder of concept folders. `others` are
    folders inside with a purpose of their own (masks, validation): they are passed over."""
    there = pictures_in(folder)
    inner = [path for path in folders_in(folder) if path.absolute() not in others]
    concepts = {path: concept for path in inner if (concept := concept_of(path.name))}
    if not any(pictures_in(path) for path in concepts):
        if not there:
            return Listing(faults=[_nothing(folder, inner)])
        own = concept_of(folder.absolute().name)
        found = _read(folder, "", own, config)
        found.notes.insert(0, _found(folder.absolute().name, own, len(there)))
        found.warnings += _passed_over(path for path in inner if pictures_in(path))
        return found
    found = Listing()
    for path, concept in concepts.items():
        found.notes.append(_found(path.name, concept, len(pictures_in(path))))
        found.add(_read(path, f"{path.name}/", concept, config))
        deeper = [
            each.name for each in folders_in(path) if each.absolute() not in others and pictures_in(each)
        ]
        if deeper:
            found.warnings.append(
                f"the pictures in {path.name}/{deeper[0]} are not read; move them into {path.name} itself."
            )
    if there:
        found.warnings.append(
            f"{counted(len(there), 'picture')} beside the folders {', '.join(p.name for p in concepts)} "
            f"(the first: {there[0].name}) are not read; move them into one of the folders."
        )
    found.warnings += _passed_over(path for path in inner if path not in concepts and pictures_in(path))
    return found


def _read(folder: Path, prefix: str, concept: Concept | None, config: TrainConfig) -> Listing:
    found = Listing(warnings=unread_in(folder))
    repeats = config.repeats * (concept.repeats if concept else 1)
    if concept and not concept.repeats:
        found.faults.append(
            Problem(str(folder), None, "says 0 repeats", f"rename it to 1_{folder.name.partition('_')[2]}")
        )
        return found
    if concept and concept.repeats > _MANY:
        found.warnings.append(
            f"the folder {folder.name} says {concept.repeats:,} repeats of each picture; if that number is "
            "no count (a date, say), rename the folder."
        )
    two: list[str] = []
    for image in pictures_in(folder):
        name = prefix + image.name
        beside = [path for path in map(image.with_suffix, CAPTIONS) if path.is_file()]
        beside = beside or [path for end in CAPTIONS if (path := image.with_suffix(end.upper())).is_file()]
        if not beside:
            caption, source = _fallback(name, f"write one to {image.stem}.txt", concept, config), ""
        else:
            text, problem = read_text(beside[0], prefix + beside[0].name)
            caption, source = problem or " ".join(text.split()), beside[0].name
            if caption == "":
                hint, source = "write what the picture shows", ""
                caption = _fallback(prefix + beside[0].name, hint, concept, config, empty=True)
            if len(beside) > 1:
                two.append(name)
        if isinstance(caption, Problem):
            found.problems.append(caption)
            continue
        found.files += beside[:1]
        found.items.append(ImageItem(image, name, caption, source, repeats=repeats))
    if two:
        found.warnings.append(
            f"{counted(len(two), 'picture')} with a .txt and a .caption (the first: {two[0]}): the .txt is "
            "read; delete one of them."
        )
    return found


def _fallback(
    name: str, hint: str, concept: Concept | None, config: TrainConfig, empty: bool = False
) -> str | Problem:
    fallback = config.caption_fallback
    if fallback is not None and (concept or CONCEPT not in fallback):
        return fallback.replace(CONCEPT, concept.words if concept else "")
    if fallback is not None:
        what = f"caption_fallback speaks of {CONCEPT}, but its folder is not named <repeats>_<name>"
        return Problem(name, None, what, hint)
    words = f": {concept.words}" if concept else ""
    what = "the caption is empty" if empty else "has no caption"
    return Problem(name, None, what, f"{hint}, or set caption_fallback{words}")


def _found(name: str, concept: Concept | None, number: int) -> str:
    told = f"{name}: {counted(number, 'picture')}"
    if concept is None:
        return told
    often = "once" if concept.repeats == 1 else f"{concept.repeats} times"
    return f"{told}, each {often} an epoch (from the folder's name)"


def _passed_over(folders: Iterable[Path]) -> list[str]:
    names = [path.name for path in folders]
    if not names:
        return []
    text = (
        f"the pictures in {', '.join(names[:5])}{' and others' if len(names) > 5 else ''} are not read; "
        f"to read them, rename each folder to <repeats>_<name>, such as 1_{names[0]}."
    )
    return [text]


def _nothing(folder: Path, inner: list[Path]) -> Problem:
    """Why there is no picture, with the level that was probably meant."""
    for path in inner:
        concepts = [each.name for each in folders_in(path) if concept_of(each.name) and pictures_in(each)]
        if concepts:
            hint = f"{path.name} holds the folders {', '.join(concepts[:3])}: set train_data_dir to {path}"
            return Problem(str(folder), None, "holds no images", hint)
    for path in inner:
        if (path / "metadata.csv").is_file() or (path / "metadata.jsonl").is_file():
            hint = f"{path.name} holds a metadata file: set train_data_dir to {path}"
            return Problem(str(folder), None, "holds no images", hint)
    full = [path.name for path in inner if pictures_in(path)]
    if full:
        return Problem(
            str(folder),
            None,
            f"holds no images, only folders of them without a number ({', '.join(full[:3])})",
            f"set it to one of them, or rename them to <repeats>_<name>, such as 1_{full[0]}",
        )
    names = ", ".join(path.name for path in inner[:3])
    hint = "images end with .bmp, .gif, .jpeg, .jpg, .png, .tif, .tiff, .webp"
    return Problem(
        str(folder), None, "holds no images", f"it holds folders ({names}); {hint}" if inner else hint
    )
