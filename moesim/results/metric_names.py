"""The numbers of a summary by name, and comparisons with them: `METRIC > LIMIT`."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from moesim.config.suggest import near_names
from moesim.errors import UsageError, shown

__all__ = ["METRICS", "SIGNS", "compared", "metric_named", "unit_of"]

_ALIKE: Final = 0.6  # the least similarity of a name that is suggested
_UNITS: Final = ("ms", "s", "bytes", "share", "rate")
_LATENCIES: Final = tuple(
    f"{name}_{part}_ms"
    for name in ("ttft", "ttft_queue", "ttft_service", "tpot", "itl", "e2e", "normalised")
    for part in ("mean", "p50", "p90", "p95", "p99")
)
_SPEEDS: Final = tuple(f"decode_{part}_tokens_per_s" for part in ("mean", "p50", "p10", "p5", "p1"))
_STALLS: Final = tuple(
    f"stall_{cause}_s" for cause in ("readback", "demand", "late", "cpu", "disk", "host", "other")
)
_BYTES: Final = tuple(
    f"{what}_bytes"
    for what in (
        "h2d", "demand", "prefetch", "prefetch_useful", "prefetch_late", "prefetch_wasted",
        "prefetch_unused", "d2h", "write_back", "states", "disk", "load", "vram", "fixed", "kv",
        "slots", "staging", "prefetch_buffers", "activations", "recurrent", "free", "peak_vram",
        "host_memory", "host_weights", "host_kv", "host_experts", "pinned",
    )
)  # fmt: skip
_BOUNDS: Final = (
    "min_hit_rate", "infinite_cache_hit_rate", "infinite_cache_makespan_s",
    "infinite_cache_e2e_p95_ms", "infinite_link_makespan_s", "infinite_link_e2e_p95_ms",
    "min_time_in_steps_s", "infinite_cache_time_in_steps_s", "infinite_link_time_in_steps_s",
    "regret_policy_s", "regret_host_s", "regret_working_set_s", "regret_link_s", "regret_disk_s",
    "regret_cpu_s", "regret_compute_s",
)  # fmt: skip
METRICS: Final = (
    *_SPEEDS, "output_tokens_per_s", "tokens_per_s", "requests_per_s", *_LATENCIES,
    "wait_max_ms", "wait_max_steps", "pause_max_ms", "pause_max_steps",
    "expert_hit_rate", "on_time_hit_rate", "late_hit_rate", "token_hit_rate",
    "makespan_s", "window_from_s", "window_to_s", "window_s", "window_requests",
    "busy_s", "stall_s", *_STALLS, "idle_s", "stall_share",
    "gpu_busy_share", "h2d_busy_share", "d2h_busy_share", "cpu_busy_share", "disk_busy_share",
    *_BYTES, "prefetch_refused", "prefetch_pollution", "prefetch_cancelled",
    "steps", "layer_events", "accesses", "hits", "late_hits", "misses", "elsewhere",
    "unique_experts_per_event_mean", "waves_max", "waves_mean", "peak_kv_blocks",
    "requests", "finished", "rejected", "running", "queued", "preemptions", "output_tokens",
    "tiled_share", "cache_slots", "cache_slots_per_layer",
    "prefix_hit_tokens", "prefix_hit_share", "prefix_evicted_blocks",
    *_BOUNDS, "no_prefetch_time_in_steps_s", "prefetch_saved_s", "prefetch_saved_share",
)  # fmt: skip
"""The keys of `summary.json` that hold numbers which a run measures; docs/results.md explains."""

SIGNS: Final[Mapping[str, Callable[[float, float], bool]]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_COMPARED: Final = re.compile(r"\s*([^\s<>=]+)\s*(>=|<=|>|<)\s*(\S.*?)\s*")


def compared(option: str, text: str, limit: str, example: str) -> tuple[str, str, str]:
    """Return metric, sign and limit of a text like `"ttft_p99_ms <= 500"`, all as written.

    `limit` and `example` are for the message of the `UsageError` where the text has another form.
    """
    match = _COMPARED.fullmatch(text)
    if match is None:
        raise UsageError(
            f"{option} {shown(text)}: write a metric, one of {', '.join(SIGNS)}, and {limit}, "
            f'like {option} "{example}"'
        )
    return match[1], match[2], match[3]


def unit_of(metric: str) -> str:
    """Return the unit at the end of a metric's name: ms, s, bytes, /s, share, or "" for a count."""
    if metric.endswith("_per_s"):
        return "/s"
    last = metric.rpartition("_")[2]
    return {"rate": "share"}.get(last, last) if last in _UNITS else ""


def metric_named(option: str, name: str) -> str:
    """Return a metric's name. Raise UsageError, with near matches, if there is no such metric."""
    if name in METRICS:
        return name
    near = _near(name)
    rest = f"the nearest are {', '.join(near)}; " if near else "for example output_tokens_per_s; "
    raise UsageError(
        f"{option} {shown(name)}: is no number of a run's summary; {rest}"
        "docs/results.md explains them all"
    )


def _near(name: str) -> list[str]:
    """Return up to five metrics like a name: those that are spelled alike, or share its words."""
    plain = name.lower().replace("-", "_")
    alike = near_names(name, METRICS, 3, _ALIKE)
    # The units and statistics at the end say little of what is meant.
    words = set(plain.split("_")) - {"ms", "s", "per", "share", "mean", ""}
    shared = {each: sum(map(partial(_is_in, each), words)) for each in METRICS}
    sharing = [each for each in sorted(METRICS, key=lambda each: -shared[each])[:3] if shared[each]]
    return list(dict.fromkeys([*alike, *sharing]))[:5]


def _is_in(metric: str, word: str) -> bool:
    """Return whether a metric has a word, or one that begins with it, like `tok`."""
    return any(
        part == word or (len(word) > 2 and part.startswith(word)) for part in metric.split("_")
    )
