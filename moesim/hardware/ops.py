"""The operations that a lane is asked to do, as data; a copy is an operation like another.

The server names an operation. The simulated machine computes its duration, the real machine runs
it. An operation is a tuple, so that it hashes fast and can be the key of a memo of durations.

`Front` and `Dense` count model layers, dense ones included. `Experts` counts trace layers, which
are the MoE layers alone; its keys are those of the caches, `layer * num_experts + expert`.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = [
    "BatchShape",
    "Copy",
    "Dense",
    "Experts",
    "Front",
    "Op",
    "Readback",
    "States",
    "Tail",
]


class BatchShape(NamedTuple):
    """The counts that decide how long the work of a step outside its experts takes."""

    tokens: int
    """Rows of the step, prefill and decode together."""
    kv_tokens: int
    """KV entries read in one layer, summed over the sequences of the step."""
    pairs: int
    """Pairs of query and key attended in one layer, summed over the sequences of the step."""
    sampled: int
    """Rows for which a next token is sampled; only these need logits."""
    sequences: int = 1
    """Requests that have rows in the step."""


class Front(NamedTuple):
    """One MoE layer without its routed experts: norms, attention, shared experts and router.

    With a decoupled router, layers have no router of their own.
    """

    layer: int
    batch: BatchShape


class Dense(NamedTuple):
    """One whole layer without routed experts: norms, attention and its dense FFN."""

    layer: int
    batch: BatchShape


class Experts(NamedTuple):
    """One grouped call of routed experts: expert `keys[i]` computes `tokens[i]` rows.

    `fresh`: the call follows the copy of its expert. `copied`: in the last call of a layer event,
    how many experts the event has copied; 0 in all other calls.
    """

    layer: int
    keys: tuple[int, ...]
    tokens: tuple[int, ...]
    fresh: bool = False
    copied: int = 0


class Tail(NamedTuple):
    """The work that a step does once: embedding, final norm, LM head, sampling, and a decoupled
    router if the model has one."""

    batch: BatchShape


class Copy(NamedTuple):
    """The weights of expert `key`; the lane gives the direction."""

    key: int
    nbytes: int


class Readback(NamedTuple):
    """The ids of a layer's experts, or the sampled tokens, on their way to the host."""

    nbytes: int


class States(NamedTuple):
    """Hidden states of `rows` rows of a layer, on their way between two memories.

    Inputs of experts that are computed elsewhere, their outputs, or the states between two layers.
    """

    layer: int
    rows: int
    nbytes: int


Op = Front | Dense | Experts | Tail | Copy | Readback | States
