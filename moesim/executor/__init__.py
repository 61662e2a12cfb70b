"""The real machine: torch does the work that the simulated machine only prices.

The same server runs on both machines, so decisions agree exactly unless they depend on time.
`run_real` serves a plan on it. Everything here needs the extra `torch`.
"""
