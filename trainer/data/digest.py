"""Name a dataset by its content, list its files, and point a config at a copy of it elsewhere."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from trainer.config import TrainConfig
from trainer.data.chat_rows import chat_files
from trainer.data.folders import concept_of
from trainer.data.imagefolder import list_training, list_validation
from trainer.data.report import Kind
from trainer.errors import DataError, ModelError
from trainer.files import sha256_file
from trainer.models.sniff import base_of

DATA_PATHS = ("train_data_dir", "metadata_path", "validation_dir", "reg_data_dir", "mask_dir")
"""The keys of a config that name a part of its dataset."""


def dataset_files(config: TrainConfig) -> list[tuple[str, Path]]:
    """(path relative to the dataset's root with `/`, file) for every file that the training reads, sorted:
    of training, regularisation, validation and masks, and the captions.

    The root is the folder that all DATA_PATHS share; train_data_dir where it is alone. A folder whose name
    counts (kohya's `10_mycat`) keeps its name. Where the base model is not at hand, the kind is told from
    the files. Raises DataError for a file outside the root, and for folders that share none.
    """
    root = _root(config)
    named: dict[str, Path] = {}
    for file in _text_files(config) if _kind(config) == "text" else _image_files(config):
        relative = os.path.relpath(os.path.abspath(file), root)
        if relative == ".." or relative.startswith(f"..{os.sep}"):
            raise DataError(
                f"{file} lies outside of the dataset's folder {root}.",
                "Move it inside, or set train_data_dir to a folder that holds all of it.",
            )
        named[Path(relative).as_posix()] = file
    return sorted(named.items())


def dataset_manifest(config: TrainConfig) -> dict[str, str]:
    """{relative path: hex sha256} of `dataset_files`."""
    files = dataset_files(config)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1), "digest") as pool:
        digests = pool.map(sha256_file, [path for _, path in files])
        return {name: digest for (name, _), digest in zip(files, digests, strict=True)}


def dataset_digest(config: TrainConfig) -> str:
    """`sha256:<hex>` over the sorted lines `<relative path> NUL <hex sha256> LF` of the manifest."""
    return digest_of(dataset_manifest(config))


def digest_of(manifest: dict[str, str]) -> str:
    """The dataset digest of a manifest."""
    whole = "".join(f"{name}\0{sha}\n" for name, sha in sorted(manifest.items()))
    return "sha256:" + hashlib.sha256(whole.encode()).hexdigest()


def relocate(config: TrainConfig, root: Path) -> TrainConfig:
    """The same config for a copy of `dataset_files` that lies below `root` under the same relative paths."""
    old = _root(config)
    moved = {
        key: root / os.path.relpath(os.path.abspath(path), old)
        for key in DATA_PATHS
        if (path := getattr(config, key)) is not None
    }
    return config.model_copy(update=moved)


def _root(config: TrainConfig) -> str:
    folders: list[str] = []
    for key in DATA_PATHS:
        path = getattr(config, key)
        if path is not None:
            whole = str(os.path.abspath(path))
            is_root = key != "metadata_path" and concept_of(os.path.basename(whole)) is None
            folders.append(whole if is_root else os.path.dirname(whole))
    try:
        return os.path.commonpath(folders)
    except ValueError:
        raise DataError(
            f"The folders of the dataset are on several drives: {', '.join(folders)}.",
            "Put them below one folder.",
        ) from None


def _text_files(config: TrainConfig) -> set[Path]:
    files = set(chat_files(config)[0])
    if config.validation_dir is not None:
        held = config.model_copy(update={"train_data_dir": config.validation_dir, "metadata_path": None})
        files.update(chat_files(held)[0])
    return files


def _image_files(config: TrainConfig) -> set[Path]:
    files: set[Path] = set()
    for listed in (list_training(config), list_validation(config)):
        files.update(listed.files)
        for item in listed.items:
            files.add(item.path)
            if item.mask is not None:
                files.add(item.mask)
    return files


def _kind(config: TrainConfig) -> Kind:
    try:
        return base_of(config).kind
    except ModelError:
        return "images" if list_training(config).items else "text"
