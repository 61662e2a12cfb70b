"""The parts of a scenario, as its YAML file spells them.

Every field says what it is in its description, which editors show; every default is here. A
section that is mostly one name may be written as that name: `hardware: t4` is short for
`hardware: {profile: t4}` (the marker `Short`).
"""

from __future__ import annotations

import os
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    WithJsonSchema,
)

from moesim.config.fields import Bits, Bytes, Count, PositiveCount, PositiveNumber
from moesim.config.markers import NoneAs, PathTo, Short
from moesim.config.validation import Strict
from moesim.hardware.hardware import HardwareOverrides, check_hardware_name, hardware_names
from moesim.hardware.shapes import check_shape_name, shape_names
from moesim.scenario.memory_share import KvShare, SlotsShare
from moesim.scenario.policies import OptionsOf, PolicyOf, finite_throughout

__all__ = [
    "Arrivals",
    "Batching",
    "Cache",
    "HardwareChoice",
    "Lengths",
    "Memory",
    "ModelChoice",
    "Placement",
    "Prefetch",
    "Text",
    "Timeline",
    "Workload",
]


def _known_profile(value: str) -> str:
    if not value.endswith(_PROFILES) and (wrong := check_hardware_name(value)):
        raise ValueError(wrong)
    return value


def _known_shape(value: str) -> str:
    if value != "trace" and not value.endswith(_CONFIGS) and (wrong := check_shape_name(value)):
        raise ValueError(wrong)
    return value


_PROFILES: Final = (".yaml", ".yml")
_CONFIGS: Final = (".json",)

Text = Annotated[str, Field(min_length=1)]
TracePath = Annotated[
    str,
    PathTo(
        "trace folder",
        os.path.isdir,
        remedy="make one with `moesim record`, `moesim trace convert` or `moesim trace synth`",
    ),
]


class ModelChoice(Strict):
    """Whose sizes are costed."""

    shape: Annotated[
        str, AfterValidator(_known_shape), PathTo("file", os.path.isfile, _CONFIGS)
    ] = Field(
        "trace",
        description="`trace` (the shape in the trace's header), a shipped model, or the path of a "
        "Hugging Face config.json.",
        examples=["mixtral-8x7b"],
    )
    expert_bits: Bits | None = Field(
        None, description="Bits of a stored expert weight, like 4.5.", examples=[4.5]
    )
    weight_bits: Bits | None = Field(
        None, description="Bits of every other stored weight.", examples=[16]
    )
    kv_bits: Bits | None = Field(None, description="Bits of a KV cache entry.", examples=[16])


class HardwareChoice(HardwareOverrides):
    """The machine: a profile, and the figures that differ from it."""

    profile: Annotated[
        str,
        AfterValidator(_known_profile),
        PathTo("hardware profile", os.path.isfile, _PROFILES),
    ] = Field(
        description="A shipped profile, or the path of your own .yaml.", examples=["rtx-4090"]
    )
    pinned: bool = Field(
        True, description="Experts lie in page-locked host memory.", examples=[True]
    )

    def overrides(self) -> dict[str, Any]:
        """What `load_hardware` takes beside the profile."""
        return self.model_dump(exclude={"profile", "pinned"}, exclude_none=True)


class Memory(Strict):
    """How GPU memory is divided. Only one of KV blocks and expert slots may take the rest."""

    capacity: Bytes | None = Field(
        None, description="GPU memory to use; by default all of the card's.", examples=["24GiB"]
    )
    kv: KvShare = Field(
        "auto",
        validate_default=True,
        description="KV blocks: auto, rest, a size or a share of the capacity.",
    )
    kv_block_tokens: PositiveCount = Field(16, description="Tokens in one KV block.", examples=[16])
    staging: PositiveCount = Field(
        2,
        description="Expert-sized buffers for experts that get no slot.",
        examples=[2],
    )
    activations: Annotated[Bytes | None, NoneAs("auto", "a size like 512MiB")] = Field(
        "auto",
        validate_default=True,
        description="Room for activations: auto or a size.",
        examples=["512MiB"],
    )


class AllAtOnce(Strict):
    """Every request is there at time zero."""

    kind: Literal["all_at_once"] = "all_at_once"


class Poisson(Strict):
    """Independent arrivals: exponential gaps."""

    kind: Literal["poisson"]
    rate_per_s: PositiveNumber = Field(description="Mean requests a second.", examples=[2.0])


class Gamma(Strict):
    """Gamma-distributed gaps: bursts where the burstiness exceeds 1."""

    kind: Literal["gamma"]
    rate_per_s: PositiveNumber = Field(description="Mean requests a second.", examples=[2.0])
    burstiness: PositiveNumber = Field(
        description="Coefficient of variation of the gaps; 1 is Poisson.", examples=[4.0]
    )


class Recorded(Strict):
    """The arrival times in the trace."""

    kind: Literal["recorded"]
    time_scale: PositiveNumber = Field(
        1.0, description="Multiplies the times: 0.5 is twice as fast.", examples=[1.0]
    )


class Csv(Strict):
    """Arrival times and lengths from a CSV file."""

    kind: Literal["csv"]
    path: Annotated[str, PathTo("file", os.path.isfile)] = Field(
        description="The file.", examples=["arrivals.csv"]
    )
    format: Literal["plain", "azure"] = Field(
        "plain", description="plain (arrival_s, prompt_tokens, output_tokens) or Azure's columns."
    )
    time_scale: PositiveNumber = Field(
        1.0, description="Multiplies the times: 0.5 is twice as fast.", examples=[1.0]
    )


Arrivals = Annotated[
    AllAtOnce | Poisson | Gamma | Recorded | Csv, Field(discriminator="kind"), Short("kind")
]


class Lengths(Strict):
    """The same lengths for every request."""

    prompt: PositiveCount = Field(description="Prompt tokens.", examples=[128])
    output: PositiveCount = Field(description="Generated tokens.", examples=[32])


class Workload(Strict):
    """Which requests of the trace arrive, when, and how long they are."""

    requests: PositiveCount | None = Field(
        None, description="How many; by default all of the trace.", examples=[100]
    )
    order: Literal["recorded", "shuffled", "resampled"] = Field(
        "recorded", description="As recorded, permuted by the seed, or drawn with replacement."
    )
    domains: Annotated[list[Text], Field(min_length=1)] | None = Field(
        None, description="Only requests of these domains.", examples=[["code"]]
    )
    arrivals: Arrivals = Field(AllAtOnce(), description="When requests arrive.")
    lengths: Annotated[Lengths | None, NoneAs("recorded", "{prompt: 128, output: 32}")] = Field(
        "recorded",
        validate_default=True,
        description="`recorded`, or fixed: {prompt: 128, output: 32}.",
    )
    prefill: Literal["recorded", "skip", "resample"] = Field(
        "recorded", description="What stands for prompt rows that a trace may lack."
    )


class Batching(Strict):
    """Which tokens form a step."""

    policy: Annotated[Text, PolicyOf("batching")] = Field(
        "decode_first",
        description="prefill_first, decode_first, fcfs or a plug-in.",
        examples=["decode_first"],
    )
    options: Annotated[dict[str, Any], OptionsOf("batching")] = Field(
        {}, description="The policy's own options."
    )
    token_budget: PositiveCount = Field(512, description="Most tokens in one step.", examples=[512])
    max_sequences: PositiveCount = Field(
        32, description="Most requests running at once.", examples=[32]
    )


class Cache(Strict):
    """Which experts keep a slot in GPU memory."""

    policy: Annotated[Text, PolicyOf("eviction")] = Field(
        "lru", description="The eviction policy.", examples=["lru"]
    )
    options: Annotated[dict[str, Any], OptionsOf("eviction")] = Field(
        {}, description="The policy's own options."
    )
    scope: Literal["per_layer", "global"] = Field(
        "per_layer", description="Each layer has its own slots, or all share them."
    )
    slots: SlotsShare = Field(
        "rest",
        validate_default=True,
        description="Expert slots in all: rest, a count, a size, a share of all experts, or a "
        "number for each layer.",
    )
    initial_layers: Count = Field(
        0,
        description="How many of the first MoE layers have all their experts resident from the "
        "start; the policy has the remaining slots.",
        examples=[1],
    )
    admission: Literal["bypass", "always"] = Field(
        "bypass", description="Whether a just-used expert may be dropped at once."
    )
    write_back: bool = Field(
        False, description="Copy evicted experts back to the host.", examples=[False]
    )


class Prefetch(Strict):
    """Which experts are fetched before they are needed."""

    policy: Annotated[Text, PolicyOf("prefetch")] = Field(
        "none", description="none, oracle, predicted or a plug-in."
    )
    options: Annotated[dict[str, Any], OptionsOf("prefetch")] = Field(
        {}, description="The policy's own options, like {depth: 1}."
    )
    cancel: bool = Field(
        False, description="Cancel prefetches that turn out useless.", examples=[False]
    )


class Placement(Strict):
    """Where a missing expert runs."""

    policy: Annotated[Text, PolicyOf("placement")] = Field(
        "copy", description="copy (to the GPU): no other acts yet."
    )
    options: Annotated[dict[str, Any], OptionsOf("placement")] = Field(
        {}, description="The policy's own options."
    )


class Timeline(Strict):
    """The steps whose lanes are kept in detail."""

    first_step: Count = Field(0, description="The first step kept.", examples=[0])
    steps: Count = Field(20, description="How many steps are kept.", examples=[20])


Model = Annotated[ModelChoice, Short("shape", lambda: ["trace", *shape_names()])]
HardwareField = Annotated[HardwareChoice, Short("profile", hardware_names)]
BatchingField = Annotated[Batching, Short("policy")]
CacheField = Annotated[Cache, Short("policy")]
PrefetchField = Annotated[Prefetch, Short("policy")]
PlacementField = Annotated[Placement, Short("policy")]
Sweep = Annotated[
    dict[str, Annotated[list[Any], Field(min_length=1)]],
    BeforeValidator(lambda value: {} if value is None else value),
    AfterValidator(finite_throughout),
    WithJsonSchema(
        {
            "anyOf": [
                {
                    "type": "object",
                    "additionalProperties": {"type": "array", "minItems": 1},
                },
                {"type": "null"},
            ],
            "examples": [{"cache.policy": ["lru", "lfu"], "seed": [0, 1, 2]}],
        }
    ),
]
