"""Policies: the rules that decide which experts and which requests a server works on.

There are four families:

- eviction: which experts keep a slot in GPU memory;
- prefetch: which experts are copied before they are needed;
- batching: which requests form the next step;
- placement: where an expert without a slot is computed.

A policy is a small object that depends on no clock, no simulator and no torch. Of the future it
sees only what the `View` shows.
"""

from moesim.policies.base import Input, Policy
from moesim.policies.registry import FAMILIES, find, names, parse_options, register
from moesim.policies.view import Key, View

__all__ = [
    "FAMILIES",
    "Input",
    "Key",
    "Policy",
    "View",
    "find",
    "names",
    "parse_options",
    "register",
]
