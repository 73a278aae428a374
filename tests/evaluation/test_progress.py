"""Long work tells how far it is, also where it is read from a log."""

from __future__ import annotations

import pytest

from lumitok.evaluation import progress


def test_without_a_terminal_there_is_a_line_a_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with progress.show_progress("encoding", 4_000) as tell:
        for seconds, done in ((30, 500), (60, 1_000), (90, 1_500), (120, 3_000)):
            clock[0] = seconds
            tell(done)
    assert capsys.readouterr().err.splitlines() == [
        "encoding: 1,000 of 4,000 pictures, 16.7 a second, 00:03:00 left",
        "encoding: 3,000 of 4,000 pictures, 25 a second, 00:00:40 left",
    ]
