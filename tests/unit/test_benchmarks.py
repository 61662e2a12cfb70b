"""The one command of `benchmarks/`: its table, its history, and its stopwatches."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT
from study_scripts import module_at, script

from moesim import __version__

figures = script("benchmarks", "figures")
stopwatches = script("benchmarks", "stopwatches")
Figure = figures.Figure


def command() -> Any:
    """Return `benchmarks/__main__.py` as a module."""
    return module_at(ROOT / "benchmarks/__main__.py")


@pytest.fixture
def places(tmp_path: Path) -> list[str]:
    """Return the options that name a document and a history of the test's own."""
    marks = command()
    text = f"# Before\n\n{marks.BEGIN}\nold\n{marks.END}\n\nafter\n"
    (tmp_path / "page.md").write_text(text, encoding="utf-8")
    return ["--out", str(tmp_path / "page.md"), "--history", str(tmp_path / "history")]


def test_a_figure_is_the_median_of_its_rounds_with_the_spread() -> None:
    figure = Figure.of("speed", [3.0, 1.0, 8.0], "s", "under 4")
    assert figure.cells == ("speed", "3.00 s", "1.00 to 8.00 (3 rounds)", "under 4")
    assert Figure.of("once", [12345.6]).cells == ("once", "12,346", "one round", "–")
    assert Figure.of("no wait", [1e-15]).cells[1] == "0"


def test_the_table_and_the_history_hold_all_figures(
    places: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = command()
    monkeypatch.setattr(run, "measured", lambda name, quick: [Figure.of(f"of {name}", [2.0])])
    assert run.main([*places, "files", "served"]) == 0
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert page.startswith("# Before\n")
    assert page.endswith("\n\nafter\n")
    assert "old" not in page
    assert page.index("| of served |") < page.index("| of files |")  # in the order of all scripts
    assert f"moesim {__version__} on " in page
    history = json.loads((tmp_path / f"history/{__version__}.json").read_text(encoding="utf-8"))
    assert history["scripts"]["files"]["figures"][0]["median"] == 2.0
    assert history["scripts"]["files"]["device"].keys() == {"cpu", "cores", "memory_gib", "python"}


def test_a_script_that_fails_keeps_its_earlier_figures_and_stops_no_other(
    places: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = command()
    monkeypatch.setattr(run, "measured", lambda name, quick: [Figure.of(f"old {name}", [1.0])])
    run.main([*places, "files", "events"])

    def second(name: str, quick: bool) -> list[Any]:
        if name == "files":
            raise subprocess.CalledProcessError(1, name)
        return [Figure.of(f"new {name}", [1.0])]

    monkeypatch.setattr(run, "measured", second)
    assert run.main([*places, "files", "events"]) == 1
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "old files" in page
    assert "new events" in page
    assert "old events" not in page


def test_a_name_that_is_no_script_is_refused(places: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command().main([*places, "speed"])
    assert caught.value.code == 2


def test_the_command_runs_every_script_of_the_folder_that_measures() -> None:
    measure = "def measure(quick: bool) -> list[Figure]:"
    files = (ROOT / "benchmarks").glob("*.py")
    measuring = {file.stem for file in files if measure in file.read_text(encoding="utf-8")}
    assert measuring == set(command().SCRIPTS)
    assert measuring >= {"served", "scale", "events", "curve", "sweep", "real_time", "gates"}


def test_the_help_says_what_scripts_need(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command().main(["--help"])
    text = capsys.readouterr().out
    for word in (*command().SCRIPTS, "libcachesim", "torch", "AZURE_CODE_CSV", "LAW_NPZ"):
        assert word in text


def test_a_growth_has_an_exponent_of_all_runs_and_one_of_the_longer_ones() -> None:
    """A constant part counts in the first alone."""
    scale = script("benchmarks", "scale")
    replays = {n: {"s": 1.0 + n / 10_000, "mb": 90.0 + n, "added": float(n)} for n in scale.SIZES}
    figures = {each.name: each for each in scale.of_replays(replays, True)}
    time, of_longer, memory, _ = list(figures.values())[2:]
    assert 0.7 < time.median < of_longer.median < 1
    assert memory.median == pytest.approx(1)
    assert [each.target for each in (time, of_longer)] == ["at most 1.1", "0.9 to 1.1"]
    assert list(figures)[:2] == [
        "replaying 1,000,000 tokens with bounds", "replaying 1,000,000 tokens with bounds, memory"
    ]  # fmt: skip


@pytest.mark.slow
def test_the_figures_of_a_sweep_are_those_that_have_targets() -> None:
    sweep = script("benchmarks", "sweep")
    names = [each.name for each in sweep.measure(True)]
    for name in sweep.TARGETS:
        assert f"8 short runs: {name}" in names


def test_a_stopwatch_counts_no_part_that_runs_inside_it() -> None:
    clock = [0.0]

    class Parts:
        @staticmethod
        def outer() -> None:
            clock[0] += 1
            Parts.inner()
            Parts.inner()
            clock[0] += 2

        @staticmethod
        def inner() -> None:
            clock[0] += 10

    before = Parts.outer
    parts = [(Parts, "outer", "out"), (Parts, "inner", "in")]
    with stopwatches.timed_parts(parts, lambda: clock[0]) as spent:
        Parts.outer()
    assert spent == {"out": 3, "in": 20}
    assert Parts.outer is before


def test_the_watched_functions_exist() -> None:
    for owner, name, _ in script("benchmarks", "served").watched():
        assert callable(getattr(owner, name))


def test_conversations_have_the_stated_means_and_arrive_at_once(tmp_path: Path) -> None:
    served = script("benchmarks", "served")
    served.write_conversations(tmp_path / "x.csv", 4000)
    head, *lines = (tmp_path / "x.csv").read_text(encoding="utf-8").splitlines()
    assert head == served.PLAIN
    times, prompts, outputs = zip(*(map(int, line.split(",")) for line in lines), strict=True)
    assert set(times) == {0}
    assert sum(prompts) / 4000 == pytest.approx(1155, rel=0.06)
    assert sum(outputs) / 4000 == pytest.approx(211, rel=0.06)
    assert min(prompts + outputs) >= 1


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_an_exponent_is_the_slope_of_logarithms(power: float) -> None:
    tokens = [10, 100, 1000]
    values = [3 * count**power for count in tokens]
    assert script("benchmarks", "scale").exponent(tokens, values) == pytest.approx(power)
