"""Digests of what random runs record, stored before the core was opened for more lanes.

The previous implementation is the oracle. A run on one GPU without host time must give the same
times, counts and bytes, to the nanosecond. The digests cover names and values that do not depend on
how a ledger is built: stalls by cause, busy time by lane, and the rows of `steps` and `timeline`.

    python tests/support/stored_outcomes.py     # computes all digests again and prints differences
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from workloads import plan_of, random_case, run_on

from moesim.serving.stalls import CAUSES
from moesim.simulate import Outcome, Plan

STORED = Path(__file__).with_suffix(".json")
CAUSES_THEN = ("readback", "demand", "late", "other")
LANES_THEN = ("gpu", "h2d", "d2h")
STEP_COLUMNS_THEN = 15


def cases() -> Iterator[tuple[str, dict[str, Any], Any]]:
    """Yield the name, scenario and trace of each stored case."""
    for seed in range(150):
        yield (f"any {seed}", *random_case(seed))
    for seed in range(2000, 2100):
        yield (f"at once {seed}", *random_case(seed, at_once=True))
    for seed in range(4000, 4120):
        scenario, trace = random_case(seed)
        scenario |= {"prefetch": {"policy": "none"}, "replay": "atomic"}
        scenario["cache"].pop("write_back", None)
        scenario["timeline"] = {"steps": random.Random(seed).choice([0, 3, 1000])}
        yield f"without copies ahead {seed}", scenario, trace


def digest(outcome: Outcome) -> str:
    """Return the digest of all times, counts and bytes that a run records."""
    ledger = outcome.ledger
    stalls = dict(zip(CAUSES, ledger.stall_ns, strict=True))
    for cause in CAUSES:
        if cause not in CAUSES_THEN:
            assert not any(stalls[cause]), cause
    recorded = (
        outcome.now_ns,
        ledger.hits,
        ledger.late_hits,
        [stalls[cause] for cause in CAUSES_THEN],
        ledger.demand_copies,
        ledger.prefetch_copies,
        ledger.rows,
        ledger.missed_rows,
        (ledger.waves_max, ledger.waves_sum, ledger.waves_events, ledger.stepping_ns),
        [tuple(map(int, row[:STEP_COLUMNS_THEN])) for row in ledger.steps],
        [request.token_ns for request in outcome.requests],
        [(each.wait_steps, each.pause_steps, each.pause_ns) for each in outcome.requests],
        sorted(ledger.timeline),
        [ledger.busy_ns[lane] for lane in LANES_THEN],
        [ledger.moved_bytes[kind] for kind in ("demand", "prefetch", "write_back", "readback")],
        (ledger.prefetch_useful, ledger.prefetch_late, ledger.prefetch_wasted),
        ledger.prefetch_refused,
        [list(cache.slots) for cache in outcome.caches],
        list(ledger.layer_events()),
    )
    return hashlib.sha256(repr(recorded).encode()).hexdigest()[:16]


def plans() -> Iterator[tuple[str, Plan]]:
    """Yield the name and plan of each stored case."""
    for name, scenario, trace in cases():
        yield name, plan_of(scenario, trace)


def stored() -> dict[str, str]:
    """Return the stored digest of each case."""
    digests: dict[str, str] = json.loads(STORED.read_text(encoding="utf-8"))
    return digests


if __name__ == "__main__":
    now = {name: digest(run_on(plan)) for name, plan in plans()}
    before = stored() if STORED.exists() else {}
    if not before:
        STORED.write_text(json.dumps(now, indent=0) + "\n", encoding="utf-8")
    print(f"{len(now)} cases, {sum(before.get(n) != d for n, d in now.items())} differ")
    for name, value in now.items():
        if before.get(name) != value:
            print(name)
