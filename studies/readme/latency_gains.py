"""Latency gains of expert-aware batching, at the roofline's prices and at those of Table 8."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import cycle
from typing import Any, Final

import numpy as np
from closed_serving import Family, Runs, Seen, Setting
from output import interval, spread
from rotating import NAME as ROTATING
from table8 import FEWER, expert_ms, slope_of_form_b, slope_over, step_ms

from moesim.report.statistics import Estimate, difference, estimate
from moesim.report.tabular import Table

POLICIES: Final = ("decode_first", "prefill_first", "expert_aware")
BASELINES: Final = POLICIES[:2]
PAPER_GAINS: Final = {"mean": (-6.1, -5.0), "p95": (-10.0, -9.5)}
"""Change of normalised latency in percent: from one baseline to the other."""
SLOPES_TRIED: Final = np.linspace(0, 8, 161)
"""In ms an expert. At 8 a step of 5.08 experts would cost almost nothing beside them."""
COLUMNS: Final = ("mean % vs decode", "p95 %", "mean % vs prefill", "p95 %")
VARIANTS: Final[Mapping[str, tuple[tuple[str, Any], ...]]] = {
    "as predicted": (),
    "unit: requests": (("unit", "requests"),),
    "prefill: every": (("prefill", "every"),),
    "both": (("unit", "requests"), ("prefill", "every")),
    "max_wait: 16": (("max_wait", 16),),
    "max_wait: 4": (("max_wait", 4),),
}
SENSITIVE: Final = ("uniform", "geometric")
"""Routing and lengths of the families in the tables of sensitivity and waits."""

Prices = Callable[[Seen], tuple[float, float]]
Settings = Mapping[Family, Setting]
Gains = list[Estimate]
"""Mean and p95 against each baseline, in the order of `COLUMNS`; 0.1 is 10 % slower."""


def roofline(seen: Seen) -> tuple[float, float]:
    """Return mean and p95 as simulated."""
    return seen.mean_ms, seen.p95_ms


def linear(slope_ms: float) -> Prices:
    """Return prices of T + slope · (U - 5.08), where T is Table 8's step with 5.08 experts."""
    fixed_ms = step_ms("AR", FEWER[0]) - slope_ms * FEWER[0]
    return lambda seen: seen.priced(fixed_ms, slope_ms)


def slopes() -> dict[str, float]:
    """Return the slopes of a step in ms an expert, by what they come from."""
    return {
        "Table 8, batches 5 to 20, AR": slope_over("AR", 5, 20),
        "Table 8, batches 5 to 20, TR": slope_over("TR", 5, 20),
        "Table 8, form B, AR": slope_of_form_b("AR"),
        "Table 8, form B, TR": slope_of_form_b("TR"),
        "roofline's slope": expert_ms(),
    }


def gains(
    runs: Runs,
    setting: Setting,
    seeds: Sequence[int],
    prices: Prices = roofline,
    baselines: Sequence[str] = BASELINES,
) -> Gains:
    """Return the changes of latency from each baseline to expert-aware, paired by seed."""
    ours = [prices(seen) for seen in runs.of(setting, "expert_aware", seeds)]
    plain = replace(setting, options=())
    return [
        difference([each[place] for each in ours], [each[place] for each in base])
        for policy in baselines
        for base in ([prices(seen) for seen in runs.of(plain, policy, seeds)],)
        for place in range(2)
    ]


def outside(value: float, bounds: tuple[float, float]) -> float:
    """Return how far a value is from an interval; 0 inside."""
    least, most = bounds
    return max(value - most, 0.0) + min(value - least, 0.0)


def holds(gain: Estimate, paper: tuple[float, float]) -> bool:
    """Return whether a prediction's interval overlaps the paper's range."""
    return 100 * gain.low <= paper[1] and 100 * gain.high >= paper[0]


def cells(found: Gains) -> list[str]:
    """Return each gain in percent, its gap to the paper in brackets, and * where it holds."""
    texts = []
    for gain, paper in zip(found, cycle(PAPER_GAINS.values()), strict=False):
        text = spread(gain, digits=1, scale=100, sign=True)
        mark = " *" if holds(gain, paper) else ""
        texts.append(f"{text} ({outside(100 * gain.mean, paper):+.1f}){mark}")
    return texts


def _titled(what: str, seeds: Sequence[int]) -> str:
    mean, p95 = (interval(bounds, digits=1) for bounds in PAPER_GAINS.values())
    return (
        f"{what}: change of normalised latency in % (paper: mean {mean}, p95 {p95}; in brackets "
        f"the gap to it; asterisk: intervals overlap; 95 %, n = {len(seeds)} seeds)"
    )


def prediction(runs: Runs, settings: Settings, seeds: Sequence[int]) -> Table:
    """Return the gains at the roofline's prices, and the unique experts of all 32 layers."""
    table = Table(
        _titled("Predicted at the roofline's prices", seeds),
        ["family, C, N", "unique experts, in this order", "ms a token, decode_first", *COLUMNS],
    )
    for family, setting in settings.items():
        unique = ", ".join(
            spread(estimate(seen.unique for seen in runs.of(setting, policy, seeds)))
            for policy in POLICIES
        )
        decode = estimate(seen.mean_ms for seen in runs.of(setting, BASELINES[0], seeds))
        name = f"{family}, {setting.cap}, {setting.clients}"
        shown = cells(gains(runs, setting, seeds))
        table.add(name, unique, spread(decode, digits=1), *shown)
    return table


def measured_slopes(runs: Runs, settings: Settings, seeds: Sequence[int]) -> Table:
    """Return the slope of simulated steps: what one more unique expert costs by regression."""
    table = Table(
        f"Slope of simulated steps (ms an expert; the roofline reads one in {expert_ms():.2f} ms)",
        ["family", *POLICIES],
    )
    for family, setting in settings.items():
        found = [
            estimate(seen.slope_ms for seen in runs.of(setting, policy, seeds))
            for policy in POLICIES
        ]
        table.add(str(family), *map(spread, found))
    return table


def by_slope(runs: Runs, settings: Settings, seeds: Sequence[int]) -> Table:
    """Return the gains with each slope, a step of 5.08 experts taking as long as in Table 8."""
    step = step_ms("AR", FEWER[0])
    table = Table(
        _titled(f"Predicted with a step of {step:.1f} ms at 5.08 experts", seeds),
        ["family", "slope, ms an expert", *COLUMNS],
    )
    for family, setting in settings.items():
        for name, slope in slopes().items():
            found = gains(runs, setting, seeds, linear(slope))
            table.add(str(family), f"{slope:.2f} ({name})", *cells(found))
    return table


def rotation(runs: Runs, settings: Settings, seeds: Sequence[int]) -> Table:
    """Return the gains over prompts first with decodes that take turns; steps as in `by_slope`."""
    table = Table(
        _titled("Not in the protocol: against prompts first with decodes that take turns", seeds),
        ["family", "its unique experts", "slope, ms an expert", "mean %", "p95 %"],
    )
    for family, setting in settings.items():
        base = runs.of(setting, ROTATING, seeds)
        unique = spread(estimate(seen.unique for seen in base))
        for slope in (0.0, *slopes().values()):
            found = gains(runs, setting, seeds, linear(slope), (ROTATING,))
            table.add(str(family), unique, f"{slope:.2f}", *cells(found))
    return table


def needed(runs: Runs, settings: Settings, seeds: Sequence[int]) -> Table:
    """Return the slopes at which the mean gain is the paper's, and the gain without any slope."""
    table = Table(
        "Fitted to the gain: slopes (ms an expert) at which the gain is inside the paper's range, "
        "steps as long as in Table 8; in brackets the gain in % at slope 0",
        ["family", *COLUMNS],
    )
    for family, setting in settings.items():
        tried = [gains(runs, setting, seeds, linear(slope)) for slope in SLOPES_TRIED]
        texts = []
        for column, paper in enumerate(2 * list(PAPER_GAINS.values())):
            at = [100 * found[column].mean for found in tried]
            inside = [
                slope
                for slope, gain in zip(SLOPES_TRIED, at, strict=True)
                if outside(gain, paper) == 0
            ]
            texts.append(f"{interval(inside) if inside else 'none'} ({at[0]:+.1f})")
        table.add(str(family), *texts)
    return table


def _sensitive(settings: Settings) -> list[Setting]:
    return [s for f, s in settings.items() if (f.routing, f.lengths) == SENSITIVE]


def sensitivity(runs: Runs, settings: Settings, seeds: Sequence[int]) -> Table:
    """Return the gains at the roofline's prices with other options of expert-aware batching."""
    table = Table(
        _titled("Options of expert-aware batching", seeds),
        ["family", "options", "unique experts", *COLUMNS],
    )
    for setting in _sensitive(settings):
        for name, options in VARIANTS.items():
            varied = replace(setting, options=options)
            seen = runs.of(varied, "expert_aware", seeds)
            unique = spread(estimate(each.unique for each in seen))
            shown = cells(gains(runs, varied, seeds))
            table.add(str(setting.family), name, unique, *shown)
    return table


def waits(runs: Runs, settings: Settings, seeds: Sequence[int]) -> Table:
    """Return the longest waits of each policy, with and without ageing, over all seeds."""
    table = Table(
        "Longest before a first step (wait) and between two (pause), roofline's prices, most of "
        f"{len(seeds)} seeds",
        ["family", "policy", "wait, steps", "wait, ms", "pause, steps", "pause, ms"],
    )
    ageing = {f"expert_aware, max_wait {n}": (("max_wait", n),) for n in (16, 4)}
    for setting in _sensitive(settings):
        for name in (*POLICIES, *ageing):
            aged = replace(setting, options=ageing.get(name, ()))
            seen = runs.of(aged, name.partition(",")[0], seeds)
            table.add(
                str(setting.family), name,
                f"{max(each.wait_steps for each in seen)}",
                f"{max(each.wait_ms for each in seen):.0f}",
                f"{max(each.pause_steps for each in seen)}",
                f"{max(each.pause_ms for each in seen):.0f}",
            )  # fmt: skip
    return table
