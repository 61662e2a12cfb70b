"""Slow, obvious versions of fast code, sharing nothing with it but what the words mean."""
