"""Random cases in which each layer event begins and ends on idle lanes."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from costed_traces import costed_trace
from workloads import random_case

from moesim.trace import Trace


def timed_at_once(seed: int) -> tuple[dict[str, Any], Trace]:
    """Return a random case in which no copy is in flight when a layer event begins."""
    scenario, trace = random_case(seed)
    scenario |= {"prefetch": {"policy": "none"}, "replay": "atomic"}
    scenario["cache"].pop("write_back", None)
    scenario["timeline"] = {"steps": random.Random(seed).choice([0, 3, 1000])}
    if seed % 3 == 0 and scenario["cache"]["policy"] != "min":
        trace = with_gaps(trace, seed)
    return scenario, trace


def with_gaps(trace: Trace, seed: int) -> Trace:
    """Return such a case with unused places, sometimes all of a layer, and with dense layers."""
    rng = np.random.default_rng(seed)
    ids = np.asarray(trace.expert_ids[:]).astype(int)
    ids[rng.random(ids.shape) < 0.2] = -1
    ids[rng.random(ids.shape[:2]) < 0.3] = -1
    return costed_trace(
        ids,
        dense=(0, 3) if seed % 2 else (),
        seq_len=trace.requests["num_rows"],
        prompt_tokens=trace.requests["prompt_tokens"],
    )
