"""On a terminal a long command shows its progress; elsewhere it shows none."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from workloads import tiny_trace

MOESIM = [sys.executable, "-m", "moesim"]


def on_a_terminal(arguments: list[str], kill_at: str | None = None) -> tuple[int, str, list[str]]:
    """Return exit code, stdout (a pipe), and the lines on a terminal that is stderr.

    Ctrl-C is sent as soon as the terminal shows `kill_at`.
    """
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen(
        [*MOESIM, *arguments], stdout=subprocess.PIPE, stderr=theirs, text=True, env=environment
    )
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 65536):
            shown += piece
            if kill_at is not None and kill_at.encode() in shown:
                process.send_signal(signal.SIGINT)
                kill_at = None
    except OSError:  # how Linux reports that the other side of a terminal is closed
        pass
    os.close(ours)
    output, _ = process.communicate()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    return process.returncode, output, [line for line in re.split(r"[\r\n]+", text) if line.strip()]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trace and a scenario that takes a second."""
    home = tmp_path_factory.mktemp("home")
    tiny_trace(requests=4).save(home / "trace")
    (home / "x.yaml").write_text(
        "trace: trace\nhardware: rtx-4090\nworkload: {requests: 100, order: resampled}\n"
    )
    (home / "sweep.yaml").write_text(
        "trace: trace\nhardware: rtx-4090\nbounds: false\nsweep: {seed: [0, 1]}\n"
    )
    return home


def test_a_run_shows_its_parts_with_the_time_left_and_says_that_it_is_done(home: Path) -> None:
    out = str(home / "run")
    code, output, shown = on_a_terminal(["run", str(home / "x.yaml"), "--out", out, "--no-plots"])
    assert code == 0, shown
    assert output.splitlines()[-1] == out
    assert any(re.match(r"run +\S+ +\d+% \S*:\d\d", line) for line in shown), shown
    assert any(line.startswith("MIN") for line in shown)
    assert re.fullmatch(r"done in \d+ s", shown[-1])


def test_an_interrupt_ends_the_bars_with_a_line(home: Path) -> None:
    many = ["--set", "workload.requests=20000", "--out", str(home / "no")]
    code, output, shown = on_a_terminal(["run", str(home / "x.yaml"), *many], kill_at="%")
    assert (code, output, shown[-1]) == (130, "", "interrupted")


def test_a_failure_ends_with_its_message(home: Path) -> None:
    code, _, shown = on_a_terminal(["run", str(home / "x.yaml"), "--set", "memory.capacity=1MiB"])
    assert code == 2
    assert shown[0].startswith("error: ")
    assert not any(line.startswith("done") for line in shown)


def test_a_pipe_gets_no_progress(home: Path) -> None:
    command = [*MOESIM, "run", str(home / "x.yaml"), "--out", str(home / "piped"), "--no-plots"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["trace", "synth", "{home}/s", "--requests", "2"],
        ["curve", "{home}/trace", "--policy", "lru"],
        ["compare", "{home}/sweep.yaml", "--workers", "1", "--no-plots", "--out", "{home}/c"],
        ["trace", "locality", "{home}/trace"],
        ["trace", "redundancy", "{home}/trace"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]).replace("{home}/", ""),
)
def test_other_long_commands_show_progress_too(home: Path, arguments: list[str]) -> None:
    code, _, shown = on_a_terminal([part.format(home=home) for part in arguments])
    assert code == 0, shown
    assert any("%" in line for line in shown)
    assert shown[-1].startswith("done in ")
