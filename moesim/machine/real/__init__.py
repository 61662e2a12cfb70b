"""The real machine: torch does what the simulated machine only charges for.

A server cannot tell it from the simulated one; so decisions agree exactly, and time is all there
is to compare. `run_real` serves a plan on it; everything here needs the extra `torch`.
"""
