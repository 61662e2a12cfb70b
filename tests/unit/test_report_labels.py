"""A swept value of any kind is shown whole and distinct, wherever rows are named."""

from __future__ import annotations

import csv
import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
from awkward import VALUES
from run_directories import run_directory

from moesim.config.spelling import spelled
from moesim.report import Comparison, Run, compare_runs, load_run, write_comparison
from moesim.report.chart import drawn
from moesim.report.labels import labels
from moesim.report.metrics import of_requests
from moesim.report.panels import named
from moesim.report.style import house_style
from moesim.report.tables import tables
from moesim.report.tabular import escaped, plain

KEY = "hardware.h2d.bandwidth"
SMALL: dict[str, Any] = {"steps": 2, "requests": 2, "output_tokens": 2}


def made(folder: Path, point: dict[str, Any], **arguments: Any) -> Run:
    return load_run(run_directory(folder, point=point, **{**SMALL, **arguments}))


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """A sweep of one key over every kind of value."""
    folder = tmp_path_factory.mktemp("swept")
    return compare_runs([made(folder / str(i), {KEY: v}) for i, v in enumerate(VALUES)])


def test_every_value_has_a_row_that_shows_it_whole(swept: Comparison) -> None:
    expected = [
        "bandwidth not set" if value is None else f"bandwidth = {spelled(value)}"
        for value in VALUES
    ]
    assert swept.variants == expected
    assert len(set(swept.variants)) == len(VALUES)
    shown = plain(tables(swept)[0]).splitlines()
    assert len(shown) == 1 + len(VALUES)
    assert all(row.variant in line for row, line in zip(swept.rows, shown[1:], strict=True))


def test_a_heading_says_that_a_key_is_not_set(tmp_path: Path) -> None:
    """A key without a value keeps its default, which `null` would not say."""
    points = [
        {"workload.part": part, "cache.policy": policy}
        for part in (None, [0, 0.5])
        for policy in ("lru", "lfu")
    ]
    runs = [made(tmp_path / str(number), point) for number, point in enumerate(points)]
    headings = [table.title for table in tables(compare_runs(runs))]
    assert "part not set" in headings[0]
    assert not any("null" in heading for heading in headings)


def test_csv_and_markdown_show_every_value(swept: Comparison, tmp_path: Path) -> None:
    write_comparison(swept, tmp_path, name="demo", command="x", plots=False)
    with (tmp_path / "compare.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [row["variant"] for row in rows] == swept.variants
    assert len({row[KEY] for row in rows}) == len(VALUES)
    assert [row[KEY] for row in rows][:2] == ["25GB/s", "50GB/s"]
    document = (tmp_path / "compare.md").read_text()
    rows_of_means = document.split("\n\n|  |")[1].split("\n\n")[0].splitlines()[2:]
    cells = [re.split(r"(?<!\\)\|", line)[1].strip() for line in rows_of_means]
    assert [re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", cell) for cell in cells] == swept.variants
    assert len(set(cells)) == len(VALUES)


def test_figures_show_every_value_and_miss_no_glyph(swept: Comparison, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_comparison(swept, tmp_path, name="demo", command="x")
    for name in ("side_by_side", "latency_cdf", "stall_breakdown"):
        with (tmp_path / "plots" / f"{name}.csv").open(newline="") as lines:
            assert {row["variant"] for row in csv.DictReader(lines)} == set(swept.variants)
    shown = [named(variant) for variant in swept.variants]
    assert len(set(shown)) == len(VALUES)


def test_a_legend_hides_no_entry(swept: Comparison) -> None:
    from moesim.report.several import latency_cdfs

    with house_style():
        chart = latency_cdfs(swept)
    assert len(chart.figure.legends[0].get_texts()) == len(VALUES)
    assert not drawn("_private").startswith("_")


@pytest.mark.parametrize("text", ["$x^2$", "$5 and $6", "a $ b", r"\$", r"\\$x$", "$"])
def test_a_dollar_is_no_formula(text: str) -> None:
    from matplotlib.figure import Figure

    label: Any = Figure().text(0, 0, drawn(text))
    shown, is_math = label._preprocess_math(label.get_text())
    assert (shown, is_math) == (text, False)


def test_keys_of_the_same_last_name_are_told_apart(tmp_path: Path) -> None:
    runs = [
        made(tmp_path / f"{i}{j}", {KEY: up, "hardware.d2h.bandwidth": down})
        for i, up in enumerate(("25GB/s", "50GB/s"))
        for j, down in enumerate(("25GB/s", "50GB/s"))
    ]
    assert compare_runs(runs).variants == [
        f"h2d.bandwidth = {up}GB/s, d2h.bandwidth = {down}GB/s"
        for up in (25, 50)
        for down in (25, 50)
    ]


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("cache.policy", ["lru", "lfu", "lfu_cumulative", "min", "belady"]),
        ("prefetch.policy", ["layer_ahead", "layer-ahead", "none"]),
        ("cache.slots", ["4/layer", "25%", 48]),
        ("cache", [{"policy": "a_b"}, {"policy": "a-b"}, {"policy": "a-b", "options": {"x": 1}},
                   {"policy": "a-b", "x": 1}, {"policy": "a-b", "options": {"x": "1"}}]),
        ("trace", ["a/deep", "b/deep", "deep"]),
        ("workload.arrivals", [{"kind": "poisson", "rate_per_s": 2}, "all_at_once"]),
    ],
)  # fmt: skip
def test_values_that_would_read_alike_are_spelt_out(
    tmp_path: Path, key: str, values: list[Any]
) -> None:
    runs = [made(tmp_path / str(i), {key: value}) for i, value in enumerate(values)]
    rows = compare_runs(runs).rows
    assert len({(row.variant, row.setting) for row in rows}) == len(values)


def test_traces_of_one_name_in_different_places_are_different_rows(tmp_path: Path) -> None:
    runs = []
    for place in ("here", "there"):
        path = run_directory(tmp_path / place / "run", trace=f"/{place}/deep", **SMALL)
        manifest = {"point": {}, "inputs": {"trace": place * 10}}
        (path / "manifest.json").write_text(json.dumps(manifest))
        runs.append(load_run(path))
    rows = compare_runs(runs).rows
    assert [row.variant for row in rows] == [
        "trace = /here/deep (herehere)",
        "trace = /there/deep (therethe)",
    ]


def test_a_trace_is_called_by_the_name_of_its_folder(tmp_path: Path) -> None:
    runs = [
        made(tmp_path / name, {"trace": f"../traces/{name}"}, trace=name) for name in ("a", "b")
    ]
    assert labels(runs, ["trace"]) == {"trace": ["trace = a", "trace = b"]}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a|b", "a\\|b"),
        ("_x_", "\\_x\\_"),
        ("token_budget", "token_budget"),
        ("*x*", "\\*x\\*"),
        ("a < b & c", "a \\< b & c"),
        ("&lt;", "\\&lt;"),
        ("$x$", "\\$x\\$"),
        ("`x`", "\\`x\\`"),
        ("[x](y)", "\\[x](y)"),
    ],
)
def test_markdown_shows_a_text_as_it_is(text: str, shown: str) -> None:
    assert escaped(text) == shown


def test_one_request_is_not_called_several() -> None:
    assert [of_requests(count) for count in ("1", "16", "1 to 3")] == [
        "1 request",
        "16 requests",
        "1 to 3 requests",
    ]
