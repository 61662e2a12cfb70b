"""The real machine: torch does the work that the simulated machine only prices.

The same server runs on both machines, so decisions agree exactly and only times differ. `run_real`
serves a plan on it. Everything here needs the extra `torch`.
"""
