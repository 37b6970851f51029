"""What a Job reports: its termination message before its log, the last object that has what is asked for."""

from __future__ import annotations

import pytest

from lora_ops.pods import PodSight
from tasks.cluster.run_job import Ended


@pytest.mark.parametrize(
    ("said", "logs", "found"),
    [
        ('{"ok": true}', "", True),
        ("", 'warning\n{"ok": false}\nbye', False),
        ('{"ok": true', '{"ok": false}', False),
        ('{"other": 1}', '{"ok": 3}\n["ok"]', 3),
        ("", '{"ok": 1}\n{"ok": 2}', 2),
    ],
)
def test_the_last_object_with_the_key(said: str, logs: str, found: object) -> None:
    report = Ended(0, logs, PodSight("succeeded", said=said)).report("ok")
    assert report is not None
    assert report["ok"] == found


def test_no_report() -> None:
    assert Ended(None, "nothing\n{}", PodSight("failed")).report("ok") is None
