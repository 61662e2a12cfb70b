"""Labels: eviction policies as the literature, and so figures and tables, spell them."""

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
    """Return the label of an eviction policy; its own name if the literature has none.

    The label of MIN says that it minimises misses, not latency. `static` without a profile trace
    learnt on the replayed trace, so its label says oracle.
    """
    # Users may write lfu-decay for lfu_decay; the registry accepts both.
    name = name.replace("-", "_")
    if name == "static" and not (options or {}).get("profile"):
        return "static (oracle)"
    return NAMES.get(name, name)
