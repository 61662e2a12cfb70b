"""Statistics of a trace's routing: the few numbers that decide which policies can work on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from moesim.trace.locality import follows, shared_places

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from moesim.trace.trace import Trace

    IntArray = NDArray[np.int64]

_BLOCK = 4096


def describe(trace: Trace) -> dict[str, Any]:
    """Return header, size, domains and measured locality of a trace, as plain data."""
    meta = trace.meta
    names, counts = np.unique(trace.requests["domain"].astype(str), return_counts=True)
    prompt, output = trace.requests["prompt_tokens"], trace.requests["output_tokens"]
    return {
        **outline(trace),
        "prompt_rows": meta.prompt_rows,
        "prompt_tokens": f"{prompt.min()} to {prompt.max()}",
        "output_tokens": f"{output.min()} to {output.max()}",
        "domains": dict(zip(names.tolist(), counts.tolist(), strict=True)),
        "gate_weights": trace.gate_weights is not None,
        "prediction_depth": meta.prediction_depth,
        "prediction_recall": prediction_recall(trace),
        "adjacent_token_overlap": round(adjacent_overlap(trace), 4),
        "overlap_by_chance": round(meta.top_k / meta.num_experts, 4),
        "load_skew": [round(value, 2) for value in load_skew(trace)],
        "provenance": meta.provenance,
    }


def outline(trace: Trace) -> dict[str, Any]:
    """Return whose routing a trace holds, and how much of it, as plain data."""
    meta = trace.meta
    return {
        "model": meta.model,
        "synthetic": meta.synthetic,
        "router": meta.router,
        "layers": meta.num_layers,
        "experts": meta.num_experts,
        "top_k": meta.top_k,
        "requests": trace.num_requests,
        "rows": trace.num_rows,
    }


def adjacent_overlap(trace: Trace) -> float:
    """Return the mean share of a token's experts that the token before it in its request used."""
    ids = np.asarray(trace.expert_ids[:])
    inside = follows(trace)
    if not inside.any():
        return 0.0
    # Within a request, the row before is the token before.
    now, before = ids[inside], ids[np.flatnonzero(inside) - 1]
    used = now != trace.meta.unused
    return float(shared_places(now, before, trace.meta.unused).sum() / max(1, used.sum()))


def load_skew(trace: Trace) -> list[float]:
    """Return for each layer the uses of its most popular expert over the mean."""
    result = []
    for layer in range(trace.num_layers):
        ids = np.asarray(trace.expert_ids[:])[:, layer]
        counts = np.bincount(ids[ids != trace.meta.unused], minlength=trace.num_experts)
        result.append(float(counts.max() / max(counts.mean(), 1e-9)))
    return result


def prediction_recall(trace: Trace, rows: IntArray | None = None) -> list[float] | None:
    """Return for each depth the share of used experts that were predicted; None without any.

    `rows` are the rows to count (default: all).
    """
    if trace.predictions is None:
        return None
    rows = np.arange(trace.num_rows) if rows is None else rows
    depths = trace.meta.prediction_depth
    right, used = np.zeros(depths, np.int64), np.zeros(depths, np.int64)
    # In blocks of rows, because comparing each expert with each prediction takes much memory.
    for first in range(0, len(rows), _BLOCK):
        block = rows[first : first + _BLOCK]
        ids, guesses = np.asarray(trace.expert_ids[block]), np.asarray(trace.predictions[block])
        # A prediction of depth d made at layer l is for layer l + d: the first d layers have none.
        for depth in range(1, depths + 1):
            truth = ids[:, depth:]
            guess = guesses[:, : max(0, trace.num_layers - depth), depth - 1]
            chosen = truth != trace.meta.unused
            hit = (truth[..., :, None] == guess[..., None, :]).any(axis=-1) & chosen
            right[depth - 1] += hit.sum()
            used[depth - 1] += chosen.sum()
    shares = zip(right.tolist(), used.tolist(), strict=True)
    return [round(hits / max(1, uses), 4) for hits, uses in shares]
