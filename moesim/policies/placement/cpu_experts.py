"""Experts on the CPU: a fixed set of experts is on the GPU, all others run on the CPU.

KTransformers places experts like this, in four ways: as many in each layer (`uniform`), the most
used ones (`frequency`), whole layers from the first on (`front`), or at `random`.

Fiddler (arXiv 2402.07033) also fills GPU memory by frequency, and copies some experts; see `cost`.
Without a profile trace, uses are counted in the replayed trace. That is hindsight.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from moesim.errors import UsageError
from moesim.policies.base import Input, hindsight_note
from moesim.policies.placement.base import CPU, Estimate, Placement, PlacementContext
from moesim.policies.registry import register
from moesim.policies.view import Key, View


@dataclass(frozen=True, slots=True)
class CPUExpertsOptions:
    """`by`: how the experts on the GPU are chosen: uniform, frequency, front or random.

    `profile`: trace folder in which `frequency` counts uses; by default the replayed trace.
    """

    by: Literal["uniform", "frequency", "front", "random"] = "uniform"
    profile: Path | None = None


@register("placement", "cpu_experts")
class CPUExperts(Placement):
    """A fixed set of experts is resident on the GPU; all others run on the CPU."""

    lanes = (CPU,)
    Options = CPUExpertsOptions

    @classmethod
    def mistakes(cls, options: Any, context: PlacementContext) -> Sequence[tuple[str, str]]:
        if options.profile is None or options.by == "frequency":
            return ()
        return [("profile", f"is not read with by: {options.by}; write by: frequency, or drop it")]

    @classmethod
    def inputs(cls, options: Any) -> Sequence[Input]:
        learns = options.by == "frequency"
        return [Input(options.profile, "profile", trace=True)] if learns else []

    @classmethod
    def note(cls, options: Any) -> str | None:
        if options.by != "frequency":
            return None
        if options.profile is None:
            return hindsight_note(cls.name)
        return f"{cls.name} was learnt on the trace {options.profile}"

    def residents(self, slots: int) -> Collection[Key]:
        context = self.context
        layers, experts = context.num_layers, context.num_experts
        keys = range(layers * experts)
        slots = min(slots, len(keys))
        match self.options.by:
            case "uniform":
                share, rest = divmod(slots, layers)  # the first layers get one more each
                sizes = [share + (layer < rest) for layer in range(layers)]
                return [layer * experts + e for layer in range(layers) for e in range(sizes[layer])]
            case "front":
                return keys[:slots]
            case "random":
                return sorted(context.rng.permutation(len(keys))[:slots].tolist())
            case _:
                return self._most_used(keys, slots)

    def _most_used(self, keys: Sequence[Key], slots: int) -> list[Key]:
        """Return the keys with the highest counts; ties: the lower key."""
        if self.context.popularity is None:
            raise UsageError(f"{self.name}: by: frequency needs popularity counts; none are set")
        counts = self.context.popularity(self.options.profile)
        return sorted(keys, key=lambda key: (-counts.get(key, 0), key))[:slots]

    def place(self, view: View, absent: Mapping[Key, str], estimate: Estimate) -> Mapping[Key, str]:
        return dict.fromkeys(absent, CPU)
