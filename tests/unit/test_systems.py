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
from moesim.errors import ScenarioError, UsageError
from moesim.report.comparison import compare_runs
from moesim.report.runs import load_run
from moesim.results.result import Result
from moesim.scenario import Scenario, expand_sweep, load_scenario
from moesim.scenario.scenario import SHORTHANDS
from moesim.scenario.system import with_system
from moesim.simulate import run
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


def test_fiddler_computes_a_missing_expert_on_the_cpu_where_that_is_sooner(tmp_path: Path) -> None:
    trace = trace_of(top_one([0, 0, 1, 2]))
    slow_link = {**PC, "h2d": {"bandwidth": "100MB/s"}}
    summary = serve(tmp_path, trace, "fiddler", cache={"slots": 1}, hardware=slow_link).summary
    assert (summary["hits"], summary["misses"], summary["elsewhere"]) == (2, 2, 2)
    assert summary["h2d_bytes"] == 0


def test_fiddler_copies_a_missing_expert_where_the_cpu_is_slower(tmp_path: Path) -> None:
    trace = trace_of(top_one([0, 0, 1, 2]))
    summary = serve(tmp_path, trace, "fiddler", cache={"slots": 1}, hardware=SLOW_CPU).summary
    assert (summary["hits"], summary["misses"], summary["elsewhere"]) == (2, 2, 0)
    assert summary["demand_bytes"] == 2 * expert_bytes(trace, tmp_path)


def test_fiddler_drops_a_copied_expert_after_use(tmp_path: Path) -> None:
    trace = trace_of(top_one([0, 0, 0, 1, 1, 0]))
    result = serve(tmp_path, trace, "fiddler", cache={"slots": 1}, hardware=SLOW_CPU)
    assert copied(result) == [(0, 1), (0, 1)]


def test_fiddler_keeps_the_most_popular_experts_of_all_layers(tmp_path: Path) -> None:
    rows = top_one([0, 0, 0, 0], [1, 2, 3, 4])
    summary = serve(tmp_path, trace_of(rows), "fiddler", cache={"slots": 1}, hardware=PC).summary
    assert summary["hits"] == 4  # expert 0 of the first layer


def test_ktransformers_keeps_as_many_experts_of_each_layer_and_copies_none(tmp_path: Path) -> None:
    rows = top_one(range(EXPERTS), range(EXPERTS))
    result = serve(tmp_path, trace_of(rows), "ktransformers", cache={"slots": 6}, hardware=PC)
    assert by_layer(result, "hits") == [3, 3]
    assert result.summary["elsewhere"] == 10
    assert copied(result) == []


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


def test_promoe_evicts_the_least_recently_used_expert_of_all_layers(tmp_path: Path) -> None:
    rows = top_one([0, 0, 0], [1, 2, 1])
    result = serve(tmp_path, trace_of(rows), "promoe", cache={"slots": 2}, prefetch="none")
    assert copied(result) == [(0, 0), (1, 1), (1, 2), (1, 1)]


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
    assert len(expand_sweep(load_scenario(tmp_path / "x.yaml"))) == 4
