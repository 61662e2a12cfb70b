"""The public API is small, resolves, costs nothing until it is used, and says what its docs say."""

from __future__ import annotations

import doctest
import inspect
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paths import ROOT
from run_directories import run_directory
from workloads import tiny_scenario, tiny_trace

import moesim
from moesim.errors import DamagedRun, ScenarioError, UsageError
from moesim.report import compare_runs, load_run
from moesim.report.metrics import HITS

HEAVY = ("torch", "pandas", "matplotlib", "scipy", "transformers", "pyarrow", "altair", "jinja2")
LONGEST = 200


@pytest.mark.parametrize("name", moesim.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(moesim, name) is getattr(moesim, name)
    assert name in dir(moesim)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'runn'"):
        _ = moesim.runn


def test_importing_moesim_loads_nothing_heavy() -> None:
    code = f"import sys, moesim; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_names_can_still_be_imported_from_their_former_places() -> None:
    from moesim.hardware import shapes
    from moesim.model.hf_config import shape_from_config

    assert shapes.shape_from_config is shape_from_config
    pytest.importorskip("greenlet")
    from moesim.executor.generate import generate
    from moesim.machine.real import generate as former

    assert former.generate is generate
    with pytest.raises(AttributeError, match="has no attribute 'absent'"):
        _ = former.absent


@pytest.mark.parametrize("name", ["run", "compare", "curve", "advise", "Result"])
def test_the_examples_of_docstrings_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    finder = doctest.DocTestFinder(recurse=False)
    (test,) = finder.find(getattr(moesim, name), name, globs={"moesim": moesim})
    assert test.examples
    done = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test)
    assert done.failed == 0


@pytest.mark.parametrize("name", ["run", "compare", "curve", "advise", "load"])
def test_a_function_is_typed_and_names_its_errors(name: str) -> None:
    function = getattr(moesim, name)
    signature = inspect.signature(function)
    assert signature.return_annotation is not inspect.Parameter.empty
    assert all(each.annotation for each in signature.parameters.values())
    assert "Raises:" in inspect.getdoc(function)
    # All but what is asked about is named, so that arguments can be added.
    free = [each for each in signature.parameters.values() if each.kind == each.KEYWORD_ONLY]
    assert len(signature.parameters) - len(free) <= 2


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A scenario of a tiny trace that is a folder; two of its three requests arrive at once."""
    home = tmp_path_factory.mktemp("api")
    tiny_trace(requests=3).save(home / "trace")
    return tiny_scenario(name="demo", trace=str(home / "trace"), cache={"slots": "3/layer"})


@pytest.fixture(scope="module")
def result(scenario: dict[str, Any]) -> moesim.Result:
    return moesim.run(scenario)


@pytest.fixture(scope="module")
def comparison(scenario: dict[str, Any]) -> moesim.Comparison:
    sweep = {"cache.policy": ["lru", "fifo"], "cache.slots": ["3/layer", "5/layer"]}
    return moesim.compare(scenario, sweep=sweep)


# Results


@pytest.mark.parametrize("name", ["requests", "steps", "layers", "timeline"])
def test_a_table_is_an_attribute_that_is_made_once(result: moesim.Result, name: str) -> None:
    frame = getattr(result, name)
    assert frame is result.table(name)
    assert list(frame.columns) == list(result.columns[name])
    assert len(frame) > 0


def test_the_summary_is_a_table_with_a_row_per_key(result: moesim.Result) -> None:
    frame = result.table("summary")
    assert frame["value"].to_dict() == result.summary
    assert frame.index.name == "key"


def test_a_changed_result_makes_its_tables_again(result: moesim.Result) -> None:
    fewer = replace(result, columns={**result.columns, "layers": {"layer": [0]}})
    assert len(result.layers) == 4
    assert len(fewer.layers) == 1


def test_a_loaded_result_equals_the_one_that_was_written(
    scenario: dict[str, Any], tmp_path: Path
) -> None:
    written = moesim.run(scenario, out=tmp_path / "run")
    loaded = moesim.load(tmp_path / "run")
    assert loaded.summary == written.summary
    assert loaded.scenario.resolved_in(None) == written.scenario.resolved_in(None)
    assert (loaded.path, loaded.simulation) == (written.path, written.simulation)
    for name in written.columns:
        expected, found = written.table(name), loaded.table(name)
        assert found.columns.tolist() == expected.columns.tolist()
        assert found.astype(object).map(_plain).equals(expected.astype(object).map(_plain))
    assert loaded.plot.latency().get_lines()[0].get_xydata().tolist() == (
        written.plot.latency().get_lines()[0].get_xydata().tolist()
    )


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def test_a_table_that_was_changed_is_refused_when_it_is_read(
    scenario: dict[str, Any], tmp_path: Path
) -> None:
    moesim.run(scenario, out=tmp_path / "run")
    (tmp_path / "run/layers.parquet").write_bytes(b"other")
    loaded = moesim.load(tmp_path / "run")
    assert len(loaded.requests) == 3
    with pytest.raises(DamagedRun, match=r"layers\.parquet.*changed after the run"):
        _ = loaded.layers
    with pytest.raises(UsageError, match="no such run directory"):
        moesim.load(tmp_path / "absent")


def test_repr_is_short_however_long_name_and_path_are(scenario: dict[str, Any]) -> None:
    long = moesim.run(scenario, overrides={"name": "n" * 300})
    assert len(repr(long)) < LONGEST
    assert len(repr(replace(long, path=Path("/folder" * 60)))) < LONGEST


def test_a_notebook_shows_a_table_with_everything_escaped(
    scenario: dict[str, Any], comparison: moesim.Comparison
) -> None:
    shown = moesim.run(scenario, overrides={"name": "A & B 'x'"})._repr_html_()
    assert "A &amp; B &#x27;x&#x27;" in shown
    assert "synthetic routing" in shown
    assert re.search(r"<td>hits</td><td>[\d.]+</td><td>%</td>", shown)
    assert comparison._repr_html_().count("<tr>") == 1 + len(comparison.rows)
    assert "synthetic routing" in comparison._repr_html_()


def test_no_cell_of_a_table_becomes_markup() -> None:
    from moesim.report.notebook import html_table

    shown = html_table("a", ("<i>",), [("<script>",), ("&",)])
    assert "<td>&lt;script&gt;</td>" in shown
    assert "<td>&amp;</td>" in shown
    assert "<th>&lt;i&gt;</th>" in shown


# Scenarios from Python


def test_overrides_are_values_by_key_or_texts(scenario: dict[str, Any]) -> None:
    by_key = moesim.load_scenario(scenario, {"cache.policy": "fifo", "seed": 3})
    by_text = moesim.load_scenario(scenario, ["cache.policy=fifo", "seed=3"])
    assert by_key.resolved() == by_text.resolved()
    again = moesim.load_scenario(by_key, {"seed": 4})
    assert (again.cache.policy, again.seed, by_key.seed) == ("fifo", 4, 3)


def test_every_mistake_from_python_names_its_key(scenario: dict[str, Any]) -> None:
    wrong = {**scenario, "cache": {"polcy": "lru"}, "prefetch": "nothing"}
    with pytest.raises(ScenarioError) as caught:
        moesim.run(wrong, overrides={"seed": "x", "cache.": 1, "trce": 2})
    assert [problem.split(": ")[:2] for problem in caught.value.problems] == [
        ["scenario", "cache.polcy"],
        ["scenario", "prefetch"],
        ["override seed", "seed"],
        ["override trce", "trce"],
        ["override cache.", "write a dotted key and a value, as in {'seed'"],
    ]


def test_a_relative_path_of_an_override_starts_at_the_working_directory(
    scenario: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").mkdir()
    moesim.load_trace(scenario["trace"]).save(tmp_path / "mine")
    file = tmp_path / "home/scenario.yaml"
    file.write_text(moesim.load_scenario(scenario).text_for(file.parent))
    monkeypatch.chdir(tmp_path)
    mine = moesim.load_scenario(file, {"trace": "mine"})
    assert mine.trace_path.resolve() == tmp_path / "mine"
    with pytest.raises(ScenarioError, match=r"override trace: trace: .*'absent'"):
        moesim.run(file, overrides={"trace": "absent"})


@pytest.mark.parametrize("wrong", [5, [1], object()])
def test_overrides_of_another_kind_are_refused(scenario: dict[str, Any], wrong: Any) -> None:
    with pytest.raises(UsageError, match="overrides must map dotted keys to values"):
        moesim.load_scenario(scenario, wrong)


# Comparisons


@pytest.mark.parametrize("wrong", [5, ["cache.policy"], "cache.policy"])
def test_a_sweep_that_is_no_mapping_is_refused(scenario: dict[str, Any], wrong: Any) -> None:
    with pytest.raises(UsageError, match="sweep must map keys to lists of values"):
        moesim.compare(scenario, sweep=wrong)


def test_values_of_a_sweep_may_be_any_sequence_of_plain_values(scenario: dict[str, Any]) -> None:
    sweep = {"seed": range(2), "cache.policy": ("lru", "fifo")}
    loaded = moesim.load_scenario(scenario, {"sweep": sweep})
    assert loaded.sweep == {"seed": [0, 1], "cache.policy": ["lru", "fifo"]}


def test_a_value_of_another_kind_is_refused_with_its_key(scenario: dict[str, Any]) -> None:
    with pytest.raises(ScenarioError, match=r"^override sweep: sweep\.seed: array.* must be text"):
        moesim.load_scenario(scenario, {"sweep": {"seed": np.arange(2)}})


@pytest.mark.parametrize("wrong", [0, "2", 1.5, None])
def test_workers_are_a_whole_number(scenario: dict[str, Any], wrong: Any) -> None:
    with pytest.raises(UsageError, match="workers must be a whole number of at least 1"):
        moesim.compare(scenario, sweep={"seed": [0]}, workers=wrong)


def test_a_comparison_holds_its_runs_in_memory(comparison: moesim.Comparison) -> None:
    assert repr(comparison) == "<Comparison: 4 runs in 4 rows, 2 variants, 2 settings>"
    assert not any(run.path.exists() for run in comparison.runs)
    assert all(len(run.table("requests", ["request"])["request"]) == 3 for run in comparison.runs)


def test_the_frame_of_a_comparison_is_the_table_that_the_command_writes(
    comparison: moesim.Comparison, tmp_path: Path
) -> None:
    import pandas as pd

    from moesim.report.tables import write_csvs

    write_csvs(comparison, tmp_path)
    written = pd.read_csv(tmp_path / "compare.csv")
    frame = comparison.frame
    assert frame.columns.tolist() == written.columns.tolist()
    assert frame["variant"].tolist() == written["variant"].tolist()
    assert np.allclose(frame["e2e_p95_ms"], written["e2e_p95_ms"])


def test_a_comparison_says_which_points_failed_and_why(scenario: dict[str, Any]) -> None:
    partly = moesim.compare(scenario, sweep={"hardware.vram": ["24GiB", "9MiB"]})
    assert len(partly.runs) == 1
    assert [line.split(":")[0] for line in partly.failures] == ["hardware.vram=9MiB"]
    assert "1 points failed" in repr(partly)
    assert "hardware.vram=9MiB" in partly._repr_html_()
    with pytest.raises(moesim.errors.BudgetError):
        moesim.compare(scenario, sweep={"hardware.vram": ["8MiB", "9MiB"]})
    with pytest.raises(UsageError, match="no sweep, so there is nothing to compare"):
        moesim.compare(scenario)


def test_a_comparison_with_a_folder_keeps_finished_points(
    scenario: dict[str, Any], tmp_path: Path
) -> None:
    told: list[tuple[str, int, int]] = []
    arguments: dict[str, Any] = {"out": tmp_path / "kept", "progress": lambda *it: told.append(it)}
    first = moesim.compare(scenario, sweep={"seed": [0]}, **arguments)
    moesim.compare(scenario, sweep={"seed": [0, 1]}, **arguments)
    assert told == [("points", 1, 1), ("points", 2, 2)]  # the second call simulates one point
    assert moesim.load(first.runs[0].path).summary == first.runs[0].summary


# Plots


def drawn(axes: Any) -> list[Any]:
    """Return the numbers of all lines and bars of a panel."""
    lines = [line.get_xydata().tolist() for line in axes.get_lines()]
    return [*lines, *((bar.get_x(), bar.get_y(), bar.get_width(), bar.get_height())
                      for bar in axes.patches)]  # fmt: skip


@pytest.fixture
def new_axes() -> Any:
    from matplotlib import pyplot

    yield lambda: pyplot.subplots()[1]
    pyplot.close("all")


def test_the_plots_of_a_run_are_the_panels_of_the_command(
    result: moesim.Result, new_axes: Callable[[], Any]
) -> None:
    from moesim.report.chart import Chart
    from moesim.report.lanes import lane_timeline
    from moesim.report.single import hits_by_layer, latency_cdf, stall_breakdown
    from moesim.report.style import house_style

    def panel(chart: Callable[..., Chart], row: int = 0, column: int = 0) -> list[Any]:
        with house_style():
            return drawn(chart(result.as_run()).axes[row][column])

    plot, ax = result.plot, new_axes()
    assert plot.latency("itl", ax) is ax
    assert drawn(ax) == panel(latency_cdf, 1, 0)
    assert drawn(plot.hits()) == panel(hits_by_layer)
    assert drawn(plot.stalls("layer")) == panel(stall_breakdown, 0, 1)
    assert drawn(plot.stalls()) == panel(stall_breakdown)
    assert drawn(plot.lanes()) == panel(lane_timeline)
    assert all(len(drawn(axes)) > 0 for axes in (plot.hits(), plot.lanes()))


def test_a_plot_says_that_its_routing_is_synthetic(
    result: moesim.Result, comparison: moesim.Comparison, new_axes: Callable[[], Any]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of many open figures
        axes = [result.plot.latency(), comparison.plot.throughput(), comparison.plot.hits()]
    assert all("synthetic routing; simulated" in each.get_xlabel() for each in axes)


def test_the_plots_of_a_comparison_are_of_one_setting(
    comparison: moesim.Comparison, new_axes: Callable[[], Any]
) -> None:
    plot, (first, second) = comparison.plot, comparison.settings
    for axes in (plot.latency(), plot.latency(setting=second)):
        assert [line.get_drawstyle() for line in axes.get_lines()].count("steps-post") == 2
    names = [text.get_text() for text in plot.throughput(first).get_yticklabels()]
    assert names == ["LRU", "FIFO"]
    assert plot.metric("hits", second).get_xlabel().split()[:2] == ["hits", "(%)"]
    assert len(plot.stalls().patches) > 0
    assert {"LRU", "FIFO"} <= set(plot.hits().get_legend_handles_labels()[1])


def test_hits_are_drawn_of_the_facet_that_is_named(
    new_axes: Callable[[], Any], tmp_path: Path
) -> None:
    runs = [
        load_run(
            run_directory(
                tmp_path / f"{policy}-{hardware}-{slots}", policy=policy, hardware=hardware,
                slots_per_layer=slots, steps=3, layers=2, requests=2, output_tokens=2,
                summary={"hits": hits},
            )
        )
        for policy in ("lru", "fifo")
        for hardware, hits in (("rtx-4090", 20), ("a100-80gb", 30))
        for slots in (4, 8)
    ]  # fmt: skip
    comparison = compare_runs(runs)
    assert len(comparison.facets) == 2
    for facet in comparison.facets:
        rows = comparison.series(facet, comparison.variants[0])
        expected = [[row.slots_per_layer, row.estimate(HITS).mean] for row in rows]
        assert comparison.plot.hits(facet).get_lines()[0].get_xydata().tolist() == expected


def test_a_wrong_name_in_a_plot_is_an_error_that_names_those_there_are(
    result: moesim.Result, comparison: moesim.Comparison
) -> None:
    wrong: Any = "tttft"
    with pytest.raises(UsageError, match=r"no latency 'tttft'; there are ttft, .*did you mean"):
        result.plot.latency(wrong)
    with pytest.raises(UsageError, match="no setting '9'; there are "):
        comparison.plot.stalls("9")
    one = replace(comparison, rows=comparison.rows[:1])
    with pytest.raises(UsageError, match="two sizes of the cache"):
        one.plot.hits()


def test_a_plot_is_drawn_onto_one_rectangular_axes_only(result: moesim.Result) -> None:
    from matplotlib.figure import Figure

    figure = Figure()
    polar = figure.add_subplot(projection="polar")
    wrong: Any
    for wrong in (figure, figure.subplots(1, 2), polar, 5):
        with pytest.raises(UsageError, match="ax must be one Axes of x and y"):
            result.plot.hits(ax=wrong)


# Curves and advice


def test_a_curve_is_a_frame_that_says_how_it_was_made() -> None:
    trace = tiny_trace(requests=4)
    frame = moesim.curve(
        trace, ["lru", "min"], capacities=[2, 4], expert_bytes="1MiB", link="25GB/s", resamples=100
    )
    assert len(frame) == 4
    assert frame.attrs["synthetic"] is True
    assert (frame["hits"] / frame["accesses"]).tolist() == frame["hit_rate"].tolist()
    assert frame["miss_bytes"].tolist() == (frame["misses"] * 2.0**20).tolist()
    assert (frame["hit_rate_low"] <= frame["hit_rate"]).all()
    assert frame["knows_future"].tolist() == [0, 0, 1, 1]
    plain = moesim.curve(trace, ["lru"], capacities=[2], model=None)
    assert plain["hit_rate_low"].isna().all()
    with pytest.raises(UsageError, match="not 'often'"):
        moesim.curve(trace, ["lru"], admission="often")  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [None, "lru", [], 5, [5]])
def test_a_curve_needs_names_of_policies(wrong: Any) -> None:
    with pytest.raises(UsageError, match="policies must list names of eviction policies"):
        moesim.curve(tiny_trace(), wrong)


@pytest.mark.parametrize("wrong", [4, ["2"], [2.5], [float("nan")]])
def test_capacities_of_a_curve_are_whole_numbers(wrong: Any) -> None:
    with pytest.raises(UsageError, match="capacities must list whole numbers"):
        moesim.curve(tiny_trace(), ["lru"], capacities=wrong)


def test_a_capacity_that_is_named_twice_is_one_row() -> None:
    frame = moesim.curve(tiny_trace(), ["lru"], capacities=[2, np.int64(2)])  # type: ignore[list-item]
    assert frame["slots_per_layer"].tolist() == [2]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"model": None}, "model must be a text, not None"),
        ({"model": ""}, "model must name a model"),
        ({"gpu": 4090}, "gpu must be a text, not 4090"),
        ({"ram": 32}, "ram must be a text, not 32"),
        ({"formats": "Q4_K_M"}, "formats must list names of formats, like .* not 'Q4_K_M'"),
        ({"formats": [4]}, "formats must list names of formats"),
    ],
)
def test_a_part_of_a_question_that_is_no_text_is_refused(wrong: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        moesim.advise(**{"model": "olmoe-1b-7b", **wrong})


def test_an_advice_is_what_the_command_prints_as_json() -> None:
    import json

    from typer.testing import CliRunner

    from moesim.cli import app

    advice = moesim.advise("olmoe-1b-7b", gpu="rtx-3060-12gb", formats=["Q4_K_M"])
    asked = ["olmoe-1b-7b", "--gpu", "rtx-3060-12gb", "--format", "Q4_K_M", "--json"]
    done = CliRunner().invoke(app, ["advise", *asked])
    assert json.loads(done.stdout) == json.loads(json.dumps(advice.plain()))
    assert "recommended: Q4_K_M" in repr(advice)
    assert advice.frame["format"].tolist() == ["Q4_K_M"]
    assert "<td>Q4_K_M</td>" in advice._repr_html_()
    with pytest.raises(UsageError, match="no goal 'chats'; there are chat"):
        moesim.advise("olmoe-1b-7b", goal="chats")  # type: ignore[arg-type]
