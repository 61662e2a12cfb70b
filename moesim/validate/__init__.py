"""Validation: the same workload on the simulated and on the real machine.

Both run the same server, so decisions must be equal wherever time cannot change them; what is
compared is time. `validate_scenario` does all of it for one scenario, a `Study` for many.
"""

from moesim.serving.replay import Replay
from moesim.validate.comparison import MOST_SPREAD_PCT, Comparison, compare, spread_pct
from moesim.validate.correction import Correction, corrected, fit_correction
from moesim.validate.decisions import Decisions, Witness, differences
from moesim.validate.observation import Observation, observe
from moesim.validate.runs import Bench, RealBench, simulate_observed
from moesim.validate.session import validate_scenario
from moesim.validate.study import Configuration, Study, rankings, split, verdict
from moesim.validate.validation import Validation, validate_plan

__all__ = [
    "MOST_SPREAD_PCT",
    "Bench",
    "Comparison",
    "Configuration",
    "Correction",
    "Decisions",
    "Observation",
    "RealBench",
    "Replay",
    "Study",
    "Validation",
    "Witness",
    "compare",
    "corrected",
    "differences",
    "fit_correction",
    "observe",
    "rankings",
    "simulate_observed",
    "split",
    "spread_pct",
    "validate_plan",
    "validate_scenario",
    "verdict",
]
