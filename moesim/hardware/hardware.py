"""A machine as a set of figures: one GPU, its memory, its two copy links and its host.

A profile is a YAML file. Each figure in it has a value with a unit, a source, and a kind:
`assumed` (a datasheet or reasoning) or `measured` (by calibration on that machine). A profile
resolves to a `Hardware` of plain integers. Figures that a scenario overrides become `assumed`.
A measured profile also says how and where it was `measured`. It may hold measured durations of
the `operations` of the models that it was calibrated with.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Final, Generic, Literal, Self, TypeVar

from pydantic import Field, ModelWrapValidatorHandler, PrivateAttr, model_validator
from pydantic_core import PydanticCustomError

from moesim.config.fields import Bandwidth, Bytes, Duration, Flops, PositiveShare, Quantity
from moesim.config.suggest import suggest
from moesim.config.units import (
    exact_bandwidth,
    exact_bytes,
    exact_duration_ns,
    exact_flops,
    format_share,
    has_no_unit,
)
from moesim.config.validation import Strict, validate
from moesim.config.yaml_document import load_document, plain_document
from moesim.errors import UsageError, shown
from moesim.files import as_path
from moesim.hardware.measurement import OperationTimes, Overlap, Provenance, signature
from moesim.hardware.shapes import ModelShape

__all__ = [
    "Figure",
    "Hardware",
    "HardwareOverrides",
    "Link",
    "LinkOverrides",
    "hardware_from",
    "hardware_names",
    "load_hardware",
    "spelled_figures",
]

PROFILES = Path(__file__).parent / "profiles"
Kind = Literal["assumed", "measured"]
T = TypeVar("T")

# The figures that measured durations of operations replace.
_COMPUTE: Final = (
    "flops",
    "memory_bandwidth",
    "compute_efficiency",
    "memory_efficiency",
    "kernel_overhead",
    "readback_latency",
)


@dataclass(frozen=True, slots=True)
class Link:
    """One copy direction between host and GPU; a copy takes latency + bytes / bandwidth."""

    latency_ns: int
    pinned_bytes_per_s: int
    pageable_bytes_per_s: int
    chunk_bytes: int | None = None
    """Longer copies are cut into pieces of this size, so that a more urgent copy waits for one
    piece only; None: copies are never cut."""


@dataclass(frozen=True, slots=True)
class Figure:
    """The value of one number of a profile, in its base unit, and where the number comes from."""

    value: str | int | float
    kind: Kind
    source: str
    bare: str = ""
    """What was read where a profile gives an assumed number without a unit, for messages."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """One machine, with integers in bytes, nanoseconds, bytes/s and operations/s.

    `flops_per_s` and `memory_bytes_per_s` are peaks. The efficiencies are the shares of these
    peaks that are reached. `figures` gives the origin of each number, by its key in the profile.
    """

    name: str
    vram_bytes: int
    flops_per_s: int
    memory_bytes_per_s: int
    compute_efficiency: float
    memory_efficiency: float
    kernel_overhead_ns: int
    h2d: Link
    d2h: Link
    readback_latency_ns: int
    host_memory_bytes_per_s: int
    cpu_flops_per_s: int
    # Origins change no duration, so they do not count when machines are compared.
    figures: Mapping[str, Figure] = field(default_factory=dict, compare=False, repr=False)
    measured: Provenance | None = field(default=None, compare=False, repr=False)
    overlap: Overlap | None = field(default=None, repr=False)
    # Their lists cannot be hashed; the other fields are enough for a hash.
    operations: tuple[OperationTimes, ...] = field(default=(), hash=False, repr=False)

    def operations_of(self, shape: ModelShape) -> OperationTimes | None:
        """Return the measured durations for a model of exactly these sizes; None without any.

        Return None too where a scenario overrides a figure that these durations replace.
        """
        # Calibration measures every figure, so an assumed one was changed afterwards.
        if any(self.figures[key].kind == "assumed" for key in _COMPUTE if key in self.figures):
            return None
        wanted = signature(shape)
        for times in self.operations:
            if signature(times.shape.resolve()) == wanted:
                return times
        return None

    @property
    def cost_kind(self) -> Kind:
        """`measured` if every figure is, else `assumed`."""
        measured = bool(self.figures) and all(f.kind == "measured" for f in self.figures.values())
        return "measured" if measured else "assumed"


class _Figure(Strict, Generic[T]):
    value: T = Field(description="The number with its unit.")
    kind: Kind = Field(description="assumed (a datasheet or reasoning) or measured.")
    source: Annotated[str, Field(min_length=1)] = Field(description="Origin of the number.")

    _bare: str = PrivateAttr("")

    @model_validator(mode="wrap")
    @classmethod
    def _note_bare(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        figure = handler(data)
        # Calibration writes measured numbers in base units; people write the assumed ones.
        if isinstance(data, dict) and figure.kind == "assumed" and has_no_unit(data["value"]):
            for quantity in cls.model_fields["value"].metadata:
                if isinstance(quantity, Quantity):
                    figure._bare = quantity.read_as(data["value"])
        return figure

    @model_validator(mode="before")
    @classmethod
    def _with_origin(cls, figure: Any) -> Any:
        """Refuse a number without its origin, and show how to write both."""
        if isinstance(figure, str | int | float):
            raise ValueError(
                f"{shown(figure)} needs its origin; write "
                f"{{value: {figure}, kind: assumed, source: where the number is from}}"
            )
        return figure


class _LinkProfile(Strict):
    latency: _Figure[Duration]
    pinned_bandwidth: _Figure[Bandwidth]
    pageable_bandwidth: _Figure[Bandwidth]
    chunk: _Figure[Bytes] | None = None


class _Profile(Strict):
    name: str
    vram: _Figure[Bytes]
    flops: _Figure[Flops]
    memory_bandwidth: _Figure[Bandwidth]
    compute_efficiency: _Figure[PositiveShare]
    memory_efficiency: _Figure[PositiveShare]
    kernel_overhead: _Figure[Duration]
    h2d: _LinkProfile
    d2h: _LinkProfile
    readback_latency: _Figure[Duration]
    host_memory_bandwidth: _Figure[Bandwidth]
    cpu_flops: _Figure[Flops]
    measured: Provenance | None = None
    overlap: Overlap | None = None
    operations: list[OperationTimes] = Field(default=[])

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        numbers: dict[ModelShape, int] = {}
        for number, times in enumerate(self.operations):
            shape = signature(times.shape.resolve())
            if shape in numbers:
                raise PydanticCustomError(
                    "same_shape",
                    f"has the same sizes as operations[{numbers[shape]}]; keep one of the two",
                    {"at": ("operations", number, "shape")},
                )
            numbers[shape] = number
        return self


class LinkOverrides(Strict):
    """Figures of one copy direction that replace those of the profile."""

    latency: Duration | None = Field(None, description="Fixed time of one copy, like 20us.")
    bandwidth: Bandwidth | None = Field(
        None,
        description="Bandwidth of copies, like 12GB/s, whether the host memory is page-locked or "
        "not.",
    )
    pinned_bandwidth: Bandwidth | None = Field(
        None, description="Bandwidth of copies from or to page-locked host memory."
    )
    pageable_bandwidth: Bandwidth | None = Field(
        None, description="Bandwidth of copies from or to ordinary host memory."
    )
    chunk: Bytes | None = Field(
        None,
        description="Cut longer copies into pieces of this size, so that an urgent copy waits for "
        "one piece only.",
    )


class HardwareOverrides(Strict):
    """Figures of a scenario that replace those of its profile."""

    vram: Bytes | None = Field(None, description="GPU memory, like 24GiB.")
    flops: Flops | None = Field(
        None, description="Peak rate of dense 16-bit matrix products, like 165.2TFLOPS."
    )
    memory_bandwidth: Bandwidth | None = Field(
        None, description="Peak bandwidth of GPU memory, like 1TB/s."
    )
    compute_efficiency: PositiveShare | None = Field(
        None, description="Share of the peak compute rate that is reached, like 60%."
    )
    memory_efficiency: PositiveShare | None = Field(
        None, description="Share of the peak memory bandwidth that is reached, like 80%."
    )
    kernel_overhead: Duration | None = Field(
        None, description="Fixed time of one operation, like 20us."
    )
    h2d: LinkOverrides | None = Field(None, description="Copies from the host to the GPU.")
    d2h: LinkOverrides | None = Field(None, description="Copies from the GPU to the host.")
    readback_latency: Duration | None = Field(
        None, description="Time until the router's choice is on the host, like 20us."
    )
    host_memory_bandwidth: Bandwidth | None = Field(
        None, description="Bandwidth of host memory; not used yet."
    )
    cpu_flops: Flops | None = Field(
        None, description="Rate of matrix products on the CPU; not used yet."
    )


def spelled_figures(figures: Mapping[str, Any], *, without: Collection[str] = ()) -> str:
    """Return figures of `HardwareOverrides` in base units as text: `vram 10GiB, h2d.latency 20us`.

    The text has the order of the names, and leaves out those in `without`.
    """
    flat = {
        ".".join(filter(None, (section, key))): value
        for section, inner in figures.items()
        for key, value in (inner.items() if isinstance(inner, Mapping) else [("", inner)])
    }
    return ", ".join(
        f"{key} {_spelling(key)(flat[key])}" for key in sorted(flat.keys() - set(without))
    )


def _spelling(key: str) -> Callable[[Any], str]:
    """Return the function that spells a figure, by the last word of its key."""
    words = {
        "bandwidth": exact_bandwidth,
        "efficiency": format_share,
        "flops": exact_flops,
        "vram": exact_bytes,
        "chunk": exact_bytes,
    }
    return words.get(re.split(r"[._]", key)[-1], exact_duration_ns)


def hardware_names() -> list[str]:
    """Return the names of the shipped profiles."""
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


def load_hardware(name_or_path: str | Path, overrides: Mapping[str, Any] | None = None) -> Hardware:
    """Return a shipped profile by name, or a profile of your own by path (.yaml or .yml).

    `overrides` maps keys of `HardwareOverrides` to values, with units or in base units.

    Raises:
        ScenarioError: the profile or an override is wrong.
        UsageError: there is no such profile.
    """
    profile = _read_profile(str(name_or_path))
    document = plain_document(overrides or {}, "hardware")
    changes = validate(document, HardwareOverrides).model_dump(exclude_none=True)
    return _resolve(profile, changes)


def hardware_from(data: Mapping[str, Any], file: str = "profile") -> Hardware:
    """Return the machine that plain data describes, as the YAML of a profile would.

    `file` names the data in messages. Raise ScenarioError with all mistakes.
    """
    document = plain_document(data, file)
    return _resolve(validate(document, _Profile), {})


def check_hardware_name(name_or_path: str) -> str | None:
    """Return a message if there is no profile of this name or path, else None."""
    if _is_path(name_or_path):
        exists = os.path.isfile(as_path(name_or_path))
        return None if exists else f"there is no hardware profile {name_or_path!r}"
    if name_or_path in hardware_names():
        return None
    hint = suggest(name_or_path, hardware_names(), rest="there are")
    return (
        f"no hardware profile is called {name_or_path!r}, and it is no path of a .yaml{hint} "
        "(see `moesim list gpus`); describe another card by what differs from a profile, like "
        "`hardware: {profile: rtx-4090, vram: 24GiB, memory_bandwidth: 936GB/s}`"
    )


def _is_path(name_or_path: str) -> bool:
    # By the ending, so that a missing file is reported as a file and not as an unknown name.
    return name_or_path.endswith((".yaml", ".yml"))


@cache  # a sweep resolves the same profile at every point
def _read_shipped(name: str) -> _Profile:
    return validate(load_document(PROFILES / f"{name}.yaml"), _Profile)


def _read_profile(name_or_path: str) -> _Profile:
    if wrong := check_hardware_name(name_or_path):
        raise UsageError(wrong)
    if _is_path(name_or_path):  # not cached: the file may change between two runs of a process
        return validate(load_document(as_path(name_or_path)), _Profile)
    return _read_shipped(name_or_path)


def _resolve(profile: _Profile, changes: dict[str, Any]) -> Hardware:
    """Return the machine of a profile with `changes`, and note the origin of each figure."""
    figures: dict[str, Figure] = {}

    def number(key: str, figure: _Figure[Any] | None, change: Any) -> Any:
        """Return the value of one figure, and note its origin under `key`."""
        if change is not None:
            # Even in a measured profile, because no measurement stands behind this value.
            figures[key] = Figure(change, "assumed", "set by the scenario")
        elif figure is not None:
            figures[key] = Figure(figure.value, figure.kind, figure.source, figure._bare)
        return figures[key].value if key in figures else None

    def top(key: str) -> Any:
        return number(key, getattr(profile, key), changes.get(key))

    def link(direction: str) -> Link:
        base: _LinkProfile = getattr(profile, direction)
        change = changes.get(direction, {})
        bandwidth = change.get("bandwidth")  # of both kinds of copies, if they have none themselves

        def part(key: str, default: int | None = None) -> Any:
            return number(f"{direction}.{key}", getattr(base, key), change.get(key, default))

        return Link(
            latency_ns=part("latency"),
            pinned_bytes_per_s=part("pinned_bandwidth", bandwidth),
            pageable_bytes_per_s=part("pageable_bandwidth", bandwidth),
            chunk_bytes=part("chunk"),
        )

    return Hardware(
        name=profile.name,
        vram_bytes=top("vram"),
        flops_per_s=top("flops"),
        memory_bytes_per_s=top("memory_bandwidth"),
        compute_efficiency=top("compute_efficiency"),
        memory_efficiency=top("memory_efficiency"),
        kernel_overhead_ns=top("kernel_overhead"),
        h2d=link("h2d"),
        d2h=link("d2h"),
        readback_latency_ns=top("readback_latency"),
        host_memory_bytes_per_s=top("host_memory_bandwidth"),
        cpu_flops_per_s=top("cpu_flops"),
        figures=figures,
        measured=profile.measured,
        overlap=profile.overlap,
        operations=tuple(profile.operations),
    )
