"""Extension points: a decorated function or class in a file of the user's, named in `plugins: [./mine.py]`.

    from trainer.plugins import augmentation, loss, optimizer, family

    @augmentation("sepia")
    def sepia(image, rng):              # PIL RGB image and random.Random; returns a PIL RGB image, same size
        ...

    @loss("log_cosh")
    def log_cosh(predicted, target):    # float32 (B, C, H, W) both; returns the error of each element
        ...

    @optimizer("sign_sgd")
    def sign_sgd(groups, **arguments):  # torch parameter groups with their `lr`; returns a torch Optimizer
        ...

    @family("mine")
    class Mine(Family):                 # trainer/models/base.py; `claims(path)`: whether it trains a model
        ...

Imports no torch.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from trainer.errors import ConfigError

Kind = Literal["augmentation", "loss", "optimizer", "family"]
T = TypeVar("T", bound=Callable[..., Any])

_registered: dict[Kind, dict[str, Any]] = {"augmentation": {}, "loss": {}, "optimizer": {}, "family": {}}


def augmentation(name: str) -> Callable[[T], T]:
    """Register `f(image, rng) -> image` under `name`."""
    return _register("augmentation", name)


def loss(name: str) -> Callable[[T], T]:
    """Register `f(predicted, target) -> elementwise error` under `name`."""
    return _register("loss", name)


def optimizer(name: str) -> Callable[[T], T]:
    """Register `f(groups, **arguments) -> torch.optim.Optimizer` under `name`."""
    return _register("optimizer", name)


def family(name: str) -> Callable[[T], T]:
    """Register a model family under `name`."""
    return _register("family", name)


def registered(kind: Kind) -> Mapping[str, Any]:
    """What plugins have registered of `kind`, by name."""
    return _registered[kind]


def load_plugins(files: Sequence[Path]) -> str:
    """Run the files, once each by content; a digest of all of them. Raises ConfigError naming the file."""
    digests = []
    for file in files:
        try:
            code = file.read_bytes()
        except OSError as error:
            raise ConfigError(
                [f"`plugins`: {file} cannot be read: {error.strerror}."], "Correct the path."
            ) from None
        digests.append(hashlib.sha256(code).hexdigest())
        name = f"lora_ops_plugin_{digests[-1][:16]}"
        if name in sys.modules:
            continue
        spec = importlib.util.spec_from_file_location(name, file)
        if spec is None or spec.loader is None:
            raise ConfigError([f"`plugins`: {file} is not a Python file."], "Name a .py file.")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[name]
            raise ConfigError(
                [f"`plugins`: {file} cannot be imported: {type(error).__name__}: {error}"], "Mend the file."
            ) from error
    return hashlib.sha256("".join(digests).encode()).hexdigest() if digests else ""


def _register(kind: Kind, name: str) -> Callable[[T], T]:
    def put(function: T) -> T:
        _registered[kind][name] = function
        return function

    return put
