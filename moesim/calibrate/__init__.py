"""Calibration: measure a machine's times, fit them and write them as a profile.

Designed workloads are served on the real machine. The works of each run give samples of every
kind of operation. Half of the samples are fitted; the other half gives the error.
"""

from moesim.calibrate.bench import machine_facts
from moesim.calibrate.calibrate import calibrate, calibrate_plan
from moesim.calibrate.design import Limits, Subject, named_subject
from moesim.calibrate.profile import Profile

__all__ = [
    "Limits",
    "Profile",
    "Subject",
    "calibrate",
    "calibrate_plan",
    "machine_facts",
    "named_subject",
]
