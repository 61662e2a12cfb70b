"""What must stand beside numbers stands beside all of them: where routing and sizes are from, and
which variants know the future."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_directories import run_directory

from moesim.report import (
    Comparison,
    Run,
    compare_runs,
    division,
    load_run,
    several,
    write_comparison,
)
from moesim.report.capacity import hit_rate_against_capacity, metrics_against_capacity
from moesim.report.lanes import lane_timeline
from moesim.report.marks import foreseeing, routing_mark, shared_mark
from moesim.report.metrics import HEADLINE, HITS, LATE_HITS, MISSES, THROUGHPUT, run_caption
from moesim.report.page import swept_plots
from moesim.report.several import latency_cdfs, side_by_side, stalls_side_by_side
from moesim.report.single import hits_by_layer, latency_cdf, stall_breakdown
from moesim.report.style import house_style
from moesim.report.summary import summary_tables
from moesim.report.swept import metrics_against_number
from moesim.report.tables import as_json, tables
from moesim.report.tabular import Table, plain

SYNTHETIC = {"routing": "synthetic", "sizes": "foreign", "trace": "synthetic"}
FOREIGN = {"routing": "recorded", "sizes": "foreign"}
SMALL: dict[str, Any] = {"steps": 3, "requests": 2, "output_tokens": 2}


def made(folder: Path, **arguments: Any) -> Run:
    return load_run(run_directory(folder, **{**SMALL, **arguments}))


def compared(folder: Path, *summaries: dict[str, Any], **arguments: Any) -> Comparison:
    """Return runs of LRU and LFU for each summary, with two sizes of the cache."""
    return compare_runs(
        [
            made(
                folder / f"{number}-{policy}-{slots}",
                policy=policy,
                slots_per_layer=slots,
                summary=summary,
                trace=f"trace{number}",
                point={"trace": f"t{number}", "cache.policy": policy, "cache.slots": slots},
                **arguments,
            )
            for number, summary in enumerate(summaries)
            for policy in ("lru", "lfu")
            for slots in (4, 8)
        ]
    )


def column(table: Table, title: str) -> list[tuple[str, str]]:
    place = list(table.columns).index(title)
    return [(row[place].text, row[place].mark) for row in table.rows]


# --- where routing and sizes are from ---


@pytest.mark.parametrize(
    ("facts", "mark"),
    [
        ({"routing": "recorded", "sizes": "own"}, ""),
        (FOREIGN, "foreign sizes"),
        (SYNTHETIC, "synthetic routing"),
        ({"routing": "synthetic", "sizes": "own"}, "synthetic routing"),
    ],
)
def test_every_table_of_results_and_the_verdict_carry_the_mark(
    tmp_path: Path, facts: dict[str, str], mark: str
) -> None:
    shown = summary_tables(made(tmp_path / "run", summary=facts))
    no_results = ("GPU memory", "notes", "no error bar: costs are assumed, not measured")
    results = [table for table in shown if table.title not in no_results]
    assert [f"[{mark}]" in table.title for table in results] == [bool(mark)] * len(results)
    (verdict,) = (table.title for table in shown if table.title.startswith("limited by"))
    where = f"limited by the working set [{mark}]: " if mark else "limited by the working set: "
    assert verdict.startswith(where)


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        (FOREIGN, "FOREIGN SIZES: routing of shallow, costed with the sizes of mixtral-8x7b."),
        (SYNTHETIC, "SYNTHETIC ROUTING: drawn at random, made by no model, costed with the sizes"),
    ],
)
def test_every_chart_of_a_run_says_it_in_its_caption(
    tmp_path: Path, facts: dict[str, str], sentence: str
) -> None:
    run = made(tmp_path / "run", summary=facts)
    with house_style():
        for draw in (latency_cdf, stall_breakdown, hits_by_layer, lane_timeline):
            assert sentence in draw(run).caption
    assert sentence in plain(summary_tables(run)[0])


def test_lines_against_a_number_are_marked_where_they_know_the_future(tmp_path: Path) -> None:
    runs = [
        made(tmp_path / f"{policy}-{size}", policy=policy,
             point={"cache.policy": policy, "batching.max_sequences": size})
        for policy in ("lru", "min") for size in (1, 2, 4)
    ]  # fmt: skip
    comparison = compare_runs(runs)
    marked = {"LRU", "MIN (misses) [knows the future]"}
    plot = swept_plots.lines(comparison)
    assert plot is not None
    line, number, at = map(plot.fields.index, ("line", "number", "at"))
    assert {row[line] for row in plot.rows} == marked
    # Each line is shifted alone, by little, so that no interval covers another.
    shifts = {(row[line], round(row[at] - row[number], 9)) for row in plot.rows}
    assert len(shifts) == len({shift for _, shift in shifts}) == 2
    assert all(0 < abs(shift) < 0.05 for _, shift in shifts)
    with house_style():
        chart = metrics_against_number(comparison)
    assert chart is not None
    shown = {str(line.get_label()).replace("\u00a0", " ") for line in chart.panels[0].get_lines()}
    assert {" ".join(label.split()) for label in shown} == marked


def test_every_surface_of_a_comparison_says_it(tmp_path: Path) -> None:
    comparison = compared(tmp_path, SYNTHETIC)
    with house_style():
        for draw in (
            latency_cdfs, side_by_side, stalls_side_by_side, hit_rate_against_capacity,
            metrics_against_capacity,
        ):  # fmt: skip
            chart = draw(comparison)
            assert chart is not None
            assert "SYNTHETIC ROUTING" in chart.caption
    assert all("[synthetic routing]" in table.title for table in tables(comparison))
    write_comparison(comparison, tmp_path / "out", name="demo", command="x", plots=False)
    document = (tmp_path / "out" / "compare.md").read_text()
    assert document.startswith("# demo \\[synthetic routing]\n")
    assert "SYNTHETIC ROUTING" in document.split("## Results")[0]
    headings = [line for line in document.splitlines() if line.startswith("### ")]
    assert all(line.endswith("\\[synthetic routing]") for line in headings)
    assert {row["routing"] for row in as_json(comparison)["rows"]} == {"synthetic routing"}
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "compare.csv").read_text())))
    assert {row["routing"] for row in rows} == {"synthetic routing"}


def test_a_mark_of_some_runs_says_of_how_many_and_leaves_the_other_tables_alone(
    tmp_path: Path,
) -> None:
    comparison = compared(tmp_path, {"routing": "recorded", "sizes": "own"}, SYNTHETIC)
    assert comparison.mark() == "synthetic routing in 4 of 8 runs"
    assert "This holds for 4 of 8 runs." in comparison.caption()
    marks = {table.title.split(", ")[0]: "[synthetic" in table.title for table in tables(comparison)
             if not table.title.startswith("Difference")}  # fmt: skip
    assert marks == {"trace = trace0": False, "trace = trace1": True}


def test_runs_of_older_versions_are_marked_by_what_they_do_say(tmp_path: Path) -> None:
    older = {"routing": None, "sizes": None, "knows_the_future": None}
    runs = [
        made(tmp_path / "a", summary={**older, "trace": "synthetic"}),
        made(tmp_path / "b", summary={**older, "notes": ["the trace is synthetic"]}),
        made(tmp_path / "c", summary=older),
        made(tmp_path / "d", summary={**older, "trace": "mixtral-8x7b"}),
    ]
    assert [routing_mark(run) for run in runs] == [
        "synthetic routing", "synthetic routing", "foreign sizes", "",
    ]  # fmt: skip
    assert shared_mark(runs) == "synthetic routing in 2 of 4 runs; foreign sizes in 1 of 4 runs"


# --- which variants know the future ---


@pytest.fixture
def sections(tmp_path: Path) -> Comparison:
    """Return a comparison of runs whose whole `cache` section was swept.

    The labels do not say which policies know the future; only the summaries do.
    """
    speeds = {"lru": 10.0, "acme": 20.0, "min_window": 30.0, "static": 40.0, "min": 50.0}
    seers = ("min_window", "min", "static")
    return compare_runs(
        [
            made(
                tmp_path / policy,
                policy=policy,
                point={"cache": {"policy": policy, "slots": "4/layer"}},
                summary={
                    "output_tokens_per_s": speed,
                    "knows_the_future": f"eviction {policy}" if policy in seers else "",
                    "e2e_p95_ms": 1000 / speed,
                },
            )
            for policy, speed in sorted(speeds.items(), key=lambda item: -item[1])
        ]
    )


def test_what_knows_the_future_is_neither_ranked_nor_the_baseline(sections: Comparison) -> None:
    means, differences = tables(sections)
    assert dict(zip([row[0].text for row in means.rows], column(means, THROUGHPUT.title),
                    strict=True)) == {
        "min cache [knows the future]": ("50", ""),
        "static cache [knows the future]": ("40", ""),
        "min-window cache [knows the future]": ("30", ""),
        "acme cache": ("20", "best"),
        "lru cache": ("10", ""),
    }  # fmt: skip
    assert differences.title == "Difference to acme cache"
    assert [mark for _, mark in column(differences, "throughput (%)")] == [""] * 4
    assert [row["knows_the_future"] for row in as_json(sections)["rows"]] == [
        True, True, True, False, False,
    ]  # fmt: skip


def test_a_name_makes_nothing_clairvoyant(tmp_path: Path) -> None:
    runs = [
        made(tmp_path / policy, policy=policy, summary={"knows_the_future": ""})
        for policy in ("oracle of delphi", "MIN (misses)")
    ]
    assert [row.knows_the_future for row in compare_runs(runs).rows] == [False, False]


def test_legends_and_axes_mark_what_knows_the_future(sections: Comparison) -> None:
    with house_style():
        chart = side_by_side(sections)
    labels = [label.get_text().replace("\u00a0", " ").replace("\n", " ")
              for label in chart.axes[0][0].get_yticklabels()]  # fmt: skip
    assert labels == [
        "min cache [knows the future]", "static cache [knows the future]",
        "min-window cache [knows the future]", "acme cache", "lru cache",
    ]  # fmt: skip


def test_every_chart_of_a_run_that_knows_the_future_says_so_in_its_caption(tmp_path: Path) -> None:
    seer = made(tmp_path / "seer", summary={"knows_the_future": "batching shortest_first"})
    blind = made(tmp_path / "blind", summary={"knows_the_future": ""})
    sentence = "KNOWS THE FUTURE: batching shortest_first; a bound, not a policy."
    with house_style():
        for draw in (latency_cdf, stall_breakdown, hits_by_layer, lane_timeline):
            assert sentence in draw(seer).caption
            assert "FUTURE" not in draw(blind).caption


def test_runs_of_older_versions_are_judged_by_their_policies(tmp_path: Path) -> None:
    older = {"knows_the_future": None}

    def seers(folder: str, **arguments: Any) -> tuple[str, ...]:
        return foreseeing(made(tmp_path / folder, summary=older, **arguments))

    assert seers("lru") == ()
    assert seers("min", policy="min") == ("eviction min",)
    assert seers("window", policy="min_window") == ("eviction min_window",)
    assert seers("static", policy="static") == ("eviction static",)
    assert seers("oracle", prefetch="oracle") == ("prefetch oracle",)
    assert seers("plugin", policy="not_installed") == ()


# --- arrows, and hits ---


def test_only_what_has_a_better_direction_by_itself_is_ranked(tmp_path: Path) -> None:
    slow = {"output_tokens_per_s": 1.0, "stall_share": 0.1, "h2d_bytes": 2**30, "late_hits": 3}
    fast = {"output_tokens_per_s": 2.0, "stall_share": 0.8, "h2d_bytes": 2**31, "late_hits": 9}
    runs = [
        made(tmp_path / policy, policy=policy, summary=summary)
        for policy, summary in (("lru", slow), ("lfu", fast))
    ]
    means, differences = tables(compare_runs(runs))
    assert [mark for _, mark in column(means, "throughput (tokens/s in all)")] == ["", "best"]
    for label, unit in (("stalled", "% of step time"), ("copied to GPU", "GiB"),
                        ("late hits", "%"), ("misses", "%")):  # fmt: skip
        assert [mark for _, mark in column(means, f"{label} ({unit})")] == ["", ""]
        points = "%" if label.startswith("copied") else "points"
        assert [mark for _, mark in column(differences, f"{label} ({points})")] == [""]


def test_every_metric_of_the_headline_has_its_direction() -> None:
    assert {metric.key: metric.better for metric in HEADLINE} == {
        "decode_mean_tokens_per_s": "higher", "output_tokens_per_s": "higher",
        "ttft_p95_ms": "lower", "ttft_queue_mean_ms": None, "tpot_mean_ms": "lower",
        "e2e_p95_ms": "lower", "hits": "higher", "late_hits": None, "misses": None,
        "elsewhere": None, "h2d_bytes": None, "disk_bytes": None, "stall_share": None,
    }  # fmt: skip


LATE = {"accesses": 100, "hits": 57, "late_hits": 33, "misses": 10, "expert_hit_rate": 0.9,
        "min_hit_rate": 0.8, "prefetch_bytes": 10**9}  # fmt: skip


def test_late_hits_are_shown_beside_hits_and_never_inside(tmp_path: Path) -> None:
    run = made(tmp_path / "run", prefetch="predicted", summary=LATE)
    assert (HITS.of(run), LATE_HITS.of(run), MISSES.of(run)) == (57, 33, 10)
    shown = {table.title.split(" [")[0].split(";")[0]: table for table in summary_tables(run)}
    accesses = {row[0].text: row[2].text for row in shown["expert accesses"].rows}
    assert accesses["hits in time"] == "57.0%"
    assert accesses["late hits"] == "33.0%"
    assert accesses["misses"] == "10.0%"
    assert column(shown["bounds"], "hits")[0][0] == "57.0%"
    assert column(shown["bounds"], "late hits")[0][0] == "33.0%"
    headers = [header for metric in HEADLINE for header in [metric.title]]
    assert not [header for header in headers if "hit rate" in header]
    with house_style():
        chart = hits_by_layer(run)
    legend = [text.get_text() for text in chart.figure.legends[0].get_texts()]
    layers = run.table("layers", ["accesses", "hits", "late_hits"])
    hits, late = (layers[key].sum() / layers["accesses"].sum() for key in ("hits", "late_hits"))
    assert late > 0
    assert f"all layers: {hits:.1%} hit, {late:.1%} late" in legend


def test_wherever_hits_are_shown_late_hits_and_misses_stand_beside_them() -> None:
    for shown in (HEADLINE, division._METRICS):
        assert {HITS, LATE_HITS, MISSES} <= set(shown)
    assert {HITS.key, LATE_HITS.key, MISSES.key} <= set(several.WITH_LATE)


def test_min_bounds_hits_only_where_nothing_is_prefetched(tmp_path: Path) -> None:
    fetched = made(tmp_path / "fetched", prefetch="predicted", summary=LATE,
                   point={"prefetch.policy": "predicted"})  # fmt: skip
    demand = made(
        tmp_path / "demand",
        point={"prefetch.policy": "none"},
        summary={**LATE, "late_hits": 0, "misses": 43, "prefetch_bytes": 0},
    )
    comparison = compare_runs([demand, fetched])
    (means, _) = tables(comparison)
    assert [text for text, _ in column(means, "MIN bound (% hits)")] == ["80", "no bound"]
    with house_style():
        chart = side_by_side(comparison)
    bounds = {row[3] for row in chart.rows if row[1] == "MIN bound (misses)"}
    assert bounds == {"no prefetch"}
    shares = {key: {row[3]: row[4] for row in chart.rows if row[1] == key} for key in
              ("hits", "late hits", "misses")}  # fmt: skip
    assert shares == {
        "hits": {"no prefetch": 57, "predicted prefetch": 57},
        "late hits": {"no prefetch": 0, "predicted prefetch": 33},
        "misses": {"no prefetch": 43, "predicted prefetch": 10},
    }
    (title,) = (t.title for t in summary_tables(fetched) if t.title.startswith("bounds"))
    assert title == "bounds; the hits of this run have none, because it prefetches"
    (title,) = (t.title for t in summary_tables(demand) if t.title.startswith("bounds"))
    assert title == "bounds"


def test_the_curve_of_hits_shows_late_hits_apart_and_no_bound_over_a_prefetch(
    tmp_path: Path,
) -> None:
    prefetched = compared(tmp_path, LATE, prefetch="predicted")
    with house_style():
        chart = hit_rate_against_capacity(prefetched)
    assert chart is not None
    assert {row[1] for row in chart.rows} == {
        "LRU", "LFU", "LRU: late hits", "LFU: late hits",
    }  # fmt: skip
    assert {row[4] for row in chart.rows if row[1] == "LRU"} == {57}
    assert {row[4] for row in chart.rows if row[1] == "LRU: late hits"} == {33}
    assert "No bound holds for runs that prefetch." in chart.caption


def test_no_chart_shows_a_sum_of_hits_and_late_hits(tmp_path: Path) -> None:
    """With late hits, 90 % would lie above the 80 % of MIN."""
    demand = made(tmp_path / "demand", summary={**LATE, "late_hits": 0, "misses": 43},
                  point={"prefetch.policy": "none", "cache.slots": 8})  # fmt: skip
    runs = [demand]
    for slots in (4, 8):
        point = {"prefetch.policy": "predicted", "cache.slots": slots}
        runs.append(made(tmp_path / f"{slots}", prefetch="predicted", summary=LATE, point=point,
                         slots_per_layer=slots))  # fmt: skip
    comparison = compare_runs(runs)
    with house_style():
        charts = (side_by_side(comparison), hit_rate_against_capacity(comparison))
    for chart in charts:
        assert chart is not None
        place = chart.columns.index("mean")
        assert pytest.approx(90) not in [row[place] for row in chart.rows]
        panels = [axes for row in chart.axes for axes in row]
        assert not [
            value
            for axes in panels
            for line in axes.get_lines()
            for value in [*np.ravel(line.get_xdata()), *np.ravel(line.get_ydata())]
            if value == pytest.approx(90)
        ]


# --- surfaces that show routing without a run ---


def test_a_validation_is_marked_in_its_table_and_captions() -> None:
    from collections import defaultdict

    from moesim.report.validation import _caption, validation_tables

    summary: dict[str, Any] = defaultdict(lambda: 1, routing="synthetic", sizes="own")
    assert validation_tables(summary)[0].title == "simulated against real [synthetic routing]"
    assert _caption(summary).startswith("SYNTHETIC ROUTING. ")
    summary["routing"] = "recorded"
    assert validation_tables(summary)[0].title == "simulated against real"
    assert "engine" not in _caption(summary)
    facts = {"engine": "ideal", "engine_changes": "", "engine_kind": "measured"}
    context = {row[0].text: row[1].text for row in validation_tables({**summary, **facts})[1].rows}
    assert context["simulated engine"] == "ideal with measured operations"
    assert "Simulated engine: ideal with measured operations." in _caption({**summary, **facts})


@pytest.mark.parametrize("command", ["curve", "redundancy", "locality"])
def test_what_is_measured_on_a_synthetic_trace_says_so(tmp_path: Path, command: str) -> None:
    from typer.testing import CliRunner
    from workloads import tiny_trace

    from moesim.cli import app

    tiny_trace(requests=3, output_tokens=9).save(tmp_path / "trace")
    words = ["curve"] if command == "curve" else ["trace", command]
    more = ["--policy", "lru"] if command == "curve" else ["--shuffles", "2", "--no-plots"]
    result = CliRunner().invoke(app, [*words, str(tmp_path / "trace"), *more])
    assert result.exit_code == 0, result.output
    said = "SYNTHETIC ROUTING" if command == "curve" else "synthetic (synthetic)"
    assert said in result.output.splitlines()[0]


def test_the_caption_of_a_measured_trace_says_that_it_is_synthetic() -> None:
    from workloads import tiny_trace

    from moesim.cli.routing import caption_of

    trace = tiny_trace(requests=2)
    assert caption_of(Path("x"), trace, "").startswith("SYNTHETIC ROUTING: drawn at random")
    assert caption_of(Path("x"), trace.with_meta(synthetic=False), "").startswith("Trace x")


# --- figures that the scenario sets ---------------------------------------------------------------


def test_hardware_that_the_scenario_changes_is_labelled_everywhere(tmp_path: Path) -> None:
    changes = "h2d.bandwidth 12GB/s, vram 10GiB"
    paths = [
        run_directory(tmp_path / policy, policy=policy, summary={"hardware_changes": changes})
        for policy in ("lru", "lfu")
    ]
    runs = [load_run(path) for path in paths]
    write_comparison(compare_runs(runs), tmp_path / "out", name="x", command="x", plots=False)
    summary = "\n".join(plain(table) for table in summary_tables(runs[0]))
    texts = [summary, run_caption(runs[0]), (tmp_path / "out" / "compare.md").read_text()]
    for text in texts:
        assert f"mixtral-8x7b on rtx-4090 with {changes}" in text
        assert "costs assumed (profile with changes)" in text
        assert "datasheet" not in text
