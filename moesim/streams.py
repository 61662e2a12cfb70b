"""Named random streams: one per subsystem, so that adding a consumer shifts no other."""

from __future__ import annotations

from zlib import crc32

import numpy as np


def stream(seed: int, name: str, *index: int) -> np.random.Generator:
    """The generator of subsystem `name` (and, say, cache number `index`) under one seed."""
    return np.random.default_rng(
        np.random.SeedSequence(seed, spawn_key=(crc32(name.encode()), *index))
    )
