"""Gates: who decides which experts of a mixture count, one interface and one file each.

base.py       the interface: dense weights to learn through, few experts to run
dselect_k.py  DSelect-k: smooth selection by binary codes, and its theory's construction
softmax.py    all experts
top_k.py      the k largest scores, plain and noisy
switch.py     the largest score
hash.py       by id, drawn and not learnt
gumbel.py     the largest of noisy scores, relaxed
balance.py    losses that even out the experts' work
mixing.py     experts run where they count, and counts of that
router.py     any of them as the router of a language model
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from moesim.models.gates.base import Gate, Gating, Selection
from moesim.models.gates.dselect_k import DSelectK
from moesim.models.gates.gumbel import GumbelSoftmax
from moesim.models.gates.hash import Hash
from moesim.models.gates.router import GateRouter
from moesim.models.gates.softmax import Softmax
from moesim.models.gates.switch import Switch
from moesim.models.gates.top_k import NoisyTopK, TopK

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
