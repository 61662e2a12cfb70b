"""Named random streams: independent generators, one for each subsystem, from one seed.

With one shared generator, a subsystem that draws one number more would change all later draws of
the others. Runs that differ in one policy would then differ in their workload too.
"""

from __future__ import annotations

from zlib import crc32

import numpy as np


def stream(seed: int, name: str, *index: int) -> np.random.Generator:
    """Return the generator of subsystem `name` under `seed`.

    `index` tells instances of a subsystem apart, like the number of a cache.
    """
    # Python's own hash of a string differs from process to process; a checksum does not.
    return np.random.default_rng(
        np.random.SeedSequence(seed, spawn_key=(crc32(name.encode()), *index))
    )
