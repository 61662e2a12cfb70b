"""Policies as figures and tables spell them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

__all__ = ["MIN_LABEL", "policy_label"]

MIN_LABEL: Final = "MIN (misses)"
NAMES: Final = {
    "lru": "LRU",
    "lfu": "LFU",
    "lfu_cumulative": "LFU",
    "lfu_in_cache": "LFU in cache",
    "lfu_decay": "LFU decay",
    "fifo": "FIFO",
    "min": MIN_LABEL,
    "belady": MIN_LABEL,
}


def policy_label(name: str, options: Mapping[str, Any] | None = None) -> str:
    """An eviction policy by its usual name.

    MIN minimises misses, not latency, and says so. `static` without a profile trace of its own
    learnt on the replayed trace, which is hindsight and labelled so.
    """
    name = name.replace("-", "_")
    if name == "static" and not (options or {}).get("profile"):
        return "static (oracle)"
    return NAMES.get(name, name)
