"""A window of a run counts its steps, and the requests that finished in it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from costed_traces import costed_trace
from workloads import plan_of, random_case, run_on, static_trace, tiny_scenario, tiny_trace

from moesim.errors import ScenarioError
from moesim.machine.events import EventMachine
from moesim.machine.sim import SimMachine
from moesim.report.metrics import run_caption
from moesim.report.runs import load_run
from moesim.report.summary import summary_tables
from moesim.results.window import Window, find_window
from moesim.scenario import load_scenario
from moesim.serving.totals import Totals, totals_of
from moesim.simulate import Outcome, result_of, run, simulate, summarise

WHOLE_RUN = {
    *("requests", "finished", "rejected", "running", "queued", "makespan_s", "tiled_share"),
    *("prefetch_unused_bytes", "load_bytes", "peak_kv_blocks", "peak_vram_bytes"),
}


def outcome_of(case: tuple[dict[str, Any], Any], window: Any = "whole") -> Outcome:
    scenario, trace = case
    return simulate(plan_of({**scenario, "metrics": {"window": window}}, trace))


def window_of(outcome: Outcome) -> Window:
    return find_window(outcome.plan.scenario, outcome.requests, outcome.ledger, outcome.now_ns)


def borders(requests: pd.DataFrame, steps: pd.DataFrame, window: dict[str, Any]) -> tuple[int, int]:
    """Return the borders of a window in ns, found by looking at each moment in turn."""
    end = int(max(steps["finish_ns"].max(), requests["finish_ns"].max()))
    if "skip_requests" in window:
        ends = sorted(requests["finish_ns"][requests["status"] == "finished"])
        first, last = window["skip_requests"], window["last"]
        return (ends[first - 1] if first else 0), (ends[-1 - last] if last else end)
    after, until = (int(window[key][:-2]) for key in ("after", "until"))
    inside = [
        (start, finish)
        for start, finish in zip(steps["start_ns"], steps["finish_ns"], strict=True)
        if start >= after and finish <= until
    ]
    earlier = [finish for finish in steps["finish_ns"] if finish <= inside[0][0]]
    later = [start for start in steps["start_ns"] if start >= inside[-1][1]]
    return max([after, *earlier]), min([until, end, *later])


def counted(outcome: Outcome, window: dict[str, Any]) -> dict[str, float | None]:
    """Return numbers of a summary, counted from the tables of a run without a window."""
    tables = {name: pd.DataFrame(dict(c)) for name, c in result_of(outcome.plan).columns.items()}
    requests, steps, timeline = (tables[name] for name in ("requests", "steps", "timeline"))
    start, stop = borders(requests, steps, window)
    inside = steps[(steps["finish_ns"] > start) & (steps["finish_ns"] <= stop)]
    earliest = start if start else -1
    done = requests[requests["status"] == "finished"]
    done = done[(done["finish_ns"] > earliest) & (done["finish_ns"] <= stop)]
    tokens = [time for row in requests["token_ns"] for time in row if earliest < time <= stop]
    begun = requests[(requests["first_token_ns"] > earliest) & (requests["first_token_ns"] <= stop)]
    in_steps = int((inside["finish_ns"] - inside["start_ns"]).sum())
    landed = timeline[timeline["step"].isin(inside["step"])]
    expert = outcome.plan.cost.expert_bytes
    seconds = (stop - start) / 1e9
    e2e = (done["finish_ns"] - done["arrival_ns"]) / 1e6
    accesses = int(inside["accesses"].sum())
    return {
        "window_from_s": start / 1e9,
        "window_to_s": stop / 1e9,
        "window_s": seconds,
        "window_requests": len(done),
        "preemptions": int(done["preemptions"].sum()),
        "output_tokens": len(tokens),
        "output_tokens_per_s": len(tokens) / seconds,
        "tokens_per_s": (len(tokens) + int(begun["prompt_tokens"].sum())) / seconds,
        "requests_per_s": len(done) / seconds,
        "e2e_mean_ms": float(e2e.mean()) if len(done) else None,
        "e2e_p95_ms": float(np.percentile(e2e, 95)) if len(done) else None,
        "wait_max_steps": int(done["wait_steps"].max()) if len(done) else None,
        "steps": len(inside),
        **{key: int(inside[key].sum()) for key in ("accesses", "hits", "late_hits", "misses")},
        "expert_hit_rate": (inside["hits"] + inside["late_hits"]).sum() / accesses,
        "demand_bytes": int((landed["kind"] == "demand").sum()) * expert,
        "prefetch_bytes": int((landed["kind"] == "prefetch").sum()) * expert,
        "busy_s": (in_steps - int(inside["stall_ns"].sum())) / 1e9,
        "stall_s": int(inside["stall_ns"].sum()) / 1e9,
        "idle_s": seconds - in_steps / 1e9,
    }


def random_window(rng: random.Random, outcome: Outcome) -> dict[str, Any]:
    """Return a window with a step inside, by requests or by time."""
    ends = sorted(r.token_ns[-1] for r in outcome.requests if r.status == "finished")
    if rng.random() < 0.5:
        cut = rng.randrange(len(ends)), rng.randrange(len(ends))
        skipped, last = cut if sum(cut) < len(ends) else (0, 0)
        if not skipped or ends[skipped - 1] < ends[-1 - last]:
            return {"skip_requests": skipped, "last": last}
    columns = outcome.ledger.step_columns()
    first = rng.randrange(len(columns["step"]))
    last = rng.randrange(first, len(columns["step"]))
    slack = rng.choice([0, 0, 1, 10**5, 10**9])
    after = max(0, int(columns["start_ns"][first]) - slack)
    return {"after": f"{after}ns", "until": f"{int(columns['finish_ns'][last]) + slack}ns"}


def cases(seed: int) -> tuple[dict[str, Any], Any]:
    """Return a random case, or one whose steps are timed at once: nothing is prefetched."""
    scenario, trace = random_case(4000 + seed)
    if seed % 2:
        scenario["prefetch"], scenario["replay"] = {"policy": "none"}, "atomic"
        scenario["cache"] = {"policy": "lru", "slots": scenario["cache"]["slots"]}
    if seed % 5 == 4:
        scenario["workload"]["prefill"] = "skip"
    return scenario, trace


@pytest.mark.parametrize("seed", range(80))
def test_a_window_counts_what_the_tables_say(seed: int) -> None:
    case = cases(seed)
    whole = outcome_of(case)
    if not whole.ledger.num_steps:
        return  # with a skipped prefill, requests of one token need no step
    window = random_window(random.Random(seed), whole)
    summary = summarise(outcome_of(case, window))
    for key, value in counted(whole, window).items():
        if value is None or summary[key] is None:
            assert summary[key] is value, (key, window)
        else:
            assert summary[key] == pytest.approx(value, rel=1e-12, abs=1e-12), (key, window)


@pytest.mark.parametrize("seed", range(20))
def test_a_window_over_everything_equals_no_window(seed: int) -> None:
    case = cases(seed)
    whole = outcome_of(case)
    plain = {k: v for k, v in summarise(whole).items() if k not in ("caveats", "notes")}
    end = f"{whole.now_ns}ns"
    for window in ({"skip_requests": 0}, {"after": "0ns"}, {"after": "0ns", "until": end}):
        if whole.ledger.num_steps:
            found = summarise(outcome_of(case, window))
            assert {key: found[key] for key in plain} == plain


def added(one: Any, other: Any) -> Any:
    """Return the sum of two numbers, or of each number of two dictionaries with the same keys."""
    if not isinstance(one, dict):
        return one + other
    assert one.keys() == other.keys()
    return {name: one[name] + other[name] for name in one}


@pytest.mark.parametrize("seed", range(30))
def test_the_sums_of_two_windows_are_those_of_the_run(seed: int) -> None:
    case = cases(seed)
    whole = outcome_of(case)
    finishes = whole.ledger.step_columns()["finish_ns"].tolist()
    if len(finishes) < 2:
        return
    cut = f"{random.Random(seed).choice(finishes[:-1])}ns"
    parts = [window_of(outcome_of(case, {border: cut})) for border in ("until", "after")]
    first, second = (part.totals for part in parts)
    total = totals_of(whole.ledger)
    for name in Totals.__dataclass_fields__:
        both = getattr(first, name), getattr(second, name)
        together = max(both) if name == "waves_max" else added(*both)
        assert together == getattr(total, name), name
    counts = [len(part.finished(whole.requests)) for part in parts]
    assert sum(counts) == sum(request.status == "finished" for request in whole.requests)
    assert parts[0].to_ns <= parts[1].from_ns


@pytest.mark.parametrize("seed", range(1, 40, 2))
def test_steps_timed_at_once_add_to_a_window_what_single_events_add(seed: int) -> None:
    scenario, trace = cases(seed)
    whole = outcome_of((scenario, trace))
    if not whole.ledger.num_steps:
        return
    window = random_window(random.Random(seed), whole)
    plan = plan_of({**scenario, "metrics": {"window": window}}, trace)
    at_once, single = (run_on(plan, machine) for machine in (SimMachine, EventMachine))
    assert window_of(at_once) == window_of(single)


@pytest.mark.parametrize("seed", range(12))
def test_a_window_changes_no_sum_of_the_whole_run(seed: int) -> None:
    case = cases(seed)
    whole = outcome_of(case)
    assert totals_of(outcome_of(case, {"skip_requests": 0}).ledger) == totals_of(whole.ledger)


def test_copies_that_land_after_the_last_step_are_in_a_window_to_the_end(tmp_path: Path) -> None:
    """A late request is rejected, and until it arrives the last prefetches land."""
    arrivals = tmp_path / "arrivals.csv"
    lines = "arrival_s,prompt_tokens,output_tokens\n0,4,2\n10,4000,2\n"
    arrivals.write_text(lines, encoding="utf-8")
    scenario = tiny_scenario(
        hardware={"profile": "rtx-4090", "h2d": {"bandwidth": "300MB/s"}},
        memory={"kv": 20 * 8192, "kv_block_tokens": 1},
        cache={"slots": 30},
        prefetch={"policy": "predicted", "options": {"depth": 2}},
        workload={"arrivals": {"kind": "csv", "path": str(arrivals)}},
    )
    case = scenario, tiny_trace(requests=2)
    whole, window = outcome_of(case), outcome_of(case, {"skip_requests": 0})
    assert window.now_ns > max(window.ledger.step_columns()["finish_ns"])
    assert window_of(window).totals == totals_of(whole.ledger)
    steps_alone = window.ledger.per_step.of(window.ledger, range(whole.ledger.num_steps))
    moved = steps_alone.moved_bytes["prefetch"]
    assert moved < totals_of(whole.ledger).moved_bytes["prefetch"]


def test_borders_are_moved_to_where_no_step_runs() -> None:
    case = tiny_scenario(), tiny_trace(requests=2, prompt_tokens=3, output_tokens=6)
    columns = outcome_of(case).ledger.step_columns()
    starts, finishes = columns["start_ns"].tolist(), columns["finish_ns"].tolist()
    window = {"after": f"{starts[1] + 1}ns", "until": f"{finishes[4] - 1}ns"}
    summary = summarise(outcome_of(case, window))
    assert summary["steps"] == 2
    assert (summary["window_from_s"], summary["window_to_s"]) == (starts[2] / 1e9, starts[4] / 1e9)


def test_requests_that_end_at_time_zero_are_left_out_where_the_window_skips_them() -> None:
    """With a skipped prefill, a request of one token ends on arrival, before any step."""
    rows = np.tile([0, 1], (27, 4, 1))
    trace = costed_trace(rows, seq_len=[3, 3, 3, 9, 9], prompt_tokens=[3, 3, 3, 4, 4])
    workload = {"prefill": "skip"}
    case = tiny_scenario(workload=workload), trace
    assert [r.token_ns[-1] for r in outcome_of(case).requests][:3] == [0, 0, 0]
    counts = {skip: summarise(outcome_of(case, {"skip_requests": skip})) for skip in (0, 2, 3)}
    assert [summary["window_requests"] for summary in counts.values()] == [5, 2, 2]
    assert [summary["output_tokens"] for summary in counts.values()] == [15, 10, 10]


def test_whatever_is_of_the_whole_run_stays_the_same() -> None:
    scenario = tiny_scenario(
        batching={"max_sequences": 1}, prefetch="predicted", cache={"slots": 9}
    )
    case = scenario, tiny_trace(requests=5, prompt_tokens=3, output_tokens=4)
    window = {"skip_requests": 1, "last": 1}
    whole, part = summarise(outcome_of(case)), summarise(outcome_of(case, window))
    assert {key: part[key] for key in WHOLE_RUN} == {key: whole[key] for key in WHOLE_RUN}
    assert part["steps"] < whole["steps"]


# --- windows that are refused ---------------------------------------------------------------------


def case_of_three() -> tuple[dict[str, Any], Any]:
    return tiny_scenario(), tiny_trace(requests=3, prompt_tokens=3, output_tokens=4)


def test_a_window_without_requests_is_refused_before_the_run() -> None:
    scenario, trace = case_of_three()
    metrics = {"window": {"skip_requests": 2, "last": 1}}
    with pytest.raises(ScenarioError, match="the first 2 and the last 1 of 3 requests"):
        plan_of({**scenario, "metrics": metrics}, trace)


@pytest.mark.parametrize(
    "window", [{"after": "10s"}, {"until": "1ns"}, {"after": "1ns", "until": "2ns"}], ids=str
)
def test_a_window_without_steps_is_refused_after_the_run(window: dict[str, str]) -> None:
    with pytest.raises(ScenarioError, match=r"metrics\.window: has no step inside; the run lasts"):
        summarise(outcome_of(case_of_three(), window))


def test_requests_that_finish_in_one_step_leave_no_window_between_them() -> None:
    scenario, trace = tiny_scenario(), static_trace(tiny_trace(requests=3, prompt_tokens=1))
    same = {"lengths": {"prompt": 1, "output": 3}}
    window = {"skip_requests": 1, "last": 1}
    with pytest.raises(ScenarioError, match=r"no step inside; .* finishes 3 requests"):
        summarise(outcome_of(({**scenario, "workload": same}, trace), window))


@pytest.mark.parametrize(
    ("window", "message"),
    [
        ("{skip_requests: 1, after: 1s}", "either requests .* or times .*, not both"),
        ("{after: 2s, until: 1s}", "until must be later than after"),
        ("{from: 1s}", "from"),
    ],
)
def test_a_window_of_two_forms_is_refused(tmp_path: Path, window: str, message: str) -> None:
    trace = tmp_path / "trace"
    tiny_trace().save(trace)
    file = tmp_path / "window.yaml"
    text = f"trace: {trace}\nhardware: t4\nmetrics: {{window: {window}}}\n"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ScenarioError, match=f"window.yaml:3.*{message}"):
        load_scenario(file)


# --- what reports say -----------------------------------------------------------------------------


def test_reports_name_the_window_and_draw_no_bounds_beside_it(tmp_path: Path) -> None:
    from moesim.report.comparison import compare_runs
    from moesim.report.limits import HIT_LIMITS, TIME_LIMITS
    from moesim.report.several import TICKS, side_by_side

    trace = tiny_trace(requests=4, prompt_tokens=3, output_tokens=4)
    trace.save(tmp_path / "trace")
    data = tiny_scenario(
        trace=str(tmp_path / "trace"),
        bounds=True,
        cache={"slots": 8},
        batching={"max_sequences": 1},
    )
    windows = {"whole": "whole", "part": {"skip_requests": 1, "last": 1}}
    runs = {}
    for name, window in windows.items():
        run({**data, "metrics": {"window": window}}, out=tmp_path / name)
        runs[name] = load_run(tmp_path / name)
    short = "numbers are without the first 1 and the last 1 requests"
    assert short in run_caption(runs["part"])
    assert "numbers are" not in run_caption(runs["whole"])
    assert short in compare_runs([runs["part"]]).caption()
    setup, *_ = summary_tables(runs["part"])
    assert any(row[0].text == "window" for row in setup.rows)
    assert not any(row[0].text == "window" for row in summary_tables(runs["whole"])[0].rows)
    for bound in (*HIT_LIMITS.values(), *TIME_LIMITS.values()):
        assert np.isnan(bound(runs["part"]))
        assert not np.isnan(bound(runs["whole"]))
    none = "Bounds are of whole runs, so these windows have none."
    assert none in side_by_side(compare_runs([runs["part"]])).caption
    for some in ([runs["whole"]], list(runs.values())):
        assert TICKS in side_by_side(compare_runs(some)).caption


def test_charts_of_a_window_draw_its_requests_and_say_what_is_of_the_whole_run(
    tmp_path: Path,
) -> None:
    from moesim.report.distribution import latencies_ns
    from moesim.report.single import hits_by_layer, stall_breakdown

    trace = tiny_trace(requests=6, prompt_tokens=3, output_tokens=4)
    trace.save(tmp_path / "trace")
    data = tiny_scenario(
        trace=str(tmp_path / "trace"), cache={"slots": 8}, batching={"max_sequences": 1}
    )
    runs = {}
    for name, window in {"whole": "whole", "part": {"skip_requests": 2, "last": 1}}.items():
        run({**data, "metrics": {"window": window}}, out=tmp_path / name)
        runs[name] = load_run(tmp_path / name)
    for each, count in zip(runs.values(), (6, 3), strict=True):
        samples = latencies_ns(each)
        assert len(samples["e2e"]) == count
        assert len(samples["itl"]) == 3 * count
        for latency, sample in samples.items():
            p95_ms = np.percentile(sample, 95) / 1e6
            assert p95_ms == pytest.approx(each.value(f"{latency}_p95_ms")), latency
    lines = {}
    for name, each in runs.items():
        (legend,) = hits_by_layer(each).figure.legends
        lines[name] = [text.get_text() for text in legend.get_texts()][-1]
        for chart in (hits_by_layer(each), stall_breakdown(each)):
            assert ("over the whole run, not only its window" in chart.caption) == each.windowed
    assert lines["whole"] == lines["part"]
    assert runs["whole"].value("expert_hit_rate") != runs["part"].value("expert_hit_rate")


def test_notes_name_only_what_a_window_leaves_out() -> None:
    scenario, trace = case_of_three()
    few = {**scenario, "batching": {"max_sequences": 1}}
    for window, left_out in (({"skip_requests": 1}, "first 1"), ({"last": 2}, "last 2")):
        assert (
            f"numbers are without the {left_out} requests"
            in (summarise(outcome_of((few, trace), window))["caveats"])
        )
    assert (
        summarise(outcome_of((scenario, trace), {"skip_requests": 0}))["caveats"]
        == (summarise(outcome_of((scenario, trace)))["caveats"])
    )
