"""Table 4 of Read-ME again, unfitted: hit ratios of the server on decoupled routing.

    python studies/readme/table4_served.py [--seeds 5]

There are two traces. One is the shipped trace of a refactored SmolLM2 (4 experts). The other is
synthetic, with as many experts as the paper's model: 7, uniform, and a token takes its
predecessor's expert in 71.3 %, as published. Batching is expert-aware, nothing is prefetched, and
a loaded expert takes a slot. Belady is `lookahead`, which knows the tokens that exist and are not
computed yet. How many those are depends on the load, so there are five:

- 32 requests arrive at once and are admitted 1 or 8 at a time, 64 tokens a step. The prompts of
  all waiting requests are known.
- 8, 11 or 24 clients send 64 requests in all, 8 tokens a step. With 8 clients, a step takes nearly
  all that is known. With more, decoded tokens wait for a place in a step, and are known.

The protocol was fixed before the first run. Nothing is fitted. Policies serve the same requests
in the same steps, so they are compared seed by seed. A cell is better or worse if the 95 % interval
of its paired differences excludes zero. The number of rows in `RECENT` was chosen before any
result; other numbers are shown at 2 slots, as sensitivity only.

- Question 1: is look-ahead above LRU, by up to ten points as published?
- Question 2: does it help to take a request's last rows as a guess of its next ones, where its next
  token does not exist yet (option `recent_rows`)? Against plain look-ahead, and against LRU.

Hits are counted over distinct experts of layer events, and also weighted by tokens. The paper does
not define its count. MIN knows all events. It runs as a policy where all requests arrive at once.
In all loads, it also scores the events of a run with hindsight; then it may drop an expert that was
just loaded, so it bounds all policies here.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from loads import closed, queued
from output import at_least_one, command, counted, run_main, spread

from moesim.report.statistics import Estimate, difference, estimate
from moesim.report.tabular import Table, markdown
from moesim.scenario import Scenario
from moesim.simulate import prepare, simulate, summarise
from moesim.simulate.bounds import min_hits
from moesim.trace import DecoupledKnobs, Trace, load_trace, synthesize_decoupled

SHIPPED: Final = Path(__file__).resolve().parents[2] / "traces/readme-decoupled"
RECENT: Final = 8
LOADS: Final[dict[str, dict[str, Any]]] = {
    "1 place, others queue": queued(1, 32),
    "8 places, others queue": queued(8, 32),
    "8 clients, 8 tokens": closed(8, 64),
    "11 clients, 8 tokens": closed(11, 64),
    "24 clients, 8 tokens": closed(24, 64),
}
POLICIES: Final[dict[str, dict[str, Any]]] = {
    "random": {"policy": "random"},
    "lru": {"policy": "lru"},
    "min": {"policy": "min"},
    "lookahead": {"policy": "lookahead"},
    **{
        f"lookahead, {rows} recent": {"policy": "lookahead", "options": {"recent_rows": rows}}
        for rows in (1, 2, RECENT, 32)
    },
}
GUESSING: Final = f"lookahead, {RECENT} recent"
EVENTS: Final = "expert_hit_rate"
TOKENS: Final = "token_hit_rate"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=at_least_one, default=5)
    parser.add_argument("--trace", type=Path, default=SHIPPED)
    options = parser.parse_args()
    seeds = range(options.seeds)
    recorded = load_trace(options.trace)
    print(command("table4_served"))
    for study in (
        Study("shipped trace, 4 experts", lambda _: recorded, (1, 2, 3), seeds),
        Study("synthetic, 7 experts", synthetic, (2, 3, 4, 5), seeds),
    ):
        print(markdown(study.hits()), end="\n\n")
        for policy, baseline in (("lookahead", "lru"), (GUESSING, "lookahead"), (GUESSING, "lru")):
            print(markdown(study.differences(policy, baseline)), end="\n\n")
        print(markdown(study.sensitivity()), end="\n\n")


@functools.cache
def synthetic(seed: int) -> Trace:
    """Return a trace of the shape `readme-llama-2-7b`."""
    return synthesize_decoupled(DecoupledKnobs(requests=64, num_layers=32, seed=seed))


class Study:
    """The runs of one kind of trace. Each run is made once."""

    def __init__(
        self,
        name: str,
        trace: Callable[[int], Trace],
        capacities: Sequence[int],
        seeds: Sequence[int],
    ) -> None:
        """`trace` returns the trace of a seed; `capacities` are slots a layer."""
        self.name = f"{name}, {len(seeds)} seeds, 95 %"
        self.trace = trace
        self.capacities = capacities
        self.seeds = seeds
        self._runs: dict[tuple[str, str, int], list[dict[str, Any]]] = {}

    def runs(self, load: str, policy: str, capacity: int) -> list[dict[str, Any]]:
        """Return the summaries of all seeds."""
        cell = load, policy, capacity
        if cell not in self._runs:
            self._runs[cell] = [
                served(self.trace(seed), load, policy, capacity, seed) for seed in self.seeds
            ]
        return self._runs[cell]

    def values(self, key: str, load: str, policy: str, capacity: int) -> list[float]:
        """Return a figure of the summary in percent, by seed."""
        return [100 * summary[key] for summary in self.runs(load, policy, capacity)]

    def hits(self) -> Table:
        """Return hit ratios in percent, by load, policy and capacity."""
        table = Table(
            f"Hits, % of experts of layer events (% of tokens): {self.name}",
            ["load, policy", *(f"{capacity} slots" for capacity in self.capacities)],
        )
        for load in counted(list(LOADS), self.name):
            at_once = "arrivals" not in LOADS[load]["workload"]
            policies = ["random", "lru", "lookahead", GUESSING, *(["min"] if at_once else [])]
            for policy in policies:
                cells = (self._both(load, policy, capacity) for capacity in self.capacities)
                table.add(f"{load}: {policy}", *cells)
            bounds = (self.values("min_hit_rate", load, "lru", c) for c in self.capacities)
            cells = (spread(estimate(bound), digits=1) for bound in bounds)
            table.add(f"{load}: MIN, may drop at once", *cells)
        return table

    def _both(self, *cell: Any) -> str:
        events, tokens = (
            spread(estimate(self.values(key, *cell)), digits=1) for key in (EVENTS, TOKENS)
        )
        return f"{events} ({tokens})"

    def difference(self, key: str, policy: str, baseline: str, load: str, slots: int) -> Estimate:
        """Return the paired difference of two policies in points."""
        ours, theirs = (self.values(key, load, name, slots) for name in (policy, baseline))
        return difference(ours, theirs, relative=False)

    def differences(self, policy: str, baseline: str) -> Table:
        """Return paired differences, each marked where its interval excludes zero."""
        pairs = [(f"{slots} slots", policy, slots) for slots in self.capacities]
        return self._compare(f"{policy} less {baseline}", baseline, pairs)

    def sensitivity(self) -> Table:
        """Return what other numbers of recent rows change at 2 slots."""
        pairs = [(name, name, 2) for name in POLICIES if name.endswith("recent")]
        return self._compare("At 2 slots, less lookahead", "lookahead", pairs)

    def _compare(self, title: str, baseline: str, pairs: Sequence[tuple[str, str, int]]) -> Table:
        """Return a column for each pair: its name, the policy and the slots."""
        table = Table(
            f"{title}, points of events (of tokens): {self.name}",
            ["load", *(name for name, _, _ in pairs)],
        )
        for load in counted(list(LOADS), title):
            cells = []
            for _, policy, slots in pairs:
                events, tokens = (
                    marked(self.difference(key, policy, baseline, load, slots))
                    for key in (EVENTS, TOKENS)
                )
                cells.append(f"{events} ({tokens})")
            table.add(load, *cells)
        return table


def marked(value: Estimate) -> str:
    """Return a difference as text, with a word if its interval excludes zero."""
    text = spread(value, digits=1, sign=True)
    if value.half is None:
        return text
    return text + (" worse" if value.high < 0 else " better" if value.low > 0 else "")


def served(trace: Trace, load: str, policy: str, capacity: int, seed: int) -> dict[str, Any]:
    """Return the summary of one run."""
    scenario: dict[str, Any] = {
        "trace": "in memory",
        "model": "trace" if trace.meta.model_config else "readme-llama-2-7b",
        "hardware": "a100-80gb",
        **LOADS[load],
        "cache": {**POLICIES[policy], "slots": f"{capacity}/layer", "admission": "always"},
        "bounds": False,
        "timeline": {"steps": 0},
        "seed": seed,
    }
    outcome = simulate(prepare(Scenario.model_validate(scenario), trace))
    summary = dict(summarise(outcome))
    # All policies serve the same layer events, so the bound of one policy's run is enough.
    if policy == "lru":
        unions = outcome.ledger.layer_events()
        summary["min_hit_rate"] = min_hits(outcome, unions) / sum(map(len, unions))
    return summary


if __name__ == "__main__":
    run_main(main)
