"""Table `offloading`: mixtral-offloading (arXiv 2312.17238, Table 2), 32 figures.

Section 4 of the paper says what the rows mean. *Naive offloading* loads the entire MoE layer, with
`accelerate`. *W/o LRU cache and pre-loading* copies the two chosen experts of each layer. *W/o
pre-loading* has k cached experts a layer, LRU. *Full* also loads the two experts that the next gate
predicts, into buffers of their own. An expert takes a slot only when it is used.

Two numbers of each machine are fitted. The naive rows need no routing, so the link never waits:
they give the bandwidth that it reaches. The rows without a cache then give the time of a layer
beside its copies. The other two rows are predicted, with synthetic routing. Its knobs come from
hit rates that another paper measured on Mixtral (HybriMoE), not from this table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import geometric_mean, mean
from typing import Any, Final

import numpy as np
from cache_replay import Locality
from published_rows import Row

from moesim.scenario import Scenario
from moesim.serving.run_log import RunLog, StepEnded
from moesim.simulate.build import prepare, serve
from moesim.trace import Trace
from moesim.trace.synthetic import SyntheticKnobs, synthesize

__all__ = ["TABLE", "Fit", "Machine", "fit_machine", "latency_row", "offloading_rows", "seconds"]

TABLE: Final = "arXiv 2312.17238 Table 2"
PREDICTED: Final = 0.81
"""Share of true predictions: 86 % of predicted experts are then right, by chance or not. That is
the mean over layers that AdapMoE (arXiv 2408.10284) measured for Mixtral's next gate."""

_LAYERS, _EXPERTS, _STEPS, _WARM = 32, 8, 120, 24
_BUFFERS: Final = 4
"""Expert-sized buffers of the open code, for demanded and for guessed experts together."""

_GUESSES: Final = 2
_SECOND_NS: Final = 10**9
_ANY_ROUTING: Final = Locality(skew=0.0, stickiness=0.0)
_CONFIG: Final = Path(__file__).with_name("mixtral-all-experts.json")
EXPERT_BITS: Final = {"2bit": 2 + 2 * 8 / 16 + 2 * 2 * 16 / (16 * 128),
                      "3bit": 32 / 10 + 2 * 8 / 64 + 2 * 2 * 16 / (64 * 128)}  # fmt: skip
"""Bits of an expert's weight: packed values, then 8-bit scales and zeros of each group (of 16, or
of 64), then two 16-bit figures of each 128 scales and of each 128 zeros. Ten 3-bit values take 32
bits."""
ATTENTION_BITS: Final = 4 + 2 * 8 / 64 + 2 * 2 * 16 / (64 * 256)


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine of the table: its card and link in moesim's catalogue, and k."""

    name: str
    gpu: str
    pcie: str
    cached: int


MACHINES: Final = {
    "A100": Machine("A100", "A100 80GB SXM", "", 4),
    "RTX3080": Machine("RTX 3080 Mobile", "RTX 3080 laptop 16GB", "", 4),
    "RTX3060": Machine("RTX 3060", "RTX 3060 12GB", "3.0 x16", 2),
    "T4-2bit": Machine("T4 (Colab)", "T4", "", 4),
    "T4-3bit": Machine("T4 (Azure)", "T4", "", 4),
}
_LABELS: Final = {
    "naive_accelerate": "naive",
    "no_lru_no_preload": "no cache",
    "no_preload": "LRU",
    "full": "full",
}


@dataclass(frozen=True, slots=True)
class Fit:
    """The two fitted numbers of a machine: bytes/s that its link reaches, and ns of a layer."""

    link_bytes_per_s: float
    layer_ns: float


def seconds(
    algorithm: str,
    bits: str,
    machine: Machine,
    fit: Fit,
    routing: Locality = _ANY_ROUTING,
    *,
    slots: int | None = None,
) -> float:
    """Return the simulated seconds of one decoded token, with `machine.cached` slots by default.

    Without a cache, each layer copies two experts, so the time does not depend on the routing.
    """
    naive = algorithm == "naive_accelerate"
    slots = machine.cached if slots is None else slots
    scenario = _scenario(algorithm, EXPERT_BITS[bits], machine, fit, slots)
    predictions = PREDICTED if algorithm == "full" else None
    trace = _whole_layers() if naive else _routing(routing, predictions)
    log = RunLog(StepEnded)
    serve(prepare(Scenario.model_validate(scenario), trace), observers=[log])
    ends = [record.now_ns for record in log.of(StepEnded)]
    return (ends[-1] - ends[_WARM]) / (len(ends) - 1 - _WARM) / _SECOND_NS


def _scenario(
    algorithm: str, bits: float, machine: Machine, fit: Fit, slots: int
) -> dict[str, Any]:
    link = {"bandwidth": round(fit.link_bytes_per_s)}
    hardware: dict[str, Any] = {"gpu": machine.gpu, "h2d": link, "d2h": link}
    if machine.pcie:
        hardware["pcie"] = machine.pcie
    caches: dict[str, dict[str, Any]] = {
        # Two layers' slots: the next layer is copied while this one is computed.
        "naive_accelerate": {"scope": "global", "slots": 2 * _EXPERTS, "admission": "always"},
        "no_lru_no_preload": {"slots": 0},
    }
    prefetch = {"naive_accelerate": "oracle", "full": "predicted"}
    naive = algorithm == "naive_accelerate"
    buffers = _GUESSES if algorithm == "full" else 0
    return {
        "name": algorithm,
        "trace": ".",
        "model": {
            "shape": str(_CONFIG) if naive else "mixtral-8x7b",
            "expert_bits": bits,
            "weight_bits": ATTENTION_BITS,
        },
        "hardware": hardware,
        "engine": {"profile": "hf-offloading", "layer_event": 1 if naive else round(fit.layer_ns)},
        "memory": {"staging": _BUFFERS - buffers},
        "batching": {"max_sequences": 1},
        "workload": {"requests": 1, "lengths": {"prompt": 1, "output": _STEPS}},
        "cache": caches.get(algorithm, {"slots": f"{slots}/layer", "admission": "always"}),
        "prefetch": {"policy": prefetch.get(algorithm, "none"), "buffers": buffers},
        "bounds": False,
    }


@lru_cache(maxsize=4)
def _routing(knobs: Locality, predictions: float | None) -> Trace:
    return synthesize(
        SyntheticKnobs(
            requests=1, prompt_tokens=1, output_tokens=_STEPS, num_layers=_LAYERS,
            num_experts=_EXPERTS, top_k=2, skew=knobs.skew, stickiness=knobs.stickiness,
            layer_correlation=0, prediction_depth=0 if predictions is None else 1,
            prediction_accuracy=predictions or 0.0,
        )
    )  # fmt: skip


@lru_cache(maxsize=1)
def _whole_layers() -> Trace:
    """Return a request that needs all experts of each layer."""
    ids = np.broadcast_to(np.arange(_EXPERTS), (_STEPS, _LAYERS, _EXPERTS)).copy()
    return Trace.from_arrays(
        expert_ids=ids, seq_len=[_STEPS], num_experts=_EXPERTS, prompt_tokens=[1],
        model="all experts of each layer",
    )  # fmt: skip


def fit_machine(machine: Machine, naive: Mapping[str, float], bare: Mapping[str, float]) -> Fit:
    """Return the fit to rows in tokens/s by bits: `naive`, and `bare` without a cache.

    Where a machine has two rows of a kind, the fit is their mean.
    """
    links = []
    for bits, published in naive.items():
        fit = Fit(20e9, 0)
        for _ in range(3):  # the time is nearly proportional to 1 / bandwidth
            reached = 1 / seconds("naive_accelerate", bits, machine, fit)
            fit = Fit(fit.link_bytes_per_s * published / reached, 0)
        links.append(fit.link_bytes_per_s)
    link = geometric_mean(links)
    layers = []
    for bits, published in bare.items():
        fit = Fit(link, 5e6)
        for _ in range(3):  # the time is a sum with all layers' times
            left = 1 / published - seconds("no_lru_no_preload", bits, machine, fit)
            fit = Fit(link, max(1.0, fit.layer_ns + left * _SECOND_NS / _LAYERS))
        layers.append(fit.layer_ns)
    return Fit(link, mean(layers))


def _machine_of(entry: Mapping[str, Any]) -> str:
    bits = entry["config"]["expert_bits"]
    return next(
        name
        for name in MACHINES
        if entry["hardware"].startswith(name.split("-")[0])
        and (not name.startswith("T4") or name.endswith(bits))
    )


def _usable(entry: Mapping[str, Any]) -> bool:
    """Return whether a naive row may be fitted: one is marked as a likely misprint."""
    return not entry["config"]["note"]


def offloading_rows(
    published: Sequence[Mapping[str, Any]], routing: Locality
) -> tuple[list[Row], dict[str, Fit]]:
    """Return the rows of the table, and the fit of each machine by its name in the table."""
    entries = [entry for entry in published if entry["source"] == TABLE]
    rows: list[Row] = []
    fits: dict[str, Fit] = {}
    for name, machine in MACHINES.items():
        own = [entry for entry in entries if _machine_of(entry) == name]
        fit = fits[machine.name] = fit_machine(
            machine, _by_bits(own, "naive_accelerate"), _by_bits(own, "no_lru_no_preload")
        )
        rows += [_row(entry, machine, fit, routing) for entry in own]
    return rows, fits


def _by_bits(entries: Sequence[Mapping[str, Any]], algorithm: str) -> dict[str, float]:
    return {
        entry["config"]["expert_bits"]: entry["value"]
        for entry in entries
        if entry["config"]["alg"] == algorithm and _usable(entry)
    }


def _row(entry: Mapping[str, Any], machine: Machine, fit: Fit, routing: Locality) -> Row:
    config = entry["config"]
    algorithm, bits = config["alg"], config["expert_bits"]
    ours = 1 / seconds(algorithm, bits, machine, fit, routing)
    bare = algorithm in ("naive_accelerate", "no_lru_no_preload")
    note = ""
    if not _usable(entry):
        shifted = entry["value"] - 1
        note = f"likely a misprint of {shifted:.3g}: PCIe 3.0 is too slow for it; not fitted"
    elif algorithm == "no_preload" and machine.cached < 4:
        four = 1 / seconds(algorithm, bits, machine, fit, routing, slots=4)
        note = f"the paper says k = {machine.cached}; with k = 4 it would be {four:.4g}"
    return Row(
        table="offloading",
        source=entry["source"],
        what=f"{machine.name}, {bits[0]}-bit, {_LABELS[algorithm]}",
        unit="tok/s",
        published=entry["value"],
        ours=ours,
        kind="fitted" if bare and _usable(entry) else "predicted",
        note=note,
        group=_LABELS[algorithm],
    )


def latency_row(entry: Mapping[str, Any], fits: Mapping[str, Fit], routing: Locality) -> Row:
    """Return the time of a token that MoE-Infinity's README gives for this system on an A5000.

    The layer's time is that of the A100, and the link's bandwidth too: both cards have PCIe 4.0.
    """
    machine = Machine("A5000", "RTX A5000", "", 4)
    return Row(
        table="offloading",
        source=entry["source"],
        what="RTX A5000, mixtral-offloading, time of a token",
        unit="s",
        published=entry["value"],
        ours=seconds("full", "3bit", machine, fits["A100"], routing),
        kind="predicted",
        note="bits, k and prompts are not stated; here 3 bits, k = 4, and the numbers of the A100",
        group="elsewhere",
    )
