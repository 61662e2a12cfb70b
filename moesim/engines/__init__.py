"""Engines: how inference engines spend time on the work that the model and the machine set them."""

from moesim.engines.engine import IDEAL, Engine, Kernels, engine_names, load_engine

__all__ = ["IDEAL", "Engine", "Kernels", "engine_names", "load_engine"]
