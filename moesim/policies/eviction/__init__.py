"""Eviction policies: which experts keep a slot after a layer event, one idea per file."""

from moesim.policies.eviction.activation_matrix import ActivationMatrix
from moesim.policies.eviction.arc import ARC
from moesim.policies.eviction.base import CacheContext, Eviction, Ranked
from moesim.policies.eviction.drop_after_use import DropAfterUse
from moesim.policies.eviction.fifo import FIFO
from moesim.policies.eviction.fmoe import FMoE
from moesim.policies.eviction.least_stale import LeastStale
from moesim.policies.eviction.lfru import LFRU
from moesim.policies.eviction.lfu import LFU, LFUDecay, LFUInCache
from moesim.policies.eviction.lirs import LIRS
from moesim.policies.eviction.lookahead import LookAhead
from moesim.policies.eviction.lru import LRU
from moesim.policies.eviction.min import MIN
from moesim.policies.eviction.mrs import MRS
from moesim.policies.eviction.random import Random
from moesim.policies.eviction.resident import Resident
from moesim.policies.eviction.s3_fifo import S3FIFO
from moesim.policies.eviction.sieve import Sieve
from moesim.policies.eviction.static import Static
from moesim.policies.eviction.window import MINWindow

__all__ = [
    "ARC",
    "FIFO",
    "LFRU",
    "LFU",
    "LIRS",
    "LRU",
    "MIN",
    "MRS",
    "S3FIFO",
    "ActivationMatrix",
    "CacheContext",
    "DropAfterUse",
    "Eviction",
    "FMoE",
    "LFUDecay",
    "LFUInCache",
    "LeastStale",
    "LookAhead",
    "MINWindow",
    "Random",
    "Ranked",
    "Resident",
    "Sieve",
    "Static",
]
