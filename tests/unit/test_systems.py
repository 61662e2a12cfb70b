"""Presets: each keeps the rules that its system publishes, and every key of it can be changed."""

from __future__ import annotations

import itertools
from collections import Counter, OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from paths import ROOT
from workloads import TINY_CONFIG, tiny_trace

from moesim.config.yaml_document import Document, dump_document, load_document, plain_document
from moesim.errors import BudgetError, ScenarioError, UsageError
from moesim.report.comparison import compare_runs
from moesim.report.result import Result
from moesim.report.runs import load_run
from moesim.scenario import Scenario, expand_sweep, load_scenario
from moesim.scenario.scenario import SHORTHANDS
from moesim.scenario.system import with_system
from moesim.simulate import prepare, run
from moesim.simulate.build import _estimate
from moesim.simulate.rundir import fingerprint
from moesim.systems import load_preset, system_names
from moesim.systems.preset import PRESETS
from moesim.trace import Trace

SYSTEMS = system_names()
PC = {
    "gpu": "RTX 3060 12GB",
    "cpu": "Ryzen 5 5600",
    "memory": "64 GB DDR4-3200 dual channel",
    "pcie": "4.0 x16",
}
SLOW_CPU = {"profile": "rtx-4090", "cpu_flops": "0.1GFLOPS"}
REVEALED_EARLY = ("pre-gated", "read-me")
"""Systems whose routers reveal routing before a layer computes."""
EXPERTS = 8
ONE_POPULAR: dict[str, Any] = {"slots": 1, "options": {"train": None}}
"""One slot, for the expert that the replayed trace uses most. Its traces have one request."""

Rows = Sequence[Sequence[Sequence[int]]]
"""For each token and layer, the experts that it is routed to."""


def trace_of(rows: Rows, *, router: str = "layerwise", prompt: int = 1, **more: Any) -> Trace:
    """Return a trace of one request with these experts, whose first rows are its prompt.

    Experts of one row and layer have equal gate weights.
    """
    ids = np.asarray(rows)
    config = {
        **TINY_CONFIG,
        "num_hidden_layers": ids.shape[1],
        "num_experts_per_tok": ids.shape[2],
    }
    more.setdefault("gate_weights", np.full(ids.shape, 1 / ids.shape[2]))
    return Trace.from_arrays(
        expert_ids=ids,
        seq_len=more.pop("seq_len", [len(ids)]),
        prompt_tokens=more.pop("prompt_tokens", [prompt]),
        num_experts=EXPERTS,
        model_config=config,
        router=router,
        **more,
    )


def serve(folder: Path, trace: Trace, system: str, **changes: Any) -> Result:
    """Return the run of a trace under a system; `changes` are sections of the scenario."""
    trace.save(folder / "trace")
    data = {"hardware": "rtx-4090", "bounds": False, "timeline": {"steps": 1000}, **changes}
    return run(load_scenario({"trace": str(folder / "trace"), "system": system, **data}))


def expert_bytes(trace: Trace, folder: Path) -> int:
    return (
        load_scenario({"trace": str(folder / "trace"), "hardware": "t4"})
        .load_shape(trace.meta.model_config)
        .expert_bytes
    )


def timeline(result: Result) -> list[dict[str, Any]]:
    """Return all work of a run, in order."""
    columns = result.columns["timeline"]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def copied(result: Result) -> list[tuple[int, int]]:
    """Return the layer and expert of each copy to the GPU, in order."""
    columns = result.columns["timeline"]
    rows = zip(*(columns[key] for key in ("lane", "layer", "expert")), strict=True)
    return [(layer, expert) for lane, layer, expert in rows if lane == "h2d" and expert >= 0]


def by_layer(result: Result, column: str) -> list[int]:
    return [int(number) for number in result.columns["layers"][column]]


def guesses(rows: Rows, depth: int = 1) -> np.ndarray:
    """Return predictions that are right: those of layer l are its experts at layer l + 1 + d."""
    ids = np.asarray(rows)
    right = np.full((*ids.shape[:2], depth, ids.shape[2]), -1)
    for ahead, layer in itertools.product(range(depth), range(ids.shape[1])):
        if layer + ahead + 1 < ids.shape[1]:
            right[:, layer, ahead] = ids[:, layer + ahead + 1]
    return right


def top_one(*layers: Sequence[int]) -> list[list[list[int]]]:
    """Return rows of one expert a layer; each argument lists a layer's experts, token by token."""
    return [[[expert] for expert in token] for token in zip(*layers, strict=True)]


# --- what the systems publish ---------------------------------------------------------------------


def test_mixtral_offloading_keeps_k_experts_of_each_layer_by_lru(tmp_path: Path) -> None:
    layers = [[0, 1, 0, 2, 0, 1, 3, 0], [5, 5, 6, 7, 6, 5, 5, 6]]
    no_guesses = {"policy": "none"}
    result = serve(
        tmp_path,
        trace_of(top_one(*layers)),
        "mixtral-offloading",
        cache={"slots": "2/layer"},
        prefetch=no_guesses,
    )
    expected = []
    for layer, experts in enumerate(layers):
        kept: OrderedDict[int, None] = OrderedDict()
        for token, expert in enumerate(experts):
            if expert not in kept:
                expected.append((token, layer, expert))
                if len(kept) == 2:
                    kept.popitem(last=False)
            kept[expert] = None
            kept.move_to_end(expert)
    assert copied(result) == [(layer, expert) for _, layer, expert in sorted(expected)]


def test_mixtral_offloading_copies_an_evicted_expert_back_to_the_host(tmp_path: Path) -> None:
    trace = trace_of(top_one([0, 1, 2, 3, 2, 3]))
    result = serve(tmp_path, trace, "mixtral-offloading", cache={"slots": 2}, prefetch="none")
    # Of four misses, the first two fill the cache, and the other two evict.
    assert result.summary["misses"] == 4
    assert result.summary["write_back_bytes"] == 2 * expert_bytes(trace, tmp_path)


def test_mixtral_offloading_loads_the_experts_that_the_next_gate_guesses(tmp_path: Path) -> None:
    rows = top_one([0, 1, 2], [3, 4, 5])
    trace = trace_of(rows, predictions=guesses(rows))
    summary = serve(tmp_path, trace, "mixtral-offloading", cache={"slots": "1/layer"}).summary
    assert summary["misses"] == 3  # the first layer has no layer before it
    assert summary["prefetch_bytes"] == 3 * expert_bytes(trace, tmp_path)


def test_mixtral_offloading_computes_residents_first_and_then_streams_the_misses(
    tmp_path: Path,
) -> None:
    # Expert 0 is resident when 2 is missing, though the token names 2 first.
    trace = trace_of([[[0, 1]], [[2, 0]]])
    result = serve(tmp_path, trace, "mixtral-offloading", cache={"slots": 3}, prefetch="none")
    (miss,) = [row for row in timeline(result) if row["kind"] == "demand" and row["step"] == 1]
    calls = [row for row in timeline(result) if row["kind"] == "experts" and row["step"] == 1]
    assert len(calls) == 2
    assert calls[0]["start_ns"] < miss["finish_ns"] <= calls[1]["start_ns"]


def test_mixtral_offloading_swaps_a_missing_expert_in_after_the_victim_is_out(
    tmp_path: Path,
) -> None:
    trace = trace_of(top_one([0, 1, 2]))
    result = serve(tmp_path, trace, "mixtral-offloading", cache={"slots": 1}, prefetch="none")
    swaps = [row for row in timeline(result) if row["kind"] in ("demand", "write_back")]
    expected = [("demand", 0), ("write_back", 0), ("demand", 1), ("write_back", 1), ("demand", 2)]
    assert [(row["kind"], row["expert"]) for row in swaps] == expected


def test_mixtral_offloading_drops_a_wrong_guess_and_leaves_the_cache_untouched(
    tmp_path: Path,
) -> None:
    rows = top_one([0, 1] * 4, [2, 3] * 4)
    wrong = np.where(guesses(rows) < 0, -1, 7)
    missed = []
    for name, prefetch in (("guessed", {}), ("alone", {"policy": "none"})):
        (tmp_path / name).mkdir()
        result = serve(
            tmp_path / name,
            trace_of(rows, predictions=wrong),
            "mixtral-offloading",
            cache={"slots": "2/layer"},
            prefetch=prefetch,
        )
        missed.append(result.summary["misses"])
        assert result.summary["prefetch_pollution"] == 0
    assert missed == [4, 4]


def test_mixtral_offloading_guesses_at_most_two_experts_of_the_next_layer(tmp_path: Path) -> None:
    ids = [[[0, 1, 2], [3, 4, 5]]] * 2
    trace = trace_of(ids, predictions=guesses(ids))
    result = serve(tmp_path, trace, "mixtral-offloading", cache={"slots": "3/layer"})
    ahead = [row["expert"] for row in timeline(result) if row["kind"] == "prefetch"]
    assert ahead[:2] == [3, 4]
    assert len(ahead) == 2


def test_mixtral_offloading_without_guesses_in_the_trace_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ScenarioError, match="predicted needs predictions, and the trace holds none"
    ):
        serve(tmp_path, trace_of(top_one([0, 1])), "mixtral-offloading")


def test_moe_infinity_shares_the_slots_among_all_layers(tmp_path: Path) -> None:
    layers = [[0, 0, 0, 0, 0, 0], [1, 2, 3, 1, 2, 3]]
    rows = top_one(*layers)
    changes: dict[str, Any] = {"prefetch": "none"}
    together = serve(tmp_path, trace_of(rows), "moe-infinity", cache={"slots": 4}, **changes)
    (tmp_path / "apart").mkdir()
    apart = serve(
        tmp_path / "apart",
        trace_of(rows),
        "moe-infinity",
        cache={"slots": 4, "scope": "per_layer"},
        **changes,
    )
    assert together.summary["misses"] == 4  # each expert once
    assert apart.summary["misses"] > 4  # two slots for the three experts of a layer


def test_moe_infinity_evicts_the_expert_with_the_fewest_activations(tmp_path: Path) -> None:
    trace = trace_of(top_one([0, 0, 0, 1, 2, 0]))
    result = serve(tmp_path, trace, "moe-infinity", cache={"slots": 2}, prefetch="none")
    assert copied(result) == [(0, 0), (0, 1), (0, 2)]  # 0 stays, though 1 is more recent


def test_moe_infinity_counts_each_sequence_anew(tmp_path: Path) -> None:
    # The first request uses 0 three times, and the second one 1 twice before 2 comes.
    ids = [[[0]], [[0]], [[0]], [[0]], [[1]], [[1]], [[2]], [[1]]]
    trace = trace_of(ids, seq_len=[4, 4], prompt_tokens=[1, 1])
    changes: dict[str, Any] = {"prefetch": "none", "batching": {"max_sequences": 1}}
    result = serve(tmp_path, trace, "moe-infinity", cache={"slots": 2}, **changes)
    assert copied(result) == [(0, 0), (0, 1), (0, 2)]  # 2 takes the slot of 0, so 1 is still there


def test_moe_infinity_learns_on_the_first_half_and_serves_the_second(tmp_path: Path) -> None:
    ids = top_one([0] * 4 + [1] * 4, [2] * 4 + [3] * 4)
    trace = trace_of(ids, seq_len=[4, 4], prompt_tokens=[1, 1])
    result = serve(tmp_path, trace, "moe-infinity", cache={"slots": 4})
    assert {expert for _, expert in copied(result)} == {1, 3, 0, 2}  # 0 and 2 were learnt
    assert result.summary["requests"] == 1
    assert (
        "activation_matrix was learnt on the first 50% of the requests of the replayed trace"
        in result.summary["notes"]
    )


@pytest.mark.parametrize(("far", "first"), [(4, 1), (5, 2)])
def test_moe_infinity_prefers_near_layers_by_one_minus_distance_over_layers_plus_one(
    tmp_path: Path, far: int, first: int
) -> None:
    # Of 8 earlier tokens, 3 used expert 1 of the next layer, and `far` used 2 of the one after it.
    # There are 3 layers: the scores are 3 x 3/4 and far x 2/4.
    lesson = top_one([0] * 8, [1] * 3 + [3, 4, 5, 6, 7], [2] * far + [3, 4, 5, 6][: 8 - far])
    served = top_one([0] * 2, [0] * 2, [0] * 2)
    trace = trace_of([*lesson, *served], seq_len=[8, 2], prompt_tokens=[1, 1])
    result = serve(
        tmp_path,
        trace,
        "moe-infinity",
        cache={"slots": 8},
        prefetch={"options": {"depth": 2, "experts": 1}},
    )
    ahead = [(row["layer"], row["expert"]) for row in timeline(result) if row["kind"] == "prefetch"]
    assert ahead[:2] == ([(1, 1), (2, 2)] if first == 1 else [(2, 2), (1, 1)])


def test_moe_infinity_gives_up_experts_of_late_layers_first(tmp_path: Path) -> None:
    # The layer that is computed gives up none. Of the others, the later one gives up its expert.
    trace = trace_of(top_one([0, 0, 0], [1, 1, 1], [2, 3, 3]))
    result = serve(tmp_path, trace, "moe-infinity", cache={"slots": 3}, prefetch="none")
    assert copied(result) == [(0, 0), (1, 1), (2, 2), (2, 3), (1, 1)]


@pytest.mark.parametrize("bandwidth", [1, 2, 4, 8, 16, 32])
def test_fiddler_copies_if_and_only_if_the_cpu_takes_longer_than_gpu_and_transfer(
    tmp_path: Path, bandwidth: int
) -> None:
    machine = {**PC, "h2d": {"bandwidth": f"{bandwidth}GB/s"}}
    trace = trace_of(top_one([0, 0, 1, 2]))
    result = serve(tmp_path, trace, "fiddler", cache=ONE_POPULAR, hardware=machine)
    data = {"trace": str(tmp_path / "trace"), "system": "fiddler", "hardware": machine}
    data["cache"] = ONE_POPULAR
    prices = _estimate(prepare(load_scenario(data)), None, free_link=False)
    copies = prices.cpu_ns(1, 1) > prices.gpu_ns(1, 1) + prices.copy_ns(1)
    assert result.summary["elsewhere"] == (0 if copies else 2)
    assert (len(copied(result)) == 2) == copies


def test_fiddler_computes_a_missing_expert_on_the_cpu_where_that_is_sooner(tmp_path: Path) -> None:
    trace = trace_of(top_one([0, 0, 1, 2]))
    slow_link = {**PC, "h2d": {"bandwidth": "100MB/s"}}
    summary = serve(tmp_path, trace, "fiddler", cache=ONE_POPULAR, hardware=slow_link).summary
    assert (summary["hits"], summary["misses"], summary["elsewhere"]) == (2, 2, 2)
    assert summary["h2d_bytes"] == 0


def test_fiddler_copies_a_missing_expert_where_the_cpu_is_slower(tmp_path: Path) -> None:
    trace = trace_of(top_one([0, 0, 1, 2]))
    summary = serve(tmp_path, trace, "fiddler", cache=ONE_POPULAR, hardware=SLOW_CPU).summary
    assert (summary["hits"], summary["misses"], summary["elsewhere"]) == (2, 2, 0)
    assert summary["demand_bytes"] == 2 * expert_bytes(trace, tmp_path)


def test_fiddler_drops_a_copied_expert_after_use(tmp_path: Path) -> None:
    trace = trace_of(top_one([0, 0, 0, 1, 1, 0]))
    result = serve(tmp_path, trace, "fiddler", cache=ONE_POPULAR, hardware=SLOW_CPU)
    assert copied(result) == [(0, 1), (0, 1)]


def test_fiddler_keeps_the_most_popular_experts_of_all_layers(tmp_path: Path) -> None:
    rows = top_one([0, 0, 0, 0], [1, 2, 3, 4])
    summary = serve(tmp_path, trace_of(rows), "fiddler", cache=ONE_POPULAR, hardware=PC).summary
    assert summary["hits"] == 4  # expert 0 of the first layer


def test_fiddler_counts_popularity_in_requests_that_are_not_served(tmp_path: Path) -> None:
    # Expert 1 is the more popular one in the first half, and expert 0 in the second.
    ids = [[[1]], [[1]], [[0]], [[0]], [[0]], [[1]]]
    trace = trace_of(ids, seq_len=[3, 3], prompt_tokens=[1, 1])
    summary = serve(tmp_path, trace, "fiddler", cache={"slots": 1}, hardware=PC).summary
    assert (summary["requests"], summary["hits"], summary["misses"]) == (1, 1, 2)
    assert summary["knows_the_future"] == ""
    note = "static was learnt on the first 50% of the requests of the replayed trace"
    assert note in summary["notes"]


def test_ktransformers_keeps_as_many_experts_of_each_layer_and_copies_none(tmp_path: Path) -> None:
    rows = top_one(range(EXPERTS), range(EXPERTS))
    result = serve(tmp_path, trace_of(rows), "ktransformers", cache={"slots": 6}, hardware=PC)
    assert by_layer(result, "hits") == [3, 3]
    assert result.summary["elsewhere"] == 10
    assert copied(result) == []


def test_ktransformers_keeps_as_many_experts_as_memory_allows(tmp_path: Path) -> None:
    rows = top_one(range(EXPERTS), range(EXPERTS))
    trace = trace_of(rows)
    sizes = {"memory": {"capacity": "50MiB", "kv": "1MiB"}, "hardware": PC}
    slots = serve(tmp_path, trace, "ktransformers", **sizes).summary["cache_slots"]
    assert 0 < slots < 2 * EXPERTS
    data = {"trace": str(tmp_path / "trace"), "system": "ktransformers", **sizes}
    with pytest.raises(BudgetError):
        prepare(load_scenario({**data, "cache": {"slots": slots + 1}}))


@pytest.mark.parametrize("tokens", [1, 64])
def test_ktransformers_copies_nothing_however_long_the_step(tmp_path: Path, tokens: int) -> None:
    trace = trace_of([[[0]]] * tokens, prompt=tokens)
    result = serve(tmp_path, trace, "ktransformers", hardware=PC, cache={"slots": 0})
    assert copied(result) == []
    assert result.summary["elsewhere"] == 1


def test_hybrimoe_lets_scores_below_the_best_two_k_decay(tmp_path: Path) -> None:
    # With top-1, the best two scores count. Expert 1 is second at first and third later on, so
    # its mean fades; expert 2 is second from then on, though it is never used before the end.
    probabilities = np.full((6, 1, EXPERTS), 0.0)
    chances = [{0: 0.5, 1: 0.4, 2: 0.1}] + [{0: 0.5, 1: 0.24, 2: 0.26}] * 3
    chances += [{3: 0.9, 0: 0.1}, {0: 0.5, 2: 0.3, 1: 0.2}]
    for token, each in enumerate(chances):
        probabilities[token, 0, list(each)] = list(each.values())
    trace = trace_of(top_one([1, 2, 0, 0, 3, 2]), probabilities=probabilities)
    changes: dict[str, Any] = {"prefetch": "none", "placement": "copy"}
    result = serve(
        tmp_path, trace, "hybrimoe", cache={"slots": 3, "admission": "always"}, **changes
    )
    assert copied(result) == [(0, 1), (0, 2), (0, 0), (0, 3)]  # 3 takes the slot of 1, not of 2


@pytest.mark.parametrize(("bandwidth", "copies"), [("100GB/s", True), ("1GB/s", False)])
def test_hybrimoe_prefetches_what_fits_into_the_idle_time_of_the_link(
    tmp_path: Path, bandwidth: str, copies: bool
) -> None:
    # The GPU computes 64 rows of expert 0 meanwhile.
    rows = [[[0], [5]]] * 64
    trace = trace_of(rows, prompt=64, predictions=guesses(rows))
    machine = {"profile": "rtx-4090", "h2d": {"bandwidth": bandwidth}}
    machine["cpu_flops"] = "1GFLOPS"
    result = serve(tmp_path, trace, "hybrimoe", hardware=machine, cache={"slots": "4/layer"})
    ahead = [row["expert"] for row in timeline(result) if row["kind"] == "prefetch"]
    assert ahead == ([5] if copies else [])


def test_hybrimoe_copies_heavy_experts_and_computes_light_ones_on_the_cpu(tmp_path: Path) -> None:
    # A prompt of 65 tokens: 64 want expert 0, and one wants expert 1.
    rows = [[[0]]] * 64 + [[[1]]]
    trace = trace_of(rows, prompt=65)
    machine = {**PC, "cpu": "Ryzen 5 5600, 1 thread"}
    changes: dict[str, Any] = {"prefetch": "none", "cache": {"slots": 0}, "hardware": machine}
    result = serve(tmp_path, trace, "hybrimoe", model={"shape": "trace"}, **changes)
    assert copied(result) == [(0, 0)]
    assert result.summary["elsewhere"] == 1


def test_hybrimoe_evicts_by_a_mean_of_gate_scores_that_forgets(tmp_path: Path) -> None:
    trace = trace_of(top_one([0, 0, 0, 1, 2, 1]))
    changes: dict[str, Any] = {"prefetch": "none", "placement": "copy"}
    result = serve(
        tmp_path, trace, "hybrimoe", cache={"slots": 2, "admission": "always"}, **changes
    )
    # When 2 comes, 0 has a score of 7/16, after three uses, and 1 has 1/2, after one.
    assert copied(result) == [(0, 0), (0, 1), (0, 2)]


def test_pre_gated_moves_exactly_the_next_block_and_only_the_first_waits(tmp_path: Path) -> None:
    rows = top_one([0, 1, 2], [3, 4, 5], [6, 7, 0])
    trace = trace_of(rows, router="pregated")
    result = serve(tmp_path, trace, "pre-gated", cache={"slots": 2})
    assert by_layer(result, "misses") == [3, 0, 0]
    assert result.summary["prefetch_wasted_bytes"] == 0
    layers = ([0, 1, 2], [3, 4, 5], [0, 6, 7])
    assert sorted(copied(result)) == [(at, e) for at, experts in enumerate(layers) for e in experts]


@pytest.mark.parametrize("slots", [4, 4 * EXPERTS])
def test_pre_gated_needs_the_memory_of_the_experts_of_two_blocks_and_caches_nothing(
    tmp_path: Path, slots: int
) -> None:
    rows = [[[0, 1], [2, 3], [4, 5], [6, 7]]] * 3
    trace = trace_of(rows, router="pregated")
    result = serve(tmp_path, trace, "pre-gated", cache={"slots": slots})
    assert by_layer(result, "misses") == [6, 0, 0, 0]  # two experts of the first block, each time
    assert result.summary["prefetch_refused"] == 0
    assert len(copied(result)) == 3 * 8


def test_pre_gated_needs_a_router_that_reveals_the_next_layer(tmp_path: Path) -> None:
    with pytest.raises(
        ScenarioError, match="layer_ahead has depth 1; the trace's router is layerw"
    ):
        serve(tmp_path, trace_of(top_one([0, 1])), "pre-gated")


def test_promoe_lets_a_missing_expert_pass_between_the_chunks_of_a_prefetch(tmp_path: Path) -> None:
    rows = top_one(*([layer % 3] * 6 for layer in range(6)))
    wrong = np.where(guesses(rows) < 0, -1, 7)
    changes: dict[str, Any] = {"cache": {"slots": 4}, "prefetch": "predicted"}
    link = {"bandwidth": "1GB/s", "latency": "0ns"}
    spans = []
    for name, chunk in (("cut", "64kB"), ("whole", "1GB")):
        (tmp_path / name).mkdir()
        machine = {"profile": "rtx-4090", "h2d": {**link, "chunk": chunk}}
        result = serve(
            tmp_path / name,
            trace_of(rows, predictions=wrong),
            "promoe",
            hardware=machine,
            **changes,
        )
        spans.append(result.summary["makespan_s"])
    assert spans[0] < spans[1]


def test_promoe_predicts_the_layer_at_its_stride_and_none_between(tmp_path: Path) -> None:
    ids = top_one(*([layer] * 8 for layer in range(4)))
    trace = trace_of(ids, seq_len=[4, 4], prompt_tokens=[1, 1])
    result = serve(
        tmp_path,
        trace,
        "promoe",
        cache={"slots": 8},
        prefetch={"options": {"stride": 2}},
    )
    ahead = {row["layer"] for row in timeline(result) if row["kind"] == "prefetch"}
    assert ahead == {2, 3}


def test_promoe_computes_what_is_there_then_what_is_under_way_then_what_is_not_started(
    tmp_path: Path,
) -> None:
    # When layer 1 is computed, expert 3 is there, 4 is under way, and 5 was not predicted.
    rows = [[[0, 1, 2], [3, 6, 7]], [[0, 1, 2], [5, 4, 3]]]
    predicted = np.full((2, 2, 1, 3), -1)
    predicted[1, 0, 0] = [4, -1, -1]
    trace = trace_of(rows, predictions=predicted)
    result = serve(
        tmp_path,
        trace,
        "promoe",
        cache={"slots": 9},
        prefetch={"options": {"predictor": "recorded"}},
        hardware={"profile": "rtx-4090", "h2d": {"bandwidth": "5GB/s"}},
    )
    last = [row for row in timeline(result) if row["step"] == 1 and row["layer"] == 1]
    computed = [row["start_ns"] for row in last if row["kind"] == "experts"]
    landed = {row["expert"]: row["finish_ns"] for row in last if row["lane"] == "h2d"}
    assert set(landed) == {4, 5}
    assert landed[4] < landed[5]
    assert computed[0] < landed[4] <= computed[1] < landed[5] <= computed[2]


def test_promoe_evicts_the_least_recently_used_expert_of_all_layers(tmp_path: Path) -> None:
    rows = top_one([0, 0, 0], [1, 2, 1])
    result = serve(tmp_path, trace_of(rows), "promoe", cache={"slots": 2}, prefetch="none")
    assert copied(result) == [(0, 0), (1, 1), (1, 2), (1, 1)]


def test_adapmoe_cache_gives_more_slots_to_layers_whose_guesses_are_wrong(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = rng.integers(0, EXPERTS, (40, 3, 1)).tolist()
    right = guesses(rows)
    right[:, 0] = np.where(right[:, 0] < 0, -1, (right[:, 0] + 1) % EXPERTS)  # for layer 1
    trace = trace_of(rows, seq_len=[20, 20], prompt_tokens=[1, 1], predictions=right)
    trace.save(tmp_path / "trace")
    data = {"trace": str(tmp_path / "trace"), "hardware": "rtx-4090", "cache": {"slots": 12}}
    slots = prepare(load_scenario({"system": "adapmoe-cache", **data})).slots
    assert sum(slots) == 12
    assert slots[0] >= slots[1] > slots[2] > 0  # nothing is guessed for layer 0


def test_adapmoe_cache_prefetches_only_what_is_missing(tmp_path: Path) -> None:
    rows = top_one([0, 1] * 4, [2, 2] * 4)
    trace = trace_of(rows, seq_len=[4, 4], prompt_tokens=[1, 1], predictions=guesses(rows))
    result = serve(tmp_path, trace, "adapmoe-cache", cache={"slots": "2/layer", "split": "uniform"})
    ahead = [(row["layer"], row["expert"]) for row in timeline(result) if row["kind"] == "prefetch"]
    assert ahead == [(1, 2)]


def test_adapmoe_cache_keeps_the_last_used_experts_of_each_layer(tmp_path: Path) -> None:
    rows = top_one([0, 0, 0, 0], [1, 2, 3, 1])
    result = serve(
        tmp_path, trace_of(rows), "adapmoe-cache", cache={"slots": "2/layer"}, prefetch="none"
    )
    assert copied(result) == [(0, 0), (1, 1), (1, 2), (1, 3), (1, 1)]
    assert result.summary["write_back_bytes"] == 0


def test_fmoe_keeps_frequent_experts(tmp_path: Path) -> None:
    trace = trace_of(top_one([0, 0, 0, 1, 2, 1, 0]))
    summary = serve(tmp_path, trace, "fmoe", cache={"slots": 1}, prefetch="none").summary
    assert summary["misses"] == 4  # expert 0 keeps its slot against 1 and 2


@pytest.mark.parametrize(("similar", "fetched"), [(True, {1}), (False, {1, 2})])
def test_fmoe_fetches_more_where_the_match_is_poor(
    tmp_path: Path, similar: bool, fetched: set[int]
) -> None:
    # The stored maps start with expert 0 alone. What follows has the weights 0.5, 0.3 and 0.2.
    now, shares = ([0, -1, -1], [1.0, 0, 0]) if similar else ([0, 5, -1], [0.3, 0.7, 0])
    ids = [[[0, -1, -1], [1, 2, 3]]] * 2 + [[now, [4, -1, -1]]]
    weights = np.array([[[1, 0, 0], [0.5, 0.3, 0.2]]] * 2 + [[shares, [1, 0, 0]]])
    trace = trace_of(ids, seq_len=[2, 1], prompt_tokens=[1, 1], gate_weights=weights)
    result = serve(
        tmp_path,
        trace,
        "fmoe",
        cache={"slots": 8},
        prefetch={"options": {"experts": 1}},
        hardware={"profile": "rtx-4090", "h2d": {"bandwidth": "10TB/s", "latency": "0ns"}},
    )
    # The cosine is 1, or 0.3 / sqrt(0.3^2 + 0.7^2) = 0.39, so that a sum of 0.61 is needed.
    ahead = {row["expert"] for row in timeline(result) if row["kind"] == "prefetch"}
    assert ahead == fetched


def test_fmoe_evicts_the_least_product_of_probability_and_frequency(tmp_path: Path) -> None:
    # Expert 0 is used twice with little weight, and 1 once with much of it.
    ids = [[[0, 7]], [[0, 7]], [[1, 7]], [[2, 7]], [[1, 7]]]
    weights = np.array([[[0.1, 0.9]]] * 2 + [[[0.9, 0.1]], [[0.9, 0.1]], [[0.9, 0.1]]])
    trace = trace_of(ids, gate_weights=weights)
    result = serve(
        tmp_path, trace, "fmoe", cache={"slots": 3, "admission": "always"}, prefetch="none"
    )
    assert copied(result) == [(0, 0), (0, 7), (0, 1), (0, 2)]  # 2 takes the slot of 0


@pytest.mark.parametrize("system", ["llama.cpp", "ik_llama.cpp"])
def test_llama_cpp_leaves_as_few_layers_on_the_cpu_as_memory_allows(
    tmp_path: Path, system: str
) -> None:
    rows = top_one(*([0, 1] for _ in range(4)))
    changes: dict[str, Any] = {"hardware": PC, "cache": {"slots": 2 * EXPERTS + 5}}
    result = serve(tmp_path, trace_of(rows), system, **changes)
    assert by_layer(result, "elsewhere") == [2, 2, 0, 0]
    assert copied(result) == []


@pytest.mark.parametrize(
    ("system", "tokens", "copies"),
    [
        ("llama.cpp", 31, False),  # it counts the tokens of a step
        ("llama.cpp", 32, True),
        ("ik_llama.cpp", 32, False),  # it counts the tokens of an expert, in the mean
        ("ik_llama.cpp", 32 * EXPERTS - 1, False),
        ("ik_llama.cpp", 32 * EXPERTS, True),
    ],
)
def test_llama_cpp_copies_the_experts_of_cpu_layers_from_32_rows_on(
    tmp_path: Path, system: str, tokens: int, copies: bool
) -> None:
    trace = trace_of([[[0]]] * tokens, prompt=tokens)
    result = serve(tmp_path, trace, system, hardware=PC, cache={"slots": 0})
    assert copied(result) == ([(0, 0)] if copies else [])


@pytest.mark.parametrize("system", ["moe-lightning", "moe-gen"])
def test_streaming_systems_copy_all_experts_of_each_layer_whichever_are_used(
    tmp_path: Path, system: str
) -> None:
    tokens = 10
    trace = trace_of(top_one(*([layer] * tokens for layer in range(4))))
    result = serve(tmp_path, trace, system, cache={"slots": 2 * EXPERTS})
    times = Counter(copied(result))
    every = {(layer, expert) for layer in range(4) for expert in range(EXPERTS)}
    assert set(times) == every
    # The run ends before the last copies do.
    assert set(times.values()) <= {tokens - 1, tokens}


@pytest.mark.parametrize(("bandwidth", "bound"), [("1GB/s", "link"), ("100TB/s", "gpu")])
def test_moe_lightning_takes_as_long_as_the_slower_of_link_and_gpu(
    tmp_path: Path, bandwidth: str, bound: str
) -> None:
    tokens = 20
    trace = trace_of(top_one(*([layer] * tokens for layer in range(4))))
    machine = {"profile": "rtx-4090", "h2d": {"bandwidth": bandwidth, "latency": "0ns"}}
    result = serve(tmp_path, trace, "moe-lightning", cache={"slots": 2 * EXPERTS}, hardware=machine)
    starts = [row["start_ns"] for row in timeline(result) if row["kind"] == "tail"]
    step_ns = (starts[-1] - starts[9]) / (len(starts) - 10)
    nbytes = 4 * EXPERTS * expert_bytes(trace, tmp_path)
    if bound == "link":
        assert step_ns == pytest.approx(nbytes, rel=0.02)  # 1 byte in each ns
    else:
        assert step_ns < nbytes / 100
        assert result.summary["misses"] == 0


@pytest.mark.parametrize(("system", "stays"), [("moe-lightning", False), ("moe-gen", True)])
def test_only_moe_gen_keeps_experts_where_all_of_them_fit(
    tmp_path: Path, system: str, stays: bool
) -> None:
    trace = trace_of(top_one(*([layer] * 10 for layer in range(4))))
    result = serve(tmp_path, trace, system, cache={"slots": 4 * EXPERTS})
    times = Counter(copied(result))
    assert (max(times.values()) == 1) == stays


@pytest.mark.parametrize("system", ["moe-lightning", "moe-gen"])
def test_streaming_systems_copy_an_expert_once_for_all_tokens_of_a_step(
    tmp_path: Path, system: str
) -> None:
    trace = trace_of([[[0], [1]]] * 50, prompt=50)
    times = Counter(copied(serve(tmp_path, trace, system, cache={"slots": 2 * EXPERTS})))
    assert times[0, 0] == times[1, 1] == 1


@pytest.mark.parametrize("system", ["moe-lightning", "moe-gen"])
def test_streaming_systems_see_nothing_of_the_future(tmp_path: Path, system: str) -> None:
    summary = serve(tmp_path, trace_of(top_one([0, 1], [0, 1])), system).summary
    assert summary["knows_the_future"] == ""


def test_read_me_fetches_every_layer_but_the_first_before_it_is_computed(tmp_path: Path) -> None:
    rows = top_one([0, 1, 2], [3, 4, 5], [6, 7, 0])
    trace = trace_of(rows, router="decoupled", prompt=3)
    result = serve(tmp_path, trace, "read-me", cache={"slots": "3/layer"})
    assert by_layer(result, "misses")[1:] == [0, 0]
    assert result.summary["batching_policy"] == "expert_aware"


def test_read_me_needs_a_router_before_all_layers(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="expert_aware needs the experts of queued tokens"):
        serve(tmp_path, trace_of(top_one([0, 1])), "read-me")


# --- what cannot run, and what would be needed ----------------------------------------------------


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """Return a folder with a trace, one without predictions and weights, and one of other shape."""
    trace = tiny_trace(requests=4, prompt_tokens=3, output_tokens=4)
    trace.save(tmp_path / "trace")
    Trace.from_arrays(
        expert_ids=np.asarray(trace.expert_ids),
        seq_len=[6] * 4,
        prompt_tokens=[3] * 4,
        num_experts=EXPERTS,
        model_config=TINY_CONFIG,
    ).save(tmp_path / "plain")
    tiny_trace(requests=2, num_layers=3).save(tmp_path / "other")
    return tmp_path


ON_PC = "hardware: {gpu: RTX 3060 12GB, cpu: Ryzen 5 5600, memory: 64 GB DDR4-3200, pcie: 4.0 x16}"
NO_GUESSES = "needs predictions, and the trace holds none; record it with `moesim record --depth 1`"
NO_SCORES = (
    "weighs experts by the router's scores, and the trace holds none; record it with `moesim"
)
DEPTH_3 = (
    "the trace predicts 2 layers ahead; write depth: 2, or record it with `moesim record --depth"
)
OWN_TEST = (
    "of the replayed trace, and the run serves 2 of them, first request 0 of the trace; write wo"
)


@pytest.mark.parametrize(
    ("trace", "text", "place", "message"),
    [
        (
            "trace",
            "prefetch: {policy: predicted, options: {depth: 3}}",
            "4:48: prefetch.options.depth",
            f"predicted has depth 3; {DEPTH_3}",
        ),
        (
            "trace",
            "system: hybrimoe\nprefetch: {options: {depth: 3}}",
            "5:29: prefetch.options.depth",
            f"gain has depth 3; {DEPTH_3}",
        ),
        (
            "trace",
            "system: promoe\nprefetch: {options: {predictor: recorded, stride: 3}}",
            "5:51: prefetch.options.stride",
            "stride has stride 3; the trace predicts 2 layers ahead; write stride: 2, or record it",
        ),
        (
            "trace",
            "system: promoe\nprefetch: {options: {stride: 4}}",
            "5:30: prefetch.options.stride",
            "is 4; it must be below 4, the MoE layers of the trace",
        ),
        (
            "trace",
            "system: promoe\nprefetch: {options: {predictor: recorded, train: 0.5}}",
            "5:21: prefetch.options",
            "train is of predictor: table",
        ),
        ("plain", "prefetch: predicted", "4:11: prefetch.policy", f"predicted {NO_GUESSES}"),
        ("plain", "system: mixtral-offloading", "4:9: prefetch.policy", f"predicted {NO_GUESSES}"),
        ("plain", "system: hybrimoe", "4:9: prefetch.policy", f"gain {NO_GUESSES}"),
        ("plain", "system: hybrimoe", "4:9: cache.policy", f"mrs {NO_SCORES}"),
        ("plain", "system: fmoe", "4:9: cache.policy", f"fmoe {NO_SCORES}"),
        ("plain", "system: adapmoe-cache", "4:9: cache.split", "adapmoe needs the accuracy of pre"),
        (
            "plain",
            "system: promoe\nprefetch: {options: {predictor: recorded}}",
            "4:9: prefetch.policy",
            f"stride {NO_GUESSES}",
        ),
        (
            "trace",
            "prefetch: stride",
            "4:11: prefetch.options.profile",
            f"stride learns from requests 0 to 1 {OWN_TEST}",
        ),
        (
            "trace",
            "system: moe-infinity\nworkload: {part: [0, 1]}",
            "4:9: prefetch.options.profile",
            f"activation_matrix learns from requests 0 to 1 {OWN_TEST}",
        ),
        (
            "trace",
            "system: adapmoe-cache\nworkload: {part: [0, 0.5]}",
            "4:9: cache.split_options.train",
            f"split adapmoe learns from requests 0 to 1 {OWN_TEST}",
        ),
        (
            "trace",
            "system: fiddler\nworkload: {part: [0.25, 1]}",
            "4:9: cache.options.profile",
            "static learns from requests 0 to 1 of the replayed trace, and the run serves 1 of",
        ),
        (
            "trace",
            "system: fmoe\nprefetch: {options: {profile: other}}",
            "5:31: prefetch.options.profile",
            "is of another shape than the trace: 3 layers of 8 experts, not 4 of 8",
        ),
        (
            "trace",
            "system: ktransformers\nplacement: {options: {by: frequency, profile: other}}",
            "5:47: placement.options.profile",
            "is of another shape than the trace: 3 layers of 8 experts, not 4 of 8",
        ),
        (
            "trace",
            "system: llama.cpp\nplacement: {options: {layers: 5}}",
            "5:31: placement.options.layers",
            "is 5; it must be at most 4, the MoE layers of the trace",
        ),
        (
            "trace",
            "system: moe-lightning\ncache: {admission: always}",
            "5:20: cache.admission",
            "drop_after_use never admits a missing expert",
        ),
    ],
)
def test_what_cannot_run_is_refused_at_its_place_with_what_would_be_needed(
    foreign: Path, trace: str, text: str, place: str, message: str
) -> None:
    path = foreign / "s.yaml"
    path.write_text(f"trace: {trace}\n{ON_PC}\nbounds: false\n{text}\n", encoding="utf-8")
    with pytest.raises(ScenarioError) as error:
        prepare(load_scenario(path))
    expected = f"{path}:{place}: "
    assert [
        problem
        for problem in error.value.problems
        if problem.startswith(expected) and message in problem
    ], error.value.problems


def test_a_profile_needs_no_part_of_the_replayed_trace(foreign: Path) -> None:
    path = foreign / "s.yaml"
    text = "system: moe-infinity\nprefetch: {options: {profile: plain}}"
    tiny_trace(requests=2, seed=5).save(foreign / "lessons")
    text = text.replace("plain", "lessons")
    path.write_text(f"trace: trace\n{ON_PC}\nbounds: false\n{text}\n", encoding="utf-8")
    assert run(load_scenario(path)).summary["requests"] == 4


# --- presets as data ------------------------------------------------------------------------------


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_system_runs_on_a_shipped_trace(system: str) -> None:
    early = system in REVEALED_EARLY
    data: dict[str, Any] = {
        "system": system,
        "trace": str(ROOT / "traces" / ("gates-top-k-ahead" if early else "deep")),
        "model": str(ROOT / "scenarios/shapes/mixtral-4-layers-ahead.json")
        if early
        else {"shape": "mixtral-8x7b", "expert_bits": 4, "weight_bits": 4},
        "hardware": PC,
        "workload": {"requests": 1, "lengths": {"prompt": 4, "output": 3}},
        "batching": {"max_sequences": 1},
        "bounds": False,
    }
    if early:
        data["cache"] = {"slots": "3/layer"}
    scenario = load_scenario(data)
    summary = run(scenario).summary
    assert summary["finished"] == 1
    assert not [note for note in summary["notes"] if " is unused: " in note]
    for key, setting in load_preset(system).sets.items():
        assert at(scenario.resolved(), key) == setting.value or key == "hardware.h2d.chunk"


def at(data: dict[str, Any], key: str) -> Any:
    return Document("", data).at(tuple(key.split(".")))


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_preset_names_itself_and_gives_options_beside_their_policy(system: str) -> None:
    preset = load_preset(system)
    assert preset.name == system
    for key in preset.sets:
        section, *rest = key.split(".")
        assert rest, "presets set keys of sections"
        assert rest[0] != "options" or f"{section}.policy" in preset.sets
    layers = preset.sets.get("placement.options.layers")
    assert layers is None or layers.value == "auto"


OTHERS: dict[str, Any] = {
    "batching.policy": "fcfs",
    "cache.admission": {"always": "bypass", "bypass": "always"},
    "cache.options.fade": 0.25,
    "cache.options.train": 0.25,
    "cache.options.visits": False,
    "cache.options.weight": 0.25,
    "cache.policy": "random",
    "cache.split": "uniform",
    "cache.split_options.train": 0.25,
    "cache.scope": {"global": "per_layer", "per_layer": "global"},
    "cache.write_back": False,
    "engine.profile": "ideal",
    "hardware.h2d.chunk": "1048576B",
    "memory.staging": 3,
    "placement.options.by": "front",
    "placement.options.layers": 7,
    "placement.policy": "two_queue",
    "prefetch.buffers": 2,
    "prefetch.cancel": False,
    "prefetch.options.depth": 3,
    "prefetch.options.experts": 1,
    "prefetch.options.predictor": "recorded",
    "prefetch.options.stride": 3,
    "prefetch.options.stored": 10,
    "prefetch.policy": "none",
    "workload.part": [0.0, 0.25],
}
"""For each key of the presets another value; a mapping gives it by the preset's value."""


@pytest.mark.parametrize(
    ("system", "key"), [(each, key) for each in SYSTEMS for key in load_preset(each).sets]
)
def test_a_key_of_the_scenario_counts_more_than_the_preset(system: str, key: str) -> None:
    preset = load_preset(system)
    value = OTHERS[key]
    value = value[preset.sets[key].value] if isinstance(value, dict) else value
    if value == preset.sets[key].value:
        value = "cost"
    changed: dict[str, Any] = {"trace": "t", "hardware": {"profile": "t4"}, "system": system}
    here = changed
    *outside, last = key.split(".")
    for name in outside:
        here = here.setdefault(name, {})
    here[last] = value
    resolved = Scenario.model_validate(changed).resolved()
    assert at(resolved, key) == value
    # The other settings stay, but for options of the policy that was replaced.
    for other, setting in preset.sets.items():
        replaced = last == "policy" and other.startswith(f"{outside[0]}.options.")
        if other not in (key, "hardware.h2d.chunk"):
            found = at(resolved, other)
            left_out = replaced or key in setting.beside
            assert (found != setting.value) if left_out else (found == setting.value), other


def test_a_word_for_a_section_overrides_its_policy_and_keeps_its_other_keys() -> None:
    data = {"trace": "t", "hardware": "t4", "system": "fiddler", "cache": "lru"}
    scenario = Scenario.model_validate(data)
    assert (scenario.cache.policy, scenario.cache.scope) == ("lru", "global")


def test_options_of_the_same_policy_are_merged_key_by_key() -> None:
    placement = {"policy": "cpu-layers", "options": {"whole_layers": 2}}
    data = {"trace": "t", "hardware": "t4", "system": "llama.cpp", "placement": placement}
    options = Scenario.model_validate(data).placement.options
    assert (options["layers"], options["whole_layers"]) == ("auto", 2)


def test_the_engine_of_a_system_fills_in_its_own_values() -> None:
    data = {"trace": "t", "hardware": "t4", "system": "ik_llama.cpp"}
    scenario = Scenario.model_validate(data)
    assert scenario.placement.options["copy_rows_of"] == "expert"


def test_a_scenario_without_a_system_is_as_before() -> None:
    assert "system" not in Scenario.model_validate({"trace": "t", "hardware": "t4"}).resolved()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_trace(requests=2, prompt_tokens=3, output_tokens=4).save(tmp_path / "trace")
    return tmp_path


def scenario_in(folder: Path, text: str) -> Path:
    path = folder / "s.yaml"
    path.write_text(f"trace: trace\nhardware: rtx-4090\nbounds: false\n{text}\n")
    return path


def test_a_wrong_name_is_refused_with_a_suggestion_and_its_place(folder: Path) -> None:
    with pytest.raises(ScenarioError) as error:
        load_scenario(scenario_in(folder, "system: fidler"))
    assert "s.yaml:4:9: system: no system is called 'fidler'; did you mean 'fiddler'" in str(
        error.value
    )
    with pytest.raises(UsageError, match="did you mean 'hybrimoe'"):
        load_preset("hybrimoo")


@pytest.mark.parametrize("text", ["system: [fiddler]", "system: {name: fiddler}", "system: 3"])
def test_a_system_that_is_no_name_is_refused(folder: Path, text: str) -> None:
    with pytest.raises(ScenarioError, match=r"s\.yaml:4:9: system: must be text"):
        load_scenario(scenario_in(folder, text))


@pytest.mark.parametrize("text", ["cache:", "cache: [lru]", "cache: {policy: null}"])
def test_a_section_that_is_wrong_stays_wrong_below_a_system(folder: Path, text: str) -> None:
    with pytest.raises(ScenarioError, match=r"s\.yaml:5:\d+: cache"):
        load_scenario(scenario_in(folder, f"system: fiddler\n{text}"))


def test_a_setting_that_cannot_hold_points_at_the_system(folder: Path) -> None:
    path = scenario_in(folder, "system: read-me")
    with pytest.raises(ScenarioError) as error:
        run(load_scenario(path))
    assert f"{path}:4:9: batching.policy: expert_aware needs" in str(error.value)


def test_a_mistake_of_the_scenario_keeps_its_hints_below_a_system(folder: Path) -> None:
    with pytest.raises(
        ScenarioError, match=r"s\.yaml:5:9: cache\.slotz: unknown key; did you mean"
    ):
        load_scenario(scenario_in(folder, "system: fiddler\ncache: {slotz: 4}"))


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_resolved_scenario_shows_the_settings_and_reads_back_as_itself(
    folder: Path, system: str
) -> None:
    scenario = load_scenario(scenario_in(folder, f"system: {system}"))
    scenario.write(folder / "resolved.yaml", reader=folder)
    written = load_document(folder / "resolved.yaml").data
    assert written["system"] == system
    again = load_scenario(folder / "resolved.yaml", ["name=s"])
    assert again.resolved() == scenario.resolved()
    assert fingerprint(again) == fingerprint(scenario)


def test_an_overridden_key_stays_overridden_in_the_resolved_scenario(folder: Path) -> None:
    text = "system: mixtral-offloading\nprefetch: none\ncache: {write_back: false, slots: 8}"
    scenario = load_scenario(scenario_in(folder, text))
    scenario.write(folder / "resolved.yaml", reader=folder)
    again = load_scenario(folder / "resolved.yaml")
    assert (again.prefetch.policy, again.prefetch.options) == ("none", {})
    assert not again.cache.write_back


def test_set_changes_the_system_and_the_keys_of_a_system(folder: Path) -> None:
    path = scenario_in(folder, "system: fiddler")
    other = load_scenario(path, ["system=mixtral-offloading", "cache.scope=global"])
    assert other.cache.policy == "lru"
    assert other.cache.scope == "global"
    assert other.cache.write_back


def test_a_sweep_over_systems_starts_each_point_from_the_scenario_alone(folder: Path) -> None:
    text = "system: llama.cpp\nsweep: {system: [mixtral-offloading, fiddler, null]}"
    points = expand_sweep(load_scenario(scenario_in(folder, text)))
    policies = [(point.cache.policy, point.placement.policy) for _, point in points]
    assert policies == [("lru", "copy"), ("static", "cost"), ("lru", "copy")]
    assert [point.engine.profile for _, point in points] == ["hf-offloading", "ideal", "ideal"]
    assert [point.cache.write_back for _, point in points] == [True, False, False]


def test_a_key_of_a_system_can_be_swept(folder: Path) -> None:
    scenario = load_scenario(scenario_in(folder, "system: hybrimoe\nsweep: {cache.policy: [lru]}"))
    assert [point.cache.options for _, point in expand_sweep(scenario)] == [{}]
    text = "system: hybrimoe\nsweep: {cache.options.weight: [0.1, 0.2]}"
    points = expand_sweep(load_scenario(scenario_in(folder, text)))
    assert [point.cache.options for _, point in points] == [{"weight": 0.1}, {"weight": 0.2}]


def test_a_sweep_over_systems_needs_the_scenario_as_it_was_written() -> None:
    data = {"trace": "t", "hardware": "t4", "sweep": {"system": ["fiddler", "fmoe"]}}
    with pytest.raises(ScenarioError, match="needs a scenario from load_scenario"):
        expand_sweep(Scenario.model_validate(data))


def test_rows_of_a_comparison_are_named_by_their_system_alone(folder: Path) -> None:
    text = "cache: {slots: 8}\nsweep: {system: [mixtral-offloading, fmoe, promoe, null]}"
    text += "\nworkload: {part: [0.5, 1]}"
    loaded = load_scenario(scenario_in(folder, text))
    runs = []
    for place, (values, point) in enumerate(expand_sweep(loaded)):
        out = folder / f"run-{place}"
        run(point, out=out)
        runs.append(load_run(out))
        assert values
    assert [row.variant for row in compare_runs(runs).rows] == [
        "mixtral-offloading",
        "fmoe",
        "promoe",
        "no system",
    ]
    assert {row.facet for row in compare_runs(runs).rows} == {""}


def test_a_comparison_sets_systems_apart_that_serve_other_requests(folder: Path) -> None:
    text = "cache: {slots: 8}\nsweep: {system: [mixtral-offloading, promoe]}"
    runs = []
    for place, (_, point) in enumerate(expand_sweep(load_scenario(scenario_in(folder, text)))):
        run(point, out=folder / f"run-{place}")
        runs.append(load_run(folder / f"run-{place}"))
    facets = [row.facet for row in compare_runs(runs).rows]
    assert len(set(facets)) == 2
    assert any("0.5" in facet for facet in facets)


def test_merging_leaves_the_document_and_its_places_alone() -> None:
    data = {"trace": "t", "hardware": "t4", "system": "promoe", "cache": {"slots": 4}}
    document = plain_document(data, "x")
    merged = with_system(document, SHORTHANDS)
    assert document.data == data
    assert merged.data["hardware"] == {"profile": "t4", "h2d": {"chunk": "4MiB"}}
    assert with_system(merged, SHORTHANDS) is merged


def test_the_files_of_presets_hold_no_line_that_the_schema_does_not_know() -> None:
    for file in PRESETS.glob("*.yaml"):
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
        assert set(data) == {"name", "about", "source", "sets", "cannot_express"}
        assert load_document(file).data == data
        assert dump_document(data)


def spelled(value: Any) -> str:
    """Return a value as a line of YAML spells it."""
    if isinstance(value, list):
        return str(value)
    return dump_document({"": value}).partition(": ")[2].strip()


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_document_has_every_setting_and_source_of_a_system(system: str) -> None:
    lines = (ROOT / "docs" / "systems.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith(f"| `{system}` |")]
    assert len(rows) == 1
    preset = load_preset(system)
    sets = ", ".join(f"`{key}: {spelled(each.value)}`" for key, each in preset.sets.items())
    assert rows[0].startswith(f"| `{system}` | {sets} | {preset.source} | ")


def test_the_example_of_the_document_is_a_scenario(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "systems.md").read_text(encoding="utf-8")
    example = text.partition("```yaml\n")[2].partition("```")[0]
    (tmp_path / "x.yaml").write_text(example.replace("../traces", str(ROOT / "traces")))
    assert len(expand_sweep(load_scenario(tmp_path / "x.yaml"))) == 5
