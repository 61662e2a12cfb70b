"""A request that cannot be met is refused, or noted in the result and in every caption."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from random_lanes import QUIET
from workloads import plan_of, run_on, static_trace, tiny_scenario, tiny_trace

from moesim.config.yaml_document import dump_document, load_document
from moesim.cost.roofline import CostModel
from moesim.errors import ScenarioError
from moesim.hardware.hardware import PROFILES
from moesim.report.comparison import compare_runs
from moesim.report.metrics import run_caption
from moesim.report.runs import load_run
from moesim.scenario import load_scenario
from moesim.simulate import prepare, run, summarise
from moesim.simulate.caveats import caveats
from moesim.trace import Trace

NONE: dict[str, Any] = {"prediction_depth": 0}


def said(trace: Trace | None = None, **changes: Any) -> tuple[list[str], str]:
    """Return the caveats of a run, and all its notes in one text."""
    outcome = run_on(plan_of(tiny_scenario(**changes), trace or tiny_trace()))
    summary = summarise(outcome)
    return summary["caveats"], "\n".join(summary["notes"])


def test_a_run_that_did_all_that_was_asked_has_no_caveats() -> None:
    synthetic = "the trace is synthetic"
    assert said() == ([], synthetic)
    caveats, notes = said(
        cache={"policy": "lfu", "slots": "3/layer", "write_back": True},
        prefetch={"policy": "predicted", "options": {"depth": 2}},
        timeline={"first_step": 1, "steps": 3},
        workload={"requests": 2, "arrivals": {"kind": "poisson", "rate_per_s": 9}},
    )
    assert caveats == []
    first, host, recall = notes.splitlines()
    assert first == synthetic
    assert host == "host memory is taken as unlimited: all 32 experts take 96 MiB"
    assert recall.startswith("predicted prefetch uses the trace's predictions, which contain")


@pytest.mark.parametrize(
    ("changes", "caveat", "note"),
    [
        (
            {"prefetch": {"policy": "oracle", "options": {"depth": 8}}, "cache": {"slots": 9}},
            "prefetch looks 8 layers ahead of 4",
            "prefetch.options.depth is 8; two steps have 8 layers",
        ),
        (
            {"prefetch": "oracle", "cache": {"policy": "static", "slots": 9}},
            "nothing was prefetched",
            "oracle prefetch fetched nothing; static refused",
        ),
        (
            {"cache": {"slots": "1GiB"}},
            "cache.slots is more than all experts take",
            "cache.slots is 1 GiB; all 32 experts take 96 MiB, and no more is used",
        ),
        (
            {"cache": {"slots": 3}},
            "some layers have no slot",
            "cache.slots is 3 in all for 4 layers: none for 1 of them; did you mean 3/layer?",
        ),
        (
            {"cache": {"slots": "10%"}},
            "some layers have no slot",
            "cache.slots is 3 in all for 4 layers: none for 1 of them",
        ),
        (
            {"cache": {"slots": 16, "initial_layers": 2}},
            "some layers have no slot",
            "cache.slots is 16 in all for 4 layers: none for 2 of them",
        ),
        (
            {"memory": {"capacity": "25GiB"}},
            "memory.capacity is more than rtx-4090 has",
            "memory.capacity is 25 GiB; rtx-4090 has 24 GiB",
        ),
        (
            {"workload": {"requests": 100}},
            "requests repeat those of the trace",
            "100 requests repeat the 4 of the trace that may be drawn",
        ),
        (
            {"workload": {"requests": 5, "order": "shuffled"}},
            "requests repeat those of the trace",
            "5 requests repeat the 4",
        ),
        (
            {"workload": {"lengths": {"prompt": 60, "output": 60}}},
            "rows are tiled beyond recorded sequences",
            "% of the rows are tiled from further sequences",
        ),
        (
            {"memory": {"kv": 40 * 16 * 8192, "kv_block_tokens": 1}, "workload": {"requests": 1}},
            "",
            "memory.kv holds 640 KV blocks; these requests use at most",
        ),
        (
            {"timeline": {"first_step": 10**6}},
            "the timeline starts after the last step",
            "timeline.first_step is 1000000; the run has",
        ),
    ],
)
def test_what_could_not_be_done_as_asked_is_said(
    changes: dict[str, Any], caveat: str, note: str
) -> None:
    trace = tiny_trace(requests=4)
    caveats, notes = said(trace, **changes)
    assert caveats == ([caveat] if caveat else [])
    assert note in notes


def test_min_is_said_to_be_no_bound_where_experts_have_unequal_sizes() -> None:
    outcome = run_on(plan_of(tiny_scenario(), tiny_trace(requests=1)))
    cost = outcome.plan.cost
    for bits, expected in (((0, 8.0),), 1), (((0, 16.0),), 0):
        mixed = CostModel(cost.hardware, replace(cost.shape, layer_bits=bits))
        found = caveats(replace(outcome, plan=replace(outcome.plan, cost=mixed)))
        assert len(found) == expected
    mixed = CostModel(cost.hardware, replace(cost.shape, layer_bits=((0, 8.0),)))
    assert caveats(replace(outcome, plan=replace(outcome.plan, cost=mixed))) == [
        (
            "experts have unequal sizes, so MIN is no bound",
            "experts take 1.5 MiB to 3 MiB; MIN bounds the hits only where all sizes are equal",
        )
    ]


INTEGERS = "integer products count at the rate of floats"
WITHOUT = {
    "cpu_int8_ops": {"placement": "cpu_experts"},
    "int8_ops": {},
}


@pytest.mark.parametrize("key", WITHOUT)
def test_a_missing_rate_of_integers_is_said_where_quantised_weights_would_use_it(
    key: str, tmp_path: Path
) -> None:
    profile = load_document(PROFILES / "rtx-3060-12gb.yaml").data
    del profile[key]
    path = tmp_path / "lacking.yaml"
    path.write_text(dump_document(profile), encoding="utf-8")
    lacking: dict[str, Any] = {**WITHOUT[key], "hardware": str(path), "engine": QUIET}
    lacking |= {"cache": {"slots": 16}, "model": {"shape": "trace", "format": "Q4_K_M"}}
    caveats, notes = said(**lacking)
    assert f"without {key}, {INTEGERS}" in caveats
    assert f"{path} has no {key}, so under engine {QUIET} products with quantised" in notes
    for changes in (
        {"hardware": "rtx-3060-12gb"},  # has the figure
        {"engine": "ideal"},  # does not read it
        {"model": {"shape": "trace"}},  # floats
    ):
        assert INTEGERS not in str(said(**{**lacking, **changes})), changes
    if WITHOUT[key]:
        assert INTEGERS not in str(said(**{**lacking, "placement": "copy"}))  # nothing on the CPU


def test_caveats_begin_where_the_limit_is_passed() -> None:
    """At the limit itself all is as asked."""
    trace = tiny_trace(requests=4)
    steps = summarise(run_on(plan_of(tiny_scenario(), trace)))["steps"]
    expert = plan_of(tiny_scenario(), trace).cost.expert_bytes
    fine: list[dict[str, Any]] = [
        {"workload": {"requests": 4}},
        {"workload": {"requests": 9, "order": "resampled"}},
        {"timeline": {"first_step": steps - 1}},
        {"timeline": {"first_step": steps, "steps": 0}},
        {"memory": {"capacity": "24GiB"}},
        {"cache": {"slots": 4}},
        {"cache": {"slots": 0}},
        {"cache": {"slots": 3, "scope": "global"}},
        {"cache": {"slots": f"{33 * expert - 1}B"}},
        {"prefetch": {"policy": "oracle", "options": {"depth": 7}}, "cache": {"slots": 9}},
    ]
    for changes in fine:
        assert said(trace, **changes)[0] == [], changes
    for changes in ({"timeline": {"first_step": steps}}, {"cache": {"slots": f"{33 * expert}B"}}):
        assert len(said(trace, **changes)[0]) == 1, changes


def test_repaired_lines_of_a_file_are_said(tmp_path: Path) -> None:
    file = tmp_path / "late.csv"
    file.write_text("arrival_s,prompt_tokens,output_tokens\n1,3,2\n0,3,2\n", encoding="utf-8")
    arrivals = {"kind": "file", "path": str(file), "repair": ["sort"]}
    _, notes = said(tiny_trace(requests=4), workload={"arrivals": arrivals})
    assert f"{file}: 1 requests out of order were sorted by time, the first on line 3" in notes


def test_a_csv_file_with_fewer_requests_than_asked_for_is_said(tmp_path: Path) -> None:
    file = tmp_path / "two.csv"
    file.write_text("arrival_s,prompt_tokens,output_tokens\n0,3,2\n1,3,2\n", encoding="utf-8")
    arrivals = {"kind": "csv", "path": str(file)}
    trace = tiny_trace(requests=4)
    caveats, notes = said(trace, workload={"arrivals": arrivals, "requests": 3})
    assert caveats == ["fewer requests than asked for"]
    assert "workload.requests is 3; the file has 2" in notes
    for requests in (1, 2, None):
        assert said(trace, workload={"arrivals": arrivals, "requests": requests})[0] == []


def test_recorded_arrivals_that_are_all_zero_are_said() -> None:
    trace = tiny_trace(requests=3)
    arrived = Trace.from_arrays(
        expert_ids=trace.expert_ids[:],
        seq_len=trace.requests["num_rows"],
        prompt_tokens=trace.requests["prompt_tokens"],
        arrival_s=[0.0, 0.0, 0.0],
        num_experts=8,
        model_config=trace.meta.model_config,
    )
    workload = {"arrivals": {"kind": "recorded", "time_scale": 2}}
    assert said(arrived, workload=workload)[0] == ["all recorded arrivals are at zero"]
    assert said(arrived, workload={**workload, "requests": 1})[0] == []


def test_clients_that_are_as_many_as_the_requests_are_said() -> None:
    arrivals = {"kind": "closed", "clients": 3}
    caveats, notes = said(tiny_trace(requests=3), workload={"arrivals": arrivals})
    assert caveats == ["at least as many clients as requests"]
    assert "workload.arrivals has 3 clients for 3 requests, so all requests arrive at once" in notes
    assert said(tiny_trace(requests=4), workload={"arrivals": arrivals})[0] == []


def test_look_ahead_that_sees_nothing_is_said() -> None:
    caveats, notes = said(cache={"policy": "lookahead", "slots": "3/layer"})
    assert caveats == ["the router reveals nothing ahead to lookahead"]
    assert "lookahead eviction sees no next use: the trace's router is layerwise" in notes
    decoupled = tiny_trace().with_meta(router="decoupled")
    assert said(decoupled, cache={"policy": "lookahead", "slots": "3/layer"})[0] == []


def test_rejected_requests_are_said() -> None:
    trace = Trace.from_arrays(
        expert_ids=tiny_trace(requests=1).expert_ids[:45],
        seq_len=[40, 5],
        prompt_tokens=[20, 3],
        num_experts=8,
        model_config=tiny_trace().meta.model_config,
    )
    caveats, notes = said(trace, memory={"kv": 20 * 8192, "kv_block_tokens": 1})
    assert caveats == ["requests were rejected"]
    assert "1 request can never fit into KV memory and was rejected" in notes
    assert said(trace)[0] == []


# --- refused --------------------------------------------------------------------------------------


def refusal(tmp_path: Path, text: str, trace: Trace) -> str:
    trace.save(tmp_path / "trace")
    (tmp_path / "s.yaml").write_text(f"trace: trace\nhardware: rtx-4090\n{text}\n")
    with pytest.raises(ScenarioError) as caught:
        prepare(load_scenario(tmp_path / "s.yaml"))
    (problem,) = caught.value.problems
    return problem.removeprefix(f"{tmp_path / 's.yaml'}:")


@pytest.mark.parametrize("recorded", [1, 2])
def test_a_depth_of_which_no_prediction_is_recorded_is_refused_where_it_stands(
    tmp_path: Path, recorded: int
) -> None:
    text = "prefetch: {policy: predicted, options: {depth: 3}}"
    assert refusal(tmp_path, text, tiny_trace(prediction_depth=recorded)) == (
        f"3:48: prefetch.options.depth: predicted has depth 3; the trace predicts {recorded} "
        f"layer{'s' if recorded > 1 else ''} ahead; write depth: {recorded}, or record it with "
        "`moesim record --depth 3`"
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "prefetch: predicted",
            "3:11: prefetch.policy: predicted needs predictions, and the trace holds none; record "
            "it with `moesim record --depth 1`, or choose another policy, like `prefetch: none`",
        ),
        (
            "cache: {slots: 9/layer}",
            "3:16: cache.slots: is 9 a layer; a layer of the model has 8 experts",
        ),
        ("cache: {slots: 33}", "3:16: cache.slots: is 33 in all; the model has 32 experts in 4"),
    ],
)
def test_what_can_only_be_a_mistake_is_refused_where_it_stands(
    tmp_path: Path, text: str, problem: str
) -> None:
    assert refusal(tmp_path, text, tiny_trace(**NONE)).startswith(problem)


def test_a_domain_whose_requests_have_no_rows_is_refused(tmp_path: Path) -> None:
    trace = Trace.from_arrays(
        expert_ids=tiny_trace(requests=1).expert_ids[:3],
        seq_len=[3, 0],
        prompt_tokens=[1, 1],
        prompt_rows="absent",
        domain=["code", "maths"],
        num_experts=8,
        model_config=tiny_trace().meta.model_config,
    )
    text = "workload: {domains: [code, maths], prefill: skip}"
    assert "no request of the domain 'maths' has any rows" in refusal(tmp_path, text, trace)


# --- where it is said -----------------------------------------------------------------------------


def test_every_caption_and_comparison_says_what_was_not_done(tmp_path: Path) -> None:
    tiny_trace(requests=4).save(tmp_path / "trace")
    base = tiny_scenario(trace=str(tmp_path / "trace"))
    for name, requests in (("as asked", 4), ("repeated", 9)):
        run({**base, "workload": {"requests": requests}}, out=tmp_path / name)
    runs = [load_run(tmp_path / name) for name in ("as asked", "repeated")]
    captions = [run_caption(one) for one in runs]
    assert "Caveats" not in captions[0]
    assert captions[1].endswith("Caveats: requests repeat those of the trace.")
    both = compare_runs(runs)
    assert both.caption().endswith("Caveats: requests repeat those of the trace (1 of 2 runs).")
    assert any("9 requests repeat the 4" in note for note in both.notes)


def test_nothing_is_missing_where_a_static_router_reveals_all() -> None:
    trace = static_trace(tiny_trace(requests=4), tasks=2)
    prefetch = {"policy": "layer_ahead", "options": {"depth": 3}}
    assert said(trace, prefetch=prefetch, cache={"slots": "2/layer"})[0] == []
