"""What a report says of a run: which numbers of its summary, in which unit, which way is better."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final, Literal

from moesim.report.marks import routing_sentence
from moesim.report.names import policy_label
from moesim.report.runs import Run
from moesim.report.statistics import Estimate

__all__ = [
    "HEADLINE",
    "HITS",
    "HITS_MEAN",
    "HIT_RATE",
    "LATE_HITS",
    "MISSES",
    "STALL_CAUSES",
    "UNDEFINED",
    "Metric",
    "costs",
    "number",
    "run_caption",
]

UNDEFINED: Final = "undefined"
HITS_MEAN: Final = (
    "A hit was resident in time, a late hit still on its way, a miss not asked for before; shares "
    "of accesses, the distinct experts of each layer event."
)
STALL_CAUSES: Final = {
    "demand": "demand copy",
    "late": "late prefetch",
    "readback": "router readback",
    "other": "other",
}


@dataclass(frozen=True, slots=True)
class Metric:
    """One number of `summary.json`, shown as `value × scale` in `unit`."""

    key: str
    label: str
    unit: str
    scale: float = 1.0
    better: Literal["higher", "lower"] | None = None
    """The direction that is better by itself, whatever else the run did; None if neither is. Only
    a metric with a direction has a best row."""
    is_share: bool = False
    """Differences are then in points of a hundred, not relative."""
    of_all: str = ""
    """The number of the summary that `key` is a share of, if it is one."""

    @property
    def title(self) -> str:
        """Label and unit, as over a column or along an axis."""
        return f"{self.label} ({self.unit})"

    def of(self, run: Run) -> float:
        """The value in `unit`; NaN where the run leaves it undefined."""
        whole = run.value(self.of_all) if self.of_all else 1.0
        return run.value(self.key) * self.scale / whole if whole else math.nan

    def in_readable_unit(self, values: Iterable[float]) -> Metric:
        """The same, in seconds rather than milliseconds where values reach twenty seconds."""
        if self.unit == "ms" and any(value >= 20_000 for value in values):
            return replace(self, unit="s", scale=self.scale / 1000)
        return self

    def text(self, estimate: Estimate) -> str:
        """Mean ± half-interval, to the digits that the interval leaves; "undefined" for NaN."""
        if not estimate.defined:
            return UNDEFINED
        if not estimate.half:
            mean = number(estimate.mean)
            return mean if estimate.half is None else f"{mean} ± 0"
        digits = max(0, min(6, 1 - math.floor(math.log10(estimate.half))))
        return f"{estimate.mean:.{digits}f} ± {estimate.half:.{digits}f}"


# Where an arrow may stand. Throughput and latencies are what a server is for, so each has a better
# direction by itself. So has the share of accesses that wait for no copy. The others have none:
# - A late hit is better than a miss and worse than a hit. More of them can mean either, and so can
#   fewer misses: a prefetch may turn misses and hits into late hits, and take longer.
# - A prefetch that saves time copies more than none; a loaded placement copies before the start.
# - A share of time that is stalled also falls where computing gets slower, so that the slowest run
#   can have the smallest.
HITS: Final = Metric("hits", "hits", "%", 100, "higher", is_share=True, of_all="accesses")
LATE_HITS: Final = Metric("late_hits", "late hits", "%", 100, is_share=True, of_all="accesses")
MISSES: Final = Metric("misses", "misses", "%", 100, is_share=True, of_all="accesses")
HIT_RATE: Final = Metric("expert_hit_rate", "hits and late hits", "%", 100, is_share=True)
"""Both together, for bounds on hits. Never shown alone where any hit was late."""
HEADLINE: Final = (
    Metric("output_tokens_per_s", "throughput", "tokens/s", better="higher"),
    Metric("ttft_p95_ms", "TTFT p95", "ms", better="lower"),
    Metric("tpot_mean_ms", "TPOT mean", "ms", better="lower"),
    Metric("e2e_p95_ms", "E2E p95", "ms", better="lower"),
    HITS,
    LATE_HITS,
    MISSES,
    Metric("h2d_bytes", "copied to GPU", "GiB", 2.0**-30),
    Metric("stall_share", "stalled", "% of step time", 100, is_share=True),
)


def number(value: float) -> str:
    """Four significant digits without an exponent: 1234, 12.35, 0.01235; "undefined" for NaN."""
    if math.isnan(value):
        return UNDEFINED
    if value == 0:
        return "0"
    digits = max(0, min(9, 3 - math.floor(math.log10(abs(value)))))
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def costs(run: Run) -> str:
    """What the times of a run are worth: simulated, from assumed or from measured costs."""
    kind = run.text("cost_kind")
    source = {"assumed": "assumed (datasheet)", "measured": "measured"}.get(kind, kind)
    return f"simulated; costs {source}"


def run_caption(run: Run) -> str:
    """What stands under every figure of one run."""
    return f"{routing_sentence(run)} {_setting(run)}".lstrip()


def _setting(run: Run) -> str:
    return (
        f"{run.text('requests')} requests, seed {run.text('seed')}; trace {run.trace} "
        f"costed as {run.text('model')} on {run.text('hardware')}; "
        f"{policy_label(run.text('cache_policy'), run.scenario.get('cache', {}).get('options'))} "
        f"with {run.value('cache_slots') / run.value('num_layers'):g} of "
        f"{run.text('num_experts')} experts a layer; {costs(run)}.{said(run.caveats)}"
    )


def said(caveats: Iterable[str]) -> str:
    """Caveats as the last sentence of a caption; nothing where there are none."""
    text = "; ".join(caveats)
    return f" Not as asked: {text}." if text else ""
