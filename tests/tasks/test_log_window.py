"""Logs whose beginning is not kept: positions stay those of the whole log."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.child import TrainerChild
from tasks.log_window import pack, unpack


@given(st.integers(0, 10**15), st.binary(max_size=200))
def test_a_window_says_what_is_missing(dropped: int, text: bytes) -> None:
    assert unpack(pack(dropped, text)) == (dropped, text)


def test_a_log_of_an_older_release_has_no_head() -> None:
    assert unpack(b"step 1\n") == (0, b"step 1\n")


@pytest.mark.parametrize(
    ("printed", "window"),
    [
        (b"", (0, b"")),
        (b"one\ntwo\n", (0, b"one\ntwo\n")),
        (b"one\ntwo\nthree\n", (8, b"three\n")),
        (b"x" * 30, (20, b"x" * 10)),
        (b"x" * 30 + b"\n", (21, b"x" * 9 + b"\n")),
    ],
)
def test_the_newest_part_begins_with_a_line(
    tmp_path: Path, printed: bytes, window: tuple[int, bytes]
) -> None:
    child = object.__new__(TrainerChild)
    child.log = tmp_path / "log.txt"
    child.log.write_bytes(printed)
    assert child.log_window(10) == window
    assert child.printed() == len(printed)
