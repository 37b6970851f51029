"""A request whose data lies in several folders: all of it is stored, and an attempt's copy is the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from flows import attempt
from flows.submit import submit
from lora_ops import keys
from lora_ops.errors import ConfigError
from tasks.datasets import fetch_dataset
from tasks.platform import Platform
from tasks.store import open_store
from tests.trainer.picture_sets import picture, sd_header
from trainer.config import config_from
from trainer.data import check_dataset, dataset_digest

CONFIG = """\
train_data_dir: sets/photos/10_my_cat
validation_dir: held
reg_data_dir: sets/class
masked_loss: folder
mask_dir: masks
base_model: model
output_dir: out
resolution: 16
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LORA_OPS_CACHE", str(tmp_path / "cache"))
    made = tmp_path / "work"
    sd_header(made / "model")
    picture(made / "sets/photos/10_my_cat/a.png", "a cat")
    picture(made / "masks/a.png", mode="L", colour=255)
    picture(made / "held/b.png", "another cat", (1, 1, 1))
    picture(made / "sets/class/1_cat/c.png", "cat", (2, 2, 2))
    return made


@pytest.fixture
def platform() -> Platform:
    made = Platform(open_store("memory://"), "loras", "test")
    made.record("cloud-set", {"name": "east", "stable": f"sha256:{'a' * 64}"})
    return made


def test_all_folders_travel_and_mean_the_same(platform: Platform, folder: Path, tmp_path: Path) -> None:
    request = submit(platform, CONFIG, source="run.yaml", cwd=folder)
    assert request.order is not None
    assert request.order.dataset is not None
    assert request.order.dataset_digest is not None
    document = yaml.safe_load(platform.store.get(keys.request_config(request.id)).data)
    assert document["train_data_dir"] == "sets/photos/10_my_cat"
    where = fetch_dataset(platform.store, request.order.dataset, request.order.dataset_digest, tmp_path / "d")
    placed = {key: str(where / document[key]) for key in attempt.DATA_PATHS if key in document}
    config = config_from({**document, **placed})
    assert dataset_digest(config) == request.order.dataset_digest
    report = check_dataset(config)
    assert report.ok
    assert [(item.name, item.repeats) for item in report.items] == [  # type: ignore[union-attr]
        ("a.png", 10),
        ("class/1_cat/c.png", 1),
    ]
    assert [item.name for item in report.validation] == ["held/b.png"]


def test_a_fault_of_any_folder_is_told_before_a_byte_is_written(platform: Platform, folder: Path) -> None:
    (folder / "masks/a.png").unlink()
    (folder / "held/b.png").write_bytes(b"broken")
    with pytest.raises(ConfigError) as caught:
        submit(platform, CONFIG, source="run.yaml", cwd=folder)
    told = "\n".join(caught.value.details)
    assert "a.png: has no mask" in told
    assert "held/b.png: not an image" in told
    assert not list(platform.store.list("datasets"))
    assert not list(platform.store.list("requests"))
