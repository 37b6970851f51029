"""Reading `lora-ops.yaml` from disk."""

from __future__ import annotations

import os
from pathlib import Path

from lora_ops.errors import ConfigError
from lora_ops.spec import PlatformSpec, parse_spec

SPEC_NAME = "lora-ops.yaml"


def find_spec(start: Path | None = None) -> Path:
    """`$LORA_OPS_SPEC`, or the nearest lora-ops.yaml from `start` upwards. ConfigError when there is none."""
    named = os.environ.get("LORA_OPS_SPEC")
    if named:
        return Path(named).absolute()
    here = (start or Path.cwd()).absolute()
    for folder in (here, *here.parents):
        if (folder / SPEC_NAME).is_file():
            return folder / SPEC_NAME
    raise ConfigError(f"there is no {SPEC_NAME} in {here} or above it.", "Write one with `lora-ops init`.")


def load_spec(path: Path) -> PlatformSpec:
    """The spec, with the paths in it made absolute from the spec's own folder."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}.", "Write one with `lora-ops init`."
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text.", "Save it as UTF-8.") from None
    spec = parse_spec(text, str(path))
    base = path.absolute().parent
    changes: dict[str, object] = {"store": _absolute_store(spec.store, base)}
    if spec.backup is not None:
        backup = spec.backup.model_copy(update={"url": _absolute_store(spec.backup.url, base)})
        changes["backup"] = backup
    probes = spec.rollout.probes
    if probes is not None:
        moved = probes.model_copy(update={"config": str(base / probes.config)})
        changes["rollout"] = spec.rollout.model_copy(update={"probes": moved})
    return spec.model_copy(update=changes)


def _absolute_store(url: str, base: Path) -> str:
    scheme, separator, rest = url.partition("://")
    if separator and scheme != "file":
        return url
    return f"file://{(base / (rest if separator else url)).absolute()}"
