"""Unique experts per batch in Read-ME, with closed clients: fitted caps, predicted latency gains.

    python studies/readme/unique_experts.py OUT [--azure PATH] [--seeds 5] [--requests 200]

This takes about 18 minutes of one core. The long version is `--seeds 10 --requests 500`, some 60
minutes (estimated from the short one, not run). It needs a folder of its own.

The paper serves Chatbot Arena on one A100-80GB and gives mean unique experts per batch: 5.08 with
decodes first, 5.21 with prompts first, 3.51 with expert-aware batching. The latter's normalised
latency (end to end / generated tokens) is 5.0 to 6.1 % lower in the mean and 9.5 to 10.0 % at p95.
Rate, batch cap, concurrency and popularity are not given. This was stated before any run:

1. Families. Routing: `uniform` (a token takes its predecessor's expert in 71.3 %), `skewed` (the
   same with Zipf 2.4), `domains` (the same in 7 domains, each with an order of popularity of its
   own). Lengths: `fixed`; `geometric`; `azure`, drawn from the lengths in --azure (AzureLLM code
   trace), prompts and outputs scaled to the assumed means and cut at Llama-2's context of 4,096,
   because the trace's own prompts (2,048 tokens) and outputs (28) are no chat. Means are assumed:
   64 prompt and 124 output tokens. Prefill: `chunked`, or `whole` prompts. `domains` is run with
   geometric lengths only, `skewed` also with fixed ones. Without --azure its families are left
   out, with a note.
2. Assumed: N closed clients that do not think, of which all may run; 7 experts, all in GPU memory;
   defaults of expert-aware batching; the profile a100-80gb. The window leaves out the first N and
   the last N requests that end.
3. Fitted on the baselines, for each family: only the batch cap C (tokens a step), at N = 2 C, on
   seeds 1000 to 1002, by least (U_decode - 5.08)^2 + (U_prefill - 5.21)^2. C is searched from 4 to
   128: the values of `CAPS` first, then the middles beside the best, until its neighbours are
   done. The fit is then shown on the table's seeds: U with intervals, whether both are within
   0.15, and the order of the two (paper: decode below prefill), paired by seed.
4. Seen: U of all three policies over N / C at this C, on the table's seeds. No figure of
   expert-aware batching has been used so far. If no N / C gave 3.51, the paper's mechanism would
   not be what is simulated.
5. Fitted on 3.51: N. Each seed's curve of expert-aware batching is interpolated to its first
   crossing of 3.51; N is the integer nearest to C times the mean of these. So 3.51 is no longer a
   prediction. A family whose mean curve does not reach 3.51 stops here.
6. Predicted: the change of mean and p95 normalised latency against both baselines at that C and N,
   with all 32 layers and the roofline's prices, on the table's seeds, paired by seed.
7. Predicted again with prices of Table 8: a step takes T + s (U - 5.08) ms, where T is Table 8's
   step (own router) at the batch whose independent tokens want 5.08 of 7 experts. The slope s is
   Table 8's between batches 5 and 20, its form B (fitted with batch 30), each for both routers,
   and the roofline's. Steps do not depend on prices here, so the runs of 6 are priced again.
   The slope that would give the paper's gain is also printed. It is a fit to the gain.
8. Sensitivity of 6: units, queueing rule of prompts, ageing; and the longest waits.

A prediction holds where its interval overlaps the paper's range.

Two amendments were made before any gain was computed. The caps 48 and 96 were added: with whole
prompts decode-first is not monotone in C, and a search from powers of two alone had missed a
better fit (4.61, 4.37 at C = 32, but 1.03, 5.02 at C = 64). Skewed routing with Azure's lengths
was dropped, to save time. One table was added after the gains were seen, and says so: against
prompts first with decodes that take turns (`rotating.py`).
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Final

import numpy as np
from closed_serving import Family, Runs, Setting, clients_at
from latency_gains import (
    by_slope,
    measured_slopes,
    needed,
    prediction,
    rotation,
    sensitivity,
    waits,
)
from output import at_least_one, counted, run_main, spread
from unique_plot import draw

from moesim.report.statistics import Estimate, difference, estimate
from moesim.report.tabular import Table, markdown

PAPER: Final = {"decode_first": 5.08, "prefill_first": 5.21, "expert_aware": 3.51}
BASELINES: Final = ("decode_first", "prefill_first")
WITHIN: Final = 0.15
CAPS: Final = (4, 8, 16, 32, 48, 64, 96, 128)
CALIBRATION_SEEDS: Final = (1000, 1001, 1002)
RATIOS: Final = (1.0, 1.1, 1.2, 1.4, 1.7, 2.0, 3.0)
FIT_RATIO: Final = 2
COUNTED: Final = 60
"""Requests in the window of a run that only counts unique experts."""
KINDS: Final = (
    *(("uniform", lengths) for lengths in ("fixed", "geometric", "azure")),
    *(("skewed", lengths) for lengths in ("fixed", "geometric")),
    ("domains", "geometric"),
)
FAMILIES: Final = tuple(
    Family(routing, lengths, chunked)
    for (routing, lengths), chunked in product(KINDS, (True, False))
)

Curve = Mapping[str, Sequence[Sequence[float]]]
"""Unique experts by policy: a sequence over ratios of sequences over seeds."""


@dataclass(frozen=True, slots=True)
class Found:
    """What was fitted for a family, and the curve over N / C. `clients` is None if none fits."""

    family: Family
    cap: int
    curve: Curve
    crossing: Estimate
    clients: int | None


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the runs; a killed study resumes in it")
    parser.add_argument("--azure", type=Path, help="AzureLLMInferenceTrace_code.csv")
    parser.add_argument("--seeds", type=at_least_one, default=5)
    parser.add_argument(
        "--requests", type=at_least_one, default=200, help="in the window of predictions"
    )
    options = parser.parse_args(arguments)
    runs, seeds = Runs(options.out, options.azure), range(options.seeds)
    families = [family for family in FAMILIES if options.azure or family.lengths != "azure"]
    if options.azure is None:
        print("No --azure: families with Azure's lengths are left out.", file=sys.stderr)
    found = [explore(runs, family, seeds) for family in counted(families, "families")]
    settings = {
        each.family: Setting(each.family, each.cap, each.clients, options.requests, layers=32)
        for each in found
        if each.clients is not None
    }
    tables = [
        fits(found),
        curves(found),
        chosen(found),
        prediction(runs, settings, seeds),
        measured_slopes(runs, settings, seeds),
        by_slope(runs, settings, seeds),
        needed(runs, settings, seeds),
        sensitivity(runs, settings, seeds),
        waits(runs, settings, seeds),
        rotation(runs, settings, seeds),
    ]
    drawn = {str(each.family): (each.cap, each.curve) for each in found}
    draw(options.out / "plots", drawn, RATIOS)
    print(file=sys.stderr)
    print("\n\n".join([head(options), *map(markdown, tables)]))


def head(options: argparse.Namespace) -> str:
    """Return the command of the report, and what it shows."""
    azure = f" --azure {options.azure.name}" if options.azure else ""
    size = f"--seeds {options.seeds} --requests {options.requests}"
    return (
        f"```sh\npython studies/readme/unique_experts.py OUT{azure} {size}\n```\n\n"
        "Simulated. The protocol is in the docstring of the study: what is fitted to which figure, "
        "and what is predicted. Families: routing, lengths, prefill. Plot: "
        "`plots/unique_experts.png`."
    )


def explore(runs: Runs, family: Family, seeds: Sequence[int]) -> Found:
    """Return the fitted cap, the curve at it, and the number of clients that gives 3.51."""
    cap = fitted_cap(runs, family)
    curve = curve_of(runs, family, cap, seeds)
    crossing = crossing_of(curve["expert_aware"], cap)
    reached = min(map(_mean, curve["expert_aware"])) <= PAPER["expert_aware"]
    clients = round(cap * crossing.mean) if reached and crossing.defined else None
    return Found(family, cap, curve, crossing, clients)


def fitted_cap(runs: Runs, family: Family) -> int:
    """Return the cap of least loss, which depends on the baselines only."""
    losses = {cap: loss(baselines(runs, family, cap)) for cap in CAPS}
    while True:
        caps = sorted(losses)
        best = min(caps, key=lambda cap: losses[cap])
        place = caps.index(best)
        beside = caps[max(0, place - 1) : place] + caps[place + 1 : place + 2]
        middles = {(best + other) // 2 for other in beside} - losses.keys()
        # The middle of neighbours is one of them, rounded down.
        if not middles:
            return best
        losses |= {cap: loss(baselines(runs, family, cap)) for cap in sorted(middles)}


def baselines(runs: Runs, family: Family, cap: int) -> tuple[float, float]:
    """Return the baselines' mean unique experts where the batch is full, on calibration seeds."""
    setting = Setting(family, cap, FIT_RATIO * cap, COUNTED)
    decode, prefill = (
        _mean([seen.unique for seen in runs.of(setting, policy, CALIBRATION_SEEDS)])
        for policy in BASELINES
    )
    return decode, prefill


def loss(unique: tuple[float, float]) -> float:
    """Return the objective of the fit."""
    return sum((ours - PAPER[p]) ** 2 for ours, p in zip(unique, BASELINES, strict=True))


def curve_of(runs: Runs, family: Family, cap: int, seeds: Sequence[int]) -> Curve:
    """Return unique experts of all policies over the ratios N / C."""
    settings = [Setting(family, cap, clients_at(ratio, cap), COUNTED) for ratio in RATIOS]
    return {
        policy: [[seen.unique for seen in runs.of(each, policy, seeds)] for each in settings]
        for policy in PAPER
    }


def crossing_of(unique: Sequence[Sequence[float]], cap: int) -> Estimate:
    """Return the first N / C at which expert-aware batches want 3.51, seed by seed."""
    ratios = [clients_at(ratio, cap) / cap for ratio in RATIOS]
    by_seed = zip(*unique, strict=True)
    return estimate(first_crossing(ratios, each, PAPER["expert_aware"]) for each in by_seed)


def first_crossing(places: Sequence[float], values: Sequence[float], level: float) -> float:
    """Return where a broken line first reaches a level from above; NaN if it does not.

    A line that begins at or below the level crosses at its beginning.
    """
    if values[0] <= level:
        return places[0]
    for n, (left, right) in enumerate(pairwise(values)):
        if left > level >= right:
            share = (left - level) / (left - right)
            return places[n] + share * (places[n + 1] - places[n])
    return math.nan


def fits(found: Sequence[Found]) -> Table:
    """Return the fitted caps with the baselines on the table's seeds."""
    table = Table(
        f"Fitted batch caps C, at N = {FIT_RATIO} C (paper: 5.08 and 5.21; 95 % intervals, "
        f"n = {found[0].crossing.n + found[0].crossing.undefined} seeds)",
        ["family", "C", "decode_first", "prefill_first", "both within 0.15",
         "prefill less decode (paper: +0.13)", "order"],
    )  # fmt: skip
    for each in found:
        decode, prefill = (each.curve[policy][RATIOS.index(FIT_RATIO)] for policy in BASELINES)
        less = difference(prefill, decode, relative=False)
        near = is_near((_mean(decode), _mean(prefill)))
        table.add(
            str(each.family), f"{each.cap}", spread(estimate(decode)), spread(estimate(prefill)),
            "yes" if near else "no", spread(less, sign=True), order_of(less),
        )  # fmt: skip
    return table


def is_near(unique: tuple[float, float]) -> bool:
    """Return whether both baselines are close to the paper's."""
    pairs = zip(unique, BASELINES, strict=True)
    return all(abs(ours - PAPER[policy]) <= WITHIN for ours, policy in pairs)


def order_of(prefill_less_decode: Estimate) -> str:
    """Return whether the baselines have the paper's order, decode below prefill."""
    if prefill_less_decode.low > 0:
        return "right"
    return "reversed" if prefill_less_decode.high < 0 else "open"


def curves(found: Sequence[Found]) -> Table:
    """Return unique experts over N / C, a row for each family and policy."""
    table = Table(
        "Unique experts per batch over N / C, at the fitted C (95 % intervals)",
        ["family, C", "policy", *(f"N / C = {ratio:g}" for ratio in RATIOS)],
    )
    for each in found:
        for policy, by_ratio in each.curve.items():
            cells = [spread(estimate(seeds)) for seeds in by_ratio]
            table.add(f"{each.family}, {each.cap}", policy, *cells)
    return table


def chosen(found: Sequence[Found]) -> Table:
    """Return where expert-aware batching gives 3.51, and the clients chosen there."""
    table = Table(
        "N / C at which expert-aware batches want 3.51 experts (fitted to 3.51; 95 % intervals)",
        ["family", "C", "N / C", "seeds without", "N chosen"],
    )
    for each in found:
        clients = "none" if each.clients is None else f"{each.clients}"
        ratio = spread(each.crossing) if each.crossing.defined else "-"
        table.add(str(each.family), f"{each.cap}", ratio, f"{each.crossing.undefined}", clients)
    return table


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


if __name__ == "__main__":
    run_main(main)
