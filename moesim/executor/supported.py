"""What the real machine cannot run, refused before anything is built or measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moesim.errors import ScenarioError
from moesim.hardware.topology import GPU

if TYPE_CHECKING:
    from moesim.simulate.build import Plan

__all__ = ["check_supported"]


def check_supported(plan: Plan) -> None:
    """Raise `ScenarioError` at the key of a plan that no real machine runs."""
    scenario, places = plan.scenario, plan.places
    if plan.engine.gpu or plan.engine.cpu:
        raise ScenarioError.at(
            scenario,
            "engine",
            f"the real machine runs moesim's own kernels, so times under {scenario.engine.profile} "
            "would be compared with those of another engine. Write engine: ideal, or simulate the "
            "scenario with moesim run",
        )
    skipped = scenario.workload.prefill == "skip"
    if skipped or scenario.workload.cached_prefix:
        raise ScenarioError.at(
            scenario,
            f"workload.{'prefill' if skipped else 'cached_prefix'}",
            "the real machine has no KV entries of tokens that it did not compute. Leave the key "
            "out, or simulate the scenario with moesim run",
        )
    if scenario.memory.prefix_cache:
        raise ScenarioError.at(
            scenario,
            "memory.prefix_cache",
            "the real machine shares no KV entries. Leave the key out, or simulate the scenario "
            "with moesim run",
        )
    away = [layer for layer, lane in enumerate(places.lanes) if lane != GPU]
    if away:
        options = scenario.placement.options
        key = "options.whole_layers" if "whole_layers" in options else "policy"
        raise ScenarioError.at(
            scenario,
            f"placement.{key}",
            f"the real machine runs only experts on the CPU, not {_parts(away, plan)}. Leave "
            "experts there only, like placement: {policy: cpu_layers, options: {layers: 2}}, or "
            "simulate the scenario with moesim run",
        )
    if places.host.mixed:
        experts = plan.trace.num_layers * plan.trace.num_experts
        raise ScenarioError.at(
            scenario,
            "memory.pinned",
            f"the real machine page-locks all experts or none, not {places.host.num_pinned} of "
            f"{experts}. Write all or none",
        )


def _parts(layers: list[int], plan: Plan) -> str:
    """Return model layers in words; the number of layers stands for the end of a step."""
    whole = [layer for layer in layers if layer < plan.cost.shape.num_layers]
    names = f"{len(whole)} whole layer{'s' if len(whole) != 1 else ''}"
    return names if len(whole) == len(layers) else f"{names} and the end of a step"
