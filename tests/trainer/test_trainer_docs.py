"""The examples of docs/trainer.md run as they stand there, and what it says of keys and files is so."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from tests.trainer.runs import run
from trainer import LoRATrainer, plugins
from trainer.config import TrainConfig
from trainer.config.run_keys import TrackerConfig

DOCS = Path(__file__).parents[2] / "docs" / "trainer.md"
Make = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What an example registers is gone afterwards."""
    before = {kind: dict(found) for kind, found in plugins._registered.items()}
    yield
    for kind, found in before.items():
        plugins._registered[kind].clear()
        plugins._registered[kind].update(found)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.S)


def example(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Write the example `name` into the current folder; the keys of its YAML."""
    monkeypatch.chdir(folder)
    (code,) = (block for block in blocks("python") if block.startswith(f"# {name}\n"))
    (folder / name).write_text(code)
    (keys,) = (yaml.safe_load(block) for block in blocks("yaml") if name in block)
    return dict(keys)


def test_augmentation_loss_and_optimizer(
    images_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = example("my_plugins.py", tmp_path, monkeypatch)
    called: list[str] = []
    trainer = LoRATrainer(images_config(**keys, cache_dir=tmp_path / "cache"))
    for kind, name in (("augmentation", "autumn"), ("loss", "log_cosh"), ("optimizer", "sign_sgd")):
        known = plugins._registered[kind]  # type: ignore[index]

        def noting(*args: Any, kept: Any = known[name], name: str = name, **more: Any) -> Any:
            called.append(name)
            return kept(*args, **more)

        known[name] = noting
    trainer.prepare_data()
    trainer.build_model()
    trainer.train()
    assert {"autumn", "log_cosh", "sign_sgd"} == set(called)
    assert trainer._optimizer is not None
    assert trainer._optimizer.kind.endswith("SignSGD")


def test_a_family(images_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = example("my_family.py", tmp_path, monkeypatch)
    (tmp_path / "my.colour").write_text("any")
    options: dict[str, Any] = {**keys, "max_steps": 300, "batch_size": 5, "learning_rate": 0.02}
    trainer = run(images_config(**options))
    assert trainer.base.family == "mean-colour"
    learnt = load_file(trainer.config.output_dir / "colour.safetensors")["colour"]
    colours = trainer.family.colours  # type: ignore[union-attr]
    assert learnt.allclose(sum(colours) / len(colours), atol=0.02)


def test_every_key_that_the_page_names_exists() -> None:
    known = {*TrainConfig.model_fields, *TrackerConfig.model_fields}
    text = re.sub(r"```.*?```", "", DOCS.read_text(encoding="utf-8"), flags=re.S)
    named = set(re.findall(r"`([a-z0-9]+(?:_[a-z0-9]+)+)(?::[^`]*)?`", text))
    others = {"10_mycat"}
    assert named - others <= known
    assert len(named & known) >= 20
