"""A machine in figures: one GPU, its memory, its two copy links and its host.

A profile is a YAML file in which every figure has a value with its unit, a source, and a kind:
`assumed` (a datasheet or reasoning) or `measured` (by calibration on that machine). Resolved,
it is a `Hardware` of plain integers; what a scenario overrides becomes assumed by the scenario.
A measured profile also says how and where it was `measured`, and may hold the durations of the
`operations` of the models it was calibrated with.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Final, Generic, Literal, Self, TypeVar

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from moesim.config.fields import Bandwidth, Bytes, Duration, Flops, PositiveShare
from moesim.config.suggest import suggest
from moesim.config.validation import Strict, validate
from moesim.config.yaml_document import Document, load_document
from moesim.errors import UsageError
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
]

PROFILES = Path(__file__).parent / "profiles"
Kind = Literal["assumed", "measured"]
T = TypeVar("T")

# The figures that an operation's measured duration takes the place of.
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
    """One direction between host and GPU memory: a copy costs latency + bytes / bandwidth."""

    latency_ns: int
    pinned_bytes_per_s: int
    pageable_bytes_per_s: int
    chunk_bytes: int | None = None
    """Copies longer than this are cut, so that a more urgent one can go between; None: never."""


@dataclass(frozen=True, slots=True)
class Figure:
    """Where one number of a profile comes from."""

    value: str | int | float
    kind: Kind
    source: str


@dataclass(frozen=True, slots=True)
class Hardware:
    """One machine, resolved: integers in bytes, nanoseconds, bytes/s and operations/s.

    `flops_per_s` and `memory_bytes_per_s` are peaks; the efficiencies are the shares of them
    that are reached. `figures` says where each number comes from, by its key in the profile.
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
    figures: Mapping[str, Figure] = field(default_factory=dict, compare=False, repr=False)
    measured: Provenance | None = field(default=None, compare=False, repr=False)
    overlap: Overlap | None = field(default=None, repr=False)
    operations: tuple[OperationTimes, ...] = field(default=(), hash=False, repr=False)

    def operations_of(self, shape: ModelShape) -> OperationTimes | None:
        """What was measured of a model of exactly these sizes, if anything was.

        Where one of the figures that they stand for was overridden, measured durations no longer
        hold, and there are none.
        """
        if any(self.figures[key].kind == "assumed" for key in _COMPUTE if key in self.figures):
            return None
        wanted = signature(shape)
        for times in self.operations:
            if signature(times.shape.resolve()) == wanted:
                return times
        return None

    @property
    def cost_kind(self) -> Kind:
        """`measured` only where every figure is."""
        measured = bool(self.figures) and all(f.kind == "measured" for f in self.figures.values())
        return "measured" if measured else "assumed"


class _Figure(Strict, Generic[T]):
    value: T = Field(description="The number with its unit.")
    kind: Kind = Field(description="A datasheet or reasoning, or the result of a measurement.")
    source: Annotated[str, Field(min_length=1)] = Field(description="Where the number is from.")


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
        seen: dict[ModelShape, int] = {}
        for number, times in enumerate(self.operations):
            shape = signature(times.shape.resolve())
            if shape in seen:
                raise PydanticCustomError(
                    "same_shape",
                    f"has the sizes of operations[{seen[shape]}]; keep one of them",
                    {"at": ("operations", number, "shape")},
                )
            seen[shape] = number
        return self


class LinkOverrides(Strict):
    """One copy direction, where it differs from the profile."""

    latency: Duration | None = Field(None, description="Fixed cost of one copy, like 20us.")
    bandwidth: Bandwidth | None = Field(
        None, description="Bandwidth of pinned and of pageable copies alike, like 12GB/s."
    )
    pinned_bandwidth: Bandwidth | None = Field(
        None, description="Bandwidth of copies from or to page-locked host memory."
    )
    pageable_bandwidth: Bandwidth | None = Field(
        None, description="Bandwidth of copies from or to ordinary host memory."
    )
    chunk: Bytes | None = Field(
        None, description="Cut copies longer than this, so that urgent ones can go between."
    )


class HardwareOverrides(Strict):
    """Figures of a scenario that replace a profile's."""

    vram: Bytes | None = Field(None, description="GPU memory, like 24GiB.")
    flops: Flops | None = Field(
        None, description="Peak of dense 16-bit matrix products, like 165.2TFLOPS."
    )
    memory_bandwidth: Bandwidth | None = Field(None, description="Peak of GPU memory, like 1TB/s.")
    compute_efficiency: PositiveShare | None = Field(
        None, description="Share of the compute peak that is reached, like 60%."
    )
    memory_efficiency: PositiveShare | None = Field(
        None, description="Share of the memory bandwidth that is reached, like 80%."
    )
    kernel_overhead: Duration | None = Field(
        None, description="Fixed cost of one operation, like 20us."
    )
    h2d: LinkOverrides | None = Field(None, description="Host-to-GPU copies.")
    d2h: LinkOverrides | None = Field(None, description="GPU-to-host copies.")
    readback_latency: Duration | None = Field(
        None, description="Time until the host knows the router's choice, like 20us."
    )
    host_memory_bandwidth: Bandwidth | None = Field(
        None, description="Host memory bandwidth, shared by copies and CPU reads."
    )
    cpu_flops: Flops | None = Field(None, description="Rate of matrix products on the CPU.")


def hardware_names() -> list[str]:
    """The shipped profiles."""
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


def load_hardware(name_or_path: str | Path, overrides: Mapping[str, Any] | None = None) -> Hardware:
    """A shipped profile by name or one of your own by path (ending in .yaml or .yml).

    `overrides` takes the keys of `HardwareOverrides`, with units or in base units.

    Raises:
        ScenarioError: the profile or an override is wrong.
        UsageError: there is no such profile.
    """
    profile = _read_profile(str(name_or_path))
    document = Document("hardware", dict(overrides or {}), has_lines=False)
    changes = validate(document, HardwareOverrides).model_dump(exclude_none=True)
    return _resolve(profile, changes)


def hardware_from(data: Mapping[str, Any], file: str = "profile") -> Hardware:
    """A profile given as plain data, as its YAML would hold it; `file` names it in messages.

    Raises ScenarioError with all that is wrong with it.
    """
    document = Document(file, dict(data), has_lines=False)
    return _resolve(validate(document, _Profile), {})


def check_hardware_name(name_or_path: str) -> str | None:
    """What is wrong with a profile's name or path; None if there is such a profile."""
    if _is_path(name_or_path):
        exists = os.path.isfile(name_or_path)
        return None if exists else f"there is no hardware profile {name_or_path!r}"
    if name_or_path in hardware_names():
        return None
    hint = suggest(name_or_path, hardware_names(), rest="there are")
    return (
        f"no hardware profile is called {name_or_path!r}, and it is no path of a .yaml{hint} "
        "(see `moesim list gpus`)"
    )


def _is_path(name_or_path: str) -> bool:
    return name_or_path.endswith((".yaml", ".yml"))


@cache
def _read_shipped(name: str) -> _Profile:
    return validate(load_document(PROFILES / f"{name}.yaml"), _Profile)


def _read_profile(name_or_path: str) -> _Profile:
    if wrong := check_hardware_name(name_or_path):
        raise UsageError(wrong)
    if _is_path(name_or_path):
        return validate(load_document(name_or_path), _Profile)
    return _read_shipped(name_or_path)


def _resolve(profile: _Profile, changes: dict[str, Any]) -> Hardware:
    """The profile's figures, replaced by `changes`, with the source of each kept."""
    figures: dict[str, Figure] = {}

    def number(key: str, figure: _Figure[Any] | None, change: Any) -> Any:
        if change is not None:
            figures[key] = Figure(change, "assumed", "set by the scenario")
        elif figure is not None:
            figures[key] = Figure(figure.value, figure.kind, figure.source)
        return figures[key].value if key in figures else None

    def top(key: str) -> Any:
        return number(key, getattr(profile, key), changes.get(key))

    def link(direction: str) -> Link:
        base: _LinkProfile = getattr(profile, direction)
        change = changes.get(direction, {})
        both = change.get("bandwidth")

        def part(key: str, instead: int | None = None) -> Any:
            return number(f"{direction}.{key}", getattr(base, key), change.get(key, instead))

        return Link(
            latency_ns=part("latency"),
            pinned_bytes_per_s=part("pinned_bandwidth", both),
            pageable_bytes_per_s=part("pageable_bandwidth", both),
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
