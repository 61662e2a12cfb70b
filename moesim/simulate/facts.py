"""Facts that decide how a run's numbers may be read: its routing, its sizes, and its foresight.

`summary.json` holds them, and reports read them there. No report guesses them from a label.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from moesim.cost.measured import OperationCost
from moesim.errors import UsageError
from moesim.hardware.overrides import spelled_figures
from moesim.model.format_bits import basis_of
from moesim.model.hf_config import shape_from_config
from moesim.model.shapes import ModelShape
from moesim.policies import find
from moesim.policies.placement import fixes_residents
from moesim.scenario.unused import unused_keys
from moesim.simulate.split import SPLIT
from moesim.simulate.unread import unread_keys

if TYPE_CHECKING:
    from moesim.scenario import Scenario
    from moesim.simulate.build import Plan
    from moesim.trace import TraceMeta

__all__ = [
    "POLICY_SECTIONS",
    "engine_facts",
    "format_facts",
    "hardware_changes",
    "knows_the_future",
    "provenance",
    "routing_facts",
]

POLICY_SECTIONS: Final = {
    "eviction": "cache",
    "prefetch": "prefetch",
    "batching": "batching",
    "placement": "placement",
}
"""The families of policies that can know the future, with their sections of a scenario."""


def routing_facts(scenario: Scenario, meta: TraceMeta, shape: ModelShape) -> dict[str, str]:
    """Return `routing` (`recorded` or `synthetic`) and `sizes` (`own` or `foreign`).

    Sizes are foreign if they are those of another model than the routing's.
    """
    own = scenario.model.shape == "trace" or _same_model(meta, shape)
    return {
        "routing": "synthetic" if meta.synthetic else "recorded",
        "sizes": "own" if own else "foreign",
    }


def provenance(plan: Plan) -> str:
    """Return in words where routing and sizes of a run are from; "" if both are one model's.

    Every text that draws a conclusion from the run repeats it.
    """
    shape, meta = plan.cost.shape, plan.trace.meta
    facts = routing_facts(plan.scenario, meta, shape)
    costed = f"costed with the sizes of {shape.name}"
    if facts["routing"] == "synthetic":
        return f"synthetic routing: drawn at random, made by no model, {costed}"
    if facts["sizes"] == "foreign":
        return f"foreign sizes: routing of {meta.model}, {costed}"
    return ""


def format_facts(scenario: Scenario, shape: ModelShape) -> dict[str, str | float]:
    """Return the format of the weights, where its bits are from, and the bits; {} without one."""
    name, model = scenario.model.format, scenario.model
    if name is None or (model.expert_bits and model.weight_bits):
        return {}
    return {
        "format": name,
        "format_basis": basis_of(name),
        "expert_bits": shape.expert_bits,
        "weight_bits": shape.weight_bits,
        "embedding_bits": shape.bits_of_embedding,
        "head_bits": shape.bits_of_head,
    }


def knows_the_future(scenario: Scenario, *, hindsight: Collection[str] = ()) -> list[str]:
    """Return the policies that know what a real server cannot know yet, like `eviction min`.

    `hindsight` are the families whose policy learnt on the replayed trace itself, and `split` if
    the slots of the layers did. An eviction
    policy that is not asked, because the placement fixes the residents, is left out.
    """
    named = {
        family: find(family, getattr(scenario, section).policy)
        for family, section in POLICY_SECTIONS.items()
    }
    if fixes_residents(named["placement"]):
        del named["eviction"]
    seers = [
        f"{family} {policy.name}"
        for family, policy in named.items()
        if getattr(policy, "clairvoyant", False) or family in hindsight
    ]
    return [*seers, *([f"{SPLIT} {scenario.cache.split}"] if SPLIT in hindsight else [])]


def hardware_changes(plan: Plan) -> str:
    """Return what the scenario changes of its hardware profile; "" if nothing.

    Keys without effect are left out.
    """
    scenario, host = plan.scenario, plan.places.host
    hardware = scenario.hardware
    without_effect = [*unused_keys(scenario), *(key for key, _ in unread_keys(plan))]
    unused = {key.removeprefix("hardware.") for key in without_effect}
    figures = spelled_figures(hardware.overrides(), without=unused)
    memory = ""
    if host.mixed:
        memory = f"{host.num_pinned} experts in page-locked host memory"
    elif not host.num_pinned:
        memory = "pageable host memory"
    return ", ".join(filter(None, (figures, memory)))


def engine_facts(plan: Plan) -> dict[str, str]:
    """Return the engine's profile, its interface, what the scenario changes, and `engine_kind`.

    `engine_interface` says which kernels run on the GPU, where the engine has several.
    The kind is the weakest of the figures that act: `assumed`, `fitted` or `measured`. It is
    `ideal` without any figure, and `measured` if the ideal engine has measured operations.
    """
    kind = plan.engine.kind(plan.interface)
    if kind == "ideal" and isinstance(plan.cost, OperationCost):
        kind = "measured"
    several = len(plan.engine.gpu) > 1 and plan.cost.hardware.has_gpu and plan.interface
    return {
        "engine": plan.scenario.engine.profile,
        **({"engine_interface": several} if several else {}),
        "engine_changes": plan.engine.changes,
        "engine_kind": kind,
    }


def _same_model(meta: TraceMeta, shape: ModelShape) -> bool:
    """Return whether the trace is of this model: by sizes if it has a configuration, or by name."""
    if meta.model_config is not None:
        try:
            return _sizes(shape_from_config(meta.model_config)) == _sizes(shape)
        except UsageError:
            pass  # moesim knows no sizes of this kind of model, so its name has to decide
    # Names on a hub start with the owner; names of shapes do not.
    return meta.model.rpartition("/")[2].lower() == shape.name.lower()


def _sizes(shape: ModelShape) -> ModelShape:
    """Return the shape without name, bits and embeddings: quantising a model keeps its sizes.

    The sizes of layers are those of their kinds, because a model is said in several ways.
    """
    return replace(
        shape, name="", source="", expert_bits=16, weight_bits=16, kv_bits=16, vocabulary=0,
        tied_embeddings=False, layer_bits=(), single_expert_bits=(), embedding_bits=None,
        head_bits=None, expert_family="", weight_family="", mla=None, num_heads=1,
        num_kv_heads=1, head_dim=1, shared_ffn=0, dense_ffn=0, windowed_layers=(), window=None,
        kinds=shape.all_kinds(), layer_kinds=(),
    )  # fmt: skip
