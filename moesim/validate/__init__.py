"""Validation: the same workload on the simulated and on the real machine.

Both run the same server, so decisions must be equal wherever time cannot change them; what is
compared is time.
"""

from moesim.validate.comparison import MOST_SPREAD_PCT, Comparison, compare, spread_pct
from moesim.validate.decisions import Decisions, Witness, differences
from moesim.validate.observation import Observation, observe
from moesim.validate.replay import Replay

__all__ = [
    "MOST_SPREAD_PCT",
    "Comparison",
    "Decisions",
    "Observation",
    "Replay",
    "Witness",
    "compare",
    "differences",
    "observe",
    "spread_pct",
]
