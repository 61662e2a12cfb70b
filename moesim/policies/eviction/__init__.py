"""Eviction policies: which experts keep a slot after a layer event, one idea per file."""

from moesim.policies.eviction.base import CacheContext, Eviction, Ranked
from moesim.policies.eviction.fifo import FIFO
from moesim.policies.eviction.lfu import LFU, LFUDecay, LFUInCache
from moesim.policies.eviction.lookahead import LookAhead
from moesim.policies.eviction.lru import LRU
from moesim.policies.eviction.min import MIN
from moesim.policies.eviction.random import Random
from moesim.policies.eviction.resident import Resident
from moesim.policies.eviction.static import Static
from moesim.policies.eviction.window import MINWindow

__all__ = [
    "FIFO",
    "LFU",
    "LRU",
    "MIN",
    "CacheContext",
    "Eviction",
    "LFUDecay",
    "LFUInCache",
    "LookAhead",
    "MINWindow",
    "Random",
    "Ranked",
    "Resident",
    "Static",
]
