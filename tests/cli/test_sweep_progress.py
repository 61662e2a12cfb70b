"""A sweep whose stderr is a file says once a minute how long it will take."""

from __future__ import annotations

import pytest

from moesim.cli.progress import sweep_progress


def test_a_line_a_minute_says_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now_s = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now_s)
    with sweep_progress("points", 100) as show:
        show(10)  # these were finished before
        for done, passed_s in ((11, 30), (14, 50), (40, 10), (50, 30), (70, 60)):
            now_s += passed_s
            show(done)
    assert capsys.readouterr().err.splitlines() == [
        "14 of 100 points are done; about 29 min left",  # 4 in 80 s, 86 are left
        "70 of 100 points are done; about 2 min left",  # 60 in 180 s
    ]


def test_a_short_sweep_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with sweep_progress("points", 2) as show:
        show(0)
        show(1)
        show(2)
    assert capsys.readouterr().err == ""
