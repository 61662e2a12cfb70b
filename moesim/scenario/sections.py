"""The sections of a scenario file: their keys, defaults and rules.

Each key has a description, which editors show through the JSON Schema. A section that often has
one key only may be written as that key's value: `hardware: t4` is short for
`hardware: {profile: t4}` (the marker `Short`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from moesim.config.fields import Bits, Bytes, Count, PositiveCount
from moesim.config.markers import NoneAs, PathTo, Short
from moesim.config.validation import Strict
from moesim.engines.engine import engine_names
from moesim.errors import UsageError
from moesim.hardware.hardware import check_hardware_name, hardware_names
from moesim.hardware.overrides import HardwareOverrides
from moesim.hardware.parts import cpu_named, gpu_named, memory_named, pcie_named
from moesim.model.formats import check_format_name
from moesim.model.shapes import check_shape_name, shape_names
from moesim.scenario.arrivals import AllAtOnce, Arrivals
from moesim.scenario.engine import EngineChoice
from moesim.scenario.expert_bits import ExpertBitsBy
from moesim.scenario.memory_share import KvShare, PinnedShare, SlotsShare
from moesim.scenario.policies import OptionsOf, PolicyOf, finite_throughout
from moesim.scenario.split import Split, SplitOptions
from moesim.systems.preset import check_system_name, system_names

__all__ = [
    "Batching",
    "Cache",
    "HardwareChoice",
    "Lengths",
    "Memory",
    "ModelChoice",
    "Pairing",
    "Placement",
    "Prefetch",
    "Text",
    "Timeline",
    "Workload",
]


def _existing_profile(value: str) -> str:
    if not value.endswith(_PROFILES) and (wrong := check_hardware_name(value)):
        raise ValueError(wrong)
    return value


def _understood(read: Callable[[str], Any]) -> AfterValidator:
    """Return a validator of a part's text: the catalogue has it, and no words are left over."""

    def check(text: str) -> str:
        try:
            unknown = read(text).unknown
        except UsageError as error:
            raise ValueError(str(error)) from None
        if unknown:
            words = " and ".join(map(repr, unknown))
            raise ValueError(
                f"{words} is not understood; docs/machines.md says what a text may say"
            )
        return text

    return AfterValidator(check)


def _existing_system(value: str) -> str:
    if wrong := check_system_name(value):
        raise ValueError(wrong)
    return value


def _existing_shape(value: str) -> str:
    if value != "trace" and not value.endswith(_CONFIGS) and (wrong := check_shape_name(value)):
        raise ValueError(wrong)
    return value


def _existing_format(value: str) -> str:
    if not value.endswith(_WEIGHTS) and (wrong := check_format_name(value)):
        raise ValueError(wrong)
    return value


_PROFILES: Final = (".yaml", ".yml")
_CONFIGS: Final = (".json", ".gguf")
_WEIGHTS: Final = (".gguf",)
PARTS: Final = ("gpu", "cpu", "memory", "pcie")
"""The keys of `hardware` that name parts, in the order of `assemble`."""

Text = Annotated[str, Field(min_length=1)]
SystemName = Annotated[
    str,
    AfterValidator(_existing_system),
    WithJsonSchema({"enum": system_names()}),
]
TracePath = Annotated[
    str,
    PathTo(
        "trace folder",
        os.path.isdir,
        remedy="make one with `moesim record`, `moesim trace convert` or `moesim trace synth`",
    ),
]


class ModelChoice(Strict):
    """The model whose sizes decide how long operations and copies take."""

    # The routing comes from the trace, so one trace can stand for a model of other widths.
    shape: Annotated[
        str, AfterValidator(_existing_shape), PathTo("file", os.path.isfile, _CONFIGS)
    ] = Field(
        "trace",
        description="`trace` (the shape in the trace's header), a shipped model, or the path of a "
        "Hugging Face config.json or of a GGUF file.",
        examples=["mixtral-8x7b"],
    )
    format: (
        Annotated[str, AfterValidator(_existing_format), PathTo("file", os.path.isfile, _WEIGHTS)]
        | None
    ) = Field(
        None,
        description="The format of the weights, like Q4_K_M or `IQ4_XS (15.4 GiB)`, or the path "
        "of a .gguf file; it gives the bits of all parts that no other key gives.",
        examples=["Q4_K_M"],
    )
    format_by_layer: bool = Field(
        False,
        description="Experts of each layer have the bits of their layer, not the mean of all.",
        examples=[True],
    )
    expert_bits: Bits | None = Field(
        None, description="Bits of a stored expert weight, like 4.5.", examples=[4.5]
    )
    expert_bits_by: ExpertBitsBy | None = Field(
        None, description="Bits of the experts of single layers, and of single experts."
    )
    weight_bits: Bits | None = Field(
        None, description="Bits of every other stored weight.", examples=[16]
    )
    kv_bits: Bits | None = Field(
        None, description="Bits of one number in the KV cache.", examples=[16]
    )


class HardwareChoice(HardwareOverrides):
    """The machine: a profile or the names of its parts, and the figures that differ from it."""

    profile: (
        Annotated[
            str,
            AfterValidator(_existing_profile),
            PathTo("hardware profile", os.path.isfile, _PROFILES),
        ]
        | None
    ) = Field(
        None,
        description="A shipped profile, or the path of your own .yaml file.",
        examples=["rtx-4090"],
    )
    gpu: Annotated[Text, _understood(gpu_named)] | None = Field(
        None,
        description="Instead of a profile: a graphics card of the catalogue, or none.",
        examples=["RTX 4090"],
    )
    cpu: Annotated[Text, _understood(cpu_named)] | None = Field(
        None,
        description="With gpu: a processor of the catalogue, like `2x EPYC 9354, 32 threads`.",
        examples=["Ryzen 9 7950X"],
    )
    memory: Annotated[Text, _understood(memory_named)] | None = Field(
        None,
        description="With gpu: host memory, like `64 GB DDR5-6000 dual channel`.",
        examples=["DDR5-5600 x2"],
    )
    pcie: Annotated[Text, _understood(pcie_named)] | None = Field(
        None, description="With gpu: the link of the card.", examples=["4.0 x16"]
    )
    pinned: bool = Field(
        True,
        description="Experts lie in page-locked host memory, unless memory.pinned says otherwise.",
        examples=[True],
    )

    @model_validator(mode="after")
    def _profile_or_parts(self) -> Self:
        if self.profile is None and self.gpu is None:
            raise PydanticCustomError(
                "no_machine",
                "is required and missing; write for example `profile: rtx-4090`, or name the "
                "parts, like `gpu: RTX 4090`",
                {"at": ("profile",)},
            )
        if self.profile is not None and (parts := [*self.parts()]):
            raise PydanticCustomError(
                "two_machines",
                "describes a part of a machine that profile describes already; leave one of them "
                "out, or change single figures of the profile",
                {"at": (parts[0],)},
            )
        return self

    @property
    def label(self) -> str:
        """The profile, or the texts of the parts, for messages and reports."""
        return self.profile if self.profile is not None else ", ".join(self.parts().values())

    def parts(self) -> dict[str, str]:
        """Return the texts of the parts that are given, as `assemble` takes them."""
        texts = {key: getattr(self, key) for key in PARTS}
        return {key: text for key, text in texts.items() if text is not None}

    @property
    def host_bytes(self) -> int | None:
        """The size of host memory that the text of the memory gives; None without any.

        The memory of a machine with unified memory, or without a GPU, is divided elsewhere.
        """
        if self.memory is None or self.gpu is None:
            return None
        card, text = gpu_named(self.gpu).card, memory_named(self.memory)
        return None if card is None or card.unified else text.seen_bytes or text.nbytes

    def overrides(self) -> dict[str, Any]:
        """Return the figures that differ from the profile, as `load_hardware` takes them."""
        return self.model_dump(exclude={"profile", "pinned", *PARTS}, exclude_none=True)


class Memory(Strict):
    """How GPU memory is divided, and what host memory holds.

    Only one of KV blocks and expert slots may take the rest of the GPU memory.
    """

    capacity: Bytes | None = Field(
        None, description="GPU memory to use; the default is all of the card.", examples=["24GiB"]
    )
    # Pydantic checks no defaults unless told to; here the default is text that must be parsed.
    kv: KvShare = Field(
        "auto",
        validate_default=True,
        description="Memory of KV blocks: auto, rest, a size or a share of the capacity.",
    )
    kv_block_tokens: PositiveCount = Field(16, description="Tokens in one KV block.", examples=[16])
    prefix_cache: bool = Field(
        False,
        description="Whether requests reuse KV blocks of earlier prompts with the same first "
        "tokens. The workload must identify blocks of tokens, as a Mooncake file does.",
        examples=[True],
    )
    staging: PositiveCount = Field(
        2,
        description="Number of expert-sized buffers for experts that have no slot.",
        examples=[2],
    )
    # None inside, `auto` in YAML: the size then follows from the model and the batching.
    activations: Annotated[Bytes | None, NoneAs("auto", "a size like 512MiB")] = Field(
        "auto",
        validate_default=True,
        description="Memory of activations: auto or a size.",
        examples=["512MiB"],
    )
    # None inside, `unlimited` in YAML.
    host: Annotated[Bytes | None, NoneAs("unlimited", "a size like 64GiB")] = Field(
        "unlimited",
        validate_default=True,
        description="Host memory for weights and KV entries: unlimited or a size. The default is "
        "the size in the text of hardware.memory, or unlimited. Experts that do not fit are read "
        "from the disk of the hardware.",
        examples=["64GiB"],
    )
    host_cache: Literal["page", "expert"] = Field(
        "page",
        description="What leaves a full host memory, the least recently used first: page (parts of "
        "experts, as from a file mapped into memory) or expert (whole experts).",
    )
    pinned: PinnedShare = Field(
        "auto",
        validate_default=True,
        description="Experts in page-locked host memory, which never leave it: all, none, a size, "
        "a share of all experts, or auto (as hardware.pinned says, and none where they do not "
        "all fit).",
    )


class Lengths(Strict):
    """One pair of lengths for all requests."""

    prompt: PositiveCount = Field(description="Prompt tokens of each request.", examples=[128])
    output: PositiveCount = Field(description="Generated tokens of each request.", examples=[32])


class Pairing(Strict):
    """Which recorded sequence of routing a request replays, if its lengths are not recorded."""

    by: Literal["order", "length", "domain"] = Field(
        "order",
        description="order (the trace's requests one after another, by workload.order), length "
        "(the sequence nearest in length) or domain (the next one of the file's domain).",
        examples=["length"],
    )
    beyond: Literal["tile", "resample", "refuse"] = Field(
        "tile",
        description="Rows of a request that is longer than its sequence: tile (those of the next "
        "sequences of its domain), resample (drawn from the rows of its domain) or refuse.",
        examples=["resample"],
    )


_PartEdge = Annotated[float, Field(ge=0, le=1)]


def _two_shares(part: list[float]) -> list[float]:
    if len(part) != 2 or part[0] >= part[1]:
        raise ValueError(f"is {part}; write two shares, the lower first, like [0.5, 1]")
    return part


class Workload(Strict):
    """Which requests of the trace arrive, when, and how long they are."""

    requests: PositiveCount | None = Field(
        None,
        description="Number of requests; the default is all of the trace.",
        examples=[100],
    )
    order: Literal["recorded", "shuffled", "resampled"] = Field(
        "recorded",
        description="Order of the trace's requests: recorded, shuffled (permuted by the seed) or "
        "resampled (drawn with replacement).",
    )
    domains: Annotated[list[Text], Field(min_length=1)] | None = Field(
        None, description="Use only requests of these domains.", examples=[["code"]]
    )
    part: Annotated[list[_PartEdge], AfterValidator(_two_shares)] | None = Field(
        None,
        description="Use only this part of the trace's requests, as two shares of their number: "
        "[0.5, 1] is the second half. A policy may learn from the rest.",
        examples=[[0.5, 1]],
    )
    arrivals: Arrivals = Field(AllAtOnce(), description="When requests arrive.")
    # None inside, `recorded` in YAML.
    lengths: Annotated[Lengths | None, NoneAs("recorded", "{prompt: 128, output: 32}")] = Field(
        "recorded",
        validate_default=True,
        description="Lengths of requests: `recorded`, or the same for all, like "
        "{prompt: 128, output: 32}.",
    )
    pairing: Annotated[Pairing, Short("by")] = Field(
        Pairing(), description="Which recorded sequence each request of other lengths replays."
    )
    prefill: Literal["recorded", "skip", "resample"] = Field(
        "recorded",
        description="Routing of prompt tokens: recorded, skip (start with the first decoded "
        "token), or resample (draw it from decoded tokens, if the trace has no prompts).",
    )
    cached_prefix: Count = Field(
        0,
        description="Number of first prompt tokens of each request whose KV entries exist before "
        "it starts, as with prefix caching. The last prompt token is always computed.",
        examples=[1024],
    )


class Batching(Strict):
    """Which tokens form a step."""

    policy: Annotated[Text, PolicyOf("batching")] = Field(
        "decode_first",
        description="The batching policy: prefill_first, decode_first, fcfs, expert_aware, "
        "task_aware, a plug-in, or a class like file.py:MyPolicy.",
        examples=["decode_first"],
    )
    options: Annotated[dict[str, Any], OptionsOf("batching")] = Field(
        {}, description="Options of the policy; `moesim list policies` shows them."
    )
    token_budget: PositiveCount = Field(
        512, description="Largest number of tokens in one step.", examples=[512]
    )
    max_sequences: PositiveCount = Field(
        32, description="Largest number of requests that run at once.", examples=[32]
    )
    chunked_prefill: bool = Field(
        True,
        description="Whether a prompt may be spread over several steps. If not, a prompt (also the "
        "recomputed rows of a preempted request) is computed whole in one step. One that does not "
        "fit into the rest of the token budget waits, and no later prompt overtakes it.",
        examples=[True],
    )
    long_prompts: Literal["exceed", "refuse"] = Field(
        "exceed",
        description="What to do, without chunked prefill, with a prompt longer than the token "
        "budget: exceed (it exceeds the budget alone, as the last request and only prompt of its "
        "step) or refuse (do not start a run with such a prompt).",
    )


class Cache(Strict):
    """Which experts keep a slot in GPU memory."""

    policy: Annotated[Text, PolicyOf("eviction")] = Field(
        "lru",
        description="The eviction policy, or the place of its class, like path/to/file.py:MyPolicy"
        "; see `moesim list policies`.",
        examples=["lru"],
    )
    options: Annotated[dict[str, Any], OptionsOf("eviction")] = Field(
        {}, description="Options of the policy; `moesim list policies` shows them."
    )
    scope: Literal["per_layer", "global"] = Field(
        "per_layer",
        description="per_layer gives each layer slots of its own; with global all layers share "
        "them.",
    )
    slots: SlotsShare = Field(
        "rest",
        validate_default=True,
        description="Expert slots of all layers together: rest, a count, a size, a share of all "
        "experts, or a number for each layer like 4/layer. Where experts have unequal sizes, a "
        "slot has their mean size.",
    )
    split: Split = Field(
        "uniform",
        description="How slots are divided among the layers, with scope per_layer: uniform, demand "
        "(most hits in a profile trace), adapmoe (fewest copies by AdapMoE's model), or the slots "
        "of each MoE layer, like [4, 2, 6].",
    )
    split_options: SplitOptions = Field(
        SplitOptions(), description="What demand and adapmoe learn from, and what they suppose."
    )
    initial_layers: Count = Field(
        0,
        description="Number of first MoE layers whose experts are all in GPU memory from the "
        "start; the policy manages the remaining slots.",
        examples=[1],
    )
    admission: Literal["bypass", "always"] = Field(
        "bypass",
        description="bypass lets the policy drop a just-used expert at once; always keeps it while "
        "the slots suffice.",
    )
    write_back: bool = Field(
        False, description="Copy evicted experts back to the host.", examples=[False]
    )


class Prefetch(Strict):
    """Which experts are fetched before they are needed."""

    policy: Annotated[Text, PolicyOf("prefetch")] = Field(
        "none",
        description="The prefetch policy: none, oracle, dial, predicted, gain, layer_ahead, "
        "all, popularity, previous_layer, previous_token, stride, activation_matrix, trajectory, a "
        "plug-in, or a class like file.py:MyPolicy.",
    )
    options: Annotated[dict[str, Any], OptionsOf("prefetch")] = Field(
        {}, description="Options of the policy, like {depth: 1}."
    )
    buffers: Count = Field(
        0,
        description="Number of expert-sized buffers of their own for copies ahead; an expert takes "
        "a slot of the cache when it is used. 0: it takes a slot when its copy is issued.",
        examples=[4],
    )
    cancel: bool = Field(
        False,
        description="Remove a queued copy ahead from the link when it turns out useless before it "
        "starts.",
        examples=[True],
    )


class Placement(Strict):
    """Where a missing expert runs."""

    policy: Annotated[Text, PolicyOf("placement")] = Field(
        "copy",
        description="The placement policy: copy (to the GPU), cpu_layers, cpu_experts, cost, "
        "two_queue, a plug-in, or a class like file.py:MyPolicy.",
    )
    options: Annotated[dict[str, Any], OptionsOf("placement")] = Field(
        {}, description="Options of the policy, like {layers: auto}."
    )


class Timeline(Strict):
    """The steps whose events on each lane are kept for the timeline."""

    first_step: Count = Field(0, description="Number of the first step that is kept.", examples=[0])
    steps: Count = Field(20, description="Number of steps that are kept.", examples=[20])


Model = Annotated[ModelChoice, Short("shape", lambda: ["trace", *shape_names()])]
EngineField = Annotated[EngineChoice, Short("profile", engine_names)]
HardwareField = Annotated[HardwareChoice, Short("profile", hardware_names)]
BatchingField = Annotated[Batching, Short("policy")]
CacheField = Annotated[Cache, Short("policy")]
PrefetchField = Annotated[Prefetch, Short("policy")]
PlacementField = Annotated[Placement, Short("policy")]
Sweep = Annotated[
    dict[str, Annotated[list[Any], Field(min_length=1)]],
    # `sweep:` with all its keys commented out is null, and means no sweep.
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
