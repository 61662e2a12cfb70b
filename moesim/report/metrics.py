"""Metrics: the numbers of a summary that reports show, with unit, scale and better direction."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final, Literal

from moesim.report.marks import foresight_sentence, routing_sentence
from moesim.report.names import policy_label
from moesim.report.runs import Run
from moesim.report.statistics import Estimate

__all__ = [
    "DECODE",
    "E2E",
    "ELSEWHERE",
    "FROM_DISK",
    "HEADLINE",
    "HITS",
    "HITS_LEGEND",
    "LATE_HITS",
    "MISSES",
    "QUEUED",
    "SAVED",
    "SPEEDS",
    "THROUGHPUT",
    "TPOT",
    "TTFT",
    "UNDEFINED",
    "Metric",
    "costs",
    "costs_sentence",
    "error_bar",
    "number",
    "of_requests",
    "run_caption",
    "run_note",
    "saved_text",
]

UNDEFINED: Final = "undefined"
HITS_LEGEND: Final = (
    "Hit: the expert was resident when its layer event began. Late hit: its copy was under way. "
    "Miss: neither. Shares are of accesses, the distinct experts of each layer event."
)


@dataclass(frozen=True, slots=True)
class Metric:
    """One number of `summary.json`, shown as `value × scale` in `unit`."""

    key: str
    label: str
    unit: str
    scale: float = 1.0
    better: Literal["higher", "lower"] | None = None
    """The direction that is better whatever else the run did; None if neither is. Only a metric
    with a direction has a best row."""
    is_share: bool = False
    """Whether differences are in percentage points, not relative."""
    of_all: str = ""
    """The summary key of the whole that `key` is a share of; "" if `key` is no share."""

    @property
    def title(self) -> str:
        """Return label and unit, for the head of a column or the label of an axis."""
        return f"{self.label} ({self.unit})"

    @property
    def two_lines(self) -> str:
        """Return label and unit below each other, for narrow panels."""
        return f"{self.label}\n({self.unit})"

    def of(self, run: Run) -> float:
        """Return the value in `unit`; NaN where the run leaves it undefined."""
        whole = run.value(self.of_all) if self.of_all else 1.0
        return run.value(self.key) * self.scale / whole if whole else math.nan

    def in_readable_unit(self, values: Iterable[float]) -> Metric:
        """Return this metric, in seconds instead of milliseconds where values reach 20 s."""
        if self.unit == "ms" and any(value >= 20_000 for value in values):
            return replace(self, unit="s", scale=self.scale / 1000)
        return self

    def text(self, estimate: Estimate) -> str:
        """Return `mean ± half-interval`, rounded by the interval; "undefined" for NaN."""
        if not estimate.defined:
            return UNDEFINED
        if not estimate.half:
            mean = number(estimate.mean)
            return mean if estimate.half is None else f"{mean} ± 0"
        # Two digits of the interval: further digits of the mean would suggest false precision.
        digits = max(0, min(6, 1 - math.floor(math.log10(estimate.half))))
        return f"{estimate.mean:.{digits}f} ± {estimate.half:.{digits}f}"


# Which metrics have a better direction. Throughput and latencies have one: they are the purpose of
# a server. So has the share of accesses that wait for no copy. The others have none:
# - A late hit is better than a miss and worse than a hit, so more late hits can mean either. So
#   can fewer misses: a prefetch may turn misses and hits into late hits, and the run takes longer.
# - A prefetch that saves time copies more than no prefetch. Preloaded experts are copied before
#   the start, and their bytes are not counted here.
# - The stalled share of time also falls where computing gets slower: the slowest run can have the
#   smallest share.
HITS: Final = Metric("hits", "hits", "%", 100, "higher", is_share=True, of_all="accesses")
LATE_HITS: Final = Metric("late_hits", "late hits", "%", 100, is_share=True, of_all="accesses")
MISSES: Final = Metric("misses", "misses", "%", 100, is_share=True, of_all="accesses")
ELSEWHERE: Final = Metric("elsewhere", "on the CPU", "%", 100, is_share=True, of_all="accesses")
"""Misses whose expert was computed on the CPU and not copied first."""
FROM_DISK: Final = Metric("disk_bytes", "read from disk", "GiB", 2.0**-30)
SAVED: Final = Metric(
    "prefetch_saved_share", "saved by prefetch", "% of step time", 100, is_share=True
)
"""The share of a run's time in steps without prefetch that prefetching saves; negative if it costs
time. No row is the best: each is measured against a run of its own."""
DECODE: Final = Metric(
    "decode_mean_tokens_per_s", "decode speed", "tokens/s per user", better="higher"
)
"""What one user sees: tokens after the first ÷ time between first and last, mean of requests."""
THROUGHPUT: Final = Metric("output_tokens_per_s", "throughput", "tokens/s in all", better="higher")
"""The output tokens of all users together ÷ the whole time, queueing and prefill included."""
TTFT: Final = Metric("ttft_p95_ms", "TTFT p95", "ms", better="lower")
QUEUED: Final = Metric(
    "ttft_queue_mean_ms", "queued", "% of TTFT", 100, is_share=True, of_all="ttft_mean_ms"
)
"""The part of the mean TTFT in which requests wait for their first step. A faster prefill raises
it, so it has no better direction."""
TPOT: Final = Metric("tpot_mean_ms", "TPOT mean", "ms", better="lower")
E2E: Final = Metric("e2e_p95_ms", "E2E p95", "ms", better="lower")
SPEEDS: Final = (DECODE, THROUGHPUT, TTFT, TPOT, E2E)
"""The speeds and latencies, which are the purpose of a server."""
HEADLINE: Final = (
    DECODE,
    THROUGHPUT,
    TTFT,
    QUEUED,
    TPOT,
    E2E,
    HITS,
    LATE_HITS,
    MISSES,
    ELSEWHERE,
    Metric("h2d_bytes", "copied to GPU", "GiB", 2.0**-30),
    FROM_DISK,
    Metric("stall_share", "stalled", "% of step time", 100, is_share=True),
)


def number(value: float) -> str:
    """Return four significant digits, no exponent: 1234, 12.35, 0.01235; "undefined" for NaN."""
    if math.isnan(value):
        return UNDEFINED
    if value == 0:
        return "0"
    digits = max(0, min(9, 3 - math.floor(math.log10(abs(value)))))
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def costs(run: Run) -> str:
    """Return where the times of a run come from: simulated, with assumed or measured costs."""
    kind = run.text("cost_kind")
    # A figure that the scenario sets comes from no datasheet.
    origin = "profile with changes" if run.summary.get("hardware_changes") else "datasheet"
    source = {"assumed": f"assumed ({origin})", "measured": "measured"}.get(kind, kind)
    return f"simulated; costs {source}"


def error_bar(run: Run) -> str:
    """Return what is known of the error of a run's times; "" if the costs are of unknown kind."""
    return {
        "assumed": "no error bar: costs are assumed, not measured",
        "measured": "error of these times: `moesim validate` measures it",
    }.get(run.text("cost_kind"), "")


def costs_sentence(run: Run) -> str:
    """Return where the times of a run come from and what is known of their error, for captions."""
    return "; ".join(filter(None, (costs(run), error_bar(run))))


def run_caption(run: Run) -> str:
    """Return the text under every figure of one run: its marks, setting, costs and caveats."""
    parts = (routing_sentence(run), foresight_sentence(run), _setting(run))
    return " ".join(filter(None, parts))


def run_note(run: Run) -> str:
    """Return the line inside every figure of one run: how many requests, and whose times."""
    requests = of_requests(run.text("window_requests" if run.windowed else "requests"))
    return f"n = {requests}{' in the window' if run.windowed else ''}; {costs(run)}"


def of_requests(count: str) -> str:
    """Return a count with its noun: "1 request", "16 requests"."""
    return f"{count} request{'' if count == '1' else 's'}"


def saved_text(run: Run) -> str:
    """Return what prefetching saves or costs: "saves 4.1 % of the time in steps"; "" if unknown."""
    share = SAVED.of(run)
    if math.isnan(share):
        return ""
    return f"{'costs' if share < 0 else 'saves'} {number(abs(share))} % of the time in steps"


def _setting(run: Run) -> str:
    policy, batching = run.text("prefetch_policy"), run.text("batching_policy")
    prefetch = f"{'no' if policy == 'none' else policy} prefetch"
    prefetch += f" ({saved})" if (saved := saved_text(run)) else ""
    placement = f"{run.placement} placement, " if run.placement else ""
    host = f", host memory {run.host_memory}" if run.host_memory else ""
    arrivals = f", arrivals {run.arrivals}" if run.arrivals else ""
    engine = f", engine {run.engine}" if run.engine else ""
    requests = of_requests(run.text("requests"))
    return (
        f"{requests}{arrivals}, seed {run.text('seed')}; trace {run.trace} "
        f"costed as {run.text('model')} on {run.hardware}{engine}; "
        f"{policy_label(run.text('cache_policy'), run.cache_options)} "
        f"with {run.value('cache_slots') / run.value('num_layers'):.3g} of "
        f"{run.text('num_experts')} experts a layer, "
        f"{prefetch}, {placement}{batching} batching"
        f"{f', {run.prompts}' if run.prompts else ''}{host}; "
        f"{costs_sentence(run)}."
        f"{caveats_sentence(run.caveats)}"
    )


def caveats_sentence(caveats: Iterable[str]) -> str:
    """Return caveats as the last sentence of a caption, with a leading space; "" without any."""
    text = "; ".join(caveats)
    return f" Caveats: {text}." if text else ""
