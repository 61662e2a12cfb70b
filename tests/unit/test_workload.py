"""Which requests arrive, when, how long they are and which trace rows they replay."""

from __future__ import annotations

import csv
import math
import os
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from costed_traces import costed_trace
from hypothesis import given, settings
from hypothesis import strategies as st
from watched_machines import enlist
from workloads import plan_of, run_on, tiny_scenario, tiny_trace

from moesim.errors import ScenarioError, WorkloadError
from moesim.hardware import BatchShape
from moesim.policies.eviction import Random
from moesim.policies.view import View
from moesim.scenario import Scenario
from moesim.serving.request import Request
from moesim.serving.step import Step
from moesim.simulate import simulate, summarise
from moesim.streams import stream
from moesim.trace import Trace
from moesim.workload import request_file, supply
from moesim.workload.workload import build_workload


def workload(trace: Trace, seed: int = 0, **section: Any) -> list[Request]:
    return build_workload(
        Scenario.model_validate(tiny_scenario(workload=section, seed=seed)), trace
    )


def arrivals_s(requests: list[Request]) -> Any:
    return np.array([request.arrival_ns for request in requests]) / 1e9


# --- arrivals -------------------------------------------------------------------------------------

COUNT = 40_000
_Z = 4.0  # standard deviations; the seed is fixed, so a test that passes always passes


@pytest.fixture(scope="module")
def single() -> Trace:
    return tiny_trace(requests=1, prompt_tokens=1, output_tokens=1)


@pytest.mark.parametrize("rate", [0.5, 40.0])
def test_poisson_gaps_are_exponential_with_the_stated_rate(single: Trace, rate: float) -> None:
    requests = workload(single, requests=COUNT, arrivals={"kind": "poisson", "rate_per_s": rate})
    gaps = np.diff(arrivals_s(requests), prepend=0) * rate
    assert len(gaps) == COUNT
    assert abs(gaps.mean() - 1) < _Z / math.sqrt(COUNT)
    # The squared coefficient of variation of n exponentials is 1 with a deviation of sqrt(8 / n).
    assert abs(gaps.var() / gaps.mean() ** 2 - 1) < _Z * math.sqrt(8 / COUNT)
    # The whole distribution, by Kolmogorov and Smirnov at a significance of 1e-4.
    expected = 1 - np.exp(-np.sort(gaps))
    assert np.abs(expected - np.arange(COUNT) / COUNT).max() < 2.23 / math.sqrt(COUNT)


@pytest.mark.parametrize("burstiness", [0.5, 1.0, 3.0])
def test_gamma_gaps_have_the_stated_rate_and_burstiness(single: Trace, burstiness: float) -> None:
    requests = workload(
        single,
        requests=COUNT,
        arrivals={"kind": "gamma", "rate_per_s": 8.0, "burstiness": burstiness},
    )
    gaps = np.diff(arrivals_s(requests), prepend=0) * 8.0
    assert abs(gaps.mean() - 1) < _Z * burstiness / math.sqrt(COUNT)
    squared = burstiness**2
    # Gamma of mean 1: the variance has a relative deviation of sqrt((2 + 6 c²) / n).
    assert abs(gaps.var() - squared) < _Z * squared * math.sqrt((2 + 6 * squared) / COUNT)


def test_all_at_once_is_time_zero(single: Trace) -> None:
    assert {request.arrival_ns for request in workload(single, requests=5)} == {0}


def test_recorded_arrivals_start_at_zero_in_order_and_scale() -> None:
    trace = costed_trace(
        np.zeros((4, 1, 1), int),
        seq_len=[1] * 4,
        arrival_s=[7.5, 5.0, 6.0, 5.0],
        domain=list("abcd"),
    )
    plain = workload(trace, arrivals="recorded")
    assert [request.arrival_ns for request in plain] == [0, 0, 1_000_000_000, 2_500_000_000]
    assert [request.domain for request in plain] == ["b", "d", "c", "a"]
    assert [request.index for request in plain] == [0, 1, 2, 3]
    scaled = workload(trace, arrivals={"kind": "recorded", "time_scale": 0.5})
    assert [request.arrival_ns for request in scaled] == [0, 0, 500_000_000, 1_250_000_000]


def test_a_trace_without_arrival_times_cannot_replay_them() -> None:
    trace = costed_trace(np.zeros((2, 1, 1), int), seq_len=[1, 1], arrival_s=[1.0, math.nan])
    with pytest.raises(ScenarioError, match=r"workload\.arrivals: the trace records no arrival"):
        workload(trace, arrivals="recorded")


# --- csv ------------------------------------------------------------------------------------------


def from_csv(
    folder: Path, text: str, trace: Trace | None = None, *, requests: int | None = None, **how: Any
) -> list[Request]:
    path = folder / "arrivals.csv"
    path.write_text(text, encoding="utf-8", newline="")
    arrivals = {"kind": "csv", "path": str(path), **how}
    return workload(trace or tiny_trace(requests=2), arrivals=arrivals, requests=requests)


PLAIN = "arrival_s,prompt_tokens,output_tokens\n"
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def test_a_plain_csv_gives_arrivals_and_lengths(tmp_path: Path) -> None:
    requests = from_csv(tmp_path, PLAIN + "0.25,3,2\n0.25,1,1\n1.5,40,7\n")
    assert [
        (request.arrival_ns, request.prompt_tokens, request.output_tokens) for request in requests
    ] == [
        (0, 3, 2),  # times count from the first arrival
        (0, 1, 1),
        (1_250_000_000, 40, 7),
    ]
    assert [len(request.rows) for request in requests] == [4, 1, 46]


def test_columns_may_come_in_any_order_and_with_others(tmp_path: Path) -> None:
    text = "note,output_tokens,arrival_s,prompt_tokens\r\nx,2,0.5,3\r\ny,4,1.0,5\r\n"
    requests = from_csv(tmp_path, "\ufeff" + text, time_scale=2.0)
    assert [(it.arrival_ns, it.prompt_tokens, it.output_tokens) for it in requests] == [
        (0, 3, 2),
        (1_000_000_000, 5, 4),
    ]


def test_an_azure_csv_has_seven_digits_of_a_second(tmp_path: Path) -> None:
    text = AZURE + (
        "2023-11-16 18:17:03.9799600,4808,10\r\n"
        "2023-11-16 18:17:04.0319600,3180,8\r\n"
        "2023-11-16 18:17:04.0319601,110,27\r\n"
        "2023-11-16 18:18:04,1,1\r\n"
    )
    requests = from_csv(tmp_path, text, format="azure")
    assert [request.arrival_ns for request in requests] == [
        0,
        52_000_000,
        52_000_100,
        60_020_040_000,
    ]
    assert [request.prompt_tokens for request in requests] == [4808, 3180, 110, 1]
    assert [request.output_tokens for request in requests] == [10, 8, 27, 1]
    slow = from_csv(tmp_path, text, format="azure", time_scale=10.0)
    assert [request.arrival_ns for request in slow] == [
        0,
        520_000_000,
        520_001_000,
        600_200_400_000,
    ]


def test_the_real_azure_trace_is_read_whole(shared: Path) -> None:
    path = shared / "data/requests/AzureLLMInferenceTrace_code.csv"
    trace = tiny_trace(requests=1, prompt_tokens=9000, output_tokens=1)
    arrivals = {"kind": "csv", "path": str(path), "format": "azure"}
    requests = workload(trace, arrivals=arrivals)
    with path.open(newline="", encoding="utf-8-sig") as handle:
        rows = list(csv.DictReader(handle))
    assert len(requests) == len(rows) > 8000
    assert sum(request.prompt_tokens for request in requests) == sum(
        int(r["ContextTokens"]) for r in rows
    )
    assert sum(request.output_tokens for request in requests) == sum(
        int(r["GeneratedTokens"]) for r in rows
    )
    # Ten million ticks a second, by another route than the code's.
    ticks = []
    for row in rows:
        clock, _, digits = row["TIMESTAMP"].partition(".")
        hours, minutes, seconds = clock.split()[1].split(":")
        whole = (int(hours) * 60 + int(minutes)) * 60 + int(seconds)
        ticks.append(whole * 10**7 + int(digits.ljust(7, "0")))
    assert [request.arrival_ns for request in requests] == [
        (tick - ticks[0]) * 100 for tick in ticks
    ]
    few = workload(trace, arrivals=arrivals, requests=50)
    assert [request.arrival_ns for request in few] == [
        request.arrival_ns for request in requests[:50]
    ]


BAD_LINES = [
    ("plain", PLAIN + "0,1,1\n0.5,x,1\n", 3, "'x'"),
    ("plain", PLAIN + "0,1,1\n-1,1,1\n", 3, "≥ 0"),
    ("plain", PLAIN + "nan,1,1\n", 2, "≥ 0"),
    ("plain", PLAIN + "inf,1,1\n", 2, "≥ 0"),
    ("plain", PLAIN + "0,0,1\n", 2, "at least 1"),
    ("plain", PLAIN + "0,1,0\n", 2, "at least 1"),
    ("plain", PLAIN + "0,1.5,1\n", 2, "1.5"),
    ("plain", PLAIN + "0,1,1\n1,1" + "0" * 400 + ",1\n", 3, "too large"),
    ("plain", PLAIN + "0,1\n", 2, "has 2 cells, and the header has 3"),
    ("plain", PLAIN + "0,1,1\n0,1,1,1\n", 3, "has 4 cells, and the header has 3"),
    ("plain", PLAIN + "0,1, \n", 2, "column 'output_tokens' is empty"),
    ("plain", PLAIN + "0,1_0,1\n", 2, "'1_0'"),
    ("plain", PLAIN + "1_0,1,1\n", 2, "'1_0'"),
    ("plain", PLAIN + "0,\uff11\uff12,1\n", 2, "must be a whole number"),
    ("plain", PLAIN + "0,\u0663,1\n", 2, "must be a whole number"),
    ("plain", PLAIN + "\uff11,1,1\n", 2, "must be seconds"),
    ("plain", PLAIN + "0,+1,1\n", 2, "'+1'"),
    ("plain", PLAIN + "+0,1,1\n", 2, "'+0'"),
    ("plain", PLAIN + "0,0x10,1\n", 2, "'0x10'"),
    ("plain", PLAIN + "0x1p3,1,1\n", 2, "'0x1p3'"),
    ("plain", PLAIN + "0,1e3,1\n", 2, "'1e3'"),
    ("plain", PLAIN + "1e400,1,1\n", 2, "'1e400'"),
    ("plain", PLAIN + "infinity,1,1\n", 2, "≥ 0"),
    ("plain", PLAIN + "0,\u00a01,1\n", 2, "must be a whole number"),
    ("plain", PLAIN + "0,1,1\n0,1\0,1\n", 3, "NUL"),
    ("plain", PLAIN + '0,"1,1\n', 2, "cannot be read"),
    ("plain", PLAIN + '0,"1"x,1\n', 2, "cannot be read"),
    ("plain", PLAIN + "0,1," + "1" * 200_000 + "\n", 2, "longer than"),
    ("plain", "arrival_s,prompt_tokens,output_tokens,arrival_s\n0,1,1,9\n", 1, "several columns"),
    ("azure", AZURE + "\uff12023-11-16 18:17:03,1,1\n", 2, "no UTC time"),
    ("plain", PLAIN + ",1,1\n", 2, "column 'arrival_s' is empty"),
    ("plain", PLAIN + "soon,1,1\n", 2, "soon"),
    ("plain", PLAIN + "5,1,1\n4,1,1\n", 3, "before"),
    ("plain", PLAIN + "5,1,1\n\n\n4,1,1\n", 5, "before"),
    ("plain", PLAIN, 1, "no requests"),
    ("plain", "", 1, "no column 'arrival_s'"),
    ("plain", AZURE + "2023-11-16 18:17:03,1,1\n", 1, "those of `format: azure`"),
    ("azure", PLAIN + "0,1,1\n", 1, "no column 'TIMESTAMP'"),
    ("azure", AZURE + "2023-11-16 18:17:03,1,1\nyesterday,1,1\n", 3, "yesterday"),
    ("azure", AZURE + "2023-13-16 18:17:03,1,1\n", 2, "2023-13-16"),
    ("azure", AZURE + ",1,1\n", 2, "column 'TIMESTAMP' is empty"),
    ("azure", AZURE + "2023-11-16 18:17:03+02:00,1,1\n", 2, "no UTC time"),
    ("azure", AZURE + "NaT,1,1\n", 2, "NaT"),
    ("azure", AZURE + "now,1,1\n", 2, "now"),
    ("azure", AZURE + "2023-11-16 18:17:03,1,1\n2023-11-16 18:17:02,1,1\n", 3, "before"),
]


@pytest.mark.parametrize(("kind", "text", "line", "reason"), BAD_LINES)
def test_a_bad_line_of_a_csv_is_named(
    tmp_path: Path, kind: str, text: str, line: int, reason: str
) -> None:
    with pytest.raises(ScenarioError) as caught:
        from_csv(tmp_path, text, format=kind)
    (problem,) = caught.value.problems
    assert f"{tmp_path / 'arrivals.csv'}:{line}: " in problem
    assert reason in problem
    assert caught.value.exit_code == 2


def test_times_of_the_later_azure_traces_carry_their_zone(tmp_path: Path) -> None:
    text = AZURE + "2024-05-10 00:00:00.009930+00:00,2162,5\n2024-05-10T00:00:00.017335Z,2399,6\n"
    assert [request.arrival_ns for request in from_csv(tmp_path, text, format="azure")] == [
        0,
        7_405_000,
    ]


def test_an_arrival_too_late_to_count_in_nanoseconds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"workload\.arrivals: .* after 1e\+12 s, too late"):
        from_csv(tmp_path, PLAIN + "0,1,1\n1e9,1,1\n", time_scale=1000.0)
    with pytest.raises(ScenarioError, match="too late"):
        workload(tiny_trace(requests=1), arrivals={"kind": "poisson", "rate_per_s": 1e-12})


@pytest.mark.parametrize("rate", [1e-300, 5e-324])
@pytest.mark.parametrize("burstiness", [1e-200, 4.0, 1e17])
def test_no_rate_or_burstiness_is_a_crash(rate: float, burstiness: float) -> None:
    arrivals = {"kind": "gamma", "rate_per_s": rate, "burstiness": burstiness}
    with pytest.raises(ScenarioError, match="too late"):
        workload(tiny_trace(requests=2), arrivals=arrivals)


def test_gaps_of_next_to_no_burstiness_are_even() -> None:
    arrivals = {"kind": "gamma", "rate_per_s": 10.0, "burstiness": 1e-200}
    requests = workload(tiny_trace(requests=3), arrivals=arrivals)
    assert [request.arrival_ns for request in requests] == [10**8, 2 * 10**8, 3 * 10**8]


def test_a_workload_that_no_memory_could_hold_is_refused() -> None:
    too_many: list[dict[str, Any]] = [
        {"lengths": {"prompt": 10**9, "output": 1}},
        {"requests": 1000, "lengths": {"prompt": 1, "output": 10**6}},
        {"lengths": {"prompt": 2**62, "output": 2**62}},
    ]
    for section in too_many:
        with pytest.raises(ScenarioError, match="at most 250,000,000 are simulated"):
            workload(tiny_trace(requests=1), **section)
    for requests in (1_000_001, 4 * 10**18):
        with pytest.raises(ScenarioError, match="requests or more; at most 1,000,000 are simul"):
            workload(tiny_trace(requests=1), requests=requests)


def test_a_csv_of_too_many_requests_is_refused_unless_few_of_them_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_file, "MOST_REQUESTS", 3)
    with pytest.raises(ScenarioError, match=r"arrivals\.csv:5: is request 4; at most 3 .* once"):
        from_csv(tmp_path, PLAIN + "0,1,1\n" * 9)
    assert len(from_csv(tmp_path, PLAIN + "0,1,1\n" * 9, requests=2)) == 2


def test_spaces_and_exponents_of_a_csv_are_read(tmp_path: Path) -> None:
    _, request = from_csv(tmp_path, PLAIN + "0,1,1\n 1e-05,\t03, 2 \r\n")
    assert (request.arrival_ns, request.prompt_tokens, request.output_tokens) == (10_000, 3, 2)


@pytest.mark.parametrize("kind", ["pipe", "device", "loop", "folder"])
def test_a_csv_that_is_no_regular_file_is_refused_without_waiting(
    kind: str, tmp_path: Path
) -> None:
    path = tmp_path / "arrivals.csv"
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "loop":
            path.symlink_to(path)
        case "folder":
            path.mkdir()
    with pytest.raises(ScenarioError, match=r"arrivals\.csv:1: cannot be read"):
        workload(tiny_trace(requests=1), arrivals={"kind": "csv", "path": str(path)})


@given(data=st.binary(max_size=60) | st.text('0123456789.,+-eE_xn"\n\r \0\uff11').map(str.encode))
def test_any_bytes_are_arrivals_or_one_line(data: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "arrivals.csv"
        path.write_bytes(PLAIN.encode() + data)
        try:
            read = request_file.read_requests(path, request_file.Reading("plain")).requests
        except WorkloadError as error:
            said = error.reason
            assert said
            assert "\n" not in said
        else:
            assert all(
                (request.arrival_ns or 0) >= 0 and request.prompt_tokens >= 1 for request in read
            )


def test_a_csv_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "arrivals.csv"
    path.write_bytes(b"\xff\xfe\x00binary")
    with pytest.raises(ScenarioError, match=r"arrivals\.csv:1: cannot be read"):
        workload(tiny_trace(requests=1), arrivals={"kind": "csv", "path": str(path)})
    path.unlink()
    with pytest.raises(ScenarioError, match=r"arrivals\.csv:1: cannot be read"):
        workload(tiny_trace(requests=1), arrivals={"kind": "csv", "path": str(path)})


# --- which requests -------------------------------------------------------------------------------


def many(requests: int = 12) -> Trace:
    """Return a trace of requests with one row each, of alternating domains."""
    return costed_trace(
        np.zeros((requests, 1, 1), int),
        seq_len=[1] * requests,
        domain=["code", "prose"] * (requests // 2),
    )


def sources(requests: list[Request]) -> list[int]:
    return [int(request.rows[0]) for request in requests]


def test_the_recorded_order_repeats_where_it_is_too_short() -> None:
    assert sources(workload(many())) == list(range(12))
    assert sources(workload(many(), requests=5)) == [0, 1, 2, 3, 4]
    assert sources(workload(many(), requests=14)) == [*range(12), 0, 1]


def test_a_shuffled_order_is_a_permutation_of_its_own_for_each_seed() -> None:
    orders = [sources(workload(many(), seed, order="shuffled")) for seed in range(5)]
    assert all(sorted(order) == list(range(12)) for order in orders)
    assert len({tuple(order) for order in orders}) == 5
    assert orders[3] == sources(workload(many(), 3, order="shuffled"))
    fewer = sources(workload(many(), 3, order="shuffled", requests=4))
    assert fewer == orders[3][:4]


def test_a_resampled_order_draws_with_replacement() -> None:
    drawn = sources(workload(many(), 1, order="resampled", requests=6000))
    counts = np.bincount(drawn, minlength=12)
    expected = 6000 / 12
    assert ((counts - expected) ** 2 / expected).sum() < 33.1  # chi², 11 degrees, 0.05 %
    assert drawn == sources(workload(many(), 1, order="resampled", requests=6000))
    assert drawn != sources(workload(many(), 2, order="resampled", requests=6000))


def test_domains_restrict_the_pool_and_unknown_ones_are_refused() -> None:
    requests = workload(many(), domains=["prose"])
    assert sources(requests) == [1, 3, 5, 7, 9, 11]
    assert {request.domain for request in requests} == {"prose"}
    with pytest.raises(ScenarioError, match=r"no domain 'poetry'; it has code, prose"):
        workload(many(), domains=["prose", "poetry"])


# --- which rows -----------------------------------------------------------------------------------


def domains_trace() -> Trace:
    """Return requests of 3, 2 and 4 rows; the first and the last have the same domain."""
    return costed_trace(
        np.zeros((9, 1, 1), int),
        seq_len=[3, 2, 4],
        prompt_tokens=[2, 1, 2],
        domain=["code", "prose", "code"],
    )


def test_a_request_longer_than_its_recording_continues_in_its_domain() -> None:
    first, second, third = workload(domains_trace(), lengths={"prompt": 4, "output": 6})
    assert first.rows.tolist() == [0, 1, 2, 5, 6, 7, 8, 0, 1]
    assert second.rows.tolist() == [3, 4] * 4 + [3]
    assert third.rows.tolist() == [5, 6, 7, 8, 0, 1, 2, 5, 6]
    assert [request.tiled_rows for request in (first, second, third)] == [6, 7, 5]


def test_tiling_stays_within_the_chosen_domains() -> None:
    (only,) = workload(domains_trace(), domains=["prose"], lengths={"prompt": 4, "output": 1})
    assert only.rows.tolist() == [3, 4, 3, 4]


def test_where_no_request_of_a_domain_was_decoded_prompt_rows_stand_in() -> None:
    """The request's own rows repeat; prompt rows of other requests would be no better."""
    trace = costed_trace(
        np.zeros((7, 1, 1), int), seq_len=[3, 4], prompt_tokens=[3, 4], domain="code"
    )
    first, second = workload(trace, prefill="skip", lengths={"prompt": 2, "output": 8})
    assert first.rows.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert second.rows.tolist() == [3, 4, 5, 6, 3, 4, 5]
    assert (first.tiled_rows, second.tiled_rows) == (7, 7)


def test_requests_of_a_domain_that_were_not_decoded_are_passed_over() -> None:
    trace = costed_trace(
        np.zeros((7, 1, 1), int), seq_len=[2, 3, 2], prompt_tokens=[2, 1, 2], domain="code"
    )
    rows = [
        request.rows.tolist()
        for request in workload(trace, prefill="skip", lengths={"prompt": 4, "output": 6})
    ]
    assert rows == [[3, 4, 3, 4, 3]] * 3


def test_the_tiled_share_is_reported() -> None:
    trace = domains_trace()
    scenario = tiny_scenario(workload={"lengths": {"prompt": 4, "output": 6}})
    summary = summarise(run_on(plan_of(scenario, trace)))
    assert summary["tiled_share"] == pytest.approx(18 / 27)
    assert any("66.7% of the rows are tiled" in note for note in summary["notes"])
    plain = summarise(run_on(plan_of(tiny_scenario(), trace)))
    assert plain["tiled_share"] == 0
    assert not any("tiled" in note for note in plain["notes"])


def test_a_request_shorter_than_its_recording_takes_its_first_rows() -> None:
    for request, first in zip(
        workload(domains_trace(), lengths={"prompt": 1, "output": 2}), (0, 3, 5), strict=True
    ):
        assert request.rows.tolist() == [first, first + 1]
        assert request.tiled_rows == 0


@settings(max_examples=60)
@given(st.integers(1, 30), st.integers(1, 30), st.sampled_from(["recorded", "skip", "resample"]))
def test_every_request_has_exactly_the_rows_it_computes(
    prompt: int, output: int, prefill: str
) -> None:
    lengths = {"prompt": prompt, "output": output}
    for request in workload(domains_trace(), lengths=lengths, prefill=prefill):
        own = set(range(3, 5)) if request.domain == "prose" else {0, 1, 2, 5, 6, 7, 8}
        assert len(request.rows) == output - 1 + (prompt if prefill != "skip" else 0)
        assert own.issuperset(request.rows.tolist())


def absent_trace() -> Trace:
    """Return a trace with decoded rows only: 2 and 3 of them."""
    return costed_trace(
        np.zeros((5, 1, 1), int),
        seq_len=[2, 3],
        prompt_tokens=[7, 9],
        prompt_rows="absent",
        domain="code",
    )


def test_absent_prompt_rows_are_refused_unless_skipped_or_resampled() -> None:
    with pytest.raises(ScenarioError, match=r"workload\.prefill: the trace holds no prompt rows"):
        workload(absent_trace())
    skipped = workload(absent_trace(), prefill="skip")
    assert [(request.prompt_tokens, request.output_tokens) for request in skipped] == [
        (7, 3),
        (9, 4),
    ]
    assert [request.rows.tolist() for request in skipped] == [[0, 1], [2, 3, 4]]
    resampled = workload(absent_trace(), prefill="resample")
    assert [
        request.rows.tolist()[-count:] for request, count in zip(resampled, (2, 3), strict=True)
    ] == [
        [0, 1],
        [2, 3, 4],
    ]
    assert [len(request.rows) for request in resampled] == [9, 12]


def test_a_skipped_prefill_starts_with_the_first_decoded_token() -> None:
    """Its first token is there when it is scheduled; the rest takes a step each."""
    scenario = tiny_scenario(workload={"prefill": "skip"})
    outcome = run_on(plan_of(scenario, absent_trace()))
    for request, output in zip(outcome.requests, (3, 4), strict=True):
        assert len(request.token_ns) == output
        assert request.token_ns[0] == request.scheduled_ns == 0
    columns = outcome.ledger.step_columns()
    assert columns["prefill_tokens"].sum() == 0
    assert columns["tokens"].tolist() == [2, 2, 1]
    assert columns["kv_blocks"].tolist() == [2, 2, 1]  # 16 tokens a block: 8 and 10 entries
    assert any("prefill: skip" in note for note in summarise(outcome)["notes"])


def test_recorded_prompts_can_be_skipped_too() -> None:
    requests = workload(domains_trace(), prefill="skip")
    assert [request.rows.tolist() for request in requests] == [[2], [4], [7, 8]]


# --- cached prefixes ------------------------------------------------------------------------------


def test_a_request_begins_behind_the_cached_prefix_of_its_prompt() -> None:
    lengths = {"prompt": 4, "output": 3}
    plain = workload(domains_trace(), lengths=lengths)
    cached = workload(domains_trace(), lengths=lengths, cached_prefix=3)
    assert [request.position for request in cached] == [3, 3, 3]
    assert [request.rows.tolist() for request in cached] == [
        request.rows.tolist()[3:] for request in plain
    ]
    assert [request.next_rows(2).tolist() for request in cached] == [
        request.rows.tolist()[3:5] for request in plain
    ]
    # Of 6 rows each, the first request has 3 of its own, the others 2 and 4. The rest is tiled.
    assert [request.tiled_rows for request in plain] == [3, 4, 2]
    assert [request.tiled_rows for request in cached] == [3, 3, 2]


def test_the_last_token_of_a_prompt_is_computed_however_long_the_cached_prefix_is() -> None:
    for prefix in (3, 4, 1000):
        requests = workload(
            domains_trace(), lengths={"prompt": 4, "output": 3}, cached_prefix=prefix
        )
        assert [(each.position, each.tokens_wanted, each.emitted) for each in requests] == [
            (3, 1, 0)
        ] * 3
    # Prompts of 2, 1 and 2 tokens.
    assert [each.position for each in workload(domains_trace(), cached_prefix=9)] == [1, 0, 1]


@settings(max_examples=60)
@given(
    st.integers(1, 30),
    st.integers(1, 9),
    st.integers(0, 40),
    st.sampled_from(["recorded", "resample"]),
)
def test_a_cached_request_has_exactly_the_rows_that_it_computes(
    prompt: int, output: int, prefix: int, prefill: str
) -> None:
    lengths = {"prompt": prompt, "output": output}
    section: dict[str, Any] = {"lengths": lengths, "prefill": prefill}
    plain = workload(domains_trace(), **section)
    for request, whole in zip(
        workload(domains_trace(), **section, cached_prefix=prefix), plain, strict=True
    ):
        assert request.position == min(prefix, prompt - 1)
        assert request.rows.tolist() == whole.rows.tolist()[request.position :]
        assert request.max_kv_tokens - request.position == len(request.rows)
        assert request.tiled_rows <= len(request.rows)


def test_the_first_step_reads_the_kv_entries_of_the_cached_prefix() -> None:
    (request,) = workload(
        domains_trace(), requests=1, lengths={"prompt": 8, "output": 2}, cached_prefix=5
    )
    # Three rows that see 6, 7 and 8 entries; then one that sees 9.
    assert Step([(request, 3)], 0, 0).batch == BatchShape(3, 8, 6 + 7 + 8, 1)
    assert Step([(request, 1)], 1, 0).batch == BatchShape(1, 9, 9, 1)


@pytest.mark.parametrize("prefix", [0, 1, 15, 16, 90])
def test_a_run_computes_the_prompt_tokens_that_are_not_cached(prefix: int) -> None:
    section = {"lengths": {"prompt": 40, "output": 3}, "cached_prefix": prefix}
    outcome = run_on(plan_of(tiny_scenario(workload=section), domains_trace()))
    columns = outcome.ledger.step_columns()
    computed = 40 - min(prefix, 39)
    assert columns["prefill_tokens"].tolist() == [3 * computed, 0, 0]
    assert columns["decode_tokens"].tolist() == [0, 3, 3]
    # 16 tokens a block: the prefix takes memory like the rest of the prompt.
    assert columns["kv_blocks"].tolist() == [9, 9, 9]
    summary = summarise(outcome)
    assert summary["output_tokens"] == 9
    assert [len(request.token_ns) for request in outcome.requests] == [3, 3, 3]
    assert any(f"the first {prefix} prompt tokens" in note for note in summary["notes"]) == bool(
        prefix
    )


def test_a_cached_prefix_shortens_the_longest_prompt_that_a_step_must_hold() -> None:
    batching = {"token_budget": 10, "chunked_prefill": False, "long_prompts": "refuse"}
    section = {"lengths": {"prompt": 40, "output": 3}}

    def serve(prefix: int) -> None:
        cached = {**section, "cached_prefix": prefix}
        run_on(plan_of(tiny_scenario(workload=cached, batching=batching), domains_trace()))

    serve(30)
    with pytest.raises(ScenarioError, match="the longest prompt, 11 tokens, exceeds"):
        serve(29)


def test_resampled_prompts_come_from_decoded_rows_of_the_domain() -> None:
    requests = workload(
        domains_trace(), seed=4, prefill="resample", lengths={"prompt": 400, "output": 1}
    )
    assert {
        row for request in requests for row in request.rows.tolist() if request.domain == "code"
    } == {
        2,
        7,
        8,
    }
    again = workload(
        domains_trace(), seed=4, prefill="resample", lengths={"prompt": 400, "output": 1}
    )
    assert all((a.rows == b.rows).all() for a, b in zip(requests, again, strict=True))
    other = workload(
        domains_trace(), seed=5, prefill="resample", lengths={"prompt": 400, "output": 1}
    )
    assert any((a.rows != b.rows).any() for a, b in zip(requests, other, strict=True))


# --- common random numbers ------------------------------------------------------------------------


def lives(**changes: Any) -> list[tuple[Any, ...]]:
    """Return the workload of a run: arrivals, lengths and rows, without results."""
    section = {
        "requests": 30,
        "order": "resampled",
        "prefill": "resample",
        "arrivals": {"kind": "gamma", "rate_per_s": 50.0, "burstiness": 2.0},
    }
    scenario = tiny_scenario(**{"workload": section, "seed": 9, **changes})
    outcome = run_on(plan_of(scenario, tiny_trace(requests=6, prompt_tokens=3, output_tokens=3)))
    return [
        (
            request.arrival_ns,
            request.domain,
            request.prompt_tokens,
            request.output_tokens,
            request.rows.tolist(),
        )
        for request in outcome.requests
    ]


def test_no_policy_shifts_the_workload() -> None:
    """Each subsystem draws from a stream of its own: random eviction takes nothing from arrivals,
    and more caches with streams of their own take nothing either."""
    reference = lives()
    for changes in (
        {"cache": {"policy": "random", "slots": 8}},
        {"cache": {"policy": "random", "slots": 8, "scope": "global"}},
        {"cache": {"policy": "lfu", "slots": 3, "admission": "always"}},
        {"prefetch": {"policy": "predicted"}},
        {"batching": {"policy": "fcfs", "max_sequences": 2}},
        {"hardware": "t4"},
    ):
        assert lives(**changes) == reference, changes
    assert lives(seed=10) != reference


def test_arrivals_order_and_resampled_rows_draw_from_streams_of_their_own() -> None:
    trace = tiny_trace(requests=6, prompt_tokens=3, output_tokens=3)
    poisson = {"kind": "poisson", "rate_per_s": 5.0}
    plain = workload(trace, requests=20, arrivals=poisson)
    shuffled = workload(trace, requests=20, arrivals=poisson, order="shuffled")
    redrawn = workload(trace, requests=20, arrivals=poisson, prefill="resample")
    at_once = workload(trace, requests=20, order="shuffled")
    times = [request.arrival_ns for request in plain]
    assert [request.arrival_ns for request in shuffled] == times
    assert [request.arrival_ns for request in redrawn] == times
    assert sources(at_once) == sources(shuffled) != sources(plain)


def test_streams_are_told_apart_by_seed_name_and_number() -> None:
    keys: list[Any] = [(0, "arrivals"), (1, "arrivals"), (0, "eviction", 0), (0, "eviction", 1)]
    draws = {key: stream(*key).integers(1 << 62) for key in keys}
    assert len(set(draws.values())) == 4
    assert draws[0, "arrivals"] == stream(0, "arrivals").integers(1 << 62)


def test_arrivals_come_from_the_stream_of_that_name() -> None:
    """No other subsystem's numbers stand behind them."""
    trace = tiny_trace(requests=1)
    times = workload(trace, 7, requests=9, arrivals={"kind": "poisson", "rate_per_s": 2.0})
    drawn = np.cumsum(stream(7, "arrivals").exponential(1 / 2.0, 9))
    assert [request.arrival_ns for request in times] == np.rint(drawn * 1e9).astype(int).tolist()
    order = workload(many(), 7, order="resampled")
    assert sources(order) == stream(7, "request order").choice(12, 12).tolist()


def test_each_cache_draws_for_itself_and_from_its_own_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its number is part of the stream's name, so that another cache shifts none."""
    drawn: dict[int, list[int]] = {}

    class Draws(Random):
        def decide(self, view: View) -> Any:
            drawn.setdefault(view.layer, []).append(int(self._rng.integers(1 << 62)))
            return super().decide(view)

    name = enlist(monkeypatch, "eviction", Draws)
    trace = tiny_trace(requests=1, prompt_tokens=1, output_tokens=1)
    run_on(plan_of(tiny_scenario(cache={"policy": name, "slots": 8}, seed=3), trace))
    expected = {n: [int(stream(3, "eviction", n).integers(1 << 62))] for n in range(4)}
    assert drawn == expected


def test_the_random_eviction_of_another_seed_meets_other_arrivals_but_one_seed_is_one_run() -> None:
    changes = {"cache": {"policy": "random", "slots": 8}}
    assert lives(**changes, seed=3) == lives(**changes, seed=3)
    assert lives(**changes, seed=3) != lives(**changes, seed=4)


def test_a_plan_draws_its_requests_once_and_each_run_serves_new_ones() -> None:
    plan = plan_of(
        tiny_scenario(
            workload={"requests": 5, "lengths": {"prompt": 7, "output": 3}, "cached_prefix": 2}
        ),
        tiny_trace(requests=3),
    )
    assert plan.workload is not None
    first, second = simulate(plan).requests, simulate(plan).requests
    for one, other, drawn in zip(first, second, plan.workload.requests, strict=True):
        assert one is not other
        assert one.rows is other.rows is drawn.rows
        assert one.status == other.status == "finished"
        assert drawn.status == "waiting"
        assert not drawn.token_ns
    again = build_workload(plan.scenario, plan.trace)
    for one, drawn in zip(again, plan.workload.fresh(), strict=True):
        for name in Request.__slots__:
            found, expected = (np.asarray(getattr(each, name, None)) for each in (one, drawn))
            assert np.array_equal(found, expected), name


@pytest.mark.parametrize("changes", [{"seed": 9}, {"workload": {"requests": 2}}])
def test_requests_that_were_drawn_for_another_workload_are_not_served(changes: Any) -> None:
    trace = tiny_trace(requests=4)
    plan = plan_of(tiny_scenario(), trace)
    other = plan_of(tiny_scenario(**changes), trace)
    assert plan.workload is not None
    assert plan.workload.fits(plan.scenario, trace)
    assert not plan.workload.fits(other.scenario, trace)
    assert not plan.workload.fits(plan.scenario, tiny_trace(requests=4))
    served = simulate(replace(plan, scenario=other.scenario)).requests
    assert len(served) == len(simulate(other).requests)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("prefill", ["recorded", "skip"])
def test_tiled_requests_continue_with_the_next_ones_of_their_domain_round_and_round(
    shared: bool, prefill: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not shared:
        monkeypatch.setattr(supply, "_SHARED_ROWS", 0)
    trace = tiny_trace(requests=5, prompt_tokens=3, output_tokens=4)
    names = np.array(["a", "b", "a", "a", "b"], object)
    trace = Trace(trace.meta, {**trace.requests, "domain": names}, {"expert_ids": trace.expert_ids})
    skipped = 3 if prefill == "skip" else 0
    for output in (2, 20, 90):
        lengths = {"prompt": 5, "output": output}
        for source, request in enumerate(workload(trace, prefill=prefill, lengths=lengths)):
            ring = [row for other in _from(source, names) for row in _own(trace, other, skipped)]
            count = output - 1 + (0 if skipped else 5)
            expected = (ring * (1 + count // len(ring)))[:count]
            assert request.rows.tolist() == expected
            assert request.tiled_rows == max(0, count - (6 - skipped))


def _from(source: int, names: Any) -> list[int]:
    """Return the requests of a domain, from one of them on."""
    others = [number for number, name in enumerate(names) if name == names[source]]
    at = others.index(source)
    return others[at:] + others[:at]


def _own(trace: Trace, request: int, skipped: int) -> range:
    rows = trace.slice(request)
    return range(rows.start + skipped, rows.stop)


def test_rows_that_requests_share_cannot_be_changed() -> None:
    lengths = {"prompt": 50, "output": 50}
    for request in workload(tiny_trace(requests=3), lengths=lengths):
        with pytest.raises(ValueError, match="read-only"):
            request.rows[0] = 0
