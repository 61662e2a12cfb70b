"""What is installed, what this machine is, and whether moesim works here: `moesim doctor`."""

from moesim.doctor.check import Check, State, worst
from moesim.doctor.doctor import examine

__all__ = ["Check", "State", "examine", "worst"]
