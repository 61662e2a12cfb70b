"""A machine from the texts of its parts: `assemble("RTX 4090", "Ryzen 9 7950X", "DDR5-6000")`.

The parts come from the catalogue, and give a profile like one in a file: each figure has a value, a
kind and a source. What the texts do not say is assumed and listed in `supposed`. What no grammar
understands is listed in `unknown`. docs/machines.md describes the texts and the rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from moesim.hardware.hardware import Hardware, hardware_from
from moesim.hardware.parts.cpu_text import CpuText, cpu_named
from moesim.hardware.parts.figures import Figures, Notes
from moesim.hardware.parts.gpu_text import GpuText, gpu_named
from moesim.hardware.parts.host import cpu_figures, fitting_memory, memory_figures
from moesim.hardware.parts.link import link_figures, no_link
from moesim.hardware.parts.memory_text import MemoryText, memory_named
from moesim.hardware.parts.pcie_text import PcieText, pcie_named
from moesim.hardware.parts.tables import Gpu, cpus, shares

__all__ = ["Machine", "assemble"]

_ABSENT: Final = "The machine has no GPU, so nothing may run there"


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine and what its texts left open.

    `gpu` and `cpu` are the names of the parts; None where there is none. The text may name several
    cards: `num_gpus`. The figures are those of one.
    """

    hardware: Hardware
    supposed: tuple[str, ...]
    """What was assumed because the texts do not say it, one sentence each."""
    unknown_in: Mapping[str, tuple[str, ...]]
    """What was not understood in each text: `gpu`, `cpu`, `memory` and `pcie`."""
    understood: Mapping[str, str]
    """The texts without what was not understood in them."""
    gpu: str | None
    cpu: str | None
    num_gpus: int = 1

    @property
    def unknown(self) -> tuple[str, ...]:
        """Return the parts of all texts that were not understood."""
        return tuple(part for parts in self.unknown_in.values() for part in parts)


def assemble(
    gpu: str | None,
    cpu: str = "",
    memory: str = "",
    pcie: str = "",
    *,
    overrides: Mapping[str, Any] | None = None,
) -> Machine:
    """Return the machine with these parts.

    `gpu`: None or "none" for a machine without one. Without `cpu` and `memory`, the figures of the
    host are unknown. `overrides` are those of `load_hardware`.

    Raises:
        UsageError: a part is not in the catalogue; the message has the most similar name.
        ScenarioError: an override is wrong.
    """
    assembled = _assembled(gpu, cpu, memory, pcie)
    changes = {**assembled.threads, **(overrides or {})}
    hardware = hardware_from(assembled.data, "assembled machine", changes)
    return Machine(
        hardware,
        assembled.supposed,
        assembled.unknown_in,
        assembled.understood,
        assembled.gpu,
        assembled.cpu,
        assembled.num_gpus,
    )


@dataclass(frozen=True, slots=True)
class _Assembled:
    """A machine as the data of a profile."""

    data: Mapping[str, Any]
    threads: Mapping[str, int]
    supposed: tuple[str, ...]
    unknown_in: Mapping[str, tuple[str, ...]]
    understood: Mapping[str, str]
    gpu: str | None
    cpu: str | None
    num_gpus: int


@lru_cache(maxsize=256)  # a sweep assembles the same machine at every point
def _assembled(gpu: str | None, cpu: str, memory: str, pcie: str) -> _Assembled:
    card, named = gpu_named(gpu), cpu_named(cpu)
    notes = Notes([*card.supposed])
    processor = _processor(card, named, notes)
    notes.supposed += processor.supposed
    host, link = memory_named(memory), pcie_named(pcie)
    texts: dict[str, GpuText | CpuText | MemoryText | PcieText] = {
        "gpu": card, "cpu": named, "memory": host, "pcie": link,
    }  # fmt: skip
    host = fitting_memory(host, processor, notes)
    data: dict[str, Any] = {"name": _name(card, processor)}
    figures = Figures()
    memory_figures(figures, card, processor, host, notes)
    threads = cpu_figures(figures, processor, notes)
    _gpu_figures(figures, card, processor, host, link, notes)
    if card.card is not None:
        data |= {"architecture": card.card.architecture, "unified": card.card.unified}
    else:
        data["has_gpu"] = False
    return _Assembled(
        data | figures.data,
        threads,
        tuple(notes.supposed),
        {name: text.unknown for name, text in texts.items()},
        {name: text.understood for name, text in texts.items()},
        card.card.name if card.card else None,
        processor.cpu.name if processor.cpu else None,
        card.count,
    )


def _processor(card: GpuText, text: CpuText, notes: Notes) -> CpuText:
    """Return the processor of the text; without one, that of which the GPU is a part."""
    if text.cpu is not None or card.card is None or not (card.card.unified or card.card.cpu):
        return text
    name = card.card.cpu or card.card.name
    if card.card.cpu:
        notes.supposed.append(f"the processor is {name}, which usually has {card.card.name}")
    return CpuText(cpus()[name])


def _name(card: GpuText, processor: CpuText) -> str:
    parts = [part.name for part in (card.card, processor.cpu) if part is not None]
    if processor.sockets > 1 and processor.cpu is not None:
        parts[-1] = f"{processor.sockets}x {processor.cpu.name}"
    return " with ".join(parts) or "no parts"


def _gpu_figures(
    figures: Figures,
    text: GpuText,
    processor: CpuText,
    host: MemoryText,
    link: PcieText,
    notes: Notes,
) -> None:
    """Add the figures of the GPU and of its link."""
    card, share = text.card, shares()
    if card is None:
        for key in ("vram", "flops", "memory_bandwidth"):
            figures.add(key, 1, _ABSENT)
        for key in ("compute_efficiency", "memory_efficiency"):
            figures.add(key, 1.0, _ABSENT)
        for key in ("kernel_overhead", "readback_latency"):
            figures.add(key, 0, _ABSENT)
        no_link(figures, 1, _ABSENT)
        return
    peak, vram = _gpu_memory(card, host), card.vram_bytes
    if card.unified:
        vram = host.nbytes or text.size_bytes or card.vram_bytes
    figures.add("vram", vram, card.memory_source)
    figures.add("memory_bandwidth", peak, card.memory_source)
    rule = f"{card.units} units at {card.mhz} MHz, {{}} operations each in a cycle. "
    figures.add("flops", card.flops_per_s, rule.format(card.fp16) + card.rate_source)
    if card.int8:
        figures.add("int8_ops", card.int8_ops_per_s, rule.format(card.int8) + card.rate_source)
    figures.share("compute_efficiency", share.gpu_compute)
    measured = next((rate for rate in host.measured if rate.of == "gpu"), None)
    if measured is not None:
        source = f"Measured, as the text says: {measured.text}"
        reached = min(1.0, measured.bytes_per_s / peak)
        figures.add("memory_efficiency", reached, source, kind="measured")
    else:
        figures.share("memory_efficiency", share.gpu_memory)
    figures.share("kernel_overhead", share.kernel_overhead)
    figures.share("readback_latency", share.readback_latency)
    if card.unified:
        no_link(figures, peak, "The GPU and the CPU have one memory: nothing is copied")
    else:
        link_figures(figures, card, processor, link, notes)


def _gpu_memory(card: Gpu, host: MemoryText) -> int:
    """Return the peak bandwidth of GPU memory; that of unified memory follows its text."""
    if not card.unified or host.mts is None or card.bus is None:
        return card.memory_bytes_per_s
    return card.bus // 8 * host.mts * 10**6
