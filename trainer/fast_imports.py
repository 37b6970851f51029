"""Start faster: imports are the largest part of a short training.

Two costs are avoided, measured on torch 2.13, diffusers 0.42 and transformers 5.23 (4.4 s to 2.7 s of one
core): the garbage collector walks all of torch again and again while modules load, and transformers, peft
and accelerate import optional packages (scipy, boto3, ...) that no training here uses.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_NEVER_USED = (
    "boto3",
    "botocore",
    "bs4",
    "cv2",
    "datasets",
    "flax",
    "jax",
    "librosa",
    "matplotlib",
    "numba",
    "onnx",
    "pandas",
    "scipy",
    "sklearn",
    "tensorflow",
    "torchvision",
)

_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
}

_hide = False


def own_process() -> None:
    """Say that this process does nothing but train. To be called before torch is imported.

    Optional packages are hidden from the libraries, garbage is not collected before `settle`, nothing is
    looked for on the network, and OpenMP's threads sleep while they wait: beside other trainings on the
    same cores, spinning ones made a run of 3 s take 50 s. Not for use as a library: transformers remembers
    for the rest of the process that scipy is absent.
    """
    global _hide
    _hide = True
    gc.disable()
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def settle() -> None:
    """Everything is loaded: what lives now lives on, and later collections need not look at it."""
    if _hide:
        gc.freeze()
        gc.enable()


@contextmanager
def lean_imports() -> Iterator[None]:
    """Import inside of this; collection of garbage pauses, and `own_process` hides what is never used."""
    was_enabled = gc.isenabled()
    gc.disable()
    hidden = [name for name in _NEVER_USED if _hide and name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for name in hidden:
            if name in sys.modules and sys.modules[name] is None:
                del sys.modules[name]
        gc.freeze()
        if was_enabled:
            gc.enable()
