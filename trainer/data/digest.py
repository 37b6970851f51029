"""Name a dataset by its content, list its files, and point a config at a copy of it elsewhere."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from trainer.cache import sha256_file
from trainer.config import TrainConfig
from trainer.data.chat_rows import chat_files
from trainer.data.imagefolder import _FOUND_BY_NAME, read_images
from trainer.data.report import Kind
from trainer.errors import DataError, ModelError
from trainer.models.sniff import sniff


def dataset_files(config: TrainConfig) -> list[tuple[str, Path]]:
    """(path relative to the dataset's root with `/`, file) for every file that the training reads, sorted.

    The root is train_data_dir, or the folder that it shares with a metadata file outside of it. Where the
    base model is not at hand, the kind is told from the files. Raises DataError for a file outside the root.
    """
    root = _root(config)
    files: set[Path] = set()
    if _kind(config) == "text":
        files.update(chat_files(config)[0])
    else:
        for item in read_images(config)[0]:
            files.add(item.path)
            if item.line is None:
                files.add(item.path.parent / item.source)
        metadata = _metadata(config)
        if metadata is not None:
            files.add(metadata)
    named: dict[str, Path] = {}
    for file in files:
        relative = os.path.relpath(os.path.abspath(file), root)
        if relative.startswith(".."):
            raise DataError(
                f"{file} lies outside of the dataset's folder {root}.",
                "Move it inside, or set train_data_dir to a folder that holds all of it.",
            )
        named[Path(relative).as_posix()] = file
    return sorted(named.items())


def dataset_manifest(config: TrainConfig) -> dict[str, str]:
    """{relative path: hex sha256} of `dataset_files`."""
    return {name: sha256_file(path) for name, path in dataset_files(config)}


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
    moved: dict[str, Path] = {
        "train_data_dir": root / os.path.relpath(os.path.abspath(config.train_data_dir), old)
    }
    if config.metadata_path is not None:
        moved["metadata_path"] = root / os.path.relpath(os.path.abspath(config.metadata_path), old)
    return config.model_copy(update=moved)


def _root(config: TrainConfig) -> str:
    folder = os.path.abspath(config.train_data_dir)
    if config.metadata_path is None:
        return folder
    return os.path.commonpath([folder, os.path.dirname(os.path.abspath(config.metadata_path))])


def _metadata(config: TrainConfig) -> Path | None:
    if config.metadata_path is not None:
        return config.metadata_path if config.metadata_path.is_file() else None
    return next((p for n in _FOUND_BY_NAME if (p := config.train_data_dir / n).is_file()), None)


def _kind(config: TrainConfig) -> Kind:
    try:
        return sniff(config.base_model).kind
    except ModelError:
        items, _ = read_images(config)
        return "images" if items else "text"
