"""The schema of an engine profile: each figure is a value with its kind and its source."""

from __future__ import annotations

from typing import Annotated, ClassVar, Final, Generic, Literal, TypeVar

from pydantic import AfterValidator, Field

from moesim.config.fields import Count, Duration, PositiveCount, PositiveShare
from moesim.config.validation import Strict
from moesim.hardware.profile_schema import ProfileFigure

__all__ = [
    "FAMILIES",
    "KV",
    "EngineFigure",
    "EngineKind",
    "EngineProfile",
    "KernelsProfile",
]

EngineKind = Literal["assumed", "fitted", "measured"]
T = TypeVar("T")


class EngineFigure(ProfileFigure[T], Generic[T]):
    by_people: ClassVar[tuple[str, ...]] = ("assumed", "fitted", "measured")

    value: T = Field(description="The number with its unit, or the word.")
    kind: EngineKind = Field(  # type: ignore[assignment]  # a hardware profile has no fitted ones
        description="assumed (documentation or reasoning), fitted (to published rows, which the "
        "source names) or measured."
    )


FAMILIES: Final = (
    *("float", "8-bit", "legacy", "k-quant", "i-quant"),
    *("mxfp4", "ternary", "trellis", "grouped"),
)
"""The families of stored formats, as `moesim.model.formats` has them."""
KV: Final = "kv"
"""The family of KV entries and recurrent states, beside those of stored weights."""
OTHER: Final = "other"


def _known(shares: dict[str, float]) -> dict[str, float]:
    known = (*FAMILIES, KV, OTHER)
    if wrong := [name for name in shares if name not in known]:
        raise ValueError(f"has no family {wrong[0]!r}; there are {', '.join(known)}")
    if OTHER not in shares:
        raise ValueError(f"needs {OTHER}, the share of families that are not listed")
    return shares


Shares = Annotated[dict[str, PositiveShare], AfterValidator(_known)]
"""A share for each family of stored formats, `kv` for KV entries, and `other` for the rest."""


class Numbers(Strict):
    """The kernels that an operation consists of."""

    attention: Count = Field(description="A layer's norms, attention and residual sums.")
    latent: Count | None = Field(None, description="The same of a layer with latent attention.")
    linear: Count | None = Field(
        None, description="The same of a layer with linear attention or a state-space model."
    )
    norm: Count = Field(2, description="A layer without attention: its norm and residual sum.")
    router: Count = Field(description="Choosing and sorting the experts of a layer.")
    experts: Count = Field(description="One grouped call of a layer's routed experts.")
    each_expert: Count = Field(
        0, description="More kernels for each expert of a call with more than vector_rows rows."
    )
    shared: Count = Field(description="The shared experts of a layer.")
    dense: Count = Field(description="The dense FFN of a layer.")
    tail: Count = Field(description="The embedding and the head of a step.")


class KernelsProfile(Strict):
    """How the engine's kernels run on one kind of processor."""

    kernel: EngineFigure[Duration] = Field(
        description="Time of one kernel beside its traffic and arithmetic."
    )
    thread: EngineFigure[Duration] | None = Field(
        None, description="What each thread of a CPU adds to it: they wait for one another."
    )
    sockets: EngineFigure[PositiveShare] | None = Field(
        None,
        description="Share of the bandwidth of all sockets that reads reach where a machine has "
        "several.",
    )
    numbers: EngineFigure[Numbers]
    bandwidth: EngineFigure[Shares] = Field(
        description="Share of the peak memory bandwidth that reading weights reaches, by family."
    )
    compute: EngineFigure[Shares] = Field(
        description="Share of the peak arithmetic that products of many rows reach, by family."
    )
    padding: EngineFigure[Annotated[float, Field(ge=0, le=4096)]] = Field(
        description="A product of n rows takes the time of n + padding rows."
    )
    vector_rows: EngineFigure[PositiveCount] = Field(
        description="Up to this many rows of a step, weights are multiplied by vectors: no padding."
    )
    vector_row: EngineFigure[Annotated[float, Field(ge=0, le=16)]] | None = Field(
        None,
        description="What each further row of such a step adds, as a share of the first row's.",
    )


class HostProfile(Strict):
    """The host's times."""

    step: EngineFigure[Duration] | None = None
    layer_event: EngineFigure[Duration] | None = None
    launch: EngineFigure[Duration] | None = None
    copy_launch: EngineFigure[Duration] | None = None


class EngineProfile(Strict):
    name: Annotated[str, Field(min_length=1)]
    about: Annotated[str, Field(min_length=1)]
    host: HostProfile = HostProfile()
    sorting: EngineFigure[Literal["host", "device"]]
    gpu: dict[Literal["cuda", "hip", "vulkan", "sycl", "metal"], KernelsProfile] = Field(
        {}, description="Kernels on the GPU, by the interface that they are written for."
    )
    cpu: KernelsProfile | None = None
    switch: EngineFigure[Duration] | None = Field(
        None,
        description="Time beside the copy when states move between GPU and CPU: one "
        "synchronisation.",
    )
    batch_threshold: EngineFigure[PositiveCount] | None = Field(
        None,
        description="Rows of a step from which experts in host memory are copied to the GPU; "
        "without it they never are.",
    )
    batch_threshold_of: EngineFigure[Literal["step", "expert"]] | None = Field(
        None,
        description="Which rows batch_threshold compares: those of a step (the default), or those "
        "of an expert in the mean.",
    )
    ubatch: EngineFigure[PositiveCount] | None = Field(
        None, description="Largest number of prompt tokens in one step."
    )
    pinned: EngineFigure[bool] | None = Field(
        None, description="Whether weights in host memory are page-locked."
    )
