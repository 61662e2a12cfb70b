"""Facts of a run that decide how its numbers may be read: what its routing and its sizes are, and
which of its policies know the future.

`summary.json` holds them, and reports read them there. No report guesses them from a label.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from moesim.errors import UsageError
from moesim.hardware.shapes import ModelShape, shape_from_config
from moesim.policies import find

if TYPE_CHECKING:
    from moesim.scenario import Scenario
    from moesim.trace import TraceMeta

__all__ = ["POLICY_SECTIONS", "knows_the_future", "routing_facts"]

POLICY_SECTIONS: Final = {"eviction": "cache", "prefetch": "prefetch", "batching": "batching"}
"""The families of policies that decide something, with their sections of a scenario."""


def routing_facts(scenario: Scenario, meta: TraceMeta, shape: ModelShape) -> dict[str, str]:
    """Return whether routing is `recorded` or `synthetic`, and whether the sizes that are costed
    are the model's `own` or `foreign`: those of another model than the routing is of."""
    own = scenario.model.shape == "trace" or _same_model(meta, shape)
    return {
        "routing": "synthetic" if meta.synthetic else "recorded",
        "sizes": "own" if own else "foreign",
    }


def knows_the_future(scenario: Scenario, *, hindsight: bool = False) -> list[str]:
    """Return the policies that know what a real server cannot know yet, like `eviction min`.

    `hindsight` says that the eviction policy learnt on the replayed trace itself.
    """
    named = {
        family: find(family, getattr(scenario, section).policy)
        for family, section in POLICY_SECTIONS.items()
    }
    return [
        f"{family} {policy.name}"
        for family, policy in named.items()
        if getattr(policy, "clairvoyant", False) or (hindsight and family == "eviction")
    ]


def _same_model(meta: TraceMeta, shape: ModelShape) -> bool:
    """By sizes where the trace has its model's configuration, or else by name."""
    if meta.model_config is not None:
        try:
            return _sizes(shape_from_config(meta.model_config)) == _sizes(shape)
        except UsageError:
            pass  # a kind of model without sizes that are known: its name is all there is
    return meta.model.rpartition("/")[2].lower() == shape.name.lower()


def _sizes(shape: ModelShape) -> ModelShape:
    """What makes a model that model: neither its name nor the bits of its weights do."""
    return replace(
        shape, name="", source="", expert_bits=16, weight_bits=16, kv_bits=16, vocabulary=0,
        tied_embeddings=False,
    )  # fmt: skip
