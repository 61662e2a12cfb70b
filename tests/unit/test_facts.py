"""Facts of a run in its summary: its routing, its sizes, and which policies know the future."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from workloads import TINY_CONFIG, plan_of, tiny_scenario, tiny_trace

from moesim.hardware.overrides import HardwareOverrides, spelled_figures
from moesim.model.hf_config import shape_from_config
from moesim.model.shapes import named_shape
from moesim.policies.batching import FirstComeFirstServed
from moesim.policies.eviction import LRU
from moesim.policies.registry import _registry, register
from moesim.scenario import Scenario
from moesim.simulate import result_of
from moesim.simulate.facts import routing_facts
from moesim.trace import Trace, TraceMeta
from moesim.trace.statistics import prediction_recall

META: dict[str, Any] = {"num_layers": 4, "num_experts": 8, "top_k": 2}


def recorded() -> Trace:
    """Return the tiny trace, marked as recorded from a model."""
    return tiny_trace(requests=2).with_meta(synthetic=False, model="tiny")


def summary(trace: Trace, **changes: Any) -> dict[str, Any]:
    return dict(result_of(plan_of(tiny_scenario(**changes), trace)).summary)


def facts(meta: TraceMeta, shape: str) -> dict[str, str]:
    scenario = Scenario.model_validate(tiny_scenario(model={"shape": shape}))
    chosen = shape_from_config(TINY_CONFIG) if shape == "trace" else named_shape(shape)
    return routing_facts(scenario, meta, chosen)


def test_a_run_says_whether_a_model_made_its_routing() -> None:
    assert summary(recorded())["routing"] == "recorded"
    assert summary(tiny_trace(requests=2))["routing"] == "synthetic"


def test_sizes_are_foreign_where_another_model_lends_them() -> None:
    own = TraceMeta(**META, model="tiny", model_config=TINY_CONFIG)
    assert facts(own, "trace")["sizes"] == "own"
    assert facts(own, "mixtral-8x7b")["sizes"] == "foreign"


def test_a_model_is_known_by_its_sizes_and_not_by_its_name() -> None:
    mixtral = {
        **TINY_CONFIG, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
        "head_dim": 128, "intermediate_size": 14336, "vocab_size": 32000,
    }  # fmt: skip
    renamed = TraceMeta(**META, model="my-mixtral", model_config=mixtral)
    small = TraceMeta(**META, model="mixtral-8x7b", model_config=TINY_CONFIG)
    unknown = TraceMeta(**META, model="mistralai/Mixtral-8x7B")
    assert facts(renamed, "mixtral-8x7b")["sizes"] == "own"
    assert facts(small, "mixtral-8x7b")["sizes"] == "foreign"
    assert facts(unknown, "mixtral-8x7b")["sizes"] == "own"


@pytest.mark.parametrize(
    ("changes", "seers"),
    [
        ({"cache": {"policy": "lru", "slots": 8}}, ""),
        ({"cache": {"policy": "lookahead", "slots": 8}}, ""),
        ({"cache": {"policy": "belady", "slots": 8}}, "eviction min"),
        ({"cache": {"policy": "min_window", "slots": 8}}, "eviction min_window"),
        ({"cache": {"policy": "static", "slots": 8}}, "eviction static"),
        ({"prefetch": {"policy": "predicted"}}, ""),
        ({"prefetch": {"policy": "oracle"}}, "prefetch oracle"),
        (
            {"cache": {"policy": "min", "slots": 8}, "prefetch": {"policy": "oracle"}},
            "eviction min, prefetch oracle",
        ),
    ],
)
def test_a_run_names_the_policies_that_know_the_future(changes: dict[str, Any], seers: str) -> None:
    assert summary(recorded(), **changes)["knows_the_future"] == seers


def test_a_profile_of_the_replayed_trace_is_hindsight_wherever_it_lies(tmp_path: Path) -> None:
    trace = recorded()
    trace.save(tmp_path / "replayed")
    shutil.copytree(tmp_path / "replayed", tmp_path / "copy")
    trace.with_meta(provenance={"renamed": True}).save(tmp_path / "other header")
    tiny_trace(requests=2, seed=9).save(tmp_path / "another")

    def seers(profile: str) -> str:
        cache = {"policy": "static", "options": {"profile": str(tmp_path / profile)}, "slots": 8}
        told: str = summary(trace, cache=cache)["knows_the_future"]
        return told

    for profile in ("replayed", "copy", "other header"):
        assert seers(profile) == "eviction static"
    assert seers("another") == ""


def test_policies_of_other_packages_are_told_by_their_flags(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    summary(recorded())  # so that all policies are loaded before any is added
    monkeypatch.setattr("moesim.policies.registry._registry", dict(_registry))

    @register("batching", "acme_queue")
    class Queue(FirstComeFirstServed):
        clairvoyant = True

    @register("eviction", "acme_profile")
    class Profile(LRU):
        """Learns from the replayed trace, and has another name than `static`."""

        clairvoyant = True

        def __init__(self, context: Any, options: Any = None) -> None:
            super().__init__(context, options)
            assert context.popularity is not None
            context.popularity(None)

    queued = summary(recorded(), batching={"policy": "acme_queue"})
    learnt = summary(recorded(), cache={"policy": "acme_profile", "slots": 8})
    assert queued["knows_the_future"] == "batching acme_queue"
    assert "acme_queue batching knows the future: a bound, not a policy" in queued["notes"]
    assert learnt["knows_the_future"] == "eviction acme_profile"
    assert any("acme_profile was learnt on the replayed trace" in note for note in learnt["notes"])


# --- figures that the scenario sets ---------------------------------------------------------------


def test_a_run_names_the_figures_that_its_scenario_sets() -> None:
    changed = {
        "profile": "rtx-4090",
        "vram": "10GiB",
        "h2d": {"bandwidth": "12GB/s", "latency": "20us"},
        "compute_efficiency": "50%",
        "pinned": False,
    }
    assert summary(recorded(), hardware=changed)["hardware_changes"] == (
        "compute_efficiency 50%, h2d.bandwidth 12GB/s, h2d.latency 20us, vram 10GiB, "
        "pageable host memory"
    )
    assert summary(recorded(), hardware="rtx-4090")["hardware_changes"] == ""
    without_effect = {"profile": "rtx-4090", "cpu_flops": "1GFLOPS", "d2h": {"chunk": "1MiB"}}
    assert summary(recorded(), hardware=without_effect)["hardware_changes"] == ""


def test_every_figure_that_a_scenario_can_set_is_spelled_in_its_unit() -> None:
    """As a scenario reads it: the text is read back as the same number."""
    rates = {"flops": "2TFLOPS", "memory_bandwidth": "3TB/s", "host_memory_bandwidth": "4GB/s"}
    shares = {"compute_efficiency": "12.5%", "memory_efficiency": "60%"}
    others = {"vram": "5GiB", "kernel_overhead": "7us", "readback_latency": "8us"}
    links = {
        f"{way}.{key}": value
        for way in ("h2d", "d2h")
        for key, value in (
            ("latency", "9us"), ("bandwidth", "1GB/s"), ("pinned_bandwidth", "2GB/s"),
            ("pageable_bandwidth", "3GB/s"), ("chunk", "4MiB"),
        )
    }  # fmt: skip
    host = {
        "host_memory": "64GiB", "host_memory_efficiency": "70%", "cpu_flops": "6TFLOPS",
        "cpu_efficiency": "55%", "cpu_overhead": "11us", "cpu_cores": 16, "cpu_threads": 12,
        "core_memory_bandwidth": "13GB/s", "cpu_memory_bandwidth": "14GB/s",
        "int8_ops": "8TFLOPS", "cpu_int8_ops": "9TFLOPS",
    }  # fmt: skip
    disk = {"disk.latency": "90us", "disk.bandwidth": "5GB/s", "disk.queue_depth": 8}
    flat = {**rates, **shares, **others, **links, **host, **disk}
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        head, _, tail = key.partition(".")
        if tail:
            nested.setdefault(head, {})[tail] = value
        else:
            nested[head] = value
    assert nested.keys() == HardwareOverrides.model_fields.keys()
    figures = HardwareOverrides.model_validate(nested).model_dump(exclude_none=True)
    assert spelled_figures(figures) == ", ".join(f"{key} {flat[key]}" for key in sorted(flat))


# --- predictions ----------------------------------------------------------------------------------


def test_a_run_that_uses_predictions_says_how_often_they_are_right() -> None:
    trace = recorded()
    rows = np.arange(trace.num_rows)
    shares = prediction_recall(trace, rows)
    assert shares
    assert shares == prediction_recall(trace)
    served = prediction_recall(trace, rows[trace.slice(0)])
    assert served is not None
    assert served[0] != shares[0]

    def said(prefetch: str) -> list[str]:
        notes = summary(trace, prefetch={"policy": prefetch}, workload={"requests": 1})["notes"]
        return [note for note in notes if "predictions, which contain" in note]

    (note,) = said("predicted")
    assert f"{served[0]:.0%} of the experts 1 layer ahead" in note
    assert said("none") == []
