"""Serving: the serving logic, the same for every machine."""
