"""Checks of what placement policies return: is it possible?

The guard checks types, for policies of other packages. The server checks the values here, for all
policies alike.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from moesim.errors import PolicyViolation
from moesim.policies.view import Key

__all__ = ["check_layer_lane", "check_placement", "check_residents"]


def check_placement(
    policy: str, answer: Mapping[Key, str], absent: Collection[Key], lanes: Collection[str]
) -> None:
    """Raise `PolicyViolation` where `place` names a key that is not absent, or an unknown lane.

    `lanes` are the lanes of the machine that compute.
    """
    for key, lane in answer.items():
        if key not in absent:
            raise PolicyViolation(
                policy, key, f"is placed on {lane!r}, but it is not absent; place keys of `absent`"
            )
        if lane not in lanes:
            raise PolicyViolation(policy, key, _no_lane(lane, lanes))


def check_residents(policy: str, keys: Collection[Key], slots: int, num_keys: int) -> None:
    """Raise `PolicyViolation` where `residents` exceeds the slots, or returns no distinct keys.

    The keys of the model are the integers below `num_keys`.
    """
    if len(keys) > slots:
        raise PolicyViolation(
            policy, "residents", f"returns {len(keys)} keys; there are {slots} slots"
        )
    seen: set[Key] = set()
    for key in keys:
        if not 0 <= key < num_keys:
            raise PolicyViolation(
                policy, key, f"is resident, but is no expert; keys are 0 to {num_keys - 1}"
            )
        if key in seen:
            raise PolicyViolation(policy, key, "is returned twice by `residents`")
        seen.add(key)


def check_layer_lane(policy: str, model_layer: int, lane: str, lanes: Collection[str]) -> None:
    """Raise `PolicyViolation` where `layer_lane` names an unknown lane."""
    if lane not in lanes:
        raise PolicyViolation(policy, f"model layer {model_layer}", _no_lane(lane, lanes))


def _no_lane(lane: str, lanes: Collection[str]) -> str:
    return (
        f"is placed on {lane!r}; the machine computes on {', '.join(lanes)}; the class attribute "
        "`lanes` of the policy adds cpu"
    )
