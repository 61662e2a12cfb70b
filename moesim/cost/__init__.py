"""Costs: durations of operations and copies, from a machine's figures and a model's sizes."""
