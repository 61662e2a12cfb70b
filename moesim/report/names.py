"""Labels: eviction policies as the literature, and so figures and tables, spell them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from moesim.errors import PolicyViolation, UsageError

if TYPE_CHECKING:
    from moesim.policies import Input

__all__ = ["MIN_LABEL", "ORACLE", "learnt_from", "policy_label"]

ORACLE: Final = " (oracle)"
"""What follows the name of a policy that learnt on the replayed trace."""

MIN_LABEL: Final = "MIN (misses)"
NAMES: Final = {
    "lru": "LRU",
    "lfu": "LFU",
    "lfu_cumulative": "LFU",
    "lfu_in_cache": "LFU in cache",
    "lfu_decay": "LFU decay",
    "fifo": "FIFO",
    "lfru": "LFRU",
    "activation_matrix": "activation matrix",
    "eam": "activation matrix",
    "mrs": "MRS",
    "fmoe": "fMoE",
    "finemoe": "fMoE",
    "least_stale": "Least-Stale",
    "arc": "ARC",
    "s3_fifo": "S3-FIFO",
    "s3fifo": "S3-FIFO",
    "sieve": "SIEVE",
    "lirs": "LIRS",
    "min": MIN_LABEL,
    "belady": MIN_LABEL,
}


def policy_label(name: str, options: Mapping[str, Any] | None = None) -> str:
    """Return the label of an eviction policy; its own name if the literature has none.

    The label of MIN says that it minimises misses, not latency. A policy that learnt on the
    replayed trace is an oracle, and its label says so. One that a file or a module holds has the
    name of its class.
    """
    from moesim.policies.references import is_reference, referred_class

    if is_reference(name):  # reading a report runs no code of a file
        return referred_class(name)
    # Users may write lfu-decay for lfu_decay; the registry accepts both.
    name = name.replace("-", "_")
    if name in NAMES:
        return NAMES[name]
    in_hindsight = any(
        each.path is None and each.part is None for each in learnt_from(name, options)
    )
    return f"{name}{ORACLE}" if in_hindsight else name


def learnt_from(name: str, options: Mapping[str, Any] | None) -> Sequence[Input]:
    """Return the inputs of an eviction policy; none if its package is not installed here."""
    from moesim.policies import find, parse_options
    from moesim.policies.guard import inputs_of

    try:
        policy = find("eviction", name)
        return inputs_of(policy, parse_options(policy, options or {}))
    except (UsageError, PolicyViolation):  # an option may have been renamed since the run
        return ()
