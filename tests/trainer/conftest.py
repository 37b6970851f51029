"""Tiny models and datasets, made once a session; a config for each world."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trainer import plugins

Worlds = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny tensors: a second thread only waits."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own_plugins() -> Iterator[None]:
    """What a test's plugins register is forgotten after it."""
    before = {kind: dict(known) for kind, known in plugins._registered.items()}
    modules = set(sys.modules)
    yield
    for kind, known in before.items():
        plugins._registered[kind].clear()
        plugins._registered[kind].update(known)
    for name in set(sys.modules) - modules:
        if name.startswith("lora_ops_plugin_"):
            del sys.modules[name]


@pytest.fixture(scope="session")
def trainer_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trainer")


@pytest.fixture(scope="session")
def tiny_sd(trainer_home: Path) -> Path:
    from trainer.tiny import make_sd

    make_sd(trainer_home / "sd")
    return trainer_home / "sd"


@pytest.fixture(scope="session")
def tiny_sdxl(trainer_home: Path) -> Path:
    from trainer.tiny import make_sdxl

    make_sdxl(trainer_home / "sdxl")
    return trainer_home / "sdxl"


@pytest.fixture(scope="session")
def tiny_lm(trainer_home: Path) -> Path:
    from trainer.tiny import make_lm

    make_lm(trainer_home / "lm")
    return trainer_home / "lm"


@pytest.fixture(scope="session")
def pictures(trainer_home: Path) -> Path:
    """Five pictures of other sizes, modes and colours, with a metadata.csv."""
    folder = trainer_home / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for number, (mode, size) in enumerate(
        [("RGB", (40, 30)), ("L", (33, 50)), ("RGBA", (32, 32)), ("P", (64, 48)), ("CMYK", (48, 48))]
    ):
        pixels = rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        name = f"{number}.{'jpg' if mode == 'CMYK' else 'png'}"
        Image.fromarray(pixels).convert(mode).save(folder / name)
        rows.append([name, f"picture {number}, noise"])
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["file_name", "text"], *rows])
    return folder


def chat(*turns: str) -> str:
    """A JSONL row: user and assistant take turns."""
    roles = ("user", "assistant")
    return json.dumps({"messages": [{"role": roles[n % 2], "content": turn} for n, turn in enumerate(turns)]})


@pytest.fixture(scope="session")
def chats(trainer_home: Path) -> Path:
    folder = trainer_home / "chats"
    folder.mkdir()
    rows = [
        chat("hi", "Hello there."),
        chat("bye", "So long!", "really?", "Yes."),
        chat("one?", "1"),
        chat("a", "b c d"),
    ]
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def cache_dir(trainer_home: Path) -> Path:
    return trainer_home / "cache"


@pytest.fixture
def images_config(tiny_sd: Path, pictures: Path, cache_dir: Path, tmp_path: Path) -> Worlds:
    """A config dict for images, with changes."""

    def make(**changes: Any) -> dict[str, Any]:
        return {
            "train_data_dir": pictures,
            "base_model": tiny_sd,
            "output_dir": tmp_path / "style",
            "resolution": 32,
            "lora_rank": 2,
            "batch_size": 2,
            "max_steps": 3,
            "learning_rate": 1e-3,
            "save_steps": 100,
            "cache_dir": cache_dir,
            "device": "cpu",
            "tracker": {"wandb": "off"},
            **changes,
        }

    return make


@pytest.fixture
def text_config(tiny_lm: Path, chats: Path, cache_dir: Path, tmp_path: Path) -> Worlds:
    """A config dict for a language model, with changes."""

    def make(**changes: Any) -> dict[str, Any]:
        return {
            "train_data_dir": chats,
            "base_model": tiny_lm,
            "output_dir": tmp_path / "words",
            "packing": False,
            "lora_rank": 2,
            "batch_size": 2,
            "max_steps": 3,
            "learning_rate": 1e-2,
            "save_steps": 100,
            "cache_dir": cache_dir,
            "device": "cpu",
            "tracker": {"wandb": "off"},
            **changes,
        }

    return make


@pytest.fixture(params=["images", "text"])
def world(request: pytest.FixtureRequest) -> Worlds:
    """Each test that takes it runs in both worlds."""
    made: Worlds = request.getfixturevalue(f"{request.param}_config")
    return made


@pytest.fixture
def events() -> Callable[[Path], list[dict[str, Any]]]:
    """Read an output folder's events."""

    def read(folder: Path) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines() if line]

    return read


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, text_config: Worlds, tmp_path: Path) -> Worlds:
    """A config that trains the toy on ten samples."""
    from tests.trainer.toy_family import Toy
    from trainer import loop as loop_module

    monkeypatch.setattr(loop_module, "family_of", Toy)
    for name, value in (("fits", 10**6), ("poison", set()), ("sampling", None), ("rises", 0.0)):
        monkeypatch.setattr(Toy, name, value)
    folder = tmp_path / "ten"
    folder.mkdir()
    rows = [
        {"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": f"a{n}"}]}
        for n in range(10)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(**changes: Any) -> dict[str, Any]:
        return text_config(**{"train_data_dir": folder, "max_steps": 6, "lr_schedule": "cosine", **changes})

    return make
