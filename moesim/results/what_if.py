"""What-ifs: the same run with one part of it twice as good, or with a perfect prefetch.

A what-if is a further simulation of a run's scenario with a few keys changed. It says what a change
would bring, and what the change needs, so that a reader can weigh both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["WhatIf", "WhatIfName", "WhatIfs"]

WhatIfName = Literal["link", "slots", "prefetch", "cpu"]


@dataclass(frozen=True, slots=True)
class WhatIf:
    """One changed run, or the reason why the change does not apply.

    Attributes: `name`, which change it is; `title`, the change in words; `sets`, the changed keys
    as `--set` takes them; `needs`, what the change costs, like bytes of GPU memory or a link of
    some bandwidth; `summary`, that of the changed run, with the keys of `summary.json` and without
    bounds, or None; `reason`, why there is none, "" if there is one.
    """

    name: WhatIfName
    title: str
    sets: tuple[str, ...] = ()
    needs: str = ""
    summary: Mapping[str, Any] | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class WhatIfs:
    """The what-ifs of one run, in a fixed order, beside the summary that they compare with.

    Attributes: `base`, the summary of the run; `answers`; `notes`, what a reader must know, for
    example that the run was simulated again because moesim has changed since; `refused`, why the
    run cannot be simulated again at all, "" if it can.
    """

    base: Mapping[str, Any]
    answers: Sequence[WhatIf]
    notes: tuple[str, ...] = ()
    refused: str = ""
