"""Tables: what is best, what is worst, what is lost, and the same in every form."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from pathlib import Path

import pytest
from run_directories import run_directory

from moesim.report import compare_runs, load_run, print_summary, write_comparison
from moesim.report.comparison import Comparison
from moesim.report.metrics import HITS, THROUGHPUT, Metric, number
from moesim.report.statistics import Estimate
from moesim.report.summary import summary_tables
from moesim.report.tables import as_json, signs, tables
from moesim.report.tabular import Cell, Table, fitted, markdown, plain, write_tables
from moesim.simulate.bounds import BOUND_KEYS

SPEED = {"output_tokens_per_s": (10.0, 20.0, 40.0), "e2e_p95_ms": (50.0, 80.0, 80.0)}


@pytest.fixture
def three(tmp_path: Path) -> Comparison:
    """LRU, LFU and MIN: LFU is faster and has the longer tail; MIN is a bound."""
    runs = []
    for place, policy in enumerate(("lru", "lfu", "min")):
        for seed in (0, 1):
            values = {key: value[place] * (1 + seed) for key, value in SPEED.items()}
            path = run_directory(
                tmp_path / f"{policy}{seed}",
                policy=policy,
                seed=seed,
                summary={**values, "accesses": 100, "hits": 50 + 10 * place, "tpot_mean_ms": None},
            )
            runs.append(load_run(path))
    return compare_runs(runs)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def column(table: Table, title: str) -> list[str]:
    place = list(table.columns).index(title)
    return [f"{row[place].text}|{row[place].mark}" for row in table.rows]


def test_best_and_worst_are_marked_in_the_direction_of_the_metric(three: Comparison) -> None:
    means = tables(three)[0]
    assert [cell.split("|")[1] for cell in column(means, THROUGHPUT.title)] == [
        "worst",
        "best",
        "",
    ]
    assert [cell.split("|")[1] for cell in column(means, "E2E p95 (ms)")] == [
        "best",
        "worst",
        "",
    ]


def test_a_loss_stands_beside_a_gain(three: Comparison) -> None:
    differences = tables(three)[1]
    lfu = dict(zip(differences.columns, differences.rows[0], strict=True))
    assert lfu["throughput (%)"] == Cell("+100.0 ± 0.0", "better")
    assert lfu["E2E p95 (%)"] == Cell("+60.0 ± 0.0", "worse")
    assert lfu["hits (points)"] == Cell("+10.0 ± 0.0", "better")
    text = markdown(differences)
    assert "+100.0 ± 0.0 better | " in text
    assert "+60.0 ± 0.0 worse | " in text


def test_undefined_is_said_in_every_table(three: Comparison) -> None:
    means, differences = tables(three)
    assert column(means, "TPOT mean (ms)") == ["undefined|"] * 3
    assert column(differences, "TPOT mean (%)") == ["undefined|"] * 2


def test_a_difference_within_the_noise_is_unresolved(tmp_path: Path) -> None:
    values = {"lru": (10.0, 20.0), "lfu": (12.0, 19.0)}
    runs = [
        run_directory(
            tmp_path / f"{policy}{seed}",
            policy=policy,
            seed=seed,
            summary={"output_tokens_per_s": made},
        )
        for policy, pair in values.items()
        for seed, made in enumerate(pair)
    ]
    differences = tables(compare_runs([load_run(run) for run in runs]))[1]
    assert column(differences, "throughput (%)")[0].endswith("|")


def speeds(folder: Path, by_policy: dict[str, tuple[float, ...]]) -> Comparison:
    """Return runs of these throughputs, one for each seed."""
    runs = [
        run_directory(
            folder / f"{policy}{seed}", policy=policy, seed=seed,
            summary={"output_tokens_per_s": speed},
        )
        for policy, values in by_policy.items()
        for seed, speed in enumerate(values)
    ]  # fmt: skip
    return compare_runs([load_run(run) for run in runs])


def test_the_best_mean_is_marked_only_if_its_lead_is_no_chance(tmp_path: Path) -> None:
    """Paired by seed: a lead of the same size in every seed counts, however seeds scatter."""
    steady = speeds(tmp_path / "a", {"lru": (10.0, 20.0, 31.0), "lfu": (11.0, 22.0, 34.1)})
    assert column(tables(steady)[0], THROUGHPUT.title)[0].endswith("|worst")
    assert column(tables(steady)[0], THROUGHPUT.title)[1].endswith("|best")
    chance = speeds(tmp_path / "b", {"lru": (10.0, 20.0, 31.0), "lfu": (14.0, 18.0, 30.0)})
    assert [cell[-1] for cell in column(tables(chance)[0], THROUGHPUT.title)] == ["|", "|"]


def test_of_two_variants_both_are_marked_or_neither(tmp_path: Path) -> None:
    """A difference relative to the faster is resolved here; one relative to the slower is not."""
    by_policy = {"lru": (63.9, 62.1), "lfu": (53.5, 50.5)}
    for order, marks in ((["lru", "lfu"], ["best", "worst"]), (["lfu", "lru"], ["", ""])):
        both = speeds(tmp_path / order[0], {name: by_policy[name] for name in order})
        means, differences = tables(both)
        assert [cell.split("|")[1] for cell in column(means, THROUGHPUT.title)] == marks
        (mark,) = [cell.split("|")[1] for cell in column(differences, "throughput (%)")]
        assert bool(mark) == bool(marks[0])


def test_one_seed_marks_the_best_value_and_calls_no_difference_better(tmp_path: Path) -> None:
    single = speeds(tmp_path / "runs", {"lru": (10.0,), "lfu": (12.0,), "fifo": (9.0,)})
    means, differences = tables(single)
    assert column(means, THROUGHPUT.title) == ["10|", "12|best", "9|"]
    assert column(differences, "throughput (%)") == ["+20.0|", "-10.0|"]
    write_comparison(single, tmp_path / "out", name="x", command="x", plots=False)
    text = (tmp_path / "out" / "compare.md").read_text()
    assert "One seed: no interval" in text
    assert not re.search(r"\d (better|worse)", text)
    assert "one seed: no interval" in signs(single)
    assert "▼" not in signs(single)


def test_equal_variants_are_neither_best_nor_worst(tmp_path: Path) -> None:
    runs = [
        run_directory(tmp_path / policy, policy=policy, summary={"stall_share": 0.5})
        for policy in ("lru", "lfu")
    ]
    means, differences = tables(compare_runs([load_run(run) for run in runs]))
    assert column(means, "stalled (% of step time)") == ["50|", "50|"]
    assert column(differences, "stalled (points)") == ["same|"]


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Estimate(math.nan, None, 0), "undefined"),
        (Estimate(12.3456, None, 1), "12.35"),
        (Estimate(12.3456, 0.0, 3), "12.35 ± 0"),
        (Estimate(12.3456, 0.02, 3), "12.346 ± 0.020"),
        (Estimate(1234.5, 56.7, 3), "1234 ± 57"),
        (Estimate(0.5, 1234.0, 3), "0 ± 1234"),
    ],
)
def test_a_mean_has_the_digits_its_interval_leaves(estimate: Estimate, text: str) -> None:
    assert Metric("x", "x", "ms").text(estimate) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (math.nan, "undefined"), (1234567.0, "1234567"), (0.00012346, "0.0001235")],
)
def test_numbers_have_four_digits_and_no_exponent(value: float, text: str) -> None:
    assert number(value) == text


def test_the_document_embeds_figures_that_exist_and_the_command(
    three: Comparison, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    write_comparison(
        three, folder, name="demo", command="moesim compare demo.yaml", failures=["seed=9: full"]
    )
    text = (folder / "compare.md").read_text()
    assert text.startswith("# demo\n")
    assert "```sh\nmoesim compare demo.yaml\n```" in text
    assert "- seed=9: full" in text
    embedded = [line.split("](")[1][:-1] for line in text.splitlines() if line.startswith("![")]
    assert embedded
    assert all((folder / path).is_file() for path in embedded)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_a_document_without_plots_embeds_none(three: Comparison, tmp_path: Path) -> None:
    write_comparison(three, tmp_path / "out", name="x", command="x", plots=False)
    assert "![" not in (tmp_path / "out" / "compare.md").read_text()
    assert not (tmp_path / "out" / "plots").exists()


def test_the_csv_has_a_row_a_point_and_one_a_run(three: Comparison, tmp_path: Path) -> None:
    write_comparison(three, tmp_path, name="x", command="x", plots=False)
    with (tmp_path / "compare.csv").open(newline="") as lines:
        points = list(csv.DictReader(lines))
    with (tmp_path / "runs.csv").open(newline="") as lines:
        runs = list(csv.DictReader(lines))
    assert [row["variant"] for row in points] == ["LRU", "LFU", "MIN (misses)"]
    assert float(points[1]["output_tokens_per_s"]) == 30
    assert float(points[1]["output_tokens_per_s_half_interval"]) == pytest.approx(12.7062 * 10)
    assert "tpot_mean_ms" not in points[0]
    assert (points[0]["n"], points[0]["seeds"]) == ("2", "0 1")
    assert [row["run"] for row in runs][:3] == ["lru0", "lru1", "lfu0"]
    assert runs[3]["output_tokens_per_s"] == "40"


def test_the_json_is_strict_and_says_the_same(three: Comparison) -> None:
    data = json.loads(json.dumps(as_json(three), allow_nan=False))
    lfu = data["rows"][1]
    assert lfu["metrics"]["output_tokens_per_s"] == {
        "mean": 30.0,
        "half_interval": pytest.approx(127.062, rel=1e-4),
        "n": 2,
    }


def test_a_piped_table_is_plain_and_aligned(three: Comparison) -> None:
    stream = io.StringIO()
    write_tables(tables(three)[:1], stream)
    header, *lines = stream.getvalue().splitlines()
    assert "\x1b" not in stream.getvalue()
    ends = {line.index(" ± ") for line in lines}
    assert len(lines) == 3
    assert max(ends) < header.index(THROUGHPUT.title) + 28


def test_a_terminal_gets_a_table_with_all_its_numbers(
    three: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "220")
    stream = Terminal()
    write_tables(tables(three), stream)
    assert "+100.0 ± 0.0 ▲" in stream.getvalue()
    assert "+60.0 ± 0.0 ▼" in stream.getvalue()


def test_a_narrow_terminal_shows_every_number_and_says_what_it_leaves_out(
    three: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    stream = Terminal()
    write_tables(tables(three), stream)
    text = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert "TPOT mean (ms) undefined" in text.replace("\n", " "), "equal in all rows"
    for label in ("LRU", "LFU", "MIN (misses) [knows the future]"):
        assert re.search(rf"^ *{re.escape(label)} *$", text, re.M), "a record for each variant"
    assert re.search(r"^ *throughput \(%\) +\+100\.0 ± 0\.0 ▲ *$", text, re.M)


def test_columns_that_are_equal_in_all_rows_go_before_rows_become_records() -> None:
    table = Table("t", ["", "speed", "late hits (%)", "hits"])
    table.add("lru", Cell("10", "best"), "0 ± 0", "5")
    table.add("lfu", "20", "0 ± 0", "6")
    assert fitted(table, 200) == (table, "")
    narrow, left_out = fitted(table, 24)
    assert (list(narrow.columns), left_out) == (
        ["", "speed", "hits"],
        "left out, equal in all rows: late hits (%) 0 ± 0",
    )
    assert plain(narrow).splitlines()[2].split() == ["lru", "10", "▲", "5"]
    records, left_out = fitted(table, 12)
    assert "late hits" in left_out
    assert [line.split() for line in plain(records).splitlines()] == [
        ["t"], ["lru"], ["speed", "10", "▲"], ["hits", "5"],
        ["lfu"], ["speed", "20"], ["hits", "6"],
    ]  # fmt: skip


def test_headers_are_broken_before_any_column_goes() -> None:
    table = Table("t", ["", "speed in tokens a second", "hits"])
    table.add("lru", Cell("10", "best"), "5")
    broken, left_out = fitted(table, 23)
    assert (broken.columns[1], left_out) == ("speed\nin\ntokens\na\nsecond", "")
    assert broken.rows == table.rows


def test_a_table_of_sentences_is_left_to_the_terminal() -> None:
    table = Table("setup")
    table.add("trace", "word " * 50)
    assert fitted(table, 80) == (table, "")


def test_markdown_cells_cannot_break_the_table() -> None:
    table = Table("", ["a|b", "c"])
    table.add("x\ny", "1|2")
    assert markdown(table).splitlines() == ["| a\\|b | c |", "|---|--:|", "| x y | 1\\|2 |"]


def test_a_table_without_rows_is_its_title() -> None:
    assert plain(Table("limited by the link")) == "limited by the link"


def test_the_summary_shows_every_block(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_summary(run_directory(tmp_path / "run", policy="static"))
    text = capsys.readouterr().out
    for part in (
        "simulated; costs assumed (datasheet)",
        "static (oracle)",
        "latency (ms)",
        "expert accesses",
        "bytes moved",
        "where the GPU's time went",
        "MIN (misses)",
        "limited by the working set: even MIN misses 21 %",
        "GPU memory",
        "- trace of shallow costed as mixtral-8x7b",
    ):
        assert part in text


def test_a_summary_says_what_is_known_of_the_error_of_its_times(tmp_path: Path) -> None:
    def lines(kind: str) -> list[str]:
        run = load_run(run_directory(tmp_path / kind, summary={"cost_kind": kind}))
        return "\n\n".join(plain(table) for table in summary_tables(run)).splitlines()

    assert "no error bar: costs are assumed, not measured" in lines("assumed")
    measured = lines("measured")
    assert "error of these times: `moesim validate` measures it" in measured
    assert not any("no error bar" in line for line in measured)


def test_a_summary_of_nulls_says_undefined(tmp_path: Path) -> None:
    summary = dict.fromkeys(load_run(run_directory(tmp_path / "whole")).summary)
    run = load_run(run_directory(tmp_path / "run", summary=summary))
    text = "\n".join(plain(table) for table in summary_tables(run))
    assert "nan" not in text
    assert text.count("undefined") > 40


def test_bounds_that_were_not_asked_for_are_not_called_undefined(tmp_path: Path) -> None:
    none = dict.fromkeys(BOUND_KEYS)
    run = load_run(run_directory(tmp_path / "run", summary=none))
    text = "\n".join(plain(table) for table in summary_tables(run))
    assert "bounds: not computed" in text
    assert "infinite link" not in text


def test_a_summary_on_a_terminal_does_not_fail(tmp_path: Path) -> None:
    stream = Terminal()
    print_summary(run_directory(tmp_path / "run"), stream)
    assert "latency (ms)" in stream.getvalue()


def test_the_hit_rate_is_a_share_of_a_hundred() -> None:
    assert (HITS.scale, HITS.is_share) == (100, True)
