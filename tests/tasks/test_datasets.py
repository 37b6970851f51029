from __future__ import annotations

import hashlib
import json
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lora_ops.errors import ConflictError, LoraOpsError, NotFoundError, StoreError, StoreUnavailable
from tasks.datasets import (
    StoredFile,
    download_folder,
    fetch_dataset,
    newest_checkpoint,
    store_dataset,
    upload_folder,
)
from tasks.store import Store, key_digest
from tasks.store.faulty import Fault, FaultyStore, Killed

DIGEST = "sha256:" + "d" * 64
WHERE = f"datasets/photos/{key_digest(DIGEST)}"


@pytest.fixture
def files(tmp_path: Path) -> list[tuple[str, Path]]:
    source = tmp_path / "source"
    source.mkdir()
    names = ["metadata.csv", "images/ä b.png", "images/empty.txt", "deep/er/x.jsonl"]
    found = []
    for number, name in enumerate(names):
        path = source / str(number)
        path.write_bytes(b"" if "empty" in name else name.encode() * (number + 1))
        found.append((name, path))
    return found


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def counting(store: Store) -> FaultyStore:
    return FaultyStore(store, lambda method, key: None)


# --- datasets ---


def test_a_dataset_comes_back_as_it_was(
    file_store: Store, files: list[tuple[str, Path]], cache: Path
) -> None:
    store_dataset(file_store, "photos", files, DIGEST)
    folder = fetch_dataset(file_store, "photos", DIGEST, cache)
    assert folder == cache / "photos" / ("d" * 64)
    assert contents(folder) == {name: path.read_bytes() for name, path in files}
    assert not any(stat.S_IMODE(p.stat().st_mode) & 0o222 for p in folder.rglob("*") if p.is_file())


def test_the_layout_in_the_store(memory_store: Store, files: list[tuple[str, Path]]) -> None:
    counted = counting(memory_store)
    store_dataset(counted, "photos", files, DIGEST)
    assert sorted(m.key for m in memory_store.list("")) == sorted(
        [f"{WHERE}/MANIFEST.json", *(f"{WHERE}/files/{name}" for name, _ in files)]
    )
    writes = [call for call in counted.calls if call[0] in ("put", "create")]
    assert writes[-1] == ("create", f"{WHERE}/MANIFEST.json")
    manifest = json.loads(memory_store.get(f"{WHERE}/MANIFEST.json").data)
    assert (manifest["name"], manifest["digest"], manifest["schema_version"]) == ("photos", DIGEST, 1)
    one = dict(files)["metadata.csv"].read_bytes()
    assert {
        "path": "metadata.csv",
        "size": len(one),
        "sha256": hashlib.sha256(one).hexdigest(),
    } in manifest["files"]


def test_storing_again_writes_nothing(memory_store: Store, files: list[tuple[str, Path]]) -> None:
    store_dataset(memory_store, "photos", files, DIGEST)
    counted = counting(memory_store)
    store_dataset(counted, "photos", files, DIGEST)
    assert counted.calls == [("get", f"{WHERE}/MANIFEST.json")]


@pytest.mark.parametrize("call", range(1, 11))
@pytest.mark.parametrize("fault", [Fault.KILLED_BEFORE, Fault.KILLED_AFTER, Fault.NO_ANSWER])
def test_storing_goes_on_after_a_crash(
    memory_store: Store, files: list[tuple[str, Path]], cache: Path, fault: Fault, call: int
) -> None:
    dying = FaultyStore(memory_store, lambda method, key: fault if len(dying.calls) == call else None)
    try:
        store_dataset(dying, "photos", files, DIGEST)
    except (Killed, StoreUnavailable):
        pass
    else:
        assert len(dying.calls) < call
    sent = [key for method, key in dying.calls if method == "put"]
    again = counting(memory_store)
    store_dataset(again, "photos", files, DIGEST)
    resent = [key for method, key in again.calls if method == "put"]
    assert set(resent) & set(sent[:-1]) == set()  # what was surely there was not sent twice
    assert contents(fetch_dataset(memory_store, "photos", DIGEST, cache)) == {
        name: path.read_bytes() for name, path in files
    }


def test_a_file_left_by_an_earlier_try_is_compared_by_content(
    memory_store: Store, files: list[tuple[str, Path]], cache: Path
) -> None:
    name, path = files[0]
    memory_store.put(f"{WHERE}/files/{name}", b"x" * path.stat().st_size)  # same size, other bytes
    store_dataset(memory_store, "photos", files, DIGEST)
    assert (
        fetch_dataset(memory_store, "photos", DIGEST, cache).joinpath(name).read_bytes() == path.read_bytes()
    )


def test_bad_names_and_missing_files_leave_no_dataset(
    memory_store: Store, files: list[tuple[str, Path]], tmp_path: Path
) -> None:
    for bad in ("../up", "/abs", "a//b", ""):
        with pytest.raises(StoreError):
            store_dataset(memory_store, "photos", [*files, (bad, files[0][1])], DIGEST)
        assert memory_store.list("") == []
    with pytest.raises(StoreError):
        store_dataset(memory_store, "a/b", files, DIGEST)
    with pytest.raises(LoraOpsError, match="nothing"):
        store_dataset(memory_store, "photos", [*files, ("x", tmp_path / "nothing")], DIGEST)
    with pytest.raises(NotFoundError):
        fetch_dataset(memory_store, "photos", DIGEST, tmp_path)


def test_fetching_again_copies_nothing(
    memory_store: Store, files: list[tuple[str, Path]], cache: Path
) -> None:
    store_dataset(memory_store, "photos", files, DIGEST)
    folder = fetch_dataset(memory_store, "photos", DIGEST, cache)
    counted = counting(memory_store)
    assert fetch_dataset(counted, "photos", DIGEST, cache) == folder
    assert counted.calls == [("get", f"{WHERE}/MANIFEST.json")]


def test_many_fetch_at_once(file_store: Store, files: list[tuple[str, Path]], cache: Path) -> None:
    store_dataset(file_store, "photos", files, DIGEST)
    counted = counting(file_store)
    with ThreadPoolExecutor(8) as pool:
        folders = set(pool.map(lambda _: fetch_dataset(counted, "photos", DIGEST, cache), range(8)))
    assert len(folders) == 1
    assert len([c for c in counted.calls if "/files/" in c[1]]) == len(files)


def test_a_torn_copy_is_replaced(memory_store: Store, files: list[tuple[str, Path]], cache: Path) -> None:
    store_dataset(memory_store, "photos", files, DIGEST)
    folder = fetch_dataset(memory_store, "photos", DIGEST, cache)
    victim = folder / "images" / "ä b.png"
    victim.chmod(0o644)
    victim.write_bytes(b"")
    again = fetch_dataset(memory_store, "photos", DIGEST, cache)
    assert contents(again) == {name: path.read_bytes() for name, path in files}


@pytest.mark.parametrize("harm", ["changed", "deleted"])
def test_a_file_that_is_not_what_the_manifest_says(
    memory_store: Store, files: list[tuple[str, Path]], cache: Path, harm: str
) -> None:
    store_dataset(memory_store, "photos", files, DIGEST)
    key = f"{WHERE}/files/metadata.csv"
    if harm == "changed":
        memory_store.put(key, b"x" * len(memory_store.get(key).data))
    else:
        memory_store.delete(key)
    with pytest.raises(StoreError, match=r"metadata\.csv"):
        fetch_dataset(memory_store, "photos", DIGEST, cache)
    assert not any(p.is_dir() for p in (cache / "photos").iterdir())


def test_a_manifest_cannot_lead_outside(memory_store: Store, cache: Path, tmp_path: Path) -> None:
    entry = {"path": "../../evil", "size": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    memory_store.put(f"{WHERE}/MANIFEST.json", json.dumps({"files": [entry]}).encode())
    with pytest.raises(StoreError, match="not a manifest"):
        fetch_dataset(memory_store, "photos", DIGEST, cache)
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"files": [{"path": "a"}]}', b'{"files": 3}'])
def test_a_torn_manifest_is_named(memory_store: Store, cache: Path, data: bytes) -> None:
    memory_store.put(f"{WHERE}/MANIFEST.json", data)
    with pytest.raises(StoreError, match=r"MANIFEST\.json` in .* is not a manifest"):
        fetch_dataset(memory_store, "photos", DIGEST, cache)


def test_an_unknown_dataset_names_the_nearest(
    memory_store: Store, files: list[tuple[str, Path]], cache: Path
) -> None:
    store_dataset(memory_store, "photos", files, DIGEST)
    with pytest.raises(NotFoundError) as caught:
        fetch_dataset(memory_store, "photo", DIGEST, cache)
    assert "photos" in caught.value.hint
    with pytest.raises(NotFoundError) as caught:
        fetch_dataset(memory_store, "photos", "sha256:" + "e" * 64, cache)
    assert DIGEST in caught.value.hint


# --- folders ---


@pytest.fixture
def folder(tmp_path: Path, files: list[tuple[str, Path]]) -> Path:
    made = tmp_path / "artifact"
    for name, path in files:
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_bytes(path.read_bytes())
    return made


def test_a_folder_comes_back_as_it_was(file_store: Store, folder: Path, tmp_path: Path) -> None:
    sent = upload_folder(file_store, "artifacts/r/1", folder)
    assert [f.path for f in sent] == sorted(contents(folder))
    assert all(isinstance(f, StoredFile) for f in sent)
    dest = tmp_path / "new" / "place"
    assert download_folder(file_store, "artifacts/r/1", dest) == sent
    assert contents(dest) == contents(folder)
    assert [p.name for p in dest.parent.iterdir()] == ["place"]


def test_uploading_again(memory_store: Store, folder: Path) -> None:
    sent = upload_folder(memory_store, "artifacts/r/1", folder)
    counted = counting(memory_store)
    assert upload_folder(counted, "artifacts/r/1", folder) == sent
    assert {method for method, _ in counted.calls} == {"get"}
    (folder / "metadata.csv").write_bytes(b"other")
    with pytest.raises(ConflictError, match="other files"):
        upload_folder(memory_store, "artifacts/r/1", folder)
    assert memory_store.get("artifacts/r/1/metadata.csv").data != b"other"


@pytest.mark.parametrize("call", range(1, 7))
def test_uploading_after_a_kill_overwrites_what_was_half_there(
    memory_store: Store, folder: Path, tmp_path: Path, call: int
) -> None:
    dying = FaultyStore(
        memory_store, lambda method, key: Fault.KILLED_BEFORE if len(dying.calls) == call else None
    )
    with pytest.raises(Killed):
        upload_folder(dying, "checkpoints/r/1/step-5", folder)
    with pytest.raises(NotFoundError, match="no finished folder"):
        download_folder(memory_store, "checkpoints/r/1/step-5", tmp_path / "dest")
    (folder / "metadata.csv").write_bytes(b"written by the second try")
    upload_folder(memory_store, "checkpoints/r/1/step-5", folder)
    download_folder(memory_store, "checkpoints/r/1/step-5", tmp_path / "dest")
    assert contents(tmp_path / "dest") == contents(folder)


def test_a_manifest_of_an_earlier_life_in_the_folder_is_not_sent(memory_store: Store, folder: Path) -> None:
    (folder / "MANIFEST.json").write_text("stale")
    sent = upload_folder(memory_store, "artifacts/r/1", folder)
    assert "MANIFEST.json" not in [f.path for f in sent]
    assert memory_store.get("artifacts/r/1/MANIFEST.json").data != b"stale"


def test_only_plain_files_can_be_sent(memory_store: Store, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match="is empty"):
        upload_folder(memory_store, "artifacts/r/1", tmp_path / "empty")
    (folder / "link").symlink_to("metadata.csv")
    with pytest.raises(StoreError, match="`link`"):
        upload_folder(memory_store, "artifacts/r/1", folder)
    assert memory_store.list("") == []


def test_downloading_never_destroys(memory_store: Store, folder: Path, tmp_path: Path) -> None:
    sent = upload_folder(memory_store, "artifacts/r/1", folder)
    dest = tmp_path / "dest"
    dest.mkdir()
    assert download_folder(memory_store, "artifacts/r/1", dest) == sent  # an empty folder is fine
    assert download_folder(memory_store, "artifacts/r/1", dest) == sent  # so is one that is right
    (dest / "metadata.csv").write_bytes(b"mine")
    with pytest.raises(ConflictError, match="something else"):
        download_folder(memory_store, "artifacts/r/1", dest)
    assert (dest / "metadata.csv").read_bytes() == b"mine"


def test_a_download_that_fails_leaves_nothing(memory_store: Store, folder: Path, tmp_path: Path) -> None:
    upload_folder(memory_store, "artifacts/r/1", folder)
    memory_store.put("artifacts/r/1/metadata.csv", b"x")
    with pytest.raises(StoreError, match=r"metadata\.csv"):
        download_folder(memory_store, "artifacts/r/1", tmp_path / "dest")
    assert not [p for p in tmp_path.iterdir() if "dest" in p.name]


# --- checkpoints ---


def checkpoint(store: Store, attempt: str, step: str, finished: bool = True) -> None:
    store.put(f"checkpoints/r/{attempt}/{step}/weights", b"w")
    if finished:
        store.put(f"checkpoints/r/{attempt}/{step}/MANIFEST.json", b"{}")


def test_the_farthest_finished_checkpoint(memory_store: Store) -> None:
    assert newest_checkpoint(memory_store, "r") is None
    checkpoint(memory_store, "1", "step-900", finished=False)
    assert newest_checkpoint(memory_store, "r") is None
    checkpoint(memory_store, "1", "step-20")
    checkpoint(memory_store, "1", "step-100")  # farther, though it sorts before step-20
    assert newest_checkpoint(memory_store, "r") == "checkpoints/r/1/step-100"
    checkpoint(memory_store, "2", "step-40")  # began anew: not as far
    assert newest_checkpoint(memory_store, "r") == "checkpoints/r/1/step-100"
    checkpoint(memory_store, "2", "step-100")
    checkpoint(memory_store, "10", "step-000100")
    assert newest_checkpoint(memory_store, "r") == "checkpoints/r/10/step-000100"


def test_checkpoints_of_others_do_not_count(memory_store: Store) -> None:
    memory_store.put("checkpoints/r2/1/step-5/MANIFEST.json", b"{}")
    memory_store.put("checkpoints/r/1/MANIFEST.json", b"{}")
    memory_store.put("checkpoints/r/1/step-9/inner/MANIFEST.json", b"{}")
    assert newest_checkpoint(memory_store, "r") is None
