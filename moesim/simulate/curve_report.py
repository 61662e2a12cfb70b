"""The curve of a trace with what belongs to it: sizes, a link, intervals, and how it was made.

`moesim curve` prints and writes a report, and `moesim.curve` returns its points as a DataFrame.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from moesim.config.units import exact_bandwidth, format_bytes, format_duration_ns
from moesim.errors import UsageError, shown
from moesim.policies import find, parse_options
from moesim.policies.guard import has_hindsight
from moesim.progress import Progress
from moesim.report.curve import BOUND, COLUMNS, RESAMPLED, CurveReport
from moesim.report.curve_points import CopyLink, CurvePoint, Resampling, curve_points
from moesim.report.statistics import CONFIDENCE
from moesim.simulate.accesses import Scope
from moesim.simulate.curve import curve_hits
from moesim.simulate.curve_inputs import check, link_of, size_of_an_expert
from moesim.trace import Trace, load_trace

if TYPE_CHECKING:
    import pandas as pd

_UNDEFINED_WITHOUT: Final = (
    "cache_bytes", "hit_rate_low", "hit_rate_high", "miss_bytes", "miss_bytes_per_token",
    "bound_ns_per_token",
)  # fmt: skip
"""Columns that need a size, a link or resamples."""
__all__ = ["CurveOptions", "curve", "curve_report", "link_line", "size_text"]


@dataclass(frozen=True, slots=True)
class CurveOptions:
    """How `curve` replays a trace, and what a missed expert costs; see its arguments."""

    capacities: Iterable[int] | None
    scope: Scope
    batch: int
    replay: Literal["atomic", "sequential"]
    admission: Literal["bypass", "always"]
    seed: int
    model: str | None
    expert_bytes: str | int | None
    link: str | None


def curve(
    trace: Trace | str | Path,
    policies: Sequence[str] = ("lru", "min"),
    *,
    capacities: Iterable[int] | None = None,
    scope: Scope = "per_layer",
    batch: int = 1,
    replay: Literal["atomic", "sequential"] = "atomic",
    admission: Literal["bypass", "always"] = "bypass",
    seed: int = 0,
    model: str | None = None,
    expert_bytes: str | int | None = None,
    link: str | None = None,
    resamples: int = 0,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Return the hit rate of each eviction policy at each cache capacity, without any timing.

    A row is one policy at one capacity, as in `curve.csv`: `policy`, `slots_per_layer`, `hit_rate`
    (0 to 1), bytes, and `bound_ns_per_token`; docs/curve.md explains the columns. `knows_future`
    is 1 for bounds, like `min`. Bytes need the size of an expert (the trace's own, `model`, or
    `expert_bytes` like `"16.5MiB"`), the bound also a `link` like `"25GB/s"`. `resamples`, at best
    1000, gives 95 % intervals over requests. `attrs` of the DataFrame say how it was made, and
    whether the routing is synthetic. The other arguments are those of `moesim curve`.

    Raises:
        UsageError: an argument is wrong.
        TraceError: the trace cannot be used.
        PolicyViolation: a policy broke the rules of its interface.

    >>> moesim.curve("traces/deep", ["lru"], capacities=[2, 4])[["slots_per_layer", "hit_rate"]]
       slots_per_layer  hit_rate
    0                2  0.652034
    1                4  0.887181
    """
    import pandas as pd  # slow to import, and only needed here

    asked = CurveOptions(
        capacities, scope, batch, replay, admission, seed, model, expert_bytes, link
    )
    resampling = Resampling(resamples, seed) if resamples else None
    report = curve_report(trace, policies, asked, resampling=resampling, progress=progress)
    frame = pd.DataFrame(report.rows(), columns=list(COLUMNS))
    frame = frame.astype(dict.fromkeys(_UNDEFINED_WITHOUT, "float64"))  # None becomes NaN
    frame.attrs.update(report.about)
    return frame


def curve_report(
    trace: Trace | str | Path,
    policies: Sequence[str],
    asked: CurveOptions,
    *,
    resampling: Resampling | None = None,
    progress: Progress | None = None,
) -> CurveReport:
    """Replay a trace and return the points of the curve and how they were made.

    Errors are those of `curve`.
    """
    loaded = trace if isinstance(trace, Trace) else load_trace(trace)
    names = _names(policies)
    sizes = None if asked.capacities is None else _whole(asked.capacities)
    size = size_of_an_expert(loaded, asked.model, asked.expert_bytes)
    copies = None if asked.link is None else link_of(asked.link)
    check(size, copies, asked.seed)
    found = curve_hits(
        loaded, names, scope=asked.scope, capacities=sizes, batch=asked.batch,
        replay=asked.replay, admission=asked.admission, seed=asked.seed,
        by_request=resampling is not None, progress=progress,
    )  # fmt: skip
    points = curve_points(
        found, loaded.num_layers, expert_bytes=None if size is None else size[0], link=copies,
        resampling=resampling,
    )  # fmt: skip
    return _report(loaded, points, _replayed(loaded, asked), size, copies, resampling)


def _names(policies: Sequence[str]) -> list[str]:
    """Return the names of policies, each once. Raise UsageError where there are none."""
    listed = isinstance(policies, Iterable) and not isinstance(policies, str)
    names = list(policies) if listed else []
    if not names or not all(isinstance(name, str) for name in names):
        raise UsageError(
            f"policies must list names of eviction policies, like ['lru', 'min'], not "
            f"{shown(policies)}"
        )
    return list(dict.fromkeys(names))


def _whole(capacities: Iterable[int]) -> list[int]:
    """Return capacities as integers, each once. Raise UsageError for anything else."""
    try:
        return list(dict.fromkeys(index(each) for each in capacities))
    except TypeError:
        raise UsageError(
            "capacities must list whole numbers of expert slots per layer, like [2, 4], not "
            f"{shown(capacities)}"
        ) from None


def _report(
    trace: Trace,
    points: Sequence[CurvePoint],
    how: str,
    size: tuple[int, str] | None,
    link: CopyLink | None,
    resampling: Resampling | None,
) -> CurveReport:
    routing = routing_of(trace)
    about: dict[str, Any] = {
        "trace": trace.meta.model if trace.path is None else trace.path.resolve().name,
        "routing": routing,
        "requests": trace.num_requests,
        "synthetic": trace.meta.synthetic,
        "replay": how,
        "expert": None if size is None else {"bytes": size[0], "source": size[1]},
        "link": None,
        "intervals": None,
    }
    caption = f"{routing[0].upper()}{routing[1:]}; {how}."
    if size is not None:
        caption += f" Experts of {size_text(size)}."
    if link is not None:
        about["link"] = {
            "name": link.name, "bytes_per_s": link.bytes_per_s, "latency_ns": link.latency_ns,
            "bound": BOUND,
        }  # fmt: skip
        caption += f" Link: {link_line(about['link'])}."
    if resampling is not None:
        about["intervals"] = {
            "confidence": CONFIDENCE,
            "method": "percentile bootstrap over requests",
            "resamples": resampling.resamples,
            "seed": resampling.seed,
            "requests": trace.num_requests,
            "note": RESAMPLED,
        }
    names = list(dict.fromkeys(point.policy for point in points))
    return CurveReport(points, about, caption, _knowing_the_future(names))


def size_text(size: tuple[int, str]) -> str:
    """Return the size of an expert, and where it is from."""
    return f"{format_bytes(size[0])} ({size[1]})"


def link_line(link: dict[str, Any]) -> str:
    """Return the name, bandwidth and latency of a link."""
    speed = exact_bandwidth(link["bytes_per_s"])
    name = "" if link["name"] == speed else f"{link['name']}, "
    latency = link["latency_ns"]
    return f"{name}{speed}, {format_duration_ns(latency) if latency else 'no latency'} per copy"


def routing_of(trace: Trace) -> str:
    """Return whose routing a trace holds, and how much of it."""
    name = f"routing of {trace.meta.model}"
    if trace.meta.synthetic:
        name = "SYNTHETIC ROUTING, drawn at random, made by no model"
    return (
        f"{name}: {trace.num_requests:,} requests, {trace.num_rows:,} rows, "
        f"{trace.num_layers} layers of {trace.num_experts} experts, top-{trace.top_k}"
    )


def _replayed(trace: Trace, asked: CurveOptions) -> str:
    """Return in words how a trace is replayed and what a hit rate is."""
    parts = ["one cache per layer" if asked.scope == "per_layer" else "one cache for all layers"]
    together = asked.batch > trace.num_requests
    requests = f" (the trace has {trace.num_requests:,} requests: all together)" if together else ""
    parts.append(f"batch {asked.batch:,}{requests}")
    parts.append(
        "atomic replay: a layer's experts are looked up together"
        if asked.replay == "atomic"
        else "sequential replay: experts are looked up one by one, which inflates misses"
    )
    if asked.admission == "always":
        parts.append("every fetched expert gets a slot")
    return "; ".join([*parts, "hits over distinct experts of layer events"])


def _knowing_the_future(names: Sequence[str]) -> list[str]:
    """Return the policies that see the replayed trace beforehand, or learn on it."""
    policies = {name: find("eviction", name) for name in names}
    return [
        name
        for name, policy in policies.items()
        if policy.clairvoyant or has_hindsight(policy, parse_options(policy, {}))
    ]
