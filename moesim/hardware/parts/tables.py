"""The catalogue of parts: graphics cards and processors by name, with the source of each figure.

The tables are YAML files beside this module. A family of parts shares its sources, so that a part
is one line. Every figure of a catalogue is `assumed`: it is from a datasheet, or follows from one.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Final

from pydantic import Field, model_validator

from moesim.config.validation import Strict, validate
from moesim.config.yaml_document import load_document
from moesim.hardware.vendors import maker_of

__all__ = ["Cpu", "Gpu", "Shares", "Simd", "cpus", "gpus", "shares", "simd_classes", "soldered"]

_FOLDER: Final = Path(__file__).parent
_GIB: Final = 2**30


class Gpu(Strict):
    """One graphics card, or the graphics part of a processor with unified memory.

    `fp16` and `int8` are operations (a multiply-add is 2) of one unit in one cycle.
    """

    name: str
    family: str
    architecture: str
    vram: float = Field(gt=0, description="GiB.")
    bandwidth: float = Field(gt=0, description="Peak of its memory, GB/s.")
    units: int = Field(gt=0, description="SMs, CUs, Xe-cores or GPU cores.")
    mhz: int = Field(gt=0, description="Boost clock.")
    fp16: int = Field(gt=0)
    int8: int = Field(ge=0)
    memory_source: str
    rate_source: str
    bus: int | None = Field(None, description="Width of its memory bus, bits.")
    gbps: float | None = Field(None, description="Gbit/s of one pin.")
    pcie: str | None = None
    link: float | None = Field(None, description="GB/s of a link to the CPU that is no PCIe.")
    unified: bool = False
    soldered: bool = Field(False, description="Whether its unified memory is a part of it.")
    cpu: str | None = Field(None, description="The processor that it is a part of, or beside.")
    modified: bool = Field(False, description="Whether its vendor never sold it so.")
    board: int | None = Field(None, description="GB in its name that are not those of the GPU.")
    board_source: str = Field("", description="Whose GB these are.")
    aliases: tuple[str, ...] = ()

    @property
    def vendor(self) -> str:
        """Return "nvidia", "amd", "intel" or "apple"."""
        maker = maker_of(self.architecture)
        assert maker is not None, f"no vendor has the architecture {self.architecture!r}"
        return maker.lower()

    @property
    def vram_bytes(self) -> int:
        return round(self.vram * _GIB)

    @property
    def memory_bytes_per_s(self) -> int:
        return round(self.bandwidth * 10**9)

    @property
    def flops_per_s(self) -> int:
        """Dense products of 16-bit numbers accumulated in 32 bits, operations/s."""
        return self.units * self.mhz * self.fp16 * 10**6

    @property
    def int8_ops_per_s(self) -> int:
        """Dense products of 8-bit integers, operations/s; 0 without an instruction for them."""
        return self.units * self.mhz * self.int8 * 10**6


class Cpu(Strict):
    """One processor of one socket; figures as the head of cpus.yaml describes them."""

    name: str
    family: str
    source: str
    cores: int = Field(ge=0)
    ghz: float = Field(ge=0)
    simd: str
    memory: str
    other_memory: str | None = Field(None, description="Another type that its boards may have.")
    core: float = Field(gt=0, description="GB/s that one core reads.")
    pcie: str
    e_cores: int = 0
    e_ghz: float = 0.0
    e_simd: str | None = None
    ccds: int = 1
    fclk: int | None = None
    ccd_bytes: int | None = None
    aliases: tuple[str, ...] = ()

    @property
    def all_cores(self) -> int:
        """Cores of both kinds."""
        return self.cores + self.e_cores

    def ops_per_s(self, kind: str) -> int:
        """Return operations/s of all cores: `fp32` multiply-adds or `int8` dot products."""
        classes = simd_classes()
        slow = classes[self.e_simd or self.simd]
        fast_rate: float = self.cores * self.ghz * getattr(classes[self.simd], kind)
        slow_rate: float = self.e_cores * self.e_ghz * getattr(slow, kind)
        return round((fast_rate + slow_rate) * 10**9)

    def fabric_bytes_per_s(self, fclk_mhz: int | None, ccd_bytes: int) -> int | None:
        """Return what its dies read through the fabric; None if no fabric limits them."""
        clock = fclk_mhz or self.fclk
        if not self.ccds or clock is None or self.fclk is None:
            return None
        return self.ccds * clock * (self.ccd_bytes or ccd_bytes) * 10**6


class Simd(Strict):
    """Operations of one core in one cycle."""

    fp32: int
    int8: int


class Share(Strict):
    """A figure of shares.yaml, as text or a number."""

    value: str | int
    source: str


class Shares(Strict):
    """The figures of shares.yaml."""

    gpu_compute: Share
    gpu_memory: Share
    kernel_overhead: Share
    link_latency: Share
    readback_latency: Share
    link_pinned: Share
    link_pageable: Share
    cpu_compute: Share
    reads_two_channels: Share
    reads_more_channels: Share
    triad_to_reads: Share
    copy_to_reads: Share
    ccd_bytes: Share
    pcie_lane: dict[str, float | str]
    usual_memory: dict[str, int | str]


class _Families(Strict):
    """A table of parts: `families`, whose keys its parts inherit, under the key `of`."""

    families: list[dict[str, Any]]
    simd: dict[str, Any] = Field(default={})

    @model_validator(mode="after")
    def _unique(self) -> _Families:
        names = [name for family in self.families for name in _parts_of(family)]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"{', '.join(sorted(twice))} is there twice")
        return self


def _parts_of(family: dict[str, Any]) -> dict[str, dict[str, Any]]:
    parts: dict[str, dict[str, Any]] = family.get("cards") or family.get("cpus") or {}
    return parts


@cache
def gpus() -> dict[str, Gpu]:
    """Return all graphics cards by name, in the order of the table."""
    return {name: Gpu.model_validate(part) for name, part in _rows("gpus.yaml")}


@cache
def cpus() -> dict[str, Cpu]:
    """Return all processors by name, in the order of the table."""
    return {name: Cpu.model_validate(part) for name, part in _rows("cpus.yaml")}


@cache
def soldered() -> frozenset[str]:
    """Return the names of processors whose memory is a part of the chip or of its board."""
    return frozenset(card.cpu or card.name for card in gpus().values() if card.soldered)


@cache
def simd_classes() -> dict[str, Simd]:
    """Return the operations of a core in a cycle, by class of instructions."""
    classes = _table("cpus.yaml").simd
    return {name: Simd(**rates) for name, rates in classes.items() if name != "source"}


def simd_source() -> str:
    """Return the source of `simd_classes`."""
    return str(_table("cpus.yaml").simd["source"])


@cache
def shares() -> Shares:
    """Return what machines reach of the peaks of their parts, with sources."""
    return validate(load_document(_FOLDER / "shares.yaml"), Shares)


@cache
def _table(file: str) -> _Families:
    return validate(load_document(_FOLDER / file), _Families)


def _rows(file: str) -> list[tuple[str, dict[str, Any]]]:
    rows = []
    for family in _table(file).families:
        common = {key: value for key, value in family.items() if key not in ("cards", "cpus")}
        for name, part in _parts_of(family).items():
            row = {**common, **part, "name": name}
            row["aliases"] = tuple(part.get("aliases", ()))
            rows.append((name, row))
    return rows
