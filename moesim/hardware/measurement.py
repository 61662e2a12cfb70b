"""Measured durations of one model's operations on one machine, as a profile holds them.

A hardware profile may hold, beside its figures, the `operations` of the models that it was
calibrated with. Each kind of operation has coefficients that were fitted to measured points, and
the error of the fit on other points. They are valid for models of exactly these sizes.
"""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from itertools import pairwise
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from moesim.config.fields import Bits, Count, PositiveCount
from moesim.config.validation import Strict
from moesim.model.shapes import DecoupledRouter, LayerKind, Mla, ModelShape

__all__ = [
    "ExpertTable",
    "FetchTimes",
    "LayerTimes",
    "OperationTimes",
    "Overlap",
    "Provenance",
    "ReadbackTimes",
    "Residual",
    "ShapeProfile",
    "TailTimes",
    "shape_profile",
    "signature",
]


def _number(value: object) -> object:
    """Return an integer as a float: YAML may hold 2 for 2.0, and the schema is strict."""
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


Nanoseconds = Annotated[float, BeforeValidator(_number), Field(ge=0, le=1e15)]
MOST_RATIO: Final = 1e6
"""The largest ratio that a profile holds."""

Ratio = Annotated[float, BeforeValidator(_number), Field(ge=0, le=MOST_RATIO)]


class ExpertTable(Strict):
    """Durations of routed experts: a call takes `call_ns`, and each of its experts `each_ns`.

    `each_ns[i]` is the duration of one expert with `tokens[i]` rows. Between two entries the
    duration is linear. Past the last entry it keeps the slope of the last two.
    """

    call_ns: Nanoseconds
    tokens: Annotated[list[PositiveCount], Field(min_length=1)]
    each_ns: list[Nanoseconds]

    @model_validator(mode="after")
    def _rising(self) -> ExpertTable:
        if len(self.tokens) != len(self.each_ns):
            raise PydanticCustomError(
                "uneven_table",
                f"has {len(self.tokens)} numbers of tokens and {len(self.each_ns)} durations",
                {"at": ("each_ns",)},
            )
        # A search needs rising tokens. A falling duration is an error of the measurement, because
        # more rows are never less work.
        for key in ("tokens", "each_ns"):
            row = getattr(self, key)
            strictly = key == "tokens"  # equal durations are fine, equal numbers of rows are not
            for before, after in pairwise(row):
                if after < before or (strictly and after == before):
                    raise PydanticCustomError(
                        "falling_table", f"must rise: {after:g} follows {before:g}", {"at": (key,)}
                    )
        return self


class LayerTimes(Strict):
    """The time of a layer without its routed experts: a sum with one coefficient for each count.

    `prefill_ns` is added in steps in which a sequence has several tokens: libraries then build
    masks and take other kernels.
    """

    base_ns: Nanoseconds
    token_ns: Nanoseconds = 0.0
    sequence_ns: Nanoseconds = 0.0
    kv_token_ns: Nanoseconds = 0.0
    pair_ns: Nanoseconds = 0.0
    prefill_ns: Nanoseconds = 0.0


class TailTimes(Strict):
    """The time from the last layer of a step to the start of the next step."""

    base_ns: Nanoseconds
    token_ns: Nanoseconds = 0.0
    sequence_ns: Nanoseconds = 0.0
    sampled_ns: Nanoseconds = 0.0


class ReadbackTimes(Strict):
    """The time from the end of a front until the first work of its layer event starts."""

    base_ns: Nanoseconds
    byte_ns: Nanoseconds = 0.0


class FetchTimes(Strict):
    """The time that copies of experts cost where experts are computed.

    The host issues them, computation beside them is slower, and threads that have waited for them
    start cold. `call_ns` is for each call right after its expert's copy. The last such call of a
    layer event takes `event_ns` more, and `copy_ns` for each copy of the event.
    """

    call_ns: Nanoseconds = 0.0
    event_ns: Nanoseconds = 0.0
    copy_ns: Nanoseconds = 0.0


class Residual(Strict):
    """The errors of a fit on measured points that it was not fitted to."""

    fitted: Count
    held_out: Count
    error_median: Ratio = Field(description="Median of |predicted - measured| / measured.")
    error_p90: Ratio = Field(description="90th percentile of the same.")
    bias: Annotated[float, BeforeValidator(_number), Field(ge=-MOST_RATIO, le=MOST_RATIO)] = Field(
        description="Median of predicted durations over measured ones, minus 1."
    )
    interval: Ratio = Field(
        description="Half the 95 % interval of the median of predicted over measured."
    )


_LISTS = ("dense_layers", "windowed_layers", "layer_kinds")
"""The keys of a shape that hold numbers of layers or kinds."""


class _MlaProfile(Strict):
    kv_rank: PositiveCount
    rope_dim: Count
    nope_dim: Count
    value_dim: PositiveCount
    q_rank: PositiveCount | None = None


class _RouterProfile(Strict):
    hidden: PositiveCount
    heads: PositiveCount
    ffn: PositiveCount
    gated: bool = False


class _LayerKindProfile(Strict):
    params: PositiveCount
    routed: bool = True
    heads: Count = 0
    key_dim: Count = 0
    value_dim: Count = 0
    kv_numbers: Count = 0
    window: PositiveCount | None = None
    mla: _MlaProfile | None = None
    state_bytes: Count = 0
    state_flops: Count = 0
    index_flops: Count = 0
    index_numbers: Count = 0

    def resolve(self) -> LayerKind:
        """Return the kind of layer."""
        mla = None if self.mla is None else Mla(**self.mla.model_dump())
        return LayerKind(mla=mla, **self.model_dump(exclude={"mla"}))


class ShapeProfile(Strict):
    """The sizes of a `ModelShape` in a profile; `name` serves readers and is not compared."""

    name: str = ""
    num_layers: PositiveCount
    hidden: PositiveCount
    expert_ffn: PositiveCount
    num_experts: PositiveCount
    top_k: PositiveCount
    num_heads: PositiveCount
    num_kv_heads: PositiveCount
    head_dim: PositiveCount
    vocabulary: PositiveCount
    dense_layers: list[Count] = Field(default=[])
    shared_ffn: Count = 0
    dense_ffn: Count = 0
    mla: _MlaProfile | None = None
    windowed_layers: list[Count] = Field(default=[])
    window: PositiveCount | None = None
    tied_embeddings: bool = False
    router: _RouterProfile | None = None
    expert_bits: Bits = 16
    weight_bits: Bits = 16
    kv_bits: Bits = 16
    embedding_bits: Bits | None = None
    head_bits: Bits | None = None
    expert_matrices: PositiveCount = 3
    expert_width: PositiveCount | None = None
    kinds: list[_LayerKindProfile] = Field(default=[])
    layer_kinds: list[Count] = Field(default=[])
    lookup_params: Count = 0

    def resolve(self) -> ModelShape:
        """Return the shape, with an empty `source`."""
        parts = ("mla", "router", "kinds")
        sizes = {key: getattr(self, key) for key in type(self).model_fields if key not in parts}
        # YAML has lists only, but a shape must be hashable.
        for key in _LISTS:
            sizes[key] = tuple(sizes[key])
        sizes["kinds"] = tuple(kind.resolve() for kind in self.kinds)
        mla = None if self.mla is None else Mla(**self.mla.model_dump())
        router = None if self.router is None else DecoupledRouter(**self.router.model_dump())
        return ModelShape(mla=mla, router=router, **sizes)


class OperationTimes(Strict):
    """The measured operations of one model shape."""

    shape: ShapeProfile
    experts: ExpertTable
    front: LayerTimes
    dense: LayerTimes | None = None
    first: LayerTimes = Field(
        LayerTimes(base_ns=0.0), description="Additional time of the first layer of a step."
    )
    tail: TailTimes
    readback: ReadbackTimes
    landing_ns: Nanoseconds = Field(
        0.0, description="Time from the end of a copy until a computation that waited for it."
    )
    fetch: FetchTimes = Field(
        default=FetchTimes(), description="Time of computation that copies of experts cost."
    )
    copy_factor: Annotated[float, BeforeValidator(_number), Field(ge=1, le=1e3)] = Field(
        1.0, description="Duration of an expert's copy in a run over that of a copy by itself."
    )
    residuals: dict[str, Residual] = Field(default={})

    @model_validator(mode="after")
    def _dense_where_needed(self) -> OperationTimes:
        # Without this check, dense layers would be priced as MoE layers.
        if self.shape.dense_layers and self.dense is None:
            raise ValueError(
                f"{self.shape.name or 'the shape'} has dense layers, but no `dense` durations"
            )
        return self


class Overlap(Strict):
    """The slowdown of computations during copies, and of copies during computations.

    A value of 1 means no slowdown.
    """

    compute: Ratio
    copies: Ratio


class Provenance(Strict):
    """When, where and how a profile was measured."""

    device: Annotated[str, Field(min_length=1)]
    date: Annotated[str, Field(min_length=1)]
    command: str = ""
    points: str = Field("", description="File beside the profile with all measured points.")
    machine: dict[str, str | int | float] = Field(
        default={}, description="Processor, memory, operating system, versions, threads."
    )


def signature(shape: ModelShape) -> ModelShape:
    """Return the shape without name, source and families, on which no measured duration depends."""
    return replace(shape, name="", source="", expert_family="", weight_family="")


def shape_profile(shape: ModelShape) -> ShapeProfile:
    """Return the shape as a profile holds it, with the same bits for all experts."""
    sizes: dict[str, Any] = {
        item.name: getattr(shape, item.name)
        for item in fields(ModelShape)
        if item.name in ShapeProfile.model_fields and item.name not in ("mla", "router")
    }
    for key in _LISTS:
        sizes[key] = list(sizes[key])
    sizes["kinds"] = [_LayerKindProfile(**asdict(kind)) for kind in shape.kinds]
    mla = None if shape.mla is None else _MlaProfile(**asdict(shape.mla))
    router = None if shape.router is None else _RouterProfile(**asdict(shape.router))
    return ShapeProfile(mla=mla, router=router, **sizes)
