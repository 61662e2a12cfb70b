"""The section `engine` of a scenario file: the engine whose times are simulated.

    engine: llama.cpp

is short for `engine: {profile: llama.cpp}`. The engine `ideal` is the default: its host takes no
time. Single times of the host may be changed here, for any engine. An engine also has values for
keys of other sections that the scenario leaves out: `batching.token_budget`, `hardware.pinned`, and
`copy_rows` with `copy_rows_of` of the placement `cpu_layers`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field

from moesim.config.fields import Duration
from moesim.config.markers import PathTo
from moesim.config.validation import Strict
from moesim.engines.engine import Engine, check_engine_name

if TYPE_CHECKING:
    from moesim.scenario.scenario import Scenario

__all__ = ["EngineChoice", "engine_defaults"]

_PROFILES: Final = (".yaml", ".yml")


def _existing_engine(value: str) -> str:
    if not value.endswith(_PROFILES) and (wrong := check_engine_name(value)):
        raise ValueError(wrong)
    return value


class EngineChoice(Strict):
    """The engine: a profile, and the times of its host that differ from it."""

    profile: Annotated[
        str,
        AfterValidator(_existing_engine),
        PathTo("engine profile", os.path.isfile, _PROFILES),
    ] = Field(
        "ideal",
        description="ideal (the host takes no time, and operations reach the efficiencies of the "
        "hardware), a shipped engine, or the path of your own .yaml file.",
        examples=["llama.cpp"],
    )
    interface: Literal["cuda", "hip", "vulkan", "sycl", "metal"] | None = Field(
        None,
        description="Which of the engine's kernels for GPUs run; the default is that of the card's "
        "vendor, or the first of the profile where the engine does not have it.",
        examples=["vulkan"],
    )
    launch: Duration | None = Field(
        None, description="The host's time to issue one computation, like 5us.", examples=["5us"]
    )
    # Not `copy`, which is a method of every model.
    copy_launch: Duration | None = Field(
        None, description="The host's time to issue one copy, like 8us.", examples=["8us"]
    )
    layer_event: Duration | None = Field(
        None,
        description="The host's time to decide one layer's experts, before it issues their first "
        "work. With sorting on the device, a layer without a readback takes none.",
        examples=["20us"],
    )
    sorting: Literal["host", "device"] | None = Field(
        None,
        description="Where tokens are sorted by expert. With host, the ids of every layer are read "
        "back. With device, a layer whose experts are all in GPU memory needs no readback, unless "
        "a prefetch policy needs its ids or predictions.",
    )


def engine_defaults(scenario: Scenario, engine: Engine) -> dict[str, dict[str, Any]]:
    """Return the values of an engine for keys that a scenario leaves out, by section.

    An engine without `batch_threshold` never copies experts of CPU layers. Where the scenario says
    in `memory.pinned` what is page-locked, the engine says nothing.
    """
    values: dict[str, dict[str, Any]] = {}
    if engine.ubatch is not None and "token_budget" not in scenario.batching.model_fields_set:
        values["batching"] = {"token_budget": engine.ubatch}
    pinned = {*scenario.hardware.model_fields_set, *scenario.memory.model_fields_set} & {"pinned"}
    if engine.pinned is not None and not pinned:
        values["hardware"] = {"pinned": engine.pinned}
    options = scenario.placement.options
    if scenario.placement.policy == "cpu_layers" and "copy_rows" not in options:
        rows = {"copy_rows": engine.batch_threshold, "copy_rows_of": engine.batch_threshold_of}
        values["placement"] = {"options": {**options, **rows}}
    return values
