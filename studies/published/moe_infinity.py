"""Table `infinity`: seconds of a token that MoE-Infinity's README gives, and FineMoE's gains.

The README has an RTX A5000 (24 GB), weights of 16 bits, and 75 % of GPU memory for experts. It
states neither prompts nor lengths nor the link. One number is fitted, the time of a layer beside
its copies, to DeepSeek-V2-Lite. The two other models are predicted with it.

Eviction and prefetch are those of the paper (arXiv 2401.14361): by activation matrices, which are
learnt on the first half of the requests. DeepSeek-V2-Lite has its real routing (deepseek-ai/ESFT,
four tasks). The others have synthetic routing, whose knobs are fitted to hit rates of other tables.

FineMoE (arXiv 2502.05370, once called fMoE) gives differences to other systems only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import mean
from typing import Any, Final

import numpy as np
from cache_replay import Locality
from published_rows import Kind, Row

from moesim.scenario import Scenario
from moesim.serving.run_log import RunLog, StepEnded
from moesim.simulate.build import prepare, serve
from moesim.trace import Trace
from moesim.trace.importers import from_esft
from moesim.trace.synthetic import SyntheticKnobs, synthesize

__all__ = ["infinity_rows", "token_seconds"]

README: Final = "EfficientMoE/MoE-Infinity README.md @00181f1f"
FINE: Final = "arXiv 2502.05370, abstract"
_TASKS: Final = ("intent", "law", "summary", "translation")
_ESFT: Final = "data/routing/esft_deepseek_v2_lite"
_SLOTS: Final = "18GiB"
_REQUESTS, _WARM, _PROMPT, _OUTPUT = 3, 1, 16, 30
_SECOND_NS: Final = 10**9


@dataclass(frozen=True, slots=True)
class _Model:
    """A model of the README: its shape in moesim, its MoE layers, experts and top-k."""

    name: str
    shape: str
    layers: int
    experts: int
    top_k: int
    published_s: float


_DEEPSEEK: Final = _Model("DeepSeek-V2-Lite", "deepseek-v2-lite", 26, 64, 6, 0.100)
_MIXTRAL: Final = _Model("Mixtral-8x7B", "mixtral-8x7b", 32, 8, 2, 0.735)
_QWEN: Final = _Model("Qwen3-30B-A3B", "qwen3-30b-a3b", 48, 128, 8, 0.150)


def token_seconds(
    trace: Trace, shape: str, layer_ns: float, *, slots: str = _SLOTS, prefetch: bool = True
) -> float:
    """Return the mean seconds of a decoded token of the second half of a trace's requests.

    The first of these requests fills the cache and is not counted.
    """
    log = RunLog(StepEnded)
    scenario = Scenario.model_validate(_scenario(shape, layer_ns, slots, prefetch))
    serve(prepare(scenario, trace), observers=[log])
    ends = np.array([record.now_ns for record in log.of(StepEnded)]).reshape(_REQUESTS, _OUTPUT)
    # The first step of a request computes its prompt.
    return float(np.diff(ends, axis=1)[_WARM:].mean() / _SECOND_NS)


def _scenario(shape: str, layer_ns: float, slots: str, prefetch: bool) -> dict[str, Any]:
    ahead = {"policy": "activation_matrix", "options": {"depth": 1}}
    return {
        "name": "MoE-Infinity",
        "trace": ".",
        "model": {"shape": shape, "expert_bits": 16, "weight_bits": 16},
        "hardware": {"gpu": "RTX A5000"},
        "engine": {"profile": "ideal", "layer_event": round(layer_ns)},
        "batching": {"max_sequences": 1},
        "workload": {
            "requests": _REQUESTS,
            "part": [0.5, 1],
            "lengths": {"prompt": _PROMPT, "output": _OUTPUT},
        },
        "cache": {
            "policy": "activation_matrix",
            "scope": "global",
            "slots": slots,
            "admission": "always",
        },
        "prefetch": ahead if prefetch else {"policy": "none"},
        "bounds": False,
    }


@lru_cache(maxsize=2)
def _synthetic(model: _Model, knobs: Locality) -> Trace:
    return synthesize(
        SyntheticKnobs(
            requests=2 * _REQUESTS, prompt_tokens=_PROMPT, output_tokens=_OUTPUT,
            num_layers=model.layers, num_experts=model.experts, top_k=model.top_k,
            skew=knobs.skew, stickiness=knobs.stickiness, layer_correlation=0,
        )
    )  # fmt: skip


def infinity_rows(routings: Mapping[str, Locality], shared: Path) -> tuple[list[Row], float]:
    """Return the rows and the fitted ns of a layer. `routings` are knobs of routing by model."""
    traces = [from_esft(shared / _ESFT / f"{task}.npz") for task in _TASKS]
    layer_ns, reached_s = _fit(traces)
    rows = [
        _row(_DEEPSEEK, reached_s, "fitted", "real routing, four tasks"),
        *(_predicted(model, routings[model.name], layer_ns) for model in (_MIXTRAL, _QWEN)),
        _missing("NLLB-MoE-54B, time of a token", 0.119, "s", README, "no routing of this model"),
    ]
    why = (
        "no routing of its models with the scores of all experts and texts of the prompts; cache "
        "sizes are not stated, and six cards share the experts"
    )
    gains = (("more hits", 39, "% of its hits"), ("less latency", 47, "% of its time"))
    rows += [
        _missing(f"FineMoE, {gain} than the best other system", each, unit, FINE, why)
        for gain, each, unit in gains
    ]
    return rows, layer_ns


def _fit(traces: list[Trace]) -> tuple[float, float]:
    layer_ns = 3e6
    for _ in range(2):  # the time of a token is nearly a sum with all layers' times
        reached_s = mean(token_seconds(each, _DEEPSEEK.shape, layer_ns) for each in traces)
        left_s = _DEEPSEEK.published_s - reached_s
        layer_ns = max(0.0, layer_ns + left_s * _SECOND_NS / _DEEPSEEK.layers)
    reached_s = mean(token_seconds(each, _DEEPSEEK.shape, layer_ns) for each in traces)
    return layer_ns, reached_s


def _predicted(model: _Model, knobs: Locality, layer_ns: float) -> Row:
    trace = _synthetic(model, knobs)
    bare = token_seconds(trace, model.shape, layer_ns, prefetch=False)
    note = f"synthetic routing; prompts and link are not stated; without prefetch {bare:.3g}"
    return _row(model, token_seconds(trace, model.shape, layer_ns), "predicted", note)


def _row(model: _Model, ours: float, kind: Kind, note: str) -> Row:
    return Row(
        table="infinity",
        source=README,
        what=f"{model.name}, MoE-Infinity, time of a token",
        unit="s",
        published=model.published_s,
        ours=ours,
        kind=kind,
        note=note,
        group="MoE-Infinity",
    )


def _missing(what: str, published: float, unit: str, source: str, note: str) -> Row:
    return Row(
        table="infinity",
        source=source,
        what=what,
        unit=unit,
        published=published,
        ours=None,
        kind="missing",
        note=note,
        group="other",
    )
