"""Every family keeps the contract, a user's own one out of a plugin file included."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.family_contract import FamilyContract
from trainer import LoRATrainer
from trainer.models.families import BUILT_IN
from trainer.plugins import registered

Make = Callable[..., dict[str, Any]]
PIXELS = Path(__file__).with_name("pixel_family.py")
pytestmark = pytest.mark.models


class TestStableDiffusion(FamilyContract):
    @pytest.fixture
    def config(self, images_config: Make) -> dict[str, Any]:
        return images_config(sample_steps=2, repeats=2, caption_dropout=0.5, flip=True, noise_offset=0.1)


class TestStableDiffusionWithTextEncoder(FamilyContract):
    @pytest.fixture
    def config(self, images_config: Make) -> dict[str, Any]:
        return images_config(
            sample_steps=2, repeats=2, train_text_encoder=True, adapter="locon", max_token_length=150
        )


class TestStableDiffusionXL(FamilyContract):
    @pytest.fixture
    def config(self, images_config: Make, tiny_sdxl: Path) -> dict[str, Any]:
        return images_config(
            base_model=tiny_sdxl,
            resolution=64,
            sample_steps=2,
            repeats=2,
            crop="random",
            train_text_encoder=True,
        )


class TestCausalLM(FamilyContract):
    @pytest.fixture
    def config(self, text_config: Make) -> dict[str, Any]:
        return text_config(packing=False, sample_tokens=2)


class TestPluginsFamily(FamilyContract):
    samples = False

    @pytest.fixture
    def config(self, images_config: Make, pixels: Path) -> dict[str, Any]:
        return images_config(base_model=pixels, plugins=[PIXELS], resolution=16)


@pytest.fixture
def pixels(tmp_path: Path) -> Path:
    (tmp_path / "pixels").mkdir()
    (tmp_path / "pixels" / "pixels.json").write_text('{"seed": 1, "width": 8}')
    return tmp_path / "pixels"


@pytest.fixture(autouse=True)
def nobody_elses_families(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test's plugin registers is forgotten after it, and the file runs again for the next."""
    import sys

    families = registered("family")
    assert isinstance(families, dict)
    monkeypatch.setattr(
        "trainer.plugins._registered", {"family": {}, "augmentation": {}, "loss": {}, "optimizer": {}}
    )
    for name in [name for name in sys.modules if name.startswith("lora_ops_plugin_")]:
        monkeypatch.delitem(sys.modules, name)


def test_a_family_of_one_plugin_file_trains_through_the_whole_loop(
    images_config: Make, pixels: Path, events: Callable[[Path], list[dict[str, Any]]]
) -> None:
    config = images_config(
        base_model=pixels, plugins=[PIXELS], resolution=16, max_steps=30, learning_rate=0.02, batch_size=5
    )
    trainer = LoRATrainer(config)
    trainer.prepare_data()
    trainer.build_model()
    trainer.train()
    assert (trainer.base.family, trainer.base.format, trainer.base.kind) == ("pixels", "plugin", "images")
    losses = [event["loss"] for event in events(config["output_dir"]) if event["event"] == "step"]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    assert (config["output_dir"] / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("name", sorted({module for module, _ in BUILT_IN.values()}))
def test_the_registry_names_classes_that_are_there(name: str) -> None:
    import importlib

    for module, kind in BUILT_IN.values():
        if module == name:
            assert hasattr(importlib.import_module(module), kind)


def test_another_family_is_not_imported_for_this_one() -> None:
    import subprocess
    import sys

    code = "import sys, trainer.models.families as f; print('trainer.models.sd' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
