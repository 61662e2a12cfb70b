"""On a terminal a long command shows its progress; elsewhere it shows none."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from terminals import MOESIM, left_on_a_terminal, on_a_terminal
from workloads import tiny_trace


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
    assert shown[0].startswith("preparing ")
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
    assert any(line.startswith("error: ") for line in shown)
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


def test_a_watched_run_shows_how_it_stands_and_fits_into_80_columns(home: Path) -> None:
    long = ["--set", "workload.requests=400", "--out", str(home / "seen"), "--no-plots"]
    code, output, shown = on_a_terminal(["run", str(home / "x.yaml"), "--watch", *long], columns=80)
    assert code == 0, shown
    assert output.splitlines()[-1] == str(home / "seen")
    for part in ("simulated ", "requests ", "experts ", "KV blocks ", "lanes busy ", "step "):
        assert any(line.strip().startswith(part) for line in shown), part
    assert max(map(len, shown)) <= 80


def test_an_interrupt_ends_the_view_with_a_line(home: Path) -> None:
    many = ["--set", "workload.requests=20000", "--out", str(home / "no"), "--watch"]
    code, output, shown = on_a_terminal(["run", str(home / "x.yaml"), *many], kill_at="lanes busy")
    assert (code, output, shown[-1]) == (130, "", "interrupted")


def test_a_watched_comparison_leaves_a_line_for_each_point(home: Path) -> None:
    command = ["compare", str(home / "sweep.yaml"), "--workers", "1", "--no-plots", "--watch"]
    *points, done = left_on_a_terminal([*command, "--out", str(home / "c")])
    assert done.startswith("done in ")
    assert len(points) == 2
    assert points[0].endswith(" output tokens/s, the best so far")
    assert all(" output tokens/s" in line for line in points)


def test_what_is_said_beside_bars_goes_to_stdout(home: Path) -> None:
    likeness = ["--like", "mixtral-8x7b", "--requests", "1", "--prompt-tokens", "2"]
    code, output, shown = on_a_terminal(["trace", "synth", str(home / "like"), *likeness])
    assert code == 0, shown
    assert output.startswith("like mixtral-8x7b")
