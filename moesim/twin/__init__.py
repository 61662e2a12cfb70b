"""A machine that is learned from logs of its own: two numbers of it, and what it would do else.

Logs are read as rows of `moesim.measured`, and the fit and all times are of that package too. See
docs/twin.md.
"""
