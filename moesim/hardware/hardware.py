"""A machine as a set of figures: one GPU, its memory, its two copy links, its host and its disk.

A profile is a YAML file. Each figure in it has a value with a unit, a source, and a kind:
`assumed` (a datasheet or reasoning) or `measured` (by calibration on that machine). A profile
resolves to a `Hardware` of plain integers. Figures that a scenario overrides become `assumed`.
The figures of the CPU, of host memory and of the disk are optional.
A measured profile also says how and where it was `measured`. It may hold measured durations of
the `operations` of the models that it was calibrated with.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

from moesim.config.suggest import suggest
from moesim.config.validation import validate
from moesim.config.yaml_document import load_document, plain_document
from moesim.errors import UsageError
from moesim.files import as_path
from moesim.hardware.measurement import OperationTimes, Overlap, Provenance, signature
from moesim.hardware.overrides import HardwareOverrides
from moesim.hardware.profile_schema import Kind, LinkProfile, Profile, ProfileFigure
from moesim.model.shapes import ModelShape

__all__ = [
    "Disk",
    "Figure",
    "Hardware",
    "IncompleteDisk",
    "Link",
    "TooManyThreads",
    "hardware_from",
    "hardware_names",
    "load_hardware",
]

PROFILES = Path(__file__).parent / "profiles"

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
class Disk:
    """The disk from which experts are read into host memory.

    A read takes latency / queue depth + bytes / bandwidth. The bandwidth is what the disk reaches
    with `queue_depth` reads under way. The latencies of these reads overlap, so each read of a
    queue takes its share of one latency.

    The model has two limits. A read that is alone would take the whole latency. And the bandwidth
    does not depend on the size of a read, so it must be that of reads as large as an expert.
    """

    latency_ns: int
    bytes_per_s: int
    queue_depth: int = 1


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

    Of the host, None is a figure that is not known. Host memory reaches `host_memory_efficiency` of
    its bandwidth when it is read. The CPU reaches `cpu_efficiency` of its operations with all
    cores. `cpu_overhead_ns` is the fixed time of one call on the CPU: 0 unless a profile gives it,
    because it depends on the engine and its threads, and no datasheet has it. One core reads
    `core_memory_bytes_per_s`. `cpu_threads` cores compute; None: all of them. All cores together
    read at most `cpu_memory_bytes_per_s`, where the links between dies carry less than memory.

    `int8_ops_per_s` and `cpu_int8_ops_per_s` are peaks of dot products of 8-bit integers; 0 without
    an instruction for them, or where a profile does not give them.

    With `unified`, the GPU and the CPU share one memory and its bandwidth, and copies between them
    take no time. Without `has_gpu` all work is for the CPU, and each figure of the GPU is 1.
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
    host_memory_bytes_per_s: int | None = None
    host_memory_efficiency: float = 1.0
    host_memory_bytes: int | None = None
    cpu_flops_per_s: int | None = None
    cpu_efficiency: float = 1.0
    cpu_overhead_ns: int = 0
    cpu_cores: int | None = None
    core_memory_bytes_per_s: int | None = None
    cpu_threads: int | None = None
    disk: Disk | None = None
    int8_ops_per_s: int = 0
    cpu_int8_ops_per_s: int = 0
    cpu_memory_bytes_per_s: int | None = None
    cpu_sockets: int = 1
    architecture: str = ""
    unified: bool = False
    has_gpu: bool = True
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


def hardware_names() -> list[str]:
    """Return the names of the shipped profiles."""
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


def load_hardware(name_or_path: str | Path, overrides: Mapping[str, Any] | None = None) -> Hardware:
    """Return a shipped profile by name, or a profile of your own by path (.yaml or .yml).

    `overrides` maps keys of `HardwareOverrides` to values, with units or in base units.

    Raises:
        ScenarioError: the profile or an override is wrong.
        TooManyThreads: there are more threads than cores.
        IncompleteDisk: a figure of the disk is missing.
        UsageError: there is no such profile.
    """
    return _resolve(_read_profile(str(name_or_path)), _changes(overrides))


def hardware_from(
    data: Mapping[str, Any],
    file: str = "profile",
    overrides: Mapping[str, Any] | None = None,
) -> Hardware:
    """Return the machine that plain data describes, as the YAML of a profile would.

    `file` names the data in messages, and `overrides` are those of `load_hardware`. Raise
    ScenarioError with all mistakes, and what `load_hardware` raises for overrides.
    """
    profile = validate(plain_document(data, file), Profile)
    return _resolve(profile, _changes(overrides))


def _changes(overrides: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return overrides in base units. Raise ScenarioError where one is wrong."""
    document = plain_document(overrides or {}, "hardware")
    return validate(document, HardwareOverrides).model_dump(exclude_none=True)


def check_hardware_name(name_or_path: str) -> str | None:
    """Return a message if there is no profile of this name or path, else None."""
    if _is_path(name_or_path):
        exists = os.path.isfile(as_path(name_or_path))
        return None if exists else f"there is no hardware profile {name_or_path!r}"
    if name_or_path in hardware_names():
        return None
    if card := _card_named(name_or_path):
        return (
            f"no hardware profile is called {name_or_path!r}, but the catalogue has this card: "
            f"write `hardware: {{gpu: {card}}}` (see `moesim list cards`)"
        )
    hint = suggest(name_or_path, hardware_names(), rest="there are")
    return (
        f"no hardware profile is called {name_or_path!r}, and it is no path of a .yaml{hint} "
        "(see `moesim list gpus`); describe another card by what differs from a profile, like "
        "`hardware: {profile: rtx-4090, vram: 24GiB, memory_bandwidth: 936GB/s}`"
    )


def _card_named(text: str) -> str | None:
    """Return the name of the one card in the catalogue that a text fully names; else None."""
    from moesim.hardware.parts import gpu_named

    try:
        found = gpu_named(text)
    except UsageError:
        return None
    if found.card is None or found.unknown or found.supposed:
        return None
    # A card with a shipped profile is best named by it.
    return None if found.card.name in hardware_names() else found.card.name


def _is_path(name_or_path: str) -> bool:
    # By the ending, so that a missing file is reported as a file and not as an unknown name.
    return name_or_path.endswith((".yaml", ".yml"))


@cache  # a sweep resolves the same profile at every point
def _read_shipped(name: str) -> Profile:
    return validate(load_document(PROFILES / f"{name}.yaml"), Profile)


def _read_profile(name_or_path: str) -> Profile:
    if wrong := check_hardware_name(name_or_path):
        raise UsageError(wrong)
    if _is_path(name_or_path):  # not cached: the file may change between two runs of a process
        return validate(load_document(as_path(name_or_path)), Profile)
    return _read_shipped(name_or_path)


class TooManyThreads(UsageError):
    """More threads than cores, or than can be judged; the mistake is at `cpu_threads`."""


class IncompleteDisk(UsageError):
    """A figure of the disk is missing; the mistake is at `disk`."""


class _Resolver:
    """The figures of a profile with a scenario's `changes`, and the origin of each in `figures`."""

    def __init__(self, profile: Profile, changes: Mapping[str, Any]) -> None:
        self.profile = profile
        self.changes = changes
        self.figures: dict[str, Figure] = {}

    def top(self, key: str, default: Any = None) -> Any:
        """Return a figure by its key; `default` where there is none."""
        return self._number(key, getattr(self.profile, key), self.changes.get(key), default)

    def link(self, direction: str) -> Link:
        """Return the link of a direction: `h2d` or `d2h`."""
        base: LinkProfile = getattr(self.profile, direction)
        change = self.changes.get(direction, {})
        bandwidth = change.get("bandwidth")  # of both kinds of copies, if they have none themselves

        def part(key: str, default: int | None = None) -> Any:
            changed = change.get(key, default)
            return self._number(f"{direction}.{key}", getattr(base, key), changed)

        return Link(
            latency_ns=part("latency"),
            pinned_bytes_per_s=part("pinned_bandwidth", bandwidth),
            pageable_bytes_per_s=part("pageable_bandwidth", bandwidth),
            chunk_bytes=part("chunk"),
        )

    def disk(self) -> Disk | None:
        """Return the disk, or None. Raise IncompleteDisk where a figure of it is missing."""
        base, change = self.profile.disk, self.changes.get("disk")
        if base is None and change is None:
            return None

        def part(key: str, default: int | None = None) -> Any:
            figure = None if base is None else getattr(base, key)
            value = self._number(f"disk.{key}", figure, (change or {}).get(key), default)
            if value is None:
                raise IncompleteDisk(
                    f"{key} is missing, and the profile has no disk; write all of it, like "
                    "{latency: 100us, bandwidth: 5GB/s}"
                )
            return value

        return Disk(part("latency"), part("bandwidth"), part("queue_depth", 1))

    def threads(self, cores: int | None) -> int | None:
        """Return the threads of the CPU, or None for all cores. Raise TooManyThreads."""
        threads: int | None = self.changes.get("cpu_threads")
        if threads is not None and cores is None:
            raise TooManyThreads(
                f"is {threads}, and the profile does not say how many cores there are; "
                "give cpu_cores too"
            )
        if threads is not None and cores is not None and threads > cores:
            raise TooManyThreads(
                f"is {threads}, and there are {cores} cores (cpu_cores); write at most {cores}"
            )
        return threads

    def _number(
        self, key: str, figure: ProfileFigure[Any] | None, change: Any, default: Any = None
    ) -> Any:
        """Return the value of one figure, and note its origin under `key`."""
        if change is not None:
            # Even in a measured profile, because no measurement stands behind this value.
            self.figures[key] = Figure(change, "assumed", "set by the scenario")
        elif figure is not None:
            self.figures[key] = Figure(figure.value, figure.kind, figure.source, figure.bare)
        return self.figures[key].value if key in self.figures else default


def _resolve(profile: Profile, changes: Mapping[str, Any]) -> Hardware:
    """Return the machine of a profile with `changes`, and note the origin of each figure."""
    resolver = _Resolver(profile, changes)
    top = resolver.top
    cores = top("cpu_cores")
    return Hardware(
        name=profile.name,
        vram_bytes=top("vram"),
        flops_per_s=top("flops"),
        memory_bytes_per_s=top("memory_bandwidth"),
        compute_efficiency=top("compute_efficiency"),
        memory_efficiency=top("memory_efficiency"),
        kernel_overhead_ns=top("kernel_overhead"),
        h2d=resolver.link("h2d"),
        d2h=resolver.link("d2h"),
        readback_latency_ns=top("readback_latency"),
        host_memory_bytes_per_s=top("host_memory_bandwidth"),
        host_memory_efficiency=top("host_memory_efficiency", 1.0),
        host_memory_bytes=top("host_memory"),
        cpu_flops_per_s=top("cpu_flops"),
        cpu_efficiency=top("cpu_efficiency", 1.0),
        cpu_overhead_ns=top("cpu_overhead", 0),
        cpu_cores=cores,
        core_memory_bytes_per_s=top("core_memory_bandwidth"),
        cpu_threads=resolver.threads(cores),
        disk=resolver.disk(),
        int8_ops_per_s=top("int8_ops", 0),
        cpu_int8_ops_per_s=top("cpu_int8_ops", 0),
        cpu_memory_bytes_per_s=top("cpu_memory_bandwidth"),
        cpu_sockets=top("cpu_sockets", 1),
        architecture=profile.architecture,
        unified=profile.unified,
        has_gpu=profile.has_gpu,
        figures=resolver.figures,
        measured=profile.measured,
        overlap=profile.overlap,
        operations=tuple(profile.operations),
    )
