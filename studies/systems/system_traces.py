"""The routing of three models, as trace folders: one each to serve, and parts and forms of it.

Mixtral has no public routing by token. `traces/deep` stands for it: recorded, but from a small
model with Mixtral's layers and experts. DeepSeek-V2-Lite has real routing (deepseek-ai/ESFT),
without predictions. GPT-OSS has neither, so its routing is synthetic, with the knobs that match
published hit rates of gpt-oss-120b (docs/published.md).

Runs serve the second half of each trace. The first half is for policies that learn.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from moesim.trace import Trace, from_esft, load_trace
from moesim.trace.synthetic import SyntheticKnobs, synthesize

__all__ = ["FORMS", "SERVED", "Routing", "first_half", "interleaved", "ready"]

ROOT: Final = Path(__file__).resolve().parents[2]
SERVED: Final = [0.5, 1]
"""The part of a trace's requests that runs serve."""
FORMS: Final = ("pregated", "decoupled")
"""Routers that reveal the same choices earlier, of another model: from the least to the most."""

_TASKS: Final = ("intent", "law", "summary", "translation")
_OF_A_TASK: Final = 33
"""Sequences of each task, at most: `intent` has three times as many as the others, all short."""
_ACCURACY: Final = 0.81
"""As of Mixtral's next gate (AdapMoE, arXiv 2408.10284). Nothing is published of GPT-OSS."""


@dataclass(frozen=True, slots=True)
class Routing:
    """The folders of one trace: as served, its first half, and its forms by router."""

    served: Path
    half: Path
    forms: Mapping[str, Path]


def ready(model: str, folder: Path, shared: Path) -> Routing | None:
    """Return the routing of a model, written into `folder` if it is not there yet.

    None without the shared data that it needs.
    """
    make, recipe = _MAKERS[model]
    if model == "deepseek" and not _esft(shared).is_dir():
        return None
    # The name changes with the recipe, so that no old trace stands for a new one.
    stem = f"{model}-{zlib.crc32(repr(recipe).encode()):08x}"
    wanted = {name: folder / f"{stem}-{name}" for name in ("served", "half", *FORMS)}
    if not all((path / "trace.json").is_file() for path in wanted.values()):
        trace = make(shared)
        versions = {"served": trace, "half": first_half(trace)}
        versions |= {form: trace.with_meta(router=form) for form in FORMS}
        for name, version in versions.items():
            version.save(wanted[name], force=True)
    return Routing(wanted["served"], wanted["half"], {form: wanted[form] for form in FORMS})


def first_half(trace: Trace) -> Trace:
    """Return the requests that no run serves."""
    numbers = range(round(SERVED[0] * trace.num_requests))
    return interleaved([(trace, str(trace.requests["domain"][n]), n) for n in numbers])


def interleaved(chosen: Sequence[tuple[Trace, str, int]]) -> Trace:
    """Return a trace of chosen requests: (trace, domain, number of the request) each."""
    first = chosen[0][0]
    slices = [(trace, trace.slice(number)) for trace, _, number in chosen]

    def rows(role: str) -> Any:
        if getattr(first, role) is None:
            return None
        return np.concatenate([getattr(trace, role)[part] for trace, part in slices])

    ids = rows("expert_ids").astype(np.int64)
    ids[ids == first.meta.unused] = -1
    guesses = rows("predictions")
    if guesses is not None:
        guesses = guesses.astype(np.int64)
        guesses[guesses == first.meta.unused] = -1
    header = asdict(first.meta)
    for key in ("num_layers", "top_k", "prediction_depth"):
        del header[key]
    return Trace.from_arrays(
        expert_ids=ids,
        seq_len=[part.stop - part.start for _, part in slices],
        gate_weights=rows("gate_weights"),
        predictions=guesses,
        probabilities=rows("probabilities"),
        prompt_tokens=[int(trace.requests["prompt_tokens"][n]) for trace, _, n in chosen],
        domain=[domain for _, domain, _ in chosen],
        **header,
    )


def _mixtral(_shared: Path) -> Trace:
    return load_trace(ROOT / "traces/deep")


def _deepseek(shared: Path) -> Trace:
    traces = {task: from_esft(_esft(shared) / f"{task}.npz") for task in _TASKS}
    chosen = [
        (trace, task, number)
        for task, trace in traces.items()
        for number in range(min(trace.num_requests, _OF_A_TASK))
    ]
    order = np.random.default_rng(0).permutation(len(chosen))  # all tasks in both halves
    return interleaved([chosen[place] for place in order])


def _esft(shared: Path) -> Path:
    return shared / "data/routing/esft_deepseek_v2_lite"


def _gpt_oss(_shared: Path) -> Trace:
    return synthesize(_GPT_OSS)


# Skew and stickiness match LRU and LFU of gpt-oss-120b in chats, within 3 points in the median.
_GPT_OSS: Final = SyntheticKnobs(
    requests=96, prompt_tokens=32, output_tokens=16, num_layers=36, num_experts=128, top_k=4,
    skew=1.692, stickiness=0.003, layer_correlation=0, prediction_depth=3,
    prediction_accuracy=_ACCURACY,
)  # fmt: skip
_MAKERS: Final[Mapping[str, tuple[Callable[[Path], Trace], Any]]] = {
    "mixtral": (_mixtral, "traces/deep"),
    "deepseek": (_deepseek, (_TASKS, _OF_A_TASK)),
    "gpt-oss": (_gpt_oss, _GPT_OSS),
}
