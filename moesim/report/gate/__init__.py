"""The gate: a run beside a baseline, and the thresholds that a user states for it.

`judge` compares two sets of runs that differ in their seeds alone, computes each change with its
paired interval, and says which thresholds are exceeded. docs/report.md has the rules.
"""

from moesim.report.gate.judge import Check, Judgement, judge
from moesim.report.gate.thresholds import Threshold, parse_threshold

__all__ = ["Check", "Judgement", "Threshold", "judge", "parse_threshold"]
