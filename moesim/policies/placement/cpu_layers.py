"""Layers on the CPU: experts of the first layers live and run there, all others on the GPU.

llama.cpp divides a model like this: `--n-cpu-moe` leaves the experts of the first layers in host
memory, and `-ngl` leaves whole layers there, with their KV entries. For steps of at least 32 rows
it copies the experts to the GPU, and drops them afterwards (`op-offload`). Nothing is cached.
ik_llama.cpp does so from 32 rows an expert on, in the mean.

llama.cpp then also copies other weights of whole CPU layers. Here attention and the dense parts of
whole layers stay on the CPU, and only their experts are copied.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge

from moesim.errors import UsageError
from moesim.policies.placement.base import CPU, GPU, Estimate, Placement, PlacementContext
from moesim.policies.registry import register
from moesim.policies.view import Key, View


@dataclass(frozen=True, slots=True)
class CPULayersOptions:
    """`layers`: the first MoE layers whose experts stay on the CPU: a number, `auto` or `all`.

    `auto` leaves as few there as the slots allow. `whole_layers`: the first model layers that run
    entirely on the CPU, a number or `all`; `all` includes embedding and LM head. Their experts are
    there too, so `layers` may not be a smaller number than their MoE layers. `copy_rows`: in a
    step of at least this many rows, experts of CPU layers are copied to the GPU; None: never.
    `copy_rows_of`: `expert` compares the mean rows of an expert, rows x top-k / experts.
    """

    layers: Annotated[int, Ge(0)] | Literal["auto", "all"] = "auto"
    whole_layers: Annotated[int, Ge(0)] | Literal["all"] = 0
    copy_rows: Annotated[int, Ge(1)] | None = 32
    copy_rows_of: Literal["step", "expert"] = "step"


def _whole_layers(options: CPULayersOptions, context: PlacementContext) -> tuple[int, int]:
    """Return how many model layers are whole on the CPU, and how many of them have experts.

    The end of a step counts as one more layer, which only `all` includes.
    """
    whole = options.whole_layers
    number = context.num_model_layers + 1 if whole == "all" else whole
    return number, sum(layer < number for layer in context.model_layers)


@register("placement", "cpu_layers")
class CPULayers(Placement):
    """Experts of the first layers run on the CPU, all others are resident on the GPU."""

    lanes = (CPU,)
    Options = CPULayersOptions

    def __init__(self, context: PlacementContext, options: Any = None) -> None:
        super().__init__(context, options)
        self._whole, self._in_whole = _whole_layers(self.options, context)
        self.on_cpu = self._cpu_layers(slots=0)

    @classmethod
    def mistakes(cls, options: Any, context: PlacementContext) -> Sequence[tuple[str, str]]:
        limits = [
            ("layers", options.layers, context.num_layers, "MoE layers of the trace"),
            ("whole_layers", options.whole_layers, context.num_model_layers, "layers of the model"),
        ]
        beyond = [
            (option, f"is {number}; it must be at most {most}, the {what}, or all")
            for option, number, most, what in limits
            if isinstance(number, int) and number > most
        ]
        _, in_whole = _whole_layers(options, context)
        if beyond or not isinstance(options.layers, int) or options.layers >= in_whole:
            return beyond
        needed = (
            f"is {options.layers}, and whole_layers: {options.whole_layers} has the experts of "
            f"{in_whole} MoE layers on the CPU; write layers: {in_whole} or more, auto, or fewer "
            "whole_layers"
        )
        return [("layers", needed)]

    def _cpu_layers(self, slots: int) -> int:
        """Return how many trace layers have their experts on the CPU."""
        layers, experts = self.context.num_layers, self.context.num_experts
        words = {"auto": max(0, layers - slots // experts), "all": layers}
        wanted: int = words.get(self.options.layers, self.options.layers)
        return max(wanted, self._in_whole)

    def layer_lane(self, model_layer: int) -> str:
        return CPU if model_layer < self._whole else GPU

    def residents(self, slots: int) -> Collection[Key]:
        layers, experts = self.context.num_layers, self.context.num_experts
        self.on_cpu = self._cpu_layers(slots)
        needed = (layers - self.on_cpu) * experts
        if needed > slots:
            raise UsageError(
                f"{self.name}: with the experts of {self.on_cpu} layers on the CPU, the other "
                f"{layers - self.on_cpu} layers of {experts} experts need {needed} slots; there "
                f"are {slots}; write layers: {layers - slots // experts} or auto, or give the "
                "slots more memory"
            )
        return range(self.on_cpu * experts, layers * experts)

    def place(self, view: View, absent: Mapping[Key, str], estimate: Estimate) -> Mapping[Key, str]:
        end = 0 if self.copies(estimate.rows) else self.on_cpu
        return {key: CPU for key in absent if key < end * self.context.num_experts}

    def copies(self, rows: int) -> bool:
        """Return whether a step of this many rows copies the experts of CPU layers."""
        least: int | None = self.options.copy_rows
        if least is None or not self.context.has_gpu:
            return False
        if self.options.copy_rows_of == "step":
            return rows >= least
        return rows * self.context.top_k >= least * self.context.num_experts
