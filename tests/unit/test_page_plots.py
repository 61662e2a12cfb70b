"""The plots and tables of a page: each number is the one that the run or the summary has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from run_directories import run_directory

from moesim.errors import UsageError
from moesim.report import compare_runs, load_run
from moesim.report.comparison import Comparison
from moesim.report.metrics import number as shown
from moesim.report.page import check_page
from moesim.report.page.comparison_page import comparison_page
from moesim.report.page.comparison_tables import leaders
from moesim.report.page.heat_map import heat_map
from moesim.report.page.latency_plots import latencies, over_time
from moesim.report.page.layer_plots import layers
from moesim.report.page.parts import Code, Facts, Hidden, Paragraph, Plot
from moesim.report.page.requests import request_table
from moesim.report.page.run_page import run_page
from moesim.report.page.swept_plots import stalls
from moesim.report.page.variants import MOST_COLORS, by_variant, inside_by_variant
from moesim.report.page.what_if_panel import what_if_panel
from moesim.report.runs import Run
from moesim.results.what_if import WhatIf, WhatIfs

pytest.importorskip("altair", reason="altair is in the html extra")

TTFTS_MS = {"lru": 10.0, "fifo": 20.0, "lfu": 30.0}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A fabricated run of a machine with a CPU lane; a third of its misses stayed there."""
    path = tmp_path_factory.mktemp("plots") / "run"
    run_directory(
        path, steps=30, layers=3, requests=12, output_tokens=5, summary={"cpu_busy_share": 0.1}
    )
    table = pq.read_table(path / "layers.parquet")
    elsewhere = [misses // 3 for misses in table["misses"].to_pylist()]
    if "elsewhere" in table.column_names:
        table = table.drop_columns(["elsewhere"])
    pq.write_table(table.append_column("elsewhere", [elsewhere]), path / "layers.parquet")
    return load_run(path)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Three policies at two sizes, whose TTFT says which is best; one ran with measured costs."""
    folder = tmp_path_factory.mktemp("compared")
    paths = [
        run_directory(
            folder / f"{policy}-{slots}", policy=policy, slots_per_layer=slots, steps=4, layers=2,
            requests=4, output_tokens=3,
            summary={"ttft_p95_ms": ttft_ms, "cost_kind": "assumed" if slots == 4 else "measured"},
        )
        for slots in (4, 8)
        for policy, ttft_ms in TTFTS_MS.items()
    ]  # fmt: skip
    return compare_runs([load_run(path) for path in paths])


def rows_of(plot: Plot | None, **values: str) -> list[dict[str, Any]]:
    assert plot is not None
    rows = [dict(zip(plot.fields, row, strict=True)) for row in plot.rows]
    return [row for row in rows if all(row[key] == value for key, value in values.items())]


def test_the_parts_of_a_layer_are_all_its_accesses(run: Run) -> None:
    outcomes = rows_of(next(layers(run)))
    table = run.table("layers", ["layer", "accesses"])
    for layer, accesses in zip(*(column.tolist() for column in table.values()), strict=True):
        counts = [row["count"] for row in outcomes if row["layer"] == layer]
        assert len(counts) == 4
        assert sum(counts) == accesses


def test_the_area_under_the_rate_is_the_number_of_tokens(run: Run) -> None:
    bins = rows_of(next(over_time(run)))
    assert len(bins) > 1
    tokens = sum(row["rate"] * (row["stop"] - row["start"]) for row in bins)
    assert tokens == pytest.approx(run.value("output_tokens"))


def test_a_distribution_starts_at_share_zero_and_ends_at_one(run: Run) -> None:
    shares = [row["share"] for row in rows_of(next(latencies(run)), line="time to first token")]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0, 1)


def test_a_specification_has_no_theme_and_no_version_of_its_own(run: Run) -> None:
    spec = next(over_time(run)).spec
    assert not {"$schema", "config"} & set(spec)
    assert "mark" in spec


def test_unfinished_requests_come_before_the_slowest_where_a_table_is_cut(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moesim.report.page.requests.MOST_REQUESTS", 1)
    path = run_directory(tmp_path / "run", steps=9, layers=2, requests=4, output_tokens=3)
    table = pq.read_table(path / "requests.parquet").to_pydict()
    table["finish_ns"][2] = -1
    pq.write_table(pa.table(table), path / "requests.parquet")
    (row,) = request_table(load_run(path)).rows
    assert row[0].text == "2"


def test_the_key_facts_are_those_of_the_summary(comparison: Comparison) -> None:
    run = comparison.runs[0]
    first = next(block for block in run_page(run, "x", None).sections[0].blocks
                 if isinstance(block, Facts))  # fmt: skip
    facts = {term: value for term, value, _ in first.facts}
    number, unit = facts["stalled"].split(" ", 1)
    assert float(number) == pytest.approx(100 * run.value("stall_share"), rel=1e-3)
    assert unit == "% of step time"
    parts = [facts[f"{part} p95"] for part in ("queued", "served")]
    assert parts == [
        f"{shown(run.value(f'ttft_{part}_p95_ms'))} ms" for part in ("queue", "service")
    ]


def test_the_legend_of_a_page_is_of_settings_and_of_the_chosen_baseline(
    comparison: Comparison,
) -> None:
    texts = [block.text for section in comparison_page(comparison, "x").sections
             for block in section.blocks if isinstance(block, Paragraph)]  # fmt: skip
    (legend,) = [text for text in texts if "marked ▲" in text]
    assert "The best value of a column in a setting is marked ▲." in legend
    assert "Differences are to the baseline that you choose" in legend
    assert not set("*_\\") & set(legend)


def test_the_darkest_cell_is_the_best_whichever_side_is_better(comparison: Comparison) -> None:
    for metric, best in (("TTFT p95 (ms)", min), ("throughput (tokens/s in all)", max)):
        cells = rows_of(heat_map(comparison), metric=metric)
        darkest = max(cells, key=lambda row: row["shade"])
        assert darkest["mean"] == best(row["mean"] for row in cells)
        assert darkest["shade"] == 1


def test_the_parts_of_the_time_of_each_variant_are_its_means(comparison: Comparison) -> None:
    shown = rows_of(stalls(comparison))
    parts = {"computing": "busy_s", "stalled: demand copy": "stall_demand_s"}
    for setting in comparison.settings:
        for row in comparison.within(setting):
            found = {each["part"]: each["seconds"] for each in shown
                     if (each["setting"], each["variant"]) == (setting, row.label)}  # fmt: skip
            assert {part: found[part] for part in parts} == pytest.approx(
                {part: row.mean(key) for part, key in parts.items()}
            )


def test_the_table_of_a_plot_has_the_rows_of_the_first_choices(comparison: Comparison) -> None:
    plot = heat_map(comparison)
    assert plot is not None
    first = rows_of(plot, metric=plot.choices[0].first, facet=plot.choices[1].first)
    assert len(plot.table.rows) == len(first) == 6 < len(plot.rows)


def test_the_page_names_the_variant_that_the_tables_mark_as_best(comparison: Comparison) -> None:
    (told,) = [text for text in leaders(comparison) if text.startswith("best TTFT p95")]
    assert told == "best TTFT p95: LRU in 2 of 2 settings"


def test_no_variant_is_called_best_where_each_has_a_setting_of_its_own(tmp_path: Path) -> None:
    paths = [
        run_directory(tmp_path / policy, policy=policy, slots_per_layer=slots)
        for policy, slots in (("lru", 2), ("fifo", 4))
    ]
    told = leaders(compare_runs([load_run(path) for path in paths]))
    assert told == ["no setting has two variants, so none is called best"]


def test_a_warning_of_some_runs_says_of_how_many(comparison: Comparison) -> None:
    warnings = comparison_page(comparison, "x").warnings
    assert [text[-13:] for text in warnings if "Costs are assumed" in text] == ["(3 of 6 runs)"]
    assert [text for text in warnings if "4 requests are counted" in text and "runs)" in text] == []


def test_a_warning_that_runs_give_with_many_numbers_names_the_ends(tmp_path: Path) -> None:
    """Sixty seeds have sixty shares of idle time, and a page says so once."""
    idle_s = (0.0, 0.4, 0.3, 0.2)
    paths = [
        run_directory(tmp_path / str(seed), seed=seed, requests=4,
                      summary={"idle_s": each, "makespan_s": 1.0, "finished": 4 + seed})
        for seed, each in enumerate(idle_s)
    ]  # fmt: skip
    page = comparison_page(compare_runs([load_run(path) for path in paths]), "x")
    assert [text for text in page.warnings if "Arrivals limit" in text] == [
        "Arrivals limit throughput: for 20% to 40% of the time there was no request. (3 of 4 runs)"
    ]
    (few,) = [text for text in page.warnings if "requests are counted" in text]
    assert few.startswith("Only 4 to 7 requests are counted")
    assert not [note for note in page.notes if note.startswith("arrivals limit")]


def test_many_variants_have_one_colour() -> None:
    labels = [f"policy {place}" for place in range(MOST_COLORS + 1)]
    assert "scale" in by_variant(labels[:-1]).to_dict()
    assert set(by_variant(labels).to_dict()) == {"value"}
    assert set(inside_by_variant(labels).to_dict()) == {"value"}


def test_variants_of_one_policy_differ_inside_their_points() -> None:
    labels = [f"{policy}, {prefetch} prefetch" for policy in ("LRU", "LFU")
              for prefetch in ("no", "predicted")]  # fmt: skip
    ranges = [of(labels).to_dict()["scale"]["range"] for of in (by_variant, inside_by_variant)]
    assert len(set(ranges[0])) == 2
    assert len(set(zip(*ranges, strict=True))) == len(labels)


def test_the_changed_keys_of_a_what_if_can_be_typed(run: Run) -> None:
    base = dict(run.summary)
    answer = WhatIf("link", "link ×2", ("hardware.h2d.bandwidth=50 GB/s",), "50 GB/s", base)
    (hidden,) = [block for block in what_if_panel(run, WhatIfs(base, [answer]))
                 if isinstance(block, Hidden)]  # fmt: skip
    assert hidden.blocks == [Code("--set 'hardware.h2d.bandwidth=50 GB/s'")]


def test_a_page_is_not_written_over_a_folder(tmp_path: Path) -> None:
    pytest.importorskip("vl_convert", reason="vl-convert-python is in the html extra")
    (tmp_path / "page.html").mkdir()
    with pytest.raises(UsageError, match="this is a folder"):
        check_page(tmp_path / "page.html")
