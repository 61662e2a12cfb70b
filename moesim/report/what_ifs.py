"""The text of what-ifs: one row for each change, beside the run as it was."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from moesim.report.metrics import HEADLINE, UNDEFINED, Metric, number
from moesim.report.runs import Run
from moesim.report.tabular import Table
from moesim.results.what_if import WhatIfs

__all__ = ["as_json", "sentences", "what_if_table"]

_HIDDEN: Final = ("elsewhere", "disk_bytes", "late_hits", "misses")
AS_RUN: Final = "as it was"


def what_if_table(run: Run, found: WhatIfs) -> Table:
    """Return the headline metrics of the run and of each simulated what-if, with the changes.

    Changes are in percentage points for shares, relative otherwise.
    """
    metrics = [metric for metric in HEADLINE if metric.key not in _HIDDEN]
    base = [_value(metric, run, found.base) for metric in metrics]
    table = Table("What if", ["", *(metric.title for metric in metrics)])
    table.add(AS_RUN, *map(number, base))
    for answer in found.answers:
        if answer.summary is None:
            continue
        values = [_value(metric, run, answer.summary) for metric in metrics]
        cells = map(_beside, metrics, values, base)
        table.add(answer.title, *cells)
    return table


def sentences(found: WhatIfs) -> list[str]:
    """Return what each change needs, why others are left out, and what a reader must know."""
    texts = [f"{each.title} needs {each.needs}" for each in found.answers if each.summary]
    texts += [f"no {each.title}: {each.reason}" for each in found.answers if not each.summary]
    return [*texts, *found.notes]


def as_json(found: WhatIfs) -> dict[str, Any]:
    """Return what-ifs as plain data."""
    return {
        "base": dict(found.base),
        "what_ifs": [
            {
                "name": each.name,
                "title": each.title,
                "set": list(each.sets),
                "needs": each.needs,
                "reason": each.reason,
                "summary": None if each.summary is None else dict(each.summary),
            }
            for each in found.answers
        ],
        "notes": list(found.notes),
    }


def _value(metric: Metric, run: Run, summary: Mapping[str, Any]) -> float:
    return metric.of(Run(run.path, summary, run.manifest, run.scenario))


def _beside(metric: Metric, value: float, base: float) -> str:
    """Return a value with its change."""
    if math.isnan(value) or math.isnan(base):
        return UNDEFINED if math.isnan(value) else number(value)
    if metric.is_share:
        return f"{number(value)} ({_signed(value - base)} pp)"
    return f"{number(value)} ({_signed(100 * (value - base) / base)} %)" if base else number(value)


def _signed(change: float) -> str:
    text = f"{change:+.1f}"
    return "0" if text in ("+0.0", "-0.0") else text
