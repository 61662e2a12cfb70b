"""Placement by rows, in a package of its own: experts that few tokens want run on the CPU.

To copy an expert pays if many rows share the copy. This rule needs no durations: a missing expert
with at most `rows` rows in this step is computed on the CPU, and others are copied to the GPU. The
built-in placement `cost` compares estimated durations instead, as Fiddler (arXiv 2402.07033) does.

After `pip install ./examples/plugins/placement`, scenarios can say `placement: {policy: few_rows}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from moesim.policies import Key, View, register
from moesim.policies.placement import Placement
from moesim.policies.placement.base import ARRIVING, CPU, Estimate


@dataclass(frozen=True, slots=True)
class FewRowsOptions:
    """`rows`: the most rows of an expert that runs on the CPU."""

    rows: Annotated[int, Ge(1)] = 1


@register("placement", "few_rows")
class FewRows(Placement):
    """Run a missing expert with few rows on the CPU, and copy the others."""

    lanes = (CPU,)
    Options = FewRowsOptions

    def place(self, view: View, absent: Mapping[Key, str], estimate: Estimate) -> Mapping[Key, str]:
        return {
            key: CPU
            for key, rows in zip(view.union, view.tokens, strict=True)
            # The copy of an arriving expert has been paid for.
            if absent.get(key, ARRIVING) != ARRIVING and rows <= self.options.rows
        }
