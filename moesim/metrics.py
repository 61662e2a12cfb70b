"""From what the ledger holds to the numbers that are printed: `summary.json` and the tables.

A latency is a difference of recorded integer times; a mean or percentile of none is null.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from moesim.serving.ledger import CAUSES, Ledger

if TYPE_CHECKING:
    from moesim.serving.request import Request

_PERCENTILES = (50, 90, 95, 99)
_MS = 1_000_000
_S = 1_000_000_000


def latency_summary(requests: Sequence[Request]) -> dict[str, float | None]:
    """Mean and percentiles, in ms, of time to first token (from arrival), time per output token
    (first to last token ÷ tokens after the first), gaps between tokens, end-to-end time, and that
    divided by the tokens generated (the normalised latency of Orca, vLLM and Read-ME)."""
    done = [request for request in requests if request.status == "finished"]
    started = [request for request in requests if request.token_ns]
    gaps = [np.diff(request.token_ns) for request in started if len(request.token_ns) > 1]
    samples = {
        "ttft": [request.token_ns[0] - request.arrival_ns for request in started],
        "tpot": [
            (request.token_ns[-1] - request.token_ns[0]) / (len(request.token_ns) - 1)
            for request in done
            if len(request.token_ns) > 1
        ],
        "itl": np.concatenate(gaps) if gaps else [],
        "e2e": [request.token_ns[-1] - request.arrival_ns for request in done],
        "normalised": [
            (request.token_ns[-1] - request.arrival_ns) / request.output_tokens for request in done
        ],
    }
    result: dict[str, float | None] = {}
    for name, values in samples.items():
        array = np.asarray(values, dtype=float) / _MS
        empty = not array.size
        result[f"{name}_mean_ms"] = None if empty else float(array.mean())
        points = [None] * 4 if empty else np.percentile(array, _PERCENTILES).tolist()
        for percentile, value in zip(_PERCENTILES, points, strict=True):
            result[f"{name}_p{percentile}_ms"] = value
    return result


def starvation_summary(requests: Sequence[Request]) -> dict[str, float | None]:
    """The longest that a request was passed over, in ms and in steps of others: before its first
    step (*wait*), and between two steps that served it (*pause*)."""
    begun = [request for request in requests if request.scheduled_ns >= 0]
    longest: dict[str, list[float]] = {
        "wait_max_ms": [(one.scheduled_ns - one.arrival_ns) / _MS for one in begun],
        "wait_max_steps": [one.wait_steps for one in begun],
        "pause_max_ms": [one.pause_ns / _MS for one in begun],
        "pause_max_steps": [one.pause_steps for one in begun],
    }
    return {key: max(values, default=None) for key, values in longest.items()}


def throughput_summary(requests: Sequence[Request], now_ns: int) -> dict[str, Any]:
    """Counts by status, and tokens and requests per second of makespan."""
    status = [request.status for request in requests]
    output = sum(len(request.token_ns) for request in requests)
    finished = status.count("finished")
    rows = sum(request.prompt_tokens + request.emitted for request in requests if request.token_ns)
    return {
        "requests": len(requests),
        "finished": finished,
        "rejected": status.count("rejected"),
        "running": status.count("running"),
        "queued": status.count("waiting"),
        "preemptions": sum(request.preemptions for request in requests),
        "output_tokens": output,
        "makespan_s": now_ns / _S,
        "output_tokens_per_s": ratio(output * _S, now_ns),
        "tokens_per_s": ratio(rows * _S, now_ns),
        "requests_per_s": ratio(finished * _S, now_ns),
        "tiled_share": ratio(
            sum(request.tiled_rows for request in requests),
            sum(len(request.rows) for request in requests),
        ),
    }


def cache_summary(ledger: Ledger) -> dict[str, Any]:
    """Hits over distinct experts of layer events; the token hit rate weighs each by its rows."""
    by_layer = ledger.accesses_by_layer()
    events, accesses = (int(column.sum()) for column in by_layer)
    hits, late = sum(ledger.hits), sum(ledger.late_hits)
    rows = sum(ledger.rows)
    return {
        "steps": len(ledger.steps),
        "layer_events": events,
        "accesses": accesses,
        "hits": hits,
        "late_hits": late,
        "misses": accesses - hits - late,
        "expert_hit_rate": ratio(hits + late, accesses),
        "late_hit_rate": ratio(late, accesses),
        "token_hit_rate": ratio(rows - sum(ledger.missed_rows), rows),
        "unique_experts_per_event_mean": ratio(accesses, events),
        "waves_max": ledger.waves_max,
        "waves_mean": ratio(ledger.waves_sum, ledger.waves_events),
    }


def bytes_summary(ledger: Ledger, expert_bytes: int, unused_prefetches: int) -> dict[str, Any]:
    """Bytes by kind, of finished copies. A prefetched expert is useful (used, on time), late
    (used, but waited for), wasted (evicted unused) or unused (resident or on its way, and unused,
    when the run ended)."""
    moved = ledger.moved_bytes
    return {
        "h2d_bytes": moved["demand"] + moved["prefetch"],
        "demand_bytes": moved["demand"],
        "prefetch_bytes": moved["prefetch"],
        "prefetch_useful_bytes": ledger.prefetch_useful * expert_bytes,
        "prefetch_late_bytes": ledger.prefetch_late * expert_bytes,
        "prefetch_wasted_bytes": ledger.prefetch_wasted * expert_bytes,
        "prefetch_unused_bytes": unused_prefetches * expert_bytes,
        "prefetch_refused": ledger.prefetch_refused,
        "d2h_bytes": moved["write_back"] + moved["readback"],
        "write_back_bytes": moved["write_back"],
    }


def time_summary(ledger: Ledger, now_ns: int) -> dict[str, Any]:
    """Busy and stalled time of the GPU, and how busy each lane was over the makespan.

    `stall_share` is the share of time in steps that the GPU lane was idle.
    """
    stalls = {cause: sum(ledger.stall_ns[i]) for i, cause in enumerate(CAUSES)}
    stalled = sum(stalls.values())
    return {
        "busy_s": ledger.busy_ns["gpu"] / _S,
        "stall_s": stalled / _S,
        **{f"stall_{cause}_s": value / _S for cause, value in stalls.items()},
        "idle_s": (now_ns - ledger.stepping_ns) / _S,
        "stall_share": ratio(stalled, ledger.stepping_ns),
        "gpu_busy_share": ratio(ledger.busy_ns["gpu"], now_ns),
        "h2d_busy_share": ratio(ledger.busy_ns["h2d"], now_ns),
        "d2h_busy_share": ratio(ledger.busy_ns["d2h"], now_ns),
    }


def layer_columns(ledger: Ledger, model_layers: Sequence[int], expert_bytes: int) -> dict[str, Any]:
    """Columns of `layers.parquet`, one row a trace layer."""
    events, accesses = ledger.accesses_by_layer()
    hits, late = np.array(ledger.hits), np.array(ledger.late_hits)
    rows = np.array(ledger.rows)
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
        "demand_bytes": np.array(ledger.demand_copies) * expert_bytes,
        "prefetch_bytes": np.array(ledger.prefetch_copies) * expert_bytes,
    }


def request_columns(requests: Sequence[Request]) -> dict[str, Any]:
    """Columns of `requests.parquet`, one row a request; -1 where a moment never came."""
    return {
        "request": [request.index for request in requests],
        "domain": [request.domain for request in requests],
        "arrival_ns": [request.arrival_ns for request in requests],
        "scheduled_ns": [request.scheduled_ns for request in requests],
        "first_token_ns": [request.token_ns[0] if request.token_ns else -1 for request in requests],
        "finish_ns": [
            request.token_ns[-1] if request.status == "finished" else -1 for request in requests
        ],
        "prompt_tokens": [request.prompt_tokens for request in requests],
        "output_tokens": [request.output_tokens for request in requests],
        "preemptions": [request.preemptions for request in requests],
        "wait_steps": [request.wait_steps for request in requests],
        "pause_steps": [request.pause_steps for request in requests],
        "pause_ns": [request.pause_ns for request in requests],
        "tiled_rows": [request.tiled_rows for request in requests],
        "status": [request.status for request in requests],
        "token_ns": [request.token_ns for request in requests],
    }


def ratio(part: float, whole: float) -> float | None:
    """A share, or None where it is undefined."""
    return part / whole if whole else None
