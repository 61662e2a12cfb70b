"""The HTML page: the numbers of the terminal, nothing from the network, and no text as code."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from paths import ROOT
from run_directories import run_directory
from typer.testing import CliRunner

import moesim
from moesim.cli import app
from moesim.errors import MissingExtra, OutputError
from moesim.report import compare_runs, load_run, load_runs
from moesim.report.metrics import number
from moesim.report.page import extra, page_of
from moesim.report.page.assumptions import assumptions, unwarned
from moesim.report.page.charts import POINTS
from moesim.report.page.differences import differences
from moesim.report.page.fronts import fronts
from moesim.report.page.parts import MOST_ROWS, DataTable, Paragraph, Plot
from moesim.report.page.requests import MOST_REQUESTS
from moesim.report.runs import Run
from moesim.report.summary import summary_tables
from moesim.report.tables import differences_table, tables
from moesim.report.what_ifs import sentences, what_if_table
from moesim.results.what_if import WhatIf, WhatIfs
from moesim.scenario import load_scenario

pytest.importorskip("altair", reason="altair is in the html extra")
pytest.importorskip("vl_convert", reason="vl-convert-python is in the html extra")

COMMAND = "moesim report runs --html"
HOSTILE = "</script><script>alert('x')</script><img src=x onerror=alert(1)> {metric} & \u2028"


class Outline(HTMLParser):
    """What the tests need to know of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.texts: dict[str, list[str]] = {"script": [], "h": [], "caption": []}
        self._inside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("td", "th"):
            self.cells.append("")
        self._inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self._inside) and "span" not in self._inside[-1:]:
            self.cells[-1] += data
        if "script" in self._inside:
            self.texts["script"].append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A simulated run of the shipped quickstart with four requests."""
    folder = tmp_path_factory.mktemp("real") / "run"
    scenario = load_scenario(ROOT / "scenarios/quickstart.yaml", ["workload.requests=4"])
    moesim.run(scenario, out=folder, draw=False)
    return load_run(folder)


@pytest.fixture(scope="module")
def page(real: Run) -> str:
    return page_of([real], COMMAND)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """Three policies, one of which knows the future, at two sizes, with two seeds each."""
    folder = tmp_path_factory.mktemp("several")
    for policy in ("lru", "lfu", "min"):
        for slots in (4, 8):
            for seed in (0, 1):
                path = folder / f"{policy}-{slots}-{seed}"
                run_directory(
                    path, policy=policy, slots_per_layer=slots, seed=seed, steps=6, layers=3,
                    requests=6, output_tokens=4,
                )  # fmt: skip
    return load_runs(sorted(folder.iterdir()))


@pytest.fixture(scope="module")
def several(runs: list[Run]) -> str:
    return page_of(runs, COMMAND)


def plots_in(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="plots">(.*?)</script>', page, re.S)
    assert found
    plots: dict[str, Any] = json.loads(found[1])
    return plots


def test_equal_runs_give_equal_bytes(real: Run, runs: list[Run], page: str, several: str) -> None:
    assert page_of([load_run(real.path)], COMMAND) == page
    assert page_of(load_runs([run.path for run in runs]), COMMAND) == several


def test_a_page_asks_for_nothing_and_its_policy_forbids_it(page: str, several: str) -> None:
    for text in (page, several):
        outline = Outline(text)
        links = [attributes.get("href") or "" for attributes in outline.named("a")]
        assert links
        assert all(link.startswith("#") for link in links)
        assert not any("src" in attributes for _, attributes in outline.tags)
        assert not outline.named("link")
        policies = [a.get("content") or "" for a in outline.named("meta")
                    if a.get("http-equiv") == "Content-Security-Policy"]  # fmt: skip
        assert len(policies) == 1
        assert policies[0].startswith("default-src 'none'")
        assert "unsafe" not in policies[0]


def test_every_link_leads_to_a_place_of_the_page(page: str, several: str) -> None:
    for text in (page, several):
        outline = Outline(text)
        ids = [a["id"] for _, a in outline.tags if "id" in a]
        assert len(ids) == len(set(ids))
        assert {(a.get("href") or "")[1:] for a in outline.named("a")} <= set(ids)


def test_headings_are_in_order_and_tables_have_captions_and_scopes(page: str, several: str) -> None:
    for text in (page, several):
        outline = Outline(text)
        levels = [int(tag[1]) for tag, _ in outline.tags if re.fullmatch("h[1-6]", tag)]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in pairwise(levels))
        assert len(outline.named("caption")) == len(outline.named("table"))
        assert all(attributes.get("scope") in ("col", "row") for attributes in outline.named("th"))
        landmarks = {"header", "nav", "main", "footer"}
        assert landmarks <= {tag for tag, _ in outline.tags}


def test_every_plot_has_a_description_and_a_table_of_its_numbers(page: str, several: str) -> None:
    for text in (page, several):
        outline = Outline(text)
        pictures = [a for _, a in outline.tags if a.get("role") == "img"]
        assert len(pictures) == len(plots_in(text)) > 4
        assert all(picture.get("aria-label") for picture in pictures)
        tables = {a.get("id") for a in outline.named("table")}
        assert {f"{name}-data" for name in plots_in(text)} <= tables


def test_a_page_of_one_run_has_the_numbers_of_the_terminal(real: Run, page: str) -> None:
    cells = [cell.strip() for cell in Outline(page).cells]
    printed = [cell.text.strip() for table in summary_tables(real) if table.title != "notes"
               for row in table.rows for cell in row]  # fmt: skip
    assert len(printed) > 100
    assert [text for text in printed if text not in cells] == []
    assert real.text("verdict") in page


def test_a_page_of_several_runs_has_the_numbers_of_the_terminal(
    runs: list[Run], several: str
) -> None:
    cells = [cell.strip() for cell in Outline(several).cells]
    comparison = compare_runs(runs)
    printed = [cell.text for table in tables(comparison)[::2] for row in table.rows
               for cell in row]  # fmt: skip
    assert len(printed) > 50
    assert [text for text in printed if text not in cells] == []


def test_differences_are_those_of_the_terminal(runs: list[Run]) -> None:
    comparison = compare_runs(runs)
    plot = differences(comparison)
    assert plot is not None
    for setting in comparison.settings:
        printed = differences_table(setting, comparison.within(setting), comparison.metrics)
        for label, *cells in printed.rows:
            for title, cell in zip(printed.columns[1:], cells, strict=True):
                rows = chosen(plot, setting=setting, baseline="LFU", metric=title)
                found = [row for row in rows if row["variant"] == label.text]
                assert [row["text"] for row in found] in ([cell.text], [])
                verdicts = {"better", "worse"} & {row["verdict"] for row in found}
                assert verdicts == ({cell.mark} - {""})


def chosen(plot: Plot, **values: str) -> list[dict[str, Any]]:
    rows = [dict(zip(plot.fields, row, strict=True)) for row in plot.rows]
    return [row for row in rows if all(row[key] == value for key, value in values.items())]


def test_a_difference_includes_zero_where_its_interval_does(runs: list[Run]) -> None:
    plot = differences(compare_runs(runs))
    assert plot is not None
    policies = [row for row in chosen(plot) if row["verdict"] != "bound, not a policy"]
    unresolved = [row["low"] <= 0 <= row["high"] for row in policies]
    assert unresolved == [row["verdict"] == "interval includes zero" for row in policies]
    assert True in unresolved


def test_the_first_baseline_is_a_policy_and_any_variant_can_be_chosen(runs: list[Run]) -> None:
    plot = differences(compare_runs(runs))
    assert plot is not None
    baselines = next(choice for choice in plot.choices if choice.field == "baseline")
    assert baselines.options == ("LFU", "LRU", "MIN (misses)")
    assert all(chosen(plot, baseline=option) for option in baselines.options)


def test_a_variant_that_knows_the_future_is_on_no_front_and_no_policy_beats_a_front(
    runs: list[Run],
) -> None:
    plot = fronts(compare_runs(runs))
    assert plot is not None
    for across in plot.choices[0].options:
        rows = chosen(plot, across=across, where="all settings")
        front = [row for row in rows if row["state"] == "on the front"]
        policies = [row for row in rows if "knows the future" not in row["variant"]]
        assert front
        assert len(policies) == len(rows) - 2
        assert all(row["state"] == "bound, not a policy" for row in rows if row not in policies)
        for row in policies:
            beaten = any(
                other["x"] <= row["x"] and other["y"] >= row["y"]
                and (other["x"], other["y"]) != (row["x"], row["y"])
                for other in policies
            )  # fmt: skip
            assert (row in front) is not beaten


def test_a_page_says_foreign_sizes_once() -> None:
    told = ["a trace of a is costed with the sizes of b", "host memory is taken as unlimited"]
    assert unwarned(told, "FOREIGN SIZES") == told[1:]
    assert unwarned(told, "") == told


def test_names_of_a_run_are_text_and_never_code(tmp_path: Path) -> None:
    names = {"name": HOSTILE, "trace": HOSTILE, "model": HOSTILE, "verdict_reason": HOSTILE}
    for place in range(2):
        run_directory(
            tmp_path / str(place), steps=4, layers=2, requests=3, output_tokens=3,
            policy=("lru", "lfu")[place], hardware=f"{HOSTILE}{place}",
            summary={**names, "notes": [HOSTILE], "caveats": [HOSTILE]},
        )  # fmt: skip
    both = load_runs([tmp_path / "0", tmp_path / "1"])
    for text in (page_of(both[:1], HOSTILE), page_of(both, HOSTILE)):
        outline = Outline(text)
        assert len(outline.named("script")) == 3
        assert not outline.named("img")
        assert not [a for _, a in outline.tags for name in a if name.startswith("on")]
        assert "\u2028" not in outline.texts["script"][0]
        assert plots_in(text)


def test_long_series_are_thinned_and_the_page_says_so(tmp_path: Path) -> None:
    path = run_directory(
        tmp_path / "long", steps=600, layers=2, requests=MOST_REQUESTS + 100, output_tokens=3
    )
    text = page_of([load_run(path)], COMMAND)
    assert f"the slowest {MOST_REQUESTS} of {MOST_REQUESTS + 100}" in text
    assert f"Curves have {POINTS} points" in text
    assert len(plots_in(text)["plot-e2e"]["rows"]) == POINTS + 1  # and where the curve starts
    assert "Each point is the mean of up to 3 steps" in text
    assert f"{MOST_ROWS} of" in text or "at even steps" in text
    assert len(text) < 2_500_000


def test_experts_in_gpu_memory_are_drawn_where_a_run_counted_them(tmp_path: Path) -> None:
    path = run_directory(tmp_path / "run", steps=4, layers=2, requests=3, output_tokens=3)
    counted = [3, 4, 4, 2]
    steps = pq.read_table(path / "steps.parquet")
    if "residents" in steps.column_names:
        steps = steps.drop_columns(["residents"])
        pq.write_table(steps, path / "steps.parquet")
    assert "plot-experts" not in plots_in(page_of([load_run(path)], COMMAND))
    pq.write_table(steps.append_column("residents", [counted]), path / "steps.parquet")
    plot = plots_in(page_of([load_run(path)], COMMAND))["plot-experts"]
    assert [row[plot["fields"].index("mean")] for row in plot["rows"]] == counted


def test_requests_that_no_step_ever_serves_wait_to_the_end_and_rejected_ones_never(
    tmp_path: Path,
) -> None:
    path = run_directory(tmp_path / "run", steps=4, layers=2, requests=4, output_tokens=3)
    table = pq.read_table(path / "requests.parquet").to_pydict()
    changes = {
        "arrival_ns": [0, 0, 0, -1],
        "scheduled_ns": [0, -1, -1, -1],
        "status": ["finished", "waiting", "rejected", "waiting"],
    }
    pq.write_table(pa.table({**table, **changes}), path / "requests.parquet")
    plot = plots_in(page_of([load_run(path)], COMMAND))["plot-requests"]
    line, mean = plot["fields"].index("line"), plot["fields"].index("mean")
    waiting = plot["levels"]["line"].index("waiting")
    assert [row[mean] for row in plot["rows"] if row[line] == waiting] == [1, 1, 1, 1]


def test_a_synthetic_trace_is_named_at_the_title_and_in_the_warnings(tmp_path: Path) -> None:
    path = run_directory(
        tmp_path / "run", steps=4, layers=2, requests=3, output_tokens=3,
        summary={"routing": "synthetic"},
    )  # fmt: skip
    text = page_of([load_run(path)], COMMAND)
    assert "<title>fabricated [synthetic routing]</title>" in text
    assert "<strong>Warning:</strong> SYNTHETIC ROUTING" in text
    assert "Only 3 requests are counted" in text


def test_every_figure_has_its_kind_and_source(page: str) -> None:
    cells = [cell.strip() for cell in Outline(page).cells]
    at = cells.index("h2d.pinned_bandwidth")
    assert cells[at + 1 : at + 4] == ["machine", "25GB/s", "assumed"]
    assert "PCIe 4.0 x16" in cells[at + 4]
    at = cells.index("routing of deep")
    assert cells[at + 1 : at + 4] == ["trace", "160 requests, 13,614 rows", "recorded"]


def test_a_page_says_which_sources_cannot_be_read(tmp_path: Path) -> None:
    path = run_directory(tmp_path / "run", steps=4, layers=2, requests=3, output_tokens=3)
    text = page_of([load_run(path)], COMMAND)
    assert "The sources of some figures cannot be read" in text
    assert "cannot be read now" in text  # the row of the trace


def test_a_source_that_hides_several_figures_is_named_once(real: Run, tmp_path: Path) -> None:
    scenario = (real.path / "scenario.yaml").read_text()
    for name, wrong in (("trace", {"trace": "../no-trace"}), ("card", {"hardware": "no-card"})):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "scenario.yaml").write_text(yaml.safe_dump({**yaml.safe_load(scenario), **wrong}))
        run = Run(folder, real.summary, real.manifest, real.scenario)
        *texts, table = assumptions(run)
        (unread,) = [each.text for each in texts if isinstance(each, Paragraph)
                     and "cannot be read" in each.text]  # fmt: skip
        assert unread.count(f"no-{name}") == 1
        assert isinstance(table, DataTable)
        assert table.rows[0][-1].text == "cannot be read now"


def test_a_what_if_shows_its_gain_what_it_needs_or_why_there_is_none(real: Run) -> None:
    base = dict(real.summary)
    faster = {**base, "output_tokens_per_s": 2 * base["output_tokens_per_s"]}
    found = WhatIfs(
        base,
        [
            WhatIf("link", "link ×2", ("hardware.h2d.bandwidth=50GB/s",), "50 GB/s", faster),
            WhatIf("cpu", "CPU ×2", reason="no expert runs on the CPU"),
        ],
        ("simulated again, because moesim has changed",),
    )
    text = page_of([real], COMMAND, found)
    cells = [cell.strip() for cell in Outline(text).cells]
    printed = [cell.text for row in what_if_table(real, found).rows for cell in row]
    assert f"{number(2 * base['output_tokens_per_s'])} (+100.0 %)" in printed
    assert set(printed) <= set(cells)
    assert "--set hardware.h2d.bandwidth=50GB/s" in text
    assert [sentence for sentence in sentences(found) if sentence[1:] not in text] == []


def test_without_what_ifs_the_page_says_which_option_computes_them(page: str) -> None:
    assert "<code>moesim report RUN --html --what-if</code>" in page


def test_without_the_extra_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, real: Run
) -> None:
    monkeypatch.setattr(extra, "find_spec", lambda name: None if name == "altair" else object())
    with pytest.raises(MissingExtra, match=r"'\.\[html\]'"):
        page_of([real], COMMAND)


def test_the_command_writes_the_page_into_the_folder_of_the_run(real: Run, page: str) -> None:
    done = CliRunner().invoke(app, ["report", str(real.path), "--html"])
    assert done.exit_code == 0
    file = real.path / "report.html"
    assert done.stdout.splitlines()[-1] == str(file)
    command = f"moesim report {real.path} --html"
    assert file.read_text(encoding="utf-8") == page.replace(COMMAND, command)


def test_the_command_replaces_pages_and_no_other_file(real: Run, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    arguments = ["report", str(real.path), "--html", "--out", str(file)]
    for _ in range(2):
        assert CliRunner().invoke(app, arguments).exit_code == 0
    file.write_text("<!doctype html><title>My thesis</title>")
    refused = CliRunner().invoke(app, arguments)
    assert isinstance(refused.exception, OutputError)
    assert "did not write it" in str(refused.exception)
    assert "My thesis" in file.read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--html", "--out", "page.txt"], "ends in .html"),
        (["--html", "--fail-if", "ttft_p99_ms > 1ms"], "a page and nothing else"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    real: Run, options: list[str], message: str
) -> None:
    done = CliRunner().invoke(app, ["report", str(real.path), *options])
    assert done.exit_code != 0
    assert message in str(done.exception)
