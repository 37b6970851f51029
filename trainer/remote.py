"""Copies of the checkpoints in an object store: `<url>/step-000100/...`, for machines that go away.

A copy's `state.json` is written last, so that half a copy is none. Nothing here ends a training: what could
not be copied is a warning, and is tried again with the next checkpoint.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainer import checkpoint as checkpoints
from trainer.errors import CheckpointError
from trainer.files import TEMPORARY

_URL = re.compile(r"^[a-z0-9]+://.+")
_FOLDER = re.compile(r"^step-\d{6,}$")


def is_url(text: str) -> bool:
    """Whether `text` names a place in a store (`s3://bucket/run`), not a path."""
    return bool(_URL.match(text))


class Remote:
    """The checkpoints below `url`. Credentials come from the environment, as the provider's own tools have
    them. Raises CheckpointError for a URL that no store understands."""

    def __init__(self, url: str) -> None:
        import obstore
        from obstore.store import from_url

        self.url = url.rstrip("/")
        self._api: Any = obstore
        try:
            self._store: Any = (
                from_url(self.url, mkdir=True, automatic_cleanup=True)
                if url.startswith("file://")
                else from_url(self.url)
            )
        except Exception as error:
            raise CheckpointError(
                f"{url} cannot be opened as a store: {error}", "Use s3://, gs://, az:// or file://."
            ) from error

    def upload(self, folder: Path) -> None:
        """Copy the checkpoint `folder`. Raises what the store raises."""
        names = sorted(path.name for path in folder.iterdir() if path.name != checkpoints.STATE)
        for name in [*names, checkpoints.STATE]:
            self._api.put(self._store, f"{folder.name}/{name}", folder / name)

    def steps(self) -> list[str]:
        """The names of the whole copies, the newest first."""
        found = [
            str(entry["path"]).split("/")[0]
            for chunk in self._api.list(self._store)
            for entry in chunk
            if str(entry["path"]).endswith(f"/{checkpoints.STATE}") and str(entry["path"]).count("/") == 1
        ]
        return sorted((n for n in found if _FOLDER.match(n)), key=lambda n: int(n[5:]), reverse=True)

    def drop(self, keep: set[str], newest: str) -> None:
        """Delete the copies older than `newest` that are not in `keep`, `state.json` first."""
        for name in self.steps():
            if name not in keep and int(name[5:]) < int(newest[5:]):
                files = self.read(name)["files"]
                for file in [checkpoints.STATE, *files]:
                    self._api.delete(self._store, f"{name}/{file}")

    def download(self, name: str, into: Path) -> Path:
        """Fetch the copy `name` (empty: the URL is a checkpoint itself) to the folder `into`."""
        prefix = f"{name}/" if name else ""
        into.mkdir(parents=True)
        state = self.read(name)
        for file in [*sorted(state["files"]), checkpoints.STATE]:
            with (into / Path(file).name).open("wb") as out:
                for chunk in self._api.get(self._store, f"{prefix}{file}").stream():
                    out.write(bytes(chunk))
        return into

    def read(self, name: str) -> dict[str, Any]:
        """The `state.json` of the copy `name`. Raises FileNotFoundError, ValueError."""
        path = f"{name}/{checkpoints.STATE}" if name else checkpoints.STATE
        state: dict[str, Any] = json.loads(bytes(self._api.get(self._store, path).bytes()))
        return state


def fetch(
    url: str, output_dir: Path, identity: Mapping[str, Any]
) -> tuple[checkpoints.Checkpoint | None, list[str]]:
    """Bring the newest whole checkpoint of this training from `url` into `output_dir`. Returns it and what
    was refused, by name. Raises what the store raises."""
    remote = Remote(url)
    refused: list[str] = []
    for name in _candidates(remote):
        label = f"{remote.url}/{name}".rstrip("/")
        try:
            state = remote.read(name)
            if differing := checkpoints.differences(state["identity"], identity):
                refused.append(f"The checkpoint {label} belongs to another training: {', '.join(differing)}.")
                continue
            step = int(state["step"])
            with _beside(output_dir) as made:
                checkpoints.load(remote.download(name, made / "it"))
                final = checkpoints.put(made / "it", output_dir, step)
        except (CheckpointError, FileNotFoundError, KeyError, ValueError) as error:
            refused.append(f"The checkpoint {label} is torn: {error}.")
            continue
        return checkpoints.load(final), refused
    return None, refused


def _candidates(remote: Remote) -> Sequence[str]:
    found = remote.steps()
    if found:
        return found
    try:
        remote.read("")
    except (FileNotFoundError, ValueError):
        return []
    return [""]


@contextmanager
def _beside(output_dir: Path) -> Iterator[Path]:
    """A folder on the same disk as the checkpoints, gone afterwards."""
    parent = output_dir / checkpoints.FOLDER
    parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=parent, prefix=TEMPORARY))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


class Copies:
    """Sends each checkpoint to `url` (None: nowhere); what fails waits for the next turn."""

    def __init__(self, url: str | None, warn: Callable[[str], None]) -> None:
        self._url, self._warn = url, warn
        self._waiting: list[Path] = []
        self._remote: Remote | None = None

    def send(self, folder: Path, kept: set[str]) -> bool:
        """Copy `folder` and what is still waiting; drop the copies of checkpoints that are not `kept`.
        Whether everything has arrived."""
        if self._url is None:
            return True
        self._waiting = [path for path in self._waiting if path != folder and path.is_dir()] + [folder]
        try:
            self._remote = self._remote or Remote(self._url)
            while self._waiting:
                self._remote.upload(self._waiting[0])
                self._waiting.pop(0)
            self._remote.drop(kept, folder.name)
        except Exception as error:  # noqa: BLE001 - the local checkpoint is whole: the training goes on
            first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            self._warn(
                f"checkpoint_url: {folder.name} was not copied ({first}); tried again with the next one."
            )
        return not self._waiting


def bring(
    url: str, output_dir: Path, identity: Mapping[str, Any]
) -> tuple[checkpoints.Checkpoint | None, list[str]]:
    """`fetch` for a training that may as well start anew: a store that does not answer is a refusal."""
    try:
        return fetch(url, output_dir, identity)
    except Exception as error:  # noqa: BLE001 - see above
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        return None, [f"checkpoint_url {url} could not be read: {first}."]


def given(
    url: str, output_dir: Path, identity: Mapping[str, Any]
) -> tuple[checkpoints.Checkpoint, list[str]]:
    """`fetch` for `resume: <url>`. Raises CheckpointError when there is none that can be used."""
    try:
        found, refused = fetch(url, output_dir, identity)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"The checkpoint {url} could not be read: {error}", "Correct resume, or use resume: auto."
        ) from error
    if found is None:
        raise CheckpointError(
            refused[0] if refused else f"{url} holds no checkpoint.",
            "Name another one, or use resume: never to start anew.",
        )
    return found, refused
