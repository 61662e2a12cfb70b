"""Gates decide how much each expert of a mixture counts. One interface, one file each.

base.py       the interface: dense weights for training, few experts for inference
dselect_k.py  DSelect-k: smooth selection by binary codes, and its theory's construction
binary_codes.py  its definitions: smooth-step, codes, selectors, penalties
factored.py   the same without a table of all experts for each selector
softmax.py    all experts
top_k.py      the k largest scores, plain and noisy
switch.py     the largest score
hash.py       by id, drawn at random and not learnt
gumbel.py     the largest of noisy scores, relaxed
balance.py    losses that balance the experts' work
mixing.py     runs each expert only on rows where it has weight, and counts those
gate_router.py  any gate as the router of a language model's layer
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any, Final

from moesim.config.suggest import suggest
from moesim.errors import UsageError
from moesim.training.gates.base import Gate, Gating, Selection
from moesim.training.gates.dselect_k import DSelectK, Ramp
from moesim.training.gates.gate_router import GateRouter
from moesim.training.gates.gumbel import GumbelSoftmax
from moesim.training.gates.hash import Hash
from moesim.training.gates.softmax import Softmax
from moesim.training.gates.switch import Switch
from moesim.training.gates.top_k import NoisyTopK, TopK

__all__ = [
    "GATES",
    "DSelectK",
    "Gate",
    "GateRouter",
    "Gating",
    "GumbelSoftmax",
    "Hash",
    "NoisyTopK",
    "Selection",
    "Softmax",
    "Switch",
    "TopK",
    "build",
]

GATES: Final[Mapping[str, type[Gate]]] = {
    "dselect_k": DSelectK,
    "top_k": TopK,
    "noisy_top_k": NoisyTopK,
    "softmax": Softmax,
    "switch": Switch,
    "gumbel": GumbelSoftmax,
    "hash": Hash,
}


def build(
    name: str,
    num_experts: int,
    k: int,
    options: Mapping[str, Any] | None = None,
    *,
    features: int | None = None,
    tasks: int = 1,
) -> Gate:
    """Return a gate by its name in `GATES`, with options as a configuration file holds them.

    DSelect-k's `entropy` may be `[top, calls]`, a `Ramp`. Raise `UsageError` for an unknown name
    or option (with a suggestion), and for arguments that the gate refuses.
    """
    if name not in GATES:
        raise UsageError(f"no gate is called {name!r}{suggest(name, GATES, rest='there are')}")
    kind, settings = GATES[name], dict(options or {})
    options_of_kind = [
        option
        for option in inspect.signature(kind).parameters
        if option not in ("num_experts", "k", "features", "tasks")
    ]
    if unknown := sorted(set(settings) - set(options_of_kind)):
        raise UsageError(
            f"the gate {name} has no option {unknown[0]!r}"
            f"{suggest(unknown[0], options_of_kind, rest='it has')}"
        )
    for option, value in settings.items():
        _check_option(name, option, value, inspect.signature(kind).parameters[option].default)
    # YAML and JSON have no ramp, so a list stands for one.
    if isinstance(settings.get("entropy"), list | tuple):
        settings["entropy"] = Ramp(*settings["entropy"])
    if features is not None:
        if name == "hash":
            raise UsageError("hash routes by id, of a token or task, and reads no hidden state")
        settings["features"] = features
    return kind(num_experts, k, tasks=tasks, **settings)


def _check_option(gate: str, option: str, value: Any, default: Any) -> None:
    """Raise `UsageError` for a value whose type differs from that of the option's default."""
    if option == "entropy" and isinstance(value, list | tuple):
        if len(value) == 2 and _is_number(value[0]) and type(value[1]) is int and value[1] > 0:
            return
        raise UsageError(
            f"{gate}: entropy {value!r} must be a number or [top, calls], such as [0.01, 500]"
        )
    if isinstance(default, float):
        fits, wanted = _is_number(value), "a number that is finite and not negative"
    else:
        fits, wanted = type(value) is type(default), f"of type {type(default).__name__}"
    if not fits:
        raise UsageError(f"{gate}: {option} {value!r} must be {wanted}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and type(value) is not bool and 0 <= value < math.inf
