"""Workloads: the requests of a run, their lengths and arrivals."""
