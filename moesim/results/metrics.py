"""The numbers of `summary.json` and the columns of the tables, from the ledger of a run.

Latencies are differences of recorded integer times. Means and percentiles of no value are None.
docs/results.md defines every key.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from moesim.serving.kv import BlockPool
from moesim.serving.ledger import Ledger
from moesim.serving.prefix import PrefixPool
from moesim.serving.stalls import CAUSES

if TYPE_CHECKING:
    from moesim.results.window import Window
    from moesim.serving.request import Request
    from moesim.serving.totals import Totals

_PERCENTILES = (50, 90, 95, 99)
_SLOW = (50, 10, 5, 1)  # of a speed, whose slow requests are the low ones
_MS = 1_000_000
_S = 1_000_000_000


def latency_summary(requests: Sequence[Request]) -> dict[str, float | None]:
    """Return mean and percentiles in ms of the latencies of requests; None without any sample.

    `ttft`: arrival to first token. It is `ttft_queue`, arrival to the first step that serves the
    request, plus `ttft_service`, the rest. `tpot`: first to last token ÷ tokens after the first.
    `itl`: gaps between tokens. `e2e`: arrival to last token. `normalised`: `e2e` ÷ tokens
    generated, as Orca, vLLM and Read-ME define it.
    """
    # Unfinished requests may have first tokens and gaps, but no last token.
    done = [request for request in requests if request.status == "finished"]
    started = [request for request in requests if request.token_ns]
    samples: dict[str, npt.ArrayLike] = {
        "ttft": [request.token_ns[0] - request.arrival_ns for request in started],
        "ttft_queue": [request.scheduled_ns - request.arrival_ns for request in started],
        "ttft_service": [request.token_ns[0] - request.scheduled_ns for request in started],
        "tpot": [
            (request.token_ns[-1] - request.token_ns[0]) / (len(request.token_ns) - 1)
            for request in done
            if len(request.token_ns) > 1
        ],
        "itl": _gaps([request.token_ns for request in started]),
        "e2e": [request.token_ns[-1] - request.arrival_ns for request in done],
        "normalised": [
            (request.token_ns[-1] - request.arrival_ns) / request.output_tokens for request in done
        ],
    }
    result: dict[str, float | None] = {}
    for name, values in samples.items():
        array = np.asarray(values, dtype=float) / _MS
        result[f"{name}_mean_ms"] = float(array.mean()) if array.size else None
        for percentile, value in percentiles_ms(values).items():
            result[f"{name}_p{percentile}_ms"] = value
    return result


def decode_summary(requests: Sequence[Request]) -> dict[str, float | None]:
    """Return mean and percentiles of the decode speeds of finished requests, in tokens per second.

    The decode speed of a request is what its user sees: tokens after the first ÷ time from the
    first token to the last. Low percentiles are the slow requests. None without any request of
    two tokens or more.
    """
    speeds = [
        (len(request.token_ns) - 1) * _S / (request.token_ns[-1] - request.token_ns[0])
        for request in requests
        if request.status == "finished" and request.token_ns[-1] > request.token_ns[0]
    ]
    array = np.asarray(speeds, dtype=float)
    points = np.percentile(array, _SLOW).tolist() if array.size else [None] * len(_SLOW)
    return {
        "decode_mean_tokens_per_s": float(array.mean()) if array.size else None,
        **{f"decode_p{p}_tokens_per_s": value for p, value in zip(_SLOW, points, strict=True)},
    }


def _gaps(token_ns: Sequence[Sequence[int]]) -> npt.NDArray[np.int64]:
    """Return the gaps between consecutive tokens of each request, in their order."""
    flat = np.fromiter(chain.from_iterable(token_ns), np.int64)
    ends = np.cumsum([len(times) for times in token_ns], dtype=np.int64)
    # The step from one request to the next is no gap.
    return np.delete(np.diff(flat), ends[:-1] - 1)


def percentiles_ms(times_ns: npt.ArrayLike) -> dict[int, float | None]:
    """Return the percentiles of some times in ms; None without any."""
    array = np.asarray(times_ns, dtype=float) / _MS
    points = np.percentile(array, _PERCENTILES).tolist() if array.size else [None] * 4
    return dict(zip(_PERCENTILES, points, strict=True))


def starvation_summary(requests: Sequence[Request]) -> dict[str, float | None]:
    """Return the longest time that a request was not served, in ms and in steps of others.

    *Wait* is the time before its first step, *pause* the time between two steps that served it.
    None if no request began.
    """
    begun = [request for request in requests if request.scheduled_ns >= 0]
    times: dict[str, list[float]] = {
        "wait_max_ms": [(request.scheduled_ns - request.arrival_ns) / _MS for request in begun],
        "wait_max_steps": [request.wait_steps for request in begun],
        "pause_max_ms": [request.pause_ns / _MS for request in begun],
        "pause_max_steps": [request.pause_steps for request in begun],
    }
    return {key: max(values, default=None) for key, values in times.items()}


def throughput_summary(requests: Sequence[Request], now_ns: int, window: Window) -> dict[str, Any]:
    """Return counts by status, and tokens and requests per second of a window.

    Tokens, preemptions and rates are of the window; the other counts and the makespan `now_ns` are
    of the whole run. Rates are None if the window has no length.
    """
    status = [request.status for request in requests]
    inside = window.finished(requests)
    output = sum(window.count(request.token_ns) for request in requests)
    # A prompt counts once its first token is out, so that a waiting request adds no rate.
    prompts = sum(r.prompt_tokens * window.count(r.token_ns[:1]) for r in requests)
    duration_ns = window.duration_ns
    return {
        "requests": len(requests),
        "finished": status.count("finished"),
        "rejected": status.count("rejected"),
        "running": status.count("running"),
        "queued": status.count("waiting"),
        "preemptions": sum(request.preemptions for request in inside),
        "output_tokens": output,
        "makespan_s": now_ns / _S,
        "window_from_s": window.from_ns / _S,
        "window_to_s": window.to_ns / _S,
        "window_s": duration_ns / _S,
        "window_requests": len(inside),
        "output_tokens_per_s": ratio(output * _S, duration_ns),
        "tokens_per_s": ratio((prompts + output) * _S, duration_ns),
        "requests_per_s": ratio(len(inside) * _S, duration_ns),
        "tiled_share": ratio(
            sum(request.tiled_rows for request in requests),
            sum(len(request.rows) for request in requests),
        ),
    }


def prefix_summary(requests: Sequence[Request], pool: BlockPool) -> dict[str, Any]:
    """Return what the prefix cache of a run held; nothing without one.

    `prefix_hit_tokens` are the prompt tokens that requests found cached when they were admitted
    first. `prefix_hit_share` divides them by all prompt tokens of requests that were not rejected.
    """
    if not isinstance(pool, PrefixPool):
        return {}
    hits = sum(request.reused_tokens for request in requests)
    prompts = sum(request.prompt_tokens for request in requests if request.status != "rejected")
    return {
        "prefix_hit_tokens": hits,
        "prefix_hit_share": ratio(hits, prompts),
        "prefix_evicted_blocks": pool.evicted_blocks,
    }


def cache_summary(totals: Totals) -> dict[str, Any]:
    """Return accesses by outcome, hit rates, and distinct experts and waves per layer event.

    An access is a distinct expert of a layer event. `token_hit_rate` weighs each by its rows.
    """
    events, accesses = totals.events, totals.accesses
    hits, late, rows = totals.hits, totals.late_hits, totals.rows
    return {
        "steps": totals.steps,
        "layer_events": events,
        "accesses": accesses,
        "hits": hits,
        "late_hits": late,
        "misses": accesses - hits - late,
        "elsewhere": totals.elsewhere,
        "expert_hit_rate": ratio(hits + late, accesses),
        "on_time_hit_rate": ratio(hits, accesses),
        "late_hit_rate": ratio(late, accesses),
        "token_hit_rate": ratio(rows - totals.missed_rows, rows),
        "unique_experts_per_event_mean": ratio(accesses, events),
        "waves_max": totals.waves_max,
        "waves_mean": ratio(totals.waves_sum, totals.waves_events),
    }


def bytes_summary(totals: Totals, unit_bytes: int, unused_prefetches: int) -> dict[str, Any]:
    """Return the bytes of finished copies, by kind.

    Prefetches are counted in units: experts, or bytes where experts have unequal sizes.

    A prefetched expert is useful (used in time), late (used after a wait), wasted (evicted unused)
    or unused (not used before the run ended, resident or under way). Pollution counts experts that
    were evicted for a prefetch and wanted before the prefetched one. Cancelled copies, a number,
    moved no bytes and are in none of these.
    """
    moved = totals.moved_bytes
    return {
        "h2d_bytes": moved["demand"] + moved["prefetch"],
        "demand_bytes": moved["demand"],
        "prefetch_bytes": moved["prefetch"],
        "prefetch_useful_bytes": totals.prefetch_useful * unit_bytes,
        "prefetch_late_bytes": totals.prefetch_late * unit_bytes,
        "prefetch_wasted_bytes": totals.prefetch_wasted * unit_bytes,
        "prefetch_unused_bytes": unused_prefetches * unit_bytes,
        "prefetch_refused": totals.prefetch_refused,
        "prefetch_pollution": totals.prefetch_pollution,
        "prefetch_cancelled": totals.prefetch_cancelled,
        # Weights are read-only, so evictions write back only if the scenario says so.
        "d2h_bytes": moved["write_back"] + moved["readback"],
        "write_back_bytes": moved["write_back"],
        # Hidden states that cross the link in either direction, for experts or layers elsewhere.
        "states_bytes": moved["states"],
        "disk_bytes": moved["read"],
    }


def time_summary(totals: Totals, duration_ns: int) -> dict[str, Any]:
    """Return busy, stalled and idle seconds of the GPU in `duration_ns`, and busy shares of lanes.

    `stall_share` is stalls ÷ time in steps; None if there were no steps.
    """
    stalls, busy = totals.stall_ns, totals.busy_ns
    stalled = sum(stalls.values())
    return {
        "busy_s": busy["gpu"] / _S,
        "stall_s": stalled / _S,
        **{f"stall_{cause}_s": value / _S for cause, value in stalls.items()},
        # Between steps there is no request to serve, so the GPU does not wait for a copy.
        "idle_s": (duration_ns - totals.stepping_ns) / _S,
        "stall_share": ratio(stalled, totals.stepping_ns),
        # All machines have the same keys, so that tables of runs have the same columns.
        **{
            f"{lane}_busy_share": ratio(busy[lane], duration_ns) if lane in busy else None
            for lane in ("gpu", "h2d", "d2h", "cpu", "disk")
        },
    }


def layer_columns(ledger: Ledger, model_layers: Sequence[int]) -> dict[str, Any]:
    """Return the columns of `layers.parquet`, with one row per trace layer."""
    events, accesses = ledger.accesses_by_layer()
    hits, late = np.array(ledger.hits), np.array(ledger.late_hits)
    rows = np.array(ledger.rows)
    # The last entry is the step's tail, which belongs to no layer.
    stalls = {
        f"stall_{cause}_ns": np.array(ledger.stall_ns[i][:-1]) for i, cause in enumerate(CAUSES)
    }
    return {
        "layer": np.arange(ledger.num_layers),
        "model_layer": np.array(model_layers),
        "events": events,
        "accesses": accesses,
        "hits": hits,
        "late_hits": late,
        "misses": accesses - hits - late,
        "tokens": rows,
        "token_hits": rows - np.array(ledger.missed_rows),
        "unique_experts_mean": accesses / np.maximum(events, 1),
        **stalls,
        "elsewhere": np.array(ledger.elsewhere),
        "demand_bytes": np.array(ledger.demand_bytes),
        "prefetch_bytes": np.array(ledger.prefetch_bytes),
    }


def request_columns(requests: Sequence[Request], pool: BlockPool) -> dict[str, Any]:
    """Return the columns of `requests.parquet`, one row per request; -1 for times that never came.

    Rejected and unfinished requests have rows, too.
    """
    return {
        "request": [request.index for request in requests],
        "domain": [request.domain for request in requests],
        "arrival_ns": [request.arrival_ns for request in requests],
        "scheduled_ns": [request.scheduled_ns for request in requests],
        "first_token_ns": [request.token_ns[0] if request.token_ns else -1 for request in requests],
        "finish_ns": [
            request.token_ns[-1] if request.status == "finished" else -1 for request in requests
        ],
        "queue_ns": [_queue_ns(request) for request in requests],
        "service_ns": [_service_ns(request) for request in requests],
        "prompt_tokens": [request.prompt_tokens for request in requests],
        "output_tokens": [request.output_tokens for request in requests],
        "preemptions": [request.preemptions for request in requests],
        "wait_steps": [request.wait_steps for request in requests],
        "pause_steps": [request.pause_steps for request in requests],
        "pause_ns": [request.pause_ns for request in requests],
        "tiled_rows": [request.tiled_rows for request in requests],
        **(
            {"prefix_hit_tokens": [request.reused_tokens for request in requests]}
            if isinstance(pool, PrefixPool)
            else {}
        ),
        "status": [request.status for request in requests],
        "token_ns": [request.token_ns for request in requests],
    }


def _queue_ns(request: Request) -> int:
    """Return the time from a request's arrival to its first step; -1 without a first step."""
    return request.scheduled_ns - request.arrival_ns if request.scheduled_ns >= 0 else -1


def _service_ns(request: Request) -> int:
    """Return the time from a request's first step to its first token; -1 without a token."""
    return request.token_ns[0] - request.scheduled_ns if request.token_ns else -1


def ratio(part: float, whole: float) -> float | None:
    """Return part ÷ whole, or None where the whole is 0."""
    return part / whole if whole else None
