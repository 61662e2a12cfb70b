"""What a file of requests holds: lengths, rate, burstiness and shared prefixes, as plain data."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from moesim.workload.prefixes import nodes, sharing
from moesim.workload.request_file import RequestFile

__all__ = ["PERCENTILES", "describe", "gaps_s"]

PERCENTILES: Final = (10, 50, 90, 99)
_SECOND_NS: Final = 1_000_000_000
_MINUTE_NS: Final = 60 * _SECOND_NS
_MOST_DOMAINS: Final = 20


def describe(file: RequestFile) -> dict[str, Any]:
    """Return the statistics of a file of requests; `arrivals` or `prefixes` is None without any.

    `burstiness` is the coefficient of variation of the gaps between arrivals, 1 for a Poisson
    process. `dispersion` is the variance ÷ mean of the requests of a minute, 1 as well.
    """
    requests = file.requests
    domains = Counter(it.domain for it in requests if it.domain)
    return {
        "format": file.format.name,
        "requests": len(requests),
        "prompt_tokens": _lengths([it.prompt_tokens for it in requests]),
        "output_tokens": _lengths([it.output_tokens for it in requests]),
        "arrivals": _arrivals(file) if file.timed else None,
        "prefixes": _prefixes(file),
        "domains": dict(domains.most_common(_MOST_DOMAINS)),
        "num_domains": len(domains),
        "repaired": file.notes(),
    }


def _lengths(values: list[int]) -> dict[str, Any]:
    return {"total": sum(values), **_spread(np.array(values, float))}


def _spread(values: npt.NDArray[np.float64]) -> dict[str, Any]:
    points = np.percentile(values, PERCENTILES).tolist()
    return {
        "mean": float(values.mean()),
        "min": float(values.min()),
        **{f"p{p}": point for p, point in zip(PERCENTILES, points, strict=True)},
        "max": float(values.max()),
    }


def gaps_s(file: RequestFile) -> npt.NDArray[np.float64]:
    """Return the times between consecutive arrivals, in seconds."""
    return np.diff([it.arrival_ns or 0 for it in file.requests]) / _SECOND_NS


def _arrivals(file: RequestFile) -> dict[str, Any]:
    gaps, last_ns = gaps_s(file), file.requests[-1].arrival_ns or 0
    spread = _spread(gaps) if len(gaps) else None
    minutes = np.array([(it.arrival_ns or 0) // _MINUTE_NS for it in file.requests])
    # The last minute is not over, so it does not count, unless it is the only one.
    counts = np.unique(minutes, return_counts=True)[1]
    whole = int(minutes[-1])
    variance = mean = None
    if whole >= 1:
        every = np.bincount(minutes[minutes < whole], minlength=whole) if whole < 10**6 else counts
        variance, mean = float(every.var()), float(every.mean())
    return {
        "duration_s": last_ns / _SECOND_NS,
        "rate_per_s": len(gaps) * _SECOND_NS / last_ns if last_ns else None,
        "gaps_s": spread,
        "burstiness": float(gaps.std() / gaps.mean()) if last_ns else None,
        "busiest_minute": int(counts.max()),
        "dispersion": variance / mean if variance is not None and mean else None,
    }


def _prefixes(file: RequestFile) -> dict[str, Any] | None:
    if file.block_tokens is None:
        return None
    requests = file.requests
    prompts = [it.prompt_tokens for it in requests]
    found = sharing(nodes(it.blocks or () for it in requests), prompts, file.block_tokens)
    return {
        "block_tokens": file.block_tokens,
        "blocks": found.blocks,
        "distinct_blocks": found.distinct_blocks,
        "requests_with_cached_blocks": found.requests,
        "cached_tokens": found.tokens,
        "cached_share": found.tokens / sum(prompts),
    }
