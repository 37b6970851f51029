"""The file that a worker starts for a run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tasks import engine
from tasks.prefect_api import ENGINE_COMMAND


def _run(url: str, tmp_path: Path, flow_run: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT")}
    own = {"PREFECT_API_URL": url, "PREFECT__FLOW_RUN_ID": flow_run, "PREFECT_HOME": str(tmp_path)}
    return subprocess.run(
        ENGINE_COMMAND.split(), cwd=tmp_path, env={**kept, **own}, capture_output=True, text=True, timeout=120
    )


def test_a_prefect_that_does_not_answer_has_an_exit_code_of_its_own(tmp_path: Path) -> None:
    done = _run("http://127.0.0.1:9/api", tmp_path, "8f6e3c8a-1111-4111-8111-111111111111")
    assert done.returncode == engine.PREFECT_AWAY, done.stderr


def test_other_ends_keep_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine fails, and Prefect answers: that is the release's own fault."""
    monkeypatch.setattr(engine, "_answers", lambda url: True)

    def failing(*words: object, **more: object) -> None:
        raise SystemExit(1)

    monkeypatch.setattr(engine.runpy, "run_module", failing)
    with pytest.raises(SystemExit) as ended:
        engine.main()
    assert ended.value.code == 1


def test_a_stream_outlives_its_reader() -> None:
    reader, writer = os.pipe()
    stream = os.fdopen(writer, "w")
    kept = engine.Unbreakable(stream)
    kept.write("heard\n")
    kept.flush()
    assert os.read(reader, 100) == b"heard\n"
    os.close(reader)
    for _ in range(3):
        kept.write("not heard\n")
        kept.flush()
    assert kept.fileno() == writer
    stream.close()
