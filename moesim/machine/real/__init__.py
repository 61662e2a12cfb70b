"""The former place of `moesim.executor`, for scripts that import the real machine from here."""
