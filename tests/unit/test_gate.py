"""The gate of `moesim report`: thresholds, paired changes, and what cannot be compared."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from run_directories import run_directory
from typer.testing import CliRunner, Result
from workloads import tiny_scenario, tiny_trace

from moesim.cli import app
from moesim.errors import ThresholdError, UsageError
from moesim.report import load_run
from moesim.report.gate import judge, parse_threshold
from moesim.report.gate.paired import change_of
from moesim.report.gate.samples import RequestPairs, Sample
from moesim.report.gate.text import sentences, tables
from moesim.report.metrics import number
from moesim.report.runs import Run
from moesim.report.statistics import difference, estimate
from moesim.results.metric_names import METRICS
from moesim.simulate import run as simulate

LATENCIES = ("ttft", "tpot", "itl", "e2e")


def changed(folder: Path, *, slower: Any = 1.0, **others: Any) -> Run:
    """Return a fabricated run whose requests take `slower` times as long from their arrival on."""
    run_directory(folder, requests=300, **others)
    rows = pq.read_table(folder / "requests.parquet").to_pydict()
    factors = np.broadcast_to(slower, len(rows["request"]))
    for place, factor in enumerate(factors.tolist()):
        arrival = rows["arrival_ns"][place]
        for key in ("first_token_ns", "finish_ns"):
            rows[key][place] = arrival + round((rows[key][place] - arrival) * factor)
        rows["token_ns"][place] = [
            arrival + round((time - arrival) * factor) for time in rows["token_ns"][place]
        ]
    pq.write_table(pa.table(rows), folder / "requests.parquet")
    _summarise(folder, rows)
    return load_run(folder)


def _summarise(folder: Path, rows: dict[str, Any]) -> None:
    arrival, first, finish = (
        np.array(rows[key]) for key in ("arrival_ns", "first_token_ns", "finish_ns")
    )
    tokens = np.array(rows["output_tokens"])
    samples = {
        "ttft": first - arrival,
        "tpot": (finish - first) / (tokens - 1),
        "itl": np.concatenate([np.diff(times) for times in rows["token_ns"]]),
        "e2e": finish - arrival,
    }
    summary = json.loads((folder / "summary.json").read_text())
    for name, values in samples.items():
        summary[f"{name}_mean_ms"] = float(np.mean(values)) / 1e6
        for percent in (50, 90, 95, 99):
            summary[f"{name}_p{percent}_ms"] = float(np.percentile(values, percent)) / 1e6
    (folder / "summary.json").write_text(json.dumps(summary))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return changed(tmp_path_factory.mktemp("gate") / "base")


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Most requests are as fast as in `base`, and every fourth takes half as long again."""
    factors = np.where(np.arange(300) % 4, 1.0, 1.5)
    return changed(tmp_path_factory.mktemp("gate") / "slow", slower=factors)


def edited(folder: Path, run: Run, **changes: Any) -> Run:
    """Return a run with other values in its scenario."""
    return Run(folder, run.summary, run.manifest, {**run.scenario, **changes})


@pytest.mark.parametrize(
    ("text", "kind", "limit"),
    [
        ("ttft_p99_ms > +5%", "relative", 0.05),
        ("output_tokens_per_s<-2.5 %", "relative", -0.025),
        ("ttft_p99_ms > +3ms", "change", 3),
        ("ttft_p99_ms >= +3", "change", 3),
        ("ttft_p99_ms > 1.2s", "value", 1200),
        ("ttft_p99_ms > 120", "value", 120),
        ("makespan_s > 2min", "value", 120),
        ("h2d_bytes > +1GiB", "change", 2**30),
        ("stall_share > 30%", "value", 0.3),
        ("expert_hit_rate < -2pp", "change", -0.02),
        ("output_tokens_per_s < 20 tokens/s", "value", 20),
        ("preemptions > 0", "value", 0),
    ],
)
def test_the_sign_and_the_unit_of_a_limit_say_what_it_is(
    text: str, kind: str, limit: float
) -> None:
    threshold = parse_threshold(text)
    assert (threshold.kind, threshold.limit) == (kind, pytest.approx(limit, rel=1e-12))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ttft_p9_ms > 5", "the nearest are ttft_p99_ms"),
        ("ttft_p99_ms > 5%", "write +5% or -5% for a change"),
        ("ttft_p99_ms > 5GiB", "'GiB' is no unit of ttft_p99_ms; it has ns, us"),
        ("preemptions > 5ms", "it has none"),
        ("ttft_p99_ms", "write a metric"),
        ("ttft_p99_ms > much", "'much' is no limit"),
        ("ttft_p99_ms > +-5%", "is no limit"),
        ("ttft_p99_ms > ٣", "is no limit"),
    ],
)
def test_a_wrong_threshold_is_refused_and_says_what_to_write(text: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_threshold(text)
    assert said in str(error.value)


def test_a_weighted_statistic_is_that_of_the_drawn_values() -> None:
    """The oracle repeats each value as often as its request was drawn."""
    rng = np.random.default_rng(0)
    owners = np.sort(rng.integers(12, size=60))[rng.permutation(60)]
    values = np.sort(rng.exponential(size=60))
    for percentile in (None, 50.0, 90.0, 99.0):
        sample = Sample(values, owners, 12, percentile)
        for _ in range(40):
            counts = np.bincount(rng.integers(12, size=12), minlength=12)
            drawn = np.repeat(values, counts[owners])
            expected = drawn.mean() if percentile is None else np.percentile(drawn, percentile)
            assert sample.statistic(counts) == pytest.approx(expected, rel=1e-12)
    assert math.isnan(Sample(values[:0], owners[:0], 12, 50.0).of_all)


def test_samples_give_every_number_of_requests_in_the_summary_of_a_real_run(
    tmp_path: Path,
) -> None:
    trace = tiny_trace(requests=12, prompt_tokens=4, output_tokens=5)
    trace.save(tmp_path / "trace")
    metrics = {"window": {"skip_requests": 1, "last": 1}}
    batching = {"max_sequences": 4}
    scenario = tiny_scenario(trace=str(tmp_path / "trace"), metrics=metrics, batching=batching)
    simulate(scenario, out=tmp_path / "run")
    run = load_run(tmp_path / "run")
    pairs = RequestPairs(run, run)
    wanted = ("_mean_ms", "_p50_ms", "_p99_ms", "decode_")
    named = [name for name in METRICS if name.startswith(wanted[3:]) or name.endswith(wanted[:3])]
    assert len(named) > 20
    for name in named:
        samples = pairs.samples(name)
        assert not isinstance(samples, str), samples
        assert samples[0].of_all == pytest.approx(run.value(name))


@pytest.mark.parametrize("latency", LATENCIES)
def test_pairs_cancel_what_both_runs_share(base: Run, latency: str, tmp_path: Path) -> None:
    """All requests take a tenth longer, so which requests are drawn does not matter."""
    slower = changed(tmp_path / "slower", slower=1.1)
    for statistic in ("mean", "p50", "p95"):
        change = change_of(
            f"{latency}_{statistic}_ms", [slower], [base], RequestPairs(slower, base)
        )
        assert change.relative == pytest.approx(0.1, abs=1e-6)
        assert change.relative_interval == pytest.approx((0.1, 0.1), abs=1e-6)


def test_the_interval_of_a_mean_is_that_of_the_paired_differences(base: Run, slow: Run) -> None:
    """The oracle is the normal interval of the mean of 300 differences."""
    change = change_of("e2e_mean_ms", [slow], [base], RequestPairs(slow, base))
    spans = [
        run.table("requests", ["arrival_ns", "finish_ns"]) for run in (slow, base)
    ]  # in the same order
    after, before = ((each["finish_ns"] - each["arrival_ns"]) / 1e6 for each in spans)
    error = 1.96 * np.std(after - before, ddof=1) / math.sqrt(300)
    assert change.absolute == pytest.approx(np.mean(after - before))
    assert change.absolute_interval is not None
    assert change.absolute_interval == pytest.approx(
        (change.absolute - error, change.absolute + error), rel=0.1
    )
    again = change_of("e2e_mean_ms", [slow], [base], RequestPairs(slow, base))
    assert again == change


def test_several_seeds_are_paired_by_seed_in_any_order(tmp_path: Path) -> None:
    runs, bases = (
        [
            load_run(run_directory(tmp_path / f"{policy}{seed}", policy=policy, seed=seed))
            for seed in order
        ]
        for policy, order in (("lfu", (2, 0, 1)), ("lru", (0, 1, 2)))
    )
    found = judge(runs, bases, [parse_threshold("output_tokens_per_s < +0%")])
    ordered = sorted(runs, key=lambda run: run.seed or 0)
    expected = difference(
        *([run.value("output_tokens_per_s") for run in each] for each in (ordered, bases))
    )
    change = found.checks[0].change
    assert change is not None
    assert change.relative == expected.mean
    assert change.relative_interval == (expected.low, expected.high)
    assert "3 seeds, paired by seed" in change.basis


def test_the_number_decides_and_an_interval_around_the_limit_is_called_unsettled(
    base: Run, slow: Run
) -> None:
    change = change_of("e2e_mean_ms", [slow], [base], RequestPairs(slow, base))
    below, above = change.relative - 1e-3, change.relative + 1e-3
    thresholds = [
        parse_threshold(f"e2e_mean_ms > +{100 * limit:.6f}%") for limit in (below, above, 0.0)
    ]
    checks = judge([slow], [base], thresholds).checks
    assert [check.exceeded for check in checks] == [True, False, True]
    assert [check.settled for check in checks] == [False, False, True]


def test_a_limit_of_the_value_is_judged_by_the_interval_of_the_value(tmp_path: Path) -> None:
    runs = [load_run(run_directory(tmp_path / str(seed), seed=seed)) for seed in range(3)]
    found = estimate(run.value("e2e_mean_ms") for run in runs)
    threshold = parse_threshold(f"e2e_mean_ms > {found.mean - 1e-3:.6f}")
    for baselines in ([], runs):
        judgement = judge(runs, baselines, [threshold])
        (check,) = judgement.checks
        assert check.interval == (found.low, found.high)
        assert check.settled is False
        cell = tables(judgement)[0].rows[0][1].text
        assert cell.endswith(f"[{number(found.low)} ms to {number(found.high)} ms]")
        assert any("beside the value" in text for text in sentences(judgement))


def test_seeds_without_effect_count_as_one(base: Run, slow: Run) -> None:
    """Their t-interval would have no width, so requests are drawn as for one seed."""
    sides = [
        [Run(run.path, {**run.summary, "seed": seed}, {}, {**run.scenario, "seed": seed})
         for seed in (0, 1)]
        for run in (slow, base)
    ]  # fmt: skip
    threshold = parse_threshold("e2e_mean_ms > 1")
    judgement = judge(sides[0], sides[1], [threshold])
    alone = judge([slow], [base], [threshold])
    assert judgement.changes == alone.changes
    assert judgement.checks[0].interval is None
    for found in (judgement, judge(sides[0], [], [threshold])):
        assert any("they count as one" in warning for warning in found.warnings)


@pytest.mark.parametrize(
    ("metric", "why"),
    [
        ("output_tokens_per_s", "one number of a whole run"),
        ("wait_max_ms", "one number of a whole run"),
        ("e2e_p99_ms", "fewer than one lies beyond p99"),
    ],
)
def test_no_interval_is_invented(tmp_path: Path, metric: str, why: str) -> None:
    runs = [load_run(run_directory(tmp_path / each, requests=20)) for each in ("a", "b")]
    change = change_of(metric, [runs[0]], [runs[1]], RequestPairs(*runs))
    assert change.relative_interval is None
    assert change.absolute_interval is None
    assert why in change.basis


def test_requests_that_finish_in_one_run_only_leave_no_interval(tmp_path: Path) -> None:
    runs = [load_run(run_directory(tmp_path / f"{n}", requests=n)) for n in (30, 31)]
    change = change_of("e2e_mean_ms", [runs[0]], [runs[1]], RequestPairs(*runs))
    assert "differ between the runs" in change.basis
    assert change.absolute_interval is None


def test_a_table_that_does_not_give_the_summary_leaves_no_interval(
    base: Run, tmp_path: Path
) -> None:
    other = Run(base.path, {**base.summary, "e2e_mean_ms": 1.0}, base.manifest, base.scenario)
    change = change_of("e2e_mean_ms", [other], [base], RequestPairs(other, base))
    assert "does not give its e2e_mean_ms" in change.basis
    assert change.absolute_interval is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"trace": "deep"}, "the trace"),
        ({"workload": {"requests": 3}}, "workload"),
        ({"metrics": {"window": {"skip_requests": 2}}}, "the window"),
    ],
)
def test_runs_of_other_requests_are_refused_and_the_difference_is_named(
    base: Run, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=f"differ in {said}"):
        judge([edited(base.path, base, **changes)], [base], [])


def test_seeds_must_be_the_same_and_each_side_one_scenario(base: Run, tmp_path: Path) -> None:
    other = load_run(run_directory(tmp_path / "other", seed=1))
    lfu = load_run(run_directory(tmp_path / "lfu", policy="lfu"))
    with pytest.raises(UsageError, match=r"their seeds \(1 and 0\)"):
        judge([other], [base], [])
    with pytest.raises(UsageError, match=r"the runs of a gate differ in cache\.policy"):
        judge([base, lfu], [base], [])
    with pytest.raises(UsageError, match="one seed twice"):
        judge([base, base], [base], [])


@pytest.mark.parametrize(
    ("threshold", "said"),
    [
        ("regret_link_s > 1", "is missing"),
        ("late_hit_rate > +1%", "is 0"),
        ("cpu_busy_share > +1pp", "is null"),
    ],
)
def test_what_is_undefined_cannot_be_gated(base: Run, threshold: str, said: str) -> None:
    null = Run(base.path, {**base.summary, "cpu_busy_share": None}, base.manifest, base.scenario)
    with pytest.raises(UsageError, match=said):
        judge([null], [null], [parse_threshold(threshold)])


def test_files_of_equal_content_in_two_checkouts_are_the_same_work(base: Run) -> None:
    sides = []
    for place in ("here", "there"):
        workload = {"arrivals": {"path": f"/{place}/arrivals.csv"}}
        manifest = {"inputs": {"trace": "abc", "workload.arrivals.path": "def"}}
        scenario = {**base.scenario, "trace": f"/{place}/trace", "workload": workload}
        sides.append(Run(base.path, base.summary, manifest, scenario))
    assert judge([sides[0]], [sides[1]], []).differing == {}


def test_without_hashes_the_paths_of_files_say_whether_the_work_is_the_same(base: Run) -> None:
    """A run of an older moesim has no hashes, and its trace is not another one for that."""
    arrivals = {"workload": {"arrivals": {"path": "/data/arrivals.csv"}}}
    manifest = {"inputs": {"trace": "abc", "workload.arrivals.path": "def"}}
    scenario = {**base.scenario, "trace": "/data/trace", **arrivals}
    new = Run(base.path, base.summary, manifest, scenario)
    old = Run(base.path, base.summary, {}, scenario)
    for run, baseline in ((new, old), (old, new), (old, old)):
        assert any("no hash of the trace" in text for text in judge([run], [baseline], []).warnings)
    assert not judge([new], [new], []).warnings
    moved = Run(base.path, base.summary, {}, {**scenario, "trace": "/other/trace"})
    with pytest.raises(UsageError, match=r"the trace \(/data/trace and /other/trace\)"):
        judge([new], [moved], [])


def test_costs_of_two_kinds_and_other_code_are_warned_of(base: Run) -> None:
    other = Run(
        base.path,
        {**base.summary, "cost_kind": "measured"},
        {"inputs": {"code": "other"}},
        base.scenario,
    )
    plain = Run(base.path, base.summary, {"inputs": {"code": "this"}}, base.scenario)
    warnings = judge([other], [plain], []).warnings
    assert any("two kinds (measured and assumed)" in warning for warning in warnings)
    assert any("version of moesim's code" in warning for warning in warnings)


def test_requests_that_did_not_finish_are_warned_of(base: Run) -> None:
    from moesim.report.gate.text import sentences

    cut = Run(base.path, {**base.summary, "finished": 290}, base.manifest, base.scenario)
    (warning,) = [text for text in sentences(judge([cut], [base], [])) if "not all" in text]
    assert warning.startswith("WARNING: not all requests finished")
    assert warning.endswith(f": 290 of 300 in {base.path}")
    assert not [text for text in sentences(judge([base], [base], [])) if "not all" in text]


def moesim(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


def test_the_command_exits_with_3_and_prints_the_paired_interval(base: Run, slow: Run) -> None:
    sides = (slow.path, "--baseline", base.path, "--fail-if")
    failed = moesim(*sides, "e2e_mean_ms > +5%")
    assert isinstance(failed.exception, ThresholdError)
    assert failed.exception.exit_code == 3
    assert "95 % interval +" in str(failed.exception)
    assert "bootstrap over 300 requests, paired by request" in failed.stdout
    passed = moesim(*sides, "e2e_mean_ms > +90%")
    assert passed.exit_code == 0, passed.output
    assert passed.stdout.endswith("the threshold holds\n")


def test_shares_change_in_points_and_all_else_in_percent(base: Run) -> None:
    moved = {"stall_share": base.value("stall_share") + 0.02,
             "output_tokens_per_s": 1.5 * base.value("output_tokens_per_s")}  # fmt: skip
    run = Run(base.path, {**base.summary, **moved}, base.manifest, base.scenario)
    (table,) = tables(judge([run], [base], []))
    changes = {row[0].text: row[3].text for row in table.rows}
    assert changes["stall_share"] == "+2 pp"
    assert changes["output_tokens_per_s"] == "+50 %"


def test_a_run_beside_itself_changes_in_nothing(base: Run) -> None:
    for metric in ("ttft_p95_ms", "e2e_mean_ms"):
        limits = [f"{metric} > +0%", f"{metric} < -0%"]
        arguments = [part for limit in limits for part in ("--fail-if", limit)]
        found = moesim(base.path, "--baseline", base.path, "--json", *arguments)
        assert found.exit_code == 0, found.output
        change = json.loads(found.stdout)["checks"][0]["change"]
        assert change["relative_interval"] == [0, 0]


def test_markdown_has_the_verdict_the_tables_and_the_commands(base: Run, slow: Run) -> None:
    limit = "e2e_mean_ms > +5%"
    text = moesim(slow.path, "--baseline", base.path, "--fail-if", limit, "--markdown").stdout
    assert text.startswith("### moesim: failed: the threshold is exceeded\n")
    lines = text.splitlines()
    for place, line in enumerate(lines):
        if line.startswith("|---"):
            widths = {row.count("|") for row in lines[place - 1 : place + 2]}
            assert len(widths) == 1, lines[place - 1 : place + 2]
    assert f"moesim run {slow.path}/scenario.yaml --out {slow.path} --force" in text
    assert f"moesim report {slow.path} --baseline {base.path} --fail-if '{limit}'" in text


def test_marks_and_costs_stand_beside_a_judgement(base: Run) -> None:
    synthetic = {**base.summary, "routing": "synthetic"}
    (base.path.parent / "marked").mkdir()
    for file in base.path.iterdir():
        (base.path.parent / "marked" / file.name).write_bytes(file.read_bytes())
    (base.path.parent / "marked" / "summary.json").write_text(json.dumps(synthetic))
    text = moesim(base.path.parent / "marked", "--fail-if", "e2e_mean_ms > 1s").stdout
    assert "SYNTHETIC ROUTING" in text
    assert "costs assumed" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--markdown"], "name a --baseline"),
        (["--fail-if", "e2e_mean_ms > +1%"], "--baseline RUN"),
        (["--fail-if", "e2e_mean_ms > 1", "--json", "--markdown"], "choose one"),
        (["--fail-if", "e2e_mean_ms > 1", "--what-if"], "--what-if prints"),
        (["--what-if", "--perfetto", "lanes.json"], "--what-if prints"),
        (["--fail-if", "e2e_mean_ms > 1", "--perfetto", "lanes.json"], "--perfetto writes"),
    ],
)
def test_options_that_miss_another_are_refused(base: Run, arguments: list[str], said: str) -> None:
    found = moesim(base.path, *arguments)
    assert isinstance(found.exception, UsageError)
    assert said in str(found.exception)
