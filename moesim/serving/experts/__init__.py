"""Experts: where they are, how a layer event is decided, and the work that follows."""
