"""The places of the study: a model, its routing, a machine and an engine.

Mixtral has synthetic routing. Its knobs are those that match hit rates measured on Mixtral
(docs/published.md). Each layer is drawn by itself, so no table can learn anything. DeepSeek-V2-Lite
has real routing of one task, published by deepseek-ai/ESFT. Its second half is served token by
token, and tables learn from the first half. Requests of a task begin with the same words, so only
rows from the middle of a request are served.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from moesim.trace import Trace
from moesim.trace.importers import from_esft
from moesim.trace.synthetic import SyntheticKnobs, synthesize
from moesim.workload.workload import requests_of

__all__ = ["DEEPSEEK", "MIXTRAL", "PLACES", "TASKS", "Place", "half_cut", "mixtral_trace"]

MIXTRAL: Final = "mixtral-8x7b"
DEEPSEEK: Final = "deepseek-v2-lite"
TASKS: Final = ("intent", "law", "summary", "translation")
TASK: Final = "law"
"""The task of the simulated runs: the one whose routing is hardest to predict from history."""
ROWS: Final = 32
"""Rows of each served request."""
_KNOBS: Final = Path(__file__).resolve().parents[1] / "published/rows.json"
_GROUP: Final = "Mixtral-8x7B, HybriMoE"


@dataclass(frozen=True, slots=True, eq=False)  # the key of a dictionary
class Place:
    """One model on one machine; `keys` are those of a scenario."""

    name: str
    model: str
    keys: Mapping[str, Any]

    def scenario(self, trace: Path, requests: int) -> dict[str, Any]:
        """Return the scenario of a place; each seed draws other requests of the served half."""
        served = {"requests": requests, "order": "resampled"}
        if self.model == DEEPSEEK:
            served["part"] = [0.5, 1]
        return {
            "trace": str(trace),
            "workload": served,
            "batching": {"max_sequences": 1},
            "bounds": False,
            **self.keys,
        }


def _mixtral(name: str, bits: float, gpu: Mapping[str, str], slots: str, **more: Any) -> Place:
    model = {"shape": MIXTRAL, "expert_bits": bits, "weight_bits": max(4, bits)}
    cache = {"slots": slots, "admission": "always"}
    return Place(f"Mixtral, {name}", MIXTRAL, {
        "model": model, "hardware": gpu, "cache": cache, **more,
    })  # fmt: skip


def _deepseek(name: str, gpu: Mapping[str, str], **more: Any) -> Place:
    cache = {"slots": "rest", "admission": "always"}
    return Place(f"DeepSeek, {name}", DEEPSEEK, {
        "model": {"shape": DEEPSEEK}, "hardware": gpu, "cache": cache, **more,
    })  # fmt: skip


_SMALL_3: Final = {"gpu": "RTX 3060 12GB", "pcie": "3.0 x16"}
_SMALL_4: Final = {"gpu": "RTX 3060 12GB", "pcie": "4.0 x16"}
PLACES: Final = (
    _mixtral("2.6 bits, 12 GB, PCIe 3", 2.6, _SMALL_3, "4/layer"),
    _mixtral("2.6 bits, 12 GB, PCIe 4", 2.6, _SMALL_4, "4/layer"),
    _mixtral(
        "2.6 bits, 12 GB, PCIe 4, 4 buffers", 2.6, _SMALL_4, "4/layer", prefetch={"buffers": 4},
    ),
    _mixtral(
        "2.6 bits, 12 GB, PCIe 3, slow engine", 2.6, _SMALL_3, "4/layer",
        engine={"profile": "hf-offloading", "layer_event": "12.2ms"},
    ),
    _mixtral("4.5 bits, 24 GB, PCIe 4", 4.5, {"gpu": "RTX 4090"}, "rest"),
    _mixtral("16 bits, 80 GB, PCIe 4", 16, {"gpu": "A100 80GB SXM"}, "rest"),
    _deepseek("16 bits, 12 GB, PCIe 3", _SMALL_3),
    _deepseek("16 bits, 12 GB, PCIe 4", _SMALL_4),
    _deepseek("16 bits, 12 GB, PCIe 4, 12 buffers", _SMALL_4, prefetch={"buffers": 12}),
    _deepseek("16 bits, 24 GB, PCIe 4", {"gpu": "RTX 4090"}),
)  # fmt: skip
"""DeepSeek-V2-Lite is missing on the card of 80 GB: all its experts have a slot there.

Buffers hold the copies ahead of two layers; elsewhere a copy ahead takes a slot at once.
"""


def mixtral_trace(requests: int = 16) -> Trace:
    """Return synthetic routing of Mixtral's sizes and locality."""
    found = json.loads(_KNOBS.read_text(encoding="utf-8"))["found"]
    (knobs,) = (each["knobs"] for each in found if each["group"] == _GROUP)
    return synthesize(
        SyntheticKnobs(
            requests=requests, prompt_tokens=1, output_tokens=ROWS, num_layers=32, num_experts=8,
            top_k=2, layer_correlation=0, **knobs,
        )
    )  # fmt: skip


def deepseek_trace(shared: Path, task: str) -> Trace:
    """Return the routing of a task, cut as `half_cut` does."""
    return half_cut(from_esft(shared / f"data/routing/esft_deepseek_v2_lite/{task}.npz"))


def half_cut(trace: Trace, rows: int = ROWS) -> Trace:
    """Return a trace whose first half is whole, and whose other requests are their middle `rows`.

    Each request has one prompt token, so that its rows are served one by one.
    """
    lessons = requests_of(trace, (0.0, 0.5))
    slices = [trace.slice(number) for number in range(trace.num_requests)]
    kept = [
        each if number in lessons else _middle(each, rows) for number, each in enumerate(slices)
    ]
    chosen = np.concatenate([np.arange(each.start, each.stop) for each in kept])
    return Trace.from_arrays(
        expert_ids=np.asarray(trace.expert_ids[:])[chosen].astype(np.int64),
        gate_weights=None if trace.gate_weights is None else trace.gate_weights[:][chosen],
        seq_len=[each.stop - each.start for each in kept],
        prompt_tokens=[1] * len(kept),
        num_experts=trace.num_experts,
        model=trace.meta.model,
        layer_map=trace.meta.layer_map,
        num_shared_experts=trace.meta.num_shared_experts,
        provenance=dict(trace.meta.provenance),
    )


def _middle(rows: slice, most: int) -> slice:
    start = rows.start + max(0, rows.stop - rows.start - most) // 2
    return slice(start, min(rows.stop, start + most))


def traces_of(places: Sequence[Place], shared: Path, folder: Path) -> dict[str, Path]:
    """Save the trace of each model of these places; return its folder, by model."""
    made = {}
    for model in dict.fromkeys(place.model for place in places):
        path = folder / model
        if not path.exists():
            trace = mixtral_trace() if model == MIXTRAL else deepseek_trace(shared, TASK)
            trace.save(path)
        made[model] = path
    return made
