"""Every key of a scenario changes the result, is refused, or is said to be unused."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel
from random_lanes import QUIET
from workloads import TINY_CONFIG, tiny_trace

from moesim.config.markers import models_in
from moesim.config.yaml_document import dump_document, load_document
from moesim.errors import ScenarioError
from moesim.scenario import Scenario, load_scenario
from moesim.simulate import run
from moesim.trace import Trace

EXPLAINED = {
    "Scenario.name": "names the run and changes no number",
    "Scenario.simulation": "names the back end; test_compiled shows that no number changes",
}
ECHOES = {
    *("name", "trace", "model", "hardware", "hardware_changes", "seed", "cost_kind", "notes"),
    *("engine", "engine_changes", "engine_interface", "engine_kind"),
    *("cache_policy", "cache_scope", "prefetch_policy", "placement_policy", "batching_policy"),
    *("format", "format_basis", "expert_bits", "weight_bits", "embedding_bits", "head_bits"),
}
"""What a summary only repeats from the scenario proves nothing."""

SLOW_LINK = {"profile": "rtx-4090", "h2d": {"bandwidth": "200MB/s", "latency": "5us"}}
BASE: dict[str, Any] = {
    "trace": "layerwise",
    "hardware": SLOW_LINK,
    "memory": {"kv": "auto"},
    "cache": {"policy": "lru", "slots": 12},
    "batching": {"token_budget": 4, "max_sequences": 3},
    "bounds": False,
}
BY_DEMAND: dict[str, Any] = {"cache": {"slots": 12, "split": "demand"}}
BY_ACCURACY: dict[str, Any] = {
    "cache": {"slots": 12, "split": "adapmoe", "split_options": {"accuracy": [0.5, 0.5, 0.9, 0.1]}}
}
WRITE_BACK = {"cache": {"policy": "lru", "slots": 6, "write_back": True}}
POISSON: dict[str, Any] = {"workload": {"arrivals": {"kind": "poisson", "rate_per_s": 5000}}}
GAMMA: dict[str, Any] = {
    "workload": {"arrivals": {"kind": "gamma", "rate_per_s": 5000, "burstiness": 2}}
}
RECORDED = {"workload": {"arrivals": {"kind": "recorded"}}}
FILE: dict[str, Any] = {"workload": {"arrivals": {"kind": "file", "path": "a.csv"}}}
DRAWN: dict[str, Any] = {
    "workload": {"arrivals": {**FILE["workload"]["arrivals"], "times": "gamma", "rate_per_s": 5000}}
}
OWN: dict[str, Any] = {"workload": {"arrivals": {"kind": "file", "path": "own.csv"}}}
OWN["workload"]["arrivals"]["columns"] = {"arrival": "t", "prompt": "in", "output": "out"}
DOMAINS = copy.deepcopy(OWN)
DOMAINS["workload"]["arrivals"]["columns"]["domain"] = "other"
BY_DOMAIN = copy.deepcopy(OWN)
BY_DOMAIN["workload"]["pairing"] = "domain"
BY_DOMAIN["workload"]["arrivals"]["columns"]["domain"] = "task"
MIXED: dict[str, Any] = {"workload": {"arrivals": {"kind": "file", "path": "mixed.csv"}}}
MIXED["workload"]["arrivals"]["repair"] = ["sort"]
HASHED: dict[str, Any] = {"workload": {"arrivals": {"kind": "file", "path": "hashed.jsonl"}}}
HASHED["workload"]["arrivals"]["block_tokens"] = 2
SHARED = {**HASHED, "memory": {"kv": "auto", "kv_block_tokens": 2}}
TEXTS: dict[str, Any] = {"workload": {"arrivals": {"kind": "file", "path": "talks.json"}}}
TEXTS["workload"]["arrivals"] |= {"times": "all_at_once", "characters_per_token": 4}
THINK = {"mean": "1ms", "distribution": "constant"}
CLOSED: dict[str, Any] = {
    "workload": {"arrivals": {"kind": "closed", "clients": 2, "think": THINK}}
}
NO_LOOP = {"workload": {"requests": 2, "arrivals": {"kind": "closed", "clients": 2}}}
ARRIVALS: dict[str, dict[str, Any]] = {
    "poisson": POISSON,
    "gamma": GAMMA,
    "file": FILE,
    "closed": CLOSED,
}
LENGTHS = {"workload": {"lengths": {"prompt": 3, "output": 3}}}
LONG = {"workload": {"lengths": {"prompt": 3, "output": 9}}}
BY_LENGTH = {"workload": {**LONG["workload"], "pairing": "length"}}
PLAIN: dict[str, Any] = {
    "workload": {"arrivals": {**FILE["workload"]["arrivals"], "format": "plain"}}
}
GUESSES = {"prefetch": {"policy": "dial", "options": {"recall": 0.5, "precision": 0.2}}}
ORACLE = {"prefetch": {"policy": "oracle", "options": {"depth": 1}}}
DISK = {"hardware": {**SLOW_LINK, "disk": {"latency": "90us", "bandwidth": "2GB/s"}}}
FROM_DISK: dict[str, Any] = {**DISK, "memory": {"kv": "auto", "host": "31MiB"}}
"""Host memory for 10 of the 32 experts; the others are read from disk."""
ON_CPU: dict[str, Any] = {
    "hardware": {"profile": "rtx-4090", "cpu_flops": "10GFLOPS"},
    "placement": "cpu_experts",
}
HALF_CPU = {**ON_CPU, "hardware": {**ON_CPU["hardware"], "cpu_threads": 2}}
BOUND_BY_MEMORY = {**ON_CPU, "hardware": "rtx-4090"}
OF_PARTS: dict[str, Any] = {"hardware": {"gpu": "RTX 4090", "cpu": "Ryzen 5 3600"}}
OF_SIZED_PARTS = {"hardware": {**OF_PARTS["hardware"], "memory": "32 GB DDR4-3200"}}
NO_GPU = {"gpu": "none", "cpu": "Ryzen 5 3600"}
MEMORY_OF_PARTS = {**ON_CPU, **OF_PARTS}
UNPINNED = {"hardware": {**SLOW_LINK, "h2d": {}, "pinned": False}}
FIXED: dict[str, Any] = {"placement": "cpu_experts"}
KERNELS: dict[str, Any] = {"engine": QUIET}
KERNELS_ON_CPU = {**ON_CPU, **KERNELS}
QUANTISED = {**KERNELS, "model": {"shape": "trace", "expert_bits": 4}}
QUANTISED_ON_CPU = {**ON_CPU, **QUANTISED}
ALL_ON_CPU = {
    **QUANTISED_ON_CPU,
    "model": {"shape": "trace", "expert_bits": 4, "weight_bits": 4},
    "placement": {"policy": "cpu_layers", "options": {"layers": "all", "whole_layers": 4}},
}
EXPERT_AWARE = {"trace": "decoupled", "batching": {"policy": "expert_aware", "token_budget": 2}}
UNSPLIT = {"chunked_prefill": False}
D2H: dict[str, Any] = {**WRITE_BACK, "hardware": {**SLOW_LINK, "d2h": {"bandwidth": "200MB/s"}}}
CASES: dict[str, tuple[dict[str, Any], Any]] = {
    "Scenario.trace": ({}, "other"),
    "Scenario.system": ({}, "fiddler"),
    "Scenario.replay": ({}, "sequential"),
    "Scenario.seed": ({"workload": {"order": "shuffled"}}, 7),
    "Scenario.bounds": ({}, True),
    "Scenario.sweep": ({}, {"seed": [1, 2]}),
    "ModelChoice.shape": ({}, "wide.json"),
    "ModelChoice.format": ({}, "Q4_K_M"),
    "ModelChoice.format_by_layer": ({"model": {"shape": "trace", "format": "Q4_K_M"}}, True),
    "ModelChoice.expert_bits": ({}, 4),
    "ModelChoice.weight_bits": ({}, 8),
    "ModelChoice.kv_bits": ({}, 8),
    "ExpertBitsBy.layer": ({}, {"0": 8}),
    "ExpertBitsBy.expert": ({}, {"0/3": 8}),
    "HardwareChoice.profile": ({}, "t4"),
    "HardwareChoice.gpu": (OF_PARTS, "RTX 2080"),
    "HardwareChoice.cpu": (OF_PARTS, "i9-9900K"),
    "HardwareChoice.memory": (MEMORY_OF_PARTS, "DDR4-2133 1ch"),
    "HardwareChoice.pcie": (OF_PARTS, "PCIe 3.0 x1"),
    "HardwareChoice.pinned": ({"hardware": {"profile": "rtx-4090"}}, False),
    "HardwareChoice.vram": ({}, "8GiB"),
    "HardwareChoice.flops": ({}, "1GFLOPS"),
    "HardwareChoice.int8_ops": (QUANTISED, "1GFLOPS"),
    "HardwareChoice.memory_bandwidth": ({}, "1GB/s"),
    "HardwareChoice.compute_efficiency": ({"hardware": {**SLOW_LINK, "flops": "1TFLOPS"}}, "1%"),
    "HardwareChoice.memory_efficiency": ({}, "1%"),
    "HardwareChoice.kernel_overhead": ({}, "1ms"),
    "HardwareChoice.readback_latency": ({}, "1ms"),
    "HardwareChoice.host_memory_bandwidth": (BOUND_BY_MEMORY, "1GB/s"),
    "HardwareChoice.host_memory": ({}, "8GiB"),
    "HardwareChoice.host_memory_efficiency": (BOUND_BY_MEMORY, "50%"),
    "HardwareChoice.cpu_flops": (ON_CPU, "1GFLOPS"),
    "HardwareChoice.cpu_int8_ops": (QUANTISED_ON_CPU, "1GFLOPS"),
    "HardwareChoice.cpu_memory_bandwidth": (BOUND_BY_MEMORY, "1GB/s"),
    "HardwareChoice.cpu_efficiency": (ON_CPU, "50%"),
    "HardwareChoice.cpu_overhead": (ON_CPU, "50us"),
    "HardwareChoice.cpu_cores": (HALF_CPU, 4),
    "HardwareChoice.cpu_threads": (ON_CPU, 2),
    "HardwareChoice.core_memory_bandwidth": (BOUND_BY_MEMORY, "1GB/s"),
    "DiskOverrides.latency": (FROM_DISK, "5ms"),
    "DiskOverrides.bandwidth": (FROM_DISK, "1GB/s"),
    "DiskOverrides.queue_depth": (FROM_DISK, 8),
    "h2d.latency": ({}, "1ms"),
    "h2d.bandwidth": ({}, "1GB/s"),
    "h2d.pinned_bandwidth": ({}, "1GB/s"),
    "h2d.pageable_bandwidth": (UNPINNED, "1GB/s"),
    "h2d.chunk": (ORACLE, "100kB"),
    "d2h.latency": (D2H, "1ms"),
    "d2h.bandwidth": (D2H, "1MB/s"),
    "d2h.pinned_bandwidth": (D2H, "1MB/s"),
    "d2h.pageable_bandwidth": ({**D2H, **UNPINNED}, "1MB/s"),
    "d2h.chunk": (D2H, "100kB"),
    "Memory.capacity": ({}, "1GiB"),
    "Memory.kv": ({}, "1GiB"),
    "Memory.kv_block_tokens": ({}, 1),
    "Memory.prefix_cache": (SHARED, True),
    "Memory.staging": ({}, 1),
    "Memory.activations": ({}, "1GiB"),
    "Memory.host": (FROM_DISK, "40MiB"),
    "Memory.host_cache": (FROM_DISK, "expert"),
    "Memory.pinned": ({"hardware": "rtx-4090"}, "30%"),
    "Workload.requests": ({}, 2),
    "Workload.order": ({}, "shuffled"),
    "Workload.domains": ({}, ["code"]),
    "Workload.part": ({}, [0, 0.5]),
    "Pairing.by": (DOMAINS, "domain"),
    "Pairing.beyond": (LONG, "resample"),
    "Workload.prefill": ({}, "skip"),
    "Workload.cached_prefix": ({}, 2),
    "AllAtOnce.kind": (POISSON, "all_at_once"),
    "Poisson.kind": (GAMMA | {}, "poisson"),
    "Poisson.rate_per_s": (POISSON, 100),
    "Gamma.kind": (POISSON, "gamma"),
    "Gamma.rate_per_s": (GAMMA, 100),
    "Gamma.burstiness": (GAMMA, 5),
    "Recorded.kind": ({}, "recorded"),
    "Recorded.time_scale": (RECORDED, 3),
    "FromFile.kind": ({}, "file"),
    "FromFile.path": (FILE, "b.csv"),
    "FromFile.format": (FILE, "azure"),
    "FromFile.times": (FILE, "all_at_once"),
    "FromFile.rate_per_s": (DRAWN, 100),
    "FromFile.burstiness": (DRAWN, 5),
    "FromFile.time_scale": (FILE, 3),
    "FromFile.repair": (MIXED, []),
    "FromFile.block_tokens": (HASHED, 4),
    "FromFile.characters_per_token": (TEXTS, 1),
    "Columns.arrival": (OWN, "later"),
    "Columns.unit": (OWN, "ms"),
    "Columns.prompt": (OWN, "out"),
    "Columns.output": (OWN, "in"),
    "Columns.domain": (BY_DOMAIN, "other"),
    "Closed.kind": (POISSON, "closed"),
    "Closed.clients": (CLOSED, 1),
    "Think.mean": (CLOSED, "2ms"),
    "Think.distribution": (CLOSED, "exponential"),
    "Lengths.prompt": (LENGTHS, 5),
    "Lengths.output": (LENGTHS, 5),
    "Batching.policy": ({}, "prefill_first"),
    "Batching.options": (EXPERT_AWARE, {"max_wait": 1}),
    "Batching.token_budget": ({}, 2),
    "Batching.max_sequences": ({}, 1),
    "Batching.chunked_prefill": ({}, False),
    "Batching.long_prompts": ({"batching": {**BASE["batching"], **UNSPLIT}}, "refuse"),
    "Cache.policy": ({}, "fifo"),
    "Cache.options": ({"cache": {"policy": "lfu_decay", "slots": 12}}, {"decay": 0.01}),
    "Cache.scope": ({}, "global"),
    "Cache.slots": ({}, 9),
    "Cache.split": ({}, [0, 3, 4, 5]),
    "SplitOptions.profile": (BY_DEMAND, "other"),
    "SplitOptions.train": (BY_DEMAND, 0.5),
    "SplitOptions.need": (BY_DEMAND, "popularity"),
    "SplitOptions.accuracy": (BY_ACCURACY, 1),
    "SplitOptions.single": (BY_ACCURACY, 1),
    "Cache.initial_layers": ({}, 1),
    "Cache.admission": ({"cache": {"policy": "lfu", "slots": 6}}, "always"),
    "Cache.write_back": ({}, True),
    "Metrics.without_prefetch": (ORACLE, True),
    "Prefetch.policy": ({}, "oracle"),
    "Prefetch.options": (ORACLE, {"depth": 3}),
    "Prefetch.buffers": (ORACLE, 4),
    "Prefetch.cancel": (GUESSES, True),
    "Placement.policy": ({}, "cost"),
    "Placement.options": ({"placement": {"policy": "cpu_layers"}}, {"whole_layers": 3}),
    "EngineChoice.profile": ({}, "llama.cpp"),
    "EngineChoice.interface": ({"engine": {"profile": "own.yaml"}}, "vulkan"),
    "EngineChoice.launch": ({}, "50us"),
    "EngineChoice.copy_launch": ({}, "50us"),
    "EngineChoice.layer_event": ({}, "50us"),
    "EngineChoice.sorting": ({"cache": {"policy": "static", "slots": 32}}, "device"),
    "Timeline.first_step": ({}, 1),
    "Timeline.steps": ({}, 1),
    "Window.skip_requests": ({}, 1),
    "Window.last": ({}, 1),
    "Window.after": ({}, "1us"),
    "Window.until": ({}, "900ms"),
}
"""For each key, a scenario in which it can act, and another value."""
UNUSED: list[tuple[str, dict[str, Any], Any]] = [
    ("model.format", {"model": {"shape": "trace", "expert_bits": 4, "weight_bits": 8}}, "Q8_0"),
    ("model.format_by_layer", {}, True),
    (
        "model.format_by_layer",
        {"model": {"shape": "trace", "format": "Q4_K_M", "expert_bits": 4}},
        True,
    ),
    ("hardware.host_memory_bandwidth", {}, "1GB/s"),
    ("metrics.without_prefetch", {}, True),
    ("hardware.host_memory", {}, "8GiB"),
    ("hardware.memory", OF_PARTS, "DDR4-2133 1ch"),
    ("hardware.host_memory_efficiency", {}, "50%"),
    ("hardware.host_memory_bandwidth", OF_SIZED_PARTS, "1GB/s"),
    ("hardware.cpu_flops", {}, "1GFLOPS"),
    ("hardware.cpu_flops", {**QUANTISED, **FIXED}, "2GFLOPS"),
    ("hardware.int8_ops", {}, "1GFLOPS"),
    ("hardware.int8_ops", KERNELS, "1GFLOPS"),
    ("hardware.cpu_int8_ops", {}, "1GFLOPS"),
    ("hardware.cpu_int8_ops", ON_CPU, "1GFLOPS"),
    ("hardware.cpu_int8_ops", KERNELS_ON_CPU, "1GFLOPS"),
    ("hardware.cpu_memory_bandwidth", {}, "1GB/s"),
    ("hardware.cpu_efficiency", {}, "50%"),
    ("hardware.cpu_overhead", {}, "50us"),
    ("hardware.cpu_cores", {}, 2),
    ("hardware.cpu_cores", ON_CPU, 2),
    ("hardware.cpu_threads", {}, 2),
    ("hardware.core_memory_bandwidth", {}, "1GB/s"),
    ("hardware.disk.queue_depth", DISK, 8),
    ("cache.policy", FIXED, "fifo"),
    ("cache.scope", FIXED, "global"),
    ("cache.split", FIXED, [3, 3, 3, 3]),
    ("cache.split_options.need", FIXED, "popularity"),
    ("cache.split_options.need", {}, "popularity"),
    ("cache.split_options.accuracy", BY_DEMAND, 0.5),
    ("cache.split_options.train", BY_ACCURACY, 0.5),
    ("cache.initial_layers", FIXED, 1),
    ("cache.admission", FIXED, "always"),
    ("cache.write_back", FIXED, True),
    ("hardware.pinned", {"memory": {"pinned": "all"}}, False),
    ("hardware.h2d.chunk", {}, "100kB"),
    ("hardware.h2d.pageable_bandwidth", {}, "1GB/s"),
    ("hardware.d2h.pageable_bandwidth", {}, "1GB/s"),
    ("hardware.h2d.pinned_bandwidth", UNPINNED, "1GB/s"),
    ("hardware.d2h.pinned_bandwidth", UNPINNED, "1GB/s"),
    ("hardware.compute_efficiency", KERNELS, "1%"),
    ("hardware.memory_efficiency", KERNELS, "1%"),
    ("hardware.kernel_overhead", KERNELS, "1ms"),
    ("hardware.cpu_efficiency", KERNELS_ON_CPU, "50%"),
    ("hardware.cpu_overhead", KERNELS_ON_CPU, "50us"),
    ("engine.interface", {}, "cuda"),
    ("engine.interface", {**ALL_ON_CPU, "hardware": NO_GPU, "engine": {"profile": QUIET}}, "cuda"),
    ("workload.lengths", FILE, {"prompt": 3, "output": 3}),
    ("workload.cached_prefix", {"workload": {"prefill": "skip"}}, 2),
    ("workload.order", BY_LENGTH, "shuffled"),
    ("workload.pairing.by", {}, "length"),
    ("workload.arrivals.time_scale", DRAWN, 3),
    ("workload.arrivals.burstiness", FILE, 3),
    ("workload.arrivals.characters_per_token", PLAIN, 4),
    ("workload.arrivals.block_tokens", PLAIN, 16),
    ("workload.arrivals.think", NO_LOOP, "2s"),
    ("batching.long_prompts", {}, "refuse"),
    ("memory.host_cache", {}, "expert"),
    ("prefetch.buffers", {}, 4),
    ("prefetch.cancel", {}, True),
]


def leaves(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Return every key as (owner.name, dotted path); a link's keys are owned by its direction."""
    for name, field in model.model_fields.items():
        inside = list(models_in(field.annotation))
        for inner in inside:
            yield from leaves(inner, (*path, name))
        if not inside:
            owner = path[-1] if model.__name__ == "LinkOverrides" else model.__name__
            yield f"{owner}.{name}", ".".join((*path, name))


KEYS = dict(leaves(Scenario))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("keys")
    drawn = tiny_trace(requests=4, prompt_tokens=3, output_tokens=4, stickiness=0.4)
    for name in ("layerwise", "decoupled"):
        Trace.from_arrays(
            expert_ids=np.asarray(drawn.expert_ids[:]),
            seq_len=drawn.requests["num_rows"],
            prompt_tokens=drawn.requests["prompt_tokens"],
            domain=["code", "prose", "code", "prose"],
            arrival_s=[0.0, 0.001, 0.002, 0.01],
            num_experts=drawn.num_experts,
            model_config=TINY_CONFIG,
            router=name,
        ).save(made / name)
    tiny_trace(requests=4, prompt_tokens=3, output_tokens=4, seed=9).save(made / "other")
    wide = {**TINY_CONFIG, "intermediate_size": 2048}
    (made / "wide.json").write_text(json.dumps(wide), encoding="utf-8")
    for name, second in (("a", 0.001), ("b", 0.002)):
        text = f"arrival_s,prompt_tokens,output_tokens\n0,3,4\n{second},2,3\n"
        (made / f"{name}.csv").write_text(text, encoding="utf-8")
    text = "t,later,in,out,task,other\n0,0,3,4,code,prose\n0.001,0.002,2,3,code,code\n"
    (made / "own.csv").write_text(text, encoding="utf-8")
    text = "arrival_s,prompt_tokens,output_tokens\n0.1,3,4\n0,2,3\n"
    (made / "mixed.csv").write_text(text, encoding="utf-8")
    hashed = {"timestamp": 0, "input_length": 4, "output_length": 2, "hash_ids": [7, 8]}
    (made / "hashed.jsonl").write_text(f"{json.dumps(hashed)}\n" * 3, encoding="utf-8")
    turns = [{"from": "human", "value": "a" * 12}, {"from": "gpt", "value": "b" * 8}]
    talks = json.dumps([{"conversations": turns}] * 3)
    (made / "talks.json").write_text(talks, encoding="utf-8")
    profile = load_document(QUIET).data
    cuda = profile["gpu"]["cuda"]
    slower = {"value": "9us", "kind": "assumed", "source": "a test"}
    profile["gpu"] = {"cuda": cuda, "vulkan": {**cuda, "kernel": slower}}
    (made / "own.yaml").write_text(dump_document(profile), encoding="utf-8")
    return made


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return {**copy.deepcopy(base), **copy.deepcopy(changes)}


def with_key(data: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Return the data with a dotted key set; a new kind of arrivals drops the keys of the old."""
    *outside, last = key.split(".")
    data = copy.deepcopy(data)
    here = data
    for name in outside:
        inner = here.setdefault(name, {})
        here[name] = {"profile": inner} if isinstance(inner, str) else inner
        here = here[name]
    if key == "workload.arrivals.kind":
        here.clear()
        if value in ARRIVALS:
            here.update(ARRIVALS[value]["workload"]["arrivals"])
    here[last] = value
    return data


def outcome(folder: Path, data: dict[str, Any]) -> tuple[str, list[str]]:
    """Return the results of a run, without the settings that it repeats, and its notes."""
    (folder / "x.yaml").write_text(dump_document(data), encoding="utf-8")
    result = run(load_scenario(folder / "x.yaml"))
    summary = {key: value for key, value in result.summary.items() if key not in ECHOES}
    tables = {name: dict(columns) for name, columns in result.columns.items()}
    return repr((summary, tables)), result.summary["notes"]


def refusal(folder: Path, data: dict[str, Any]) -> str:
    """Return why a scenario is refused; an empty text if it runs."""
    try:
        outcome(folder, data)
    except ScenarioError as error:
        return str(error)
    return ""


def test_the_cases_are_those_of_the_schema() -> None:
    assert {*CASES, *EXPLAINED} == set(KEYS)


@pytest.mark.parametrize("name", CASES)
def test_every_key_changes_the_result_or_is_refused_or_noted_as_unused(
    folder: Path, name: str
) -> None:
    changes, value = CASES[name]
    base, key = merged(BASE, changes), KEYS[name]
    before, _ = outcome(folder, base)
    changed = with_key(base, key, value)
    if refused := refusal(folder, changed):
        of_file = key.startswith("workload.arrivals.")  # a wrong line is not of one key
        assert (": workload.arrivals" if of_file else f": {key}") in refused
        return
    after, notes = outcome(folder, changed)
    unused = any(note.startswith(f"{key} is unused") for note in notes)
    assert (before != after) != unused


@pytest.mark.parametrize(("key", "changes", "value"), UNUSED)
def test_a_key_that_cannot_act_here_is_said_to_be_unused(
    folder: Path, key: str, changes: dict[str, Any], value: Any
) -> None:
    base = merged(BASE, changes)
    before, quiet = outcome(folder, base)
    after, notes = outcome(folder, with_key(base, key, value))
    assert before == after
    assert [note.split(" is unused: ")[0] for note in notes if note not in quiet] == [key]


@pytest.mark.parametrize(
    ("changes", "key", "value"),
    [
        (KERNELS_ON_CPU, "hardware.cpu_flops", "0.01GFLOPS"),  # experts of floats
        (ALL_ON_CPU, "hardware.cpu_flops", "0.01GFLOPS"),  # attention
        (ALL_ON_CPU, "hardware.cpu_int8_ops", "0.01GFLOPS"),
        (QUANTISED_ON_CPU | OF_PARTS, "hardware.cpu_memory_bandwidth", "1GB/s"),
    ],
)
def test_a_rate_that_the_engine_reads_changes_the_result(
    folder: Path, changes: dict[str, Any], key: str, value: Any
) -> None:
    base = merged(BASE, changes)
    before, _ = outcome(folder, base)
    after, notes = outcome(folder, with_key(base, key, value))
    assert before != after
    assert not any(note.startswith(f"{key} is unused") for note in notes)


def test_figures_of_the_host_are_used_where_a_placement_computes_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from moesim.policies import register, registry
    from moesim.scenario.unused import unused_keys

    monkeypatch.setattr(registry, "_registry", dict(registry._registry))
    register("placement", "on_the_cpu")(type("OnTheCpu", (), {"lanes": ("cpu",)}))
    changes = {"cpu_flops": "1TFLOPS", "cpu_threads": 2, "host_memory_bandwidth": "9GB/s"}
    data = {**BASE, "hardware": {"profile": "t4", **changes}}
    used = Scenario.model_validate({**data, "placement": {"policy": "on_the_cpu"}})
    assert unused_keys(used) == []
    assert unused_keys(Scenario.model_validate(data)) == [
        "hardware.cpu_flops",
        "hardware.cpu_threads",
        "hardware.host_memory_bandwidth",
    ]
