"""Calibration: how long a machine really takes, measured, fitted and written down as a profile.

Designed workloads are served on the real machine; from the journal of each run come samples of
every kind of operation; half of them are fitted, the others state the error.
"""

from moesim.calibration.bench import machine_facts
from moesim.calibration.calibrate import calibrate, calibrate_plan
from moesim.calibration.design import Limits, Subject, named_subject
from moesim.calibration.profile import Profile

__all__ = [
    "Limits",
    "Profile",
    "Subject",
    "calibrate",
    "calibrate_plan",
    "machine_facts",
    "named_subject",
]
