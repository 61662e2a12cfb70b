"""The scenario of a study of serving: one trace, with experts that do not all fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

HARDWARE: Final = "rtx-3060-12gb"
Batch = tuple[int, int]  # most requests at a time, most tokens a step
Policies = Mapping[str, Mapping[str, Any]]
"""Changes of the scenario's sections, like `{"cache": {"policy": "lookahead"}}`."""


def scenario_of(
    trace: Path,
    shape: Path,
    slots: int,
    batch: Batch,
    seed: int,
    policies: Policies,
    *,
    requests: int = 32,
) -> dict[str, Any]:
    """Return a scenario: `slots` experts a layer, decode first, LRU, and the changes `policies`."""
    plain: dict[str, Any] = {
        "trace": str(trace),
        "model": {"shape": str(shape)},
        "hardware": HARDWARE,
        "workload": {"requests": requests, "order": "resampled"},
        "batching": {
            "policy": "decode_first",
            "max_sequences": batch[0],
            "token_budget": batch[1],
        },
        "cache": {"policy": "lru", "slots": f"{slots}/layer"},
        # Neither is shown, and bounds would triple the time.
        "bounds": False,
        "timeline": {"steps": 0},
        "seed": seed,
    }
    for section, changes in policies.items():
        plain[section] = {**plain.get(section, {}), **changes}
    return plain
