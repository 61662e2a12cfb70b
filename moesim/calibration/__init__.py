"""Calibration: how long a machine really takes, measured, fitted and written down as a profile.

Designed workloads are served on the real machine; from the journal of each run come samples of
every kind of operation; half of them are fitted, the others state the error.
"""
