"""The dial: what accuracy a predictor needs, so that prefetch pays on a machine.

A synthetic predictor of a given recall and precision (`moesim.policies.prefetch.dial`) takes the
place of a scenario's prefetch policy. Its accuracy, its depth and the speed of the link are swept.
Each run is compared with the same run without prefetch.
"""

from moesim.dial.break_even import Border, Cell, Plane, planes_of
from moesim.dial.grid import Grid, Link, parse_depths, parse_links, parse_shares
from moesim.dial.page import Page, write_page
from moesim.dial.points import DialPoint, dial_points, refuse
from moesim.dial.sentence import sentence_of

__all__ = [
    "Border",
    "Cell",
    "DialPoint",
    "Grid",
    "Link",
    "Page",
    "Plane",
    "dial_points",
    "parse_depths",
    "parse_links",
    "parse_shares",
    "planes_of",
    "refuse",
    "sentence_of",
    "write_page",
]
