"""Policies: small pure objects that the server asks, once per layer event, with sets.

They see no clock, no simulator, no torch, and no more of the future than the `View` shows. Four
families: eviction, prefetch, batching, placement.
"""

from moesim.policies.registry import FAMILIES, find, names, parse_options, register
from moesim.policies.view import Key, View

__all__ = ["FAMILIES", "Key", "View", "find", "names", "parse_options", "register"]
