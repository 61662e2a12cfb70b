"""Synthetic routing fitted to counts: how often each expert of each layer was used.

Counts say nothing of which experts were used together, nor when. Each token's experts are drawn
independently, so that each expert's expected share of the tokens is exactly that of the counts
(systematic sampling in a random order; Madow, 1949, doi:10.1214/aoms/1177729988). Caches find less
locality in it than in the traffic that was counted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from moesim.errors import SourceError
from moesim.trace.importers.base import MOST_EXPERTS, Imported, Options, need
from moesim.trace.importers.build import trace_of

__all__ = ["fitted_to_counts"]

_MOST_CHOICES: Final = 100_000_000
_BLOCK: Final = 4096
_DOMAIN: Final = "synthetic"


def fitted_to_counts(
    path: Path,
    name: str,
    counts_LE: npt.NDArray[Any],
    options: Options,
    *,
    layers: tuple[int, ...] | None = None,
    notes: list[str] | None = None,
    provenance: dict[str, Any] | None = None,
) -> Imported:
    """Return a synthetic trace whose experts are as popular as in the counts.

    `counts_LE` (layers, experts); layers without any count are left out. `layers` is the model
    layer of each row (None: the same).

    Raises:
        SourceError: counts are negative, undefined, or an expert has more uses than tokens.
    """
    told = list(notes or ())
    counts = _checked(path, counts_LE, options)
    model_layers = np.arange(len(counts)) if layers is None else np.array(layers)
    used = counts.sum(axis=1) > 0
    if not used.any():
        raise SourceError(path, "", "counts no use of any expert")
    if not used.all():
        left = ", ".join(map(str, model_layers[~used]))
        told.append(f"layers without counts are left out: {left}")
    counts, model_layers = counts[used], model_layers[used]
    k = need(options.top_k, "--top-k", "does not say how many experts a token uses", path)
    share_LE = _shares(path, counts, k, model_layers)
    prompt = 32 if options.prompt_tokens is None else options.prompt_tokens
    rows_each = prompt + options.output_tokens - 1
    rows = options.requests * rows_each
    if min(options.requests, rows_each) < 1 or rows * share_LE.size > 100 * _MOST_CHOICES:
        raise SourceError(path, "", f"{rows:,} rows cannot be drawn; ask for 1 to 100 million")
    ids = _drawn(share_LE, k, rows, options.seed)
    told.append(
        "SYNTHETIC: tokens are drawn independently from the counted popularity; order and locality "
        "of the counted traffic are unknown"
    )
    plain = tuple(range(len(model_layers)))
    own = tuple(model_layers.tolist())
    trace = trace_of(
        path,
        expert_ids=ids,
        seq_len=[rows_each] * options.requests,
        prompt_tokens=[prompt] * options.requests,
        num_experts=counts.shape[1],
        domain=_DOMAIN,
        synthetic=True,
        model=f"routing fitted to {options.model or path.stem}",
        layer_map=None if own == plain else own,
        provenance={
            "imported_from": path.name,
            "format": name,
            "fitted_to": "popularity of experts by layer",
            "seed": options.seed,
            **(provenance or {}),
        },
    )
    return Imported(trace, told)


def _checked(path: Path, counts_LE: npt.NDArray[Any], options: Options) -> npt.NDArray[np.float64]:
    if counts_LE.ndim != 2 or counts_LE.dtype.kind not in "iuf" or not counts_LE.size:
        raise SourceError(
            path,
            "",
            "counts must be numbers of shape (layers, experts), not "
            f"{counts_LE.dtype} of shape {counts_LE.shape}",
        )
    counts = counts_LE.astype(np.float64)
    wrong = ~(np.isfinite(counts) & (counts >= 0) & (counts < 2**53))
    if wrong.any():
        layer, expert = np.argwhere(wrong)[0]
        raise SourceError(
            path, f"layer {layer}, expert {expert}", f"count {counts[layer, expert]} is no count"
        )
    experts = counts.shape[1]
    if experts > MOST_EXPERTS or len(counts) > 10_000:
        raise SourceError(path, "", f"has {len(counts)} layers of {experts} experts: too many")
    if options.num_experts not in (None, experts):
        raise SourceError(
            path, "", f"counts {experts} experts, and --num-experts says {options.num_experts}"
        )
    return counts


def _shares(
    path: Path, counts: npt.NDArray[np.float64], k: int, layers: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Return the share of tokens that use each expert, (layers, experts); each row sums to k."""
    if not 1 <= k <= counts.shape[1]:
        raise SourceError(path, "", f"--top-k {k} is impossible with {counts.shape[1]} experts")
    shares = k * counts / counts.sum(axis=1, keepdims=True)
    if (shares > 1 + 1e-9).any():
        layer, expert = np.unravel_index(int(shares.argmax()), shares.shape)
        raise SourceError(
            path,
            f"layer {layers[layer]}, expert {expert}",
            f"has {shares[layer, expert] / k:.1%} of the uses, and with {k} experts a token no "
            f"expert can have more than {1 / k:.1%}: state --top-k as it was",
        )
    return np.asarray(np.minimum(shares, 1.0))


def _drawn(
    share_LE: npt.NDArray[np.float64], k: int, rows: int, seed: int
) -> npt.NDArray[np.int64]:
    """Return ids (rows, layers, k), each row's distinct."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0xF17,)))
    out = np.empty((rows, len(share_LE), k), np.int64)
    for layer, share_E in enumerate(share_LE):
        for first in range(0, rows, _BLOCK):
            last = min(rows, first + _BLOCK)
            out[first:last, layer] = _block(share_E, k, last - first, rng)
    return out


def _block(
    share_E: npt.NDArray[np.float64], k: int, rows: int, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    order = rng.permuted(np.tile(np.arange(len(share_E)), (rows, 1)), axis=1)
    reached = np.cumsum(share_E[order], axis=1)
    reached *= k / reached[:, -1:]  # rounding must not lose the last expert
    points = rng.random((rows, 1)) + np.arange(k)
    # An expert is chosen if a point falls into its share; shares are at most 1, points 1 apart.
    place = (reached[:, None, :] <= points[:, :, None]).sum(axis=2)
    return np.take_along_axis(order, np.minimum(place, len(share_E) - 1), axis=1)
