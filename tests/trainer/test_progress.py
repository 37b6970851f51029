from __future__ import annotations

import io

from trainer.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_on_a_terminal() -> None:
    stream = Terminal()
    progress = Progress(4, 1, 10, stream)
    for step in (2, 3, 4):
        progress.step(step, 0.5, 1e-3, 0.1)
    progress.note("a note")
    progress.close()
    said = stream.getvalue()
    assert "4/4" in said
    assert "loss 0.5" in said
    assert "a note\n" in said


def test_lines_elsewhere() -> None:
    stream = io.StringIO()
    progress = Progress(25, 0, 10, stream)
    for step in range(1, 26):
        progress.step(step, 0.5, 1e-3, 0.1)
    progress.close()
    assert [line.split()[1] for line in stream.getvalue().splitlines()] == ["10/25", "20/25", "25/25"]
