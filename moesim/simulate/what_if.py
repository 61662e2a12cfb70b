"""What-ifs of a finished run: its scenario simulated again with a few keys changed."""

from __future__ import annotations

from moesim.progress import Progress
from moesim.report.runs import Run
from moesim.results.what_if import WhatIfs

__all__ = ["what_ifs"]


def what_ifs(run: Run, progress: Progress | None = None) -> WhatIfs:
    """Simulate the what-ifs of a run: link ×2, slots ×2, perfect prefetch and CPU ×2.

    A what-if that does not apply, or that cannot be simulated, has its reason instead of a summary.
    Nothing is written. `progress(what, done, total)` is called for each of them as for a run.
    """
    raise NotImplementedError
