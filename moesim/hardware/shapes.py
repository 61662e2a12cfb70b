"""The former place of `moesim.model`: shapes of models, for scripts that import them from here."""

from __future__ import annotations

from moesim.model.hf_config import load_config, load_shape, shape_from_config
from moesim.model.shapes import ModelShape, named_shape

__all__ = ["ModelShape", "load_config", "load_shape", "named_shape", "shape_from_config"]
