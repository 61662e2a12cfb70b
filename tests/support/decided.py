"""Notes of all that caches decide in a run, without what depends on times."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from moesim.serving.experts.residency import ExpertCache

__all__ = ["decided", "decisions_of"]


@contextmanager
def decided() -> Iterator[list[Any]]:
    """Append to the yielded list each decision of each cache, in order.

    Of a layer event: the keys computed in GPU memory, the copies, the lanes of the others, copies
    for later, bytes read from disk, and the keys that have a slot afterwards. Of a copy ahead: the
    key, bytes read, and the same keys.
    """
    notes: list[Any] = []
    decide, prefetch = ExpertCache.decide, ExpertCache.prefetch

    def deciding(cache: ExpertCache, layer: int, *given: Any) -> Any:
        it = decide(cache, layer, *given)
        here = sorted([*it.ready, *(key for key, *_ in it.late)])
        loads = [(key, rows) for key, rows, _ in it.loads]
        later = [key for key, _ in it.later]
        notes.append(
            (layer, here, loads, list(it.elsewhere), later, dict(it.reads), sorted(cache.slots))
        )
        return it

    def ahead(cache: ExpertCache, layer: int, key: int, *given: Any) -> Any:
        it = prefetch(cache, layer, key, *given)
        notes.append((key, None if it is None else dict(it.reads), sorted(cache.slots)))
        return it

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ExpertCache, "decide", deciding)
        patch.setattr(ExpertCache, "prefetch", ahead)
        yield notes


def decisions_of(run: Callable[[], object]) -> list[Any]:
    """Return the notes of a run."""
    with decided() as notes:
        run()
    return notes
