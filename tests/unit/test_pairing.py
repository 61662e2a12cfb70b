"""Which recorded sequence each request of other lengths replays, and what follows its end."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from costed_traces import costed_trace
from workloads import plan_of, run_on, tiny_scenario

from moesim.errors import ScenarioError
from moesim.scenario import Scenario
from moesim.serving.request import Request
from moesim.simulate import summarise
from moesim.trace import Trace
from moesim.workload.workload import build_workload

ROWS = (3, 8, 5, 8, 20)
DOMAINS = ("code", "prose", "code", "code", "prose")


def trace() -> Trace:
    """Return five requests of 3 to 20 rows; each row routes to an expert of its own request."""
    ids = np.repeat(np.arange(5), ROWS)[:, None, None]
    return costed_trace(ids, seq_len=ROWS, prompt_tokens=[1] * 5, domain=list(DOMAINS))


def requests_of(
    folder: Path, rows: list[tuple[int, int]], names: list[str] | None = None, **section: Any
) -> list[Request]:
    """Return the requests of a file with these lengths."""
    of = names or [""] * len(rows)
    lines = [f"0,{p},{o},{name}" for (p, o), name in zip(rows, of, strict=True)]
    path = folder / "r.csv"
    path.write_text(
        "\n".join(["arrival_s,prompt_tokens,output_tokens,domain", *lines]), encoding="utf-8"
    )
    arrivals = {"kind": "file", "path": str(path)}
    scenario = tiny_scenario(
        workload={"arrivals": arrivals, **section}, seed=section.pop("seed", 0)
    )
    return build_workload(Scenario.model_validate(scenario), trace())


def sources(requests: list[Request]) -> list[int]:
    return [request.source for request in requests]


def test_by_order_the_sequences_follow_one_another_round_and_round(tmp_path: Path) -> None:
    assert sources(requests_of(tmp_path, [(2, 2)] * 7)) == [0, 1, 2, 3, 4, 0, 1]
    shuffled = sources(requests_of(tmp_path, [(2, 2)] * 5, order="shuffled"))
    assert sorted(shuffled) == [0, 1, 2, 3, 4]


def test_by_length_the_nearest_sequence_is_replayed_and_equal_ones_take_turns(
    tmp_path: Path,
) -> None:
    wanted = [1, 3, 4, 5, 6, 7, 8, 9, 13, 14, 15, 999]
    got = requests_of(tmp_path, [(n, 1) for n in wanted], pairing="length")
    held = [ROWS[request.source] for request in got]
    # By brute force: the smallest distance, and the longer of two that are equally near.
    assert held == [min(set(ROWS), key=lambda size: (abs(size - n), -size)) for n in wanted]
    turns = Counter(request.source for request in got if ROWS[request.source] == 8)
    assert set(turns) == {1, 3}
    assert max(turns.values()) - min(turns.values()) <= 1


def test_by_length_only_decoded_rows_count_where_the_prefill_is_skipped(tmp_path: Path) -> None:
    # Each sequence has one prompt row, so the decoded ones are 2, 7, 4, 7 and 19.
    got = requests_of(tmp_path, [(50, 5), (50, 20)], pairing="length", prefill="skip")
    assert sources(got) == [2, 4]
    assert [request.tiled_rows for request in got] == [0, 0]


def test_by_domain_each_request_replays_the_next_sequence_of_its_domain(tmp_path: Path) -> None:
    domains = ["prose", "code", "prose", "prose", "code", "code", "code"]
    got = requests_of(tmp_path, [(1, 2)] * 7, domains, pairing="domain")
    assert sources(got) == [1, 0, 4, 1, 2, 3, 0]
    assert [request.domain for request in got] == domains


def test_by_domain_a_domain_that_the_trace_lacks_is_refused_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"r\.csv:3: no request .* domain 'cod'.*code"):
        requests_of(tmp_path, [(1, 2)] * 2, ["code", "cod"], pairing="domain")
    with pytest.raises(ScenarioError, match=r"pairing: goes by domain, and the requests have none"):
        requests_of(tmp_path, [(1, 2)] * 2, pairing="domain")
    with pytest.raises(ScenarioError, match=r"r\.csv:2: no request that may be drawn"):
        requests_of(tmp_path, [(1, 2)], ["code"], pairing="domain", domains=["prose"])


def test_rows_beyond_a_sequence_are_tiled_resampled_or_refused(tmp_path: Path) -> None:
    experts = trace().expert_ids[:, 0, 0]
    (tiled,) = requests_of(tmp_path, [(12, 1)])
    assert experts[tiled.rows].tolist() == [0] * 3 + [2] * 5 + [3] * 4  # the next ones of `code`
    (drawn,) = requests_of(tmp_path, [(4003, 1)], pairing={"beyond": "resample"})
    assert experts[drawn.rows[:3]].tolist() == [0] * 3
    assert drawn.tiled_rows == 4000
    counts = Counter(experts[drawn.rows[3:]].tolist())
    assert set(counts) == {0, 2, 3}  # never of `prose`
    assert np.count_nonzero(np.diff(experts[drawn.rows[3:]].astype(int))) > 2000  # in no order
    for source, share in ((0, 3 / 16), (2, 5 / 16), (3, 8 / 16)):
        assert counts[source] == pytest.approx(4000 * share, rel=0.15)
    (again,) = requests_of(tmp_path, [(4003, 1)], pairing={"beyond": "resample"})
    assert np.array_equal(drawn.rows, again.rows)
    refuse = {"beyond": "refuse"}
    assert requests_of(tmp_path, [(3, 1), (7, 2)], pairing=refuse)
    with pytest.raises(ScenarioError, match=r"request 1 \(line 3 of the file\): it needs 9 rows"):
        requests_of(tmp_path, [(3, 1), (8, 2)], pairing=refuse)


def test_stated_lengths_are_paired_too_and_recorded_ones_never(tmp_path: Path) -> None:
    def built(**section: Any) -> list[Request]:
        scenario = Scenario.model_validate(tiny_scenario(workload=section))
        return build_workload(scenario, trace())

    lengths = {"prompt": 19, "output": 2}
    assert sources(built(lengths=lengths)) == [0, 1, 2, 3, 4]
    assert sources(built(lengths=lengths, pairing="length")) == [4] * 5
    assert sources(built(pairing="length")) == [0, 1, 2, 3, 4]


def test_the_notes_of_a_run_say_how_requests_were_paired(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text(
        "prompt_tokens,arrival_s,output_tokens\n6,0,3\n6,0,2\n6,0,1\n", encoding="utf-8"
    )
    section = {
        "arrivals": {"kind": "file", "path": str(path)},
        "pairing": {"by": "length", "beyond": "resample"},
    }
    outcome = run_on(plan_of(tiny_scenario(workload=section), trace()))
    notes = summarise(outcome)["notes"]
    assert (
        f"the 3 requests of {path} replay the routing of 3 recorded sequences, paired by length; "
        "4.8% of their rows lie beyond a sequence (workload.pairing.beyond: resample)"
    ) in notes
    assert "4.8% of the rows are drawn at random from the domain" in notes
