"""Datasets: read, checked before step 0, and named by content. Imports no torch."""

from trainer.data.check import check_dataset
from trainer.data.digest import DATA_PATHS, dataset_digest, dataset_files, dataset_manifest, relocate
from trainer.data.report import ChatItem, DatasetReport, ImageItem, Problem
from trainer.errors import DataError, ModelError

__all__ = [
    "DATA_PATHS",
    "ChatItem",
    "DataError",
    "DatasetReport",
    "ImageItem",
    "ModelError",
    "Problem",
    "check_dataset",
    "dataset_digest",
    "dataset_files",
    "dataset_manifest",
    "relocate",
]
