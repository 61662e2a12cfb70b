"""This machine as the texts of its parts: what was found, what was measured, what a user says.

Texts are those that `moesim.hardware.parts` understands, so a machine that was found is priced like
one that was described. What a user says of a part replaces what was found of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from moesim.advice.cards import FoundCard
from moesim.advice.detect import Found
from moesim.advice.probe import Reached, Rounds
from moesim.advice.question import Parts
from moesim.errors import UsageError
from moesim.hardware.parts import assemble, cpu_named, gpu_named, memory_named

__all__ = ["ThisMachine", "described", "measured_lines", "with_measured"]

_GIB: Final = 2**30
_UNNAMED: Final = "unnamed"
_MOST_LANES: Final = 16
_GENERATIONS: Final = range(1, 7)
_BUSY: Final = 0.9
"""A smaller share of processor time shows that other processes ran."""


@dataclass(frozen=True, slots=True)
class ThisMachine:
    """The texts of a machine that was found, and sentences about it.

    `probes_reads`: whether the rate of host memory is to be measured. `probes_card`: the name of
    the card that copies are measured to. Both are off where a user has said the rate.
    """

    parts: Parts
    lines: tuple[str, ...]
    probes_reads: bool
    probes_card: str | None


def described(
    found: Found, *, gpu: str | None = None, cpu: str = "", ram: str = "", pcie: str = ""
) -> ThisMachine:
    """Return the parts of what was found; a text that is given replaces that of its part.

    A card that the catalogue lacks keeps its own name.

    Raises:
        UsageError: a text that is given is wrong.
    """
    lines: list[str] = []
    cpu_text = _cpu(found, cpu, lines)
    ram_text, probes_reads = _memory(found, ram, lines)
    card = max(found.cards, key=lambda each: each.memory_bytes or 0, default=None)
    figures: dict[str, Any] = {}
    link, probes_card = pcie, None
    if gpu is not None:
        gpu_text = gpu
        if card is not None:
            lines.append(f"{_said(card)} (--gpu replaces it)")
    elif card is None:
        gpu_text = _unified(found.cpu) or "none"
        if gpu_text != "none":
            lines.append(f"the GPU is a part of {gpu_text}")
    else:
        gpu_text, figures = _card(found, card, lines)
        copied_to = _has_link(gpu_text)
        if copied_to and not pcie:
            link, probes_card = _link(card), card.name
        if not cpu and _unified(gpu_text) and not _named(found.cpu):
            cpu_text = ""  # its chip is the processor
    lines += found.notes
    parts = Parts(gpu_text, cpu_text, ram_text, link, figures)
    return ThisMachine(parts, tuple(lines), probes_reads, probes_card)


# The processor and host memory


def _cpu(found: Found, given: str, lines: list[str]) -> str:
    cores = f"{found.cores} core{'s' if found.cores > 1 else ''}"
    name = " ".join(found.cpu.split()) or "a processor without a name"
    own = _named(found.cpu)
    if given:
        lines.append(f"{name}, {cores} (--cpu replaces it)")
        return given
    if own is None:
        lines.append(f"{name}, {cores}; the catalogue lacks it, so only its cores count")
        return cores
    lines.append(f"{name}, {cores} ({own} in the catalogue)")
    each = cpu_named(own).cpu
    assert each is not None  # the catalogue has it
    # Virtual machines often show each core as a socket.
    sockets = min(found.sockets, -(-found.cores // each.all_cores))
    text = f"{sockets}x {own}" if sockets > 1 else own
    return text if found.cores == sockets * each.all_cores else f"{text}, {cores}"


def _named(name: str) -> str | None:
    """Return the name in the catalogue of a processor; None if it is not there."""
    try:
        cpu = cpu_named(name).cpu
    except UsageError:
        return None
    return None if cpu is None or cpu.name == _UNNAMED else cpu.name


def _memory(found: Found, given: str, lines: list[str]) -> tuple[str, bool]:
    """Return the text of host memory, and whether its rate is to be measured."""
    size = "" if found.memory_bytes is None else f"{found.memory_bytes / _GIB:.1f} GiB"
    text = ", ".join(filter(None, (size, found.memory)))
    said = text or "an unknown amount"
    free = found.free_bytes
    now = "" if free is None else f", of which {free / _GIB:.1f} GiB are free now"
    speed = "" if found.memory else "; its type, speed and channels cannot be read"
    if given:
        lines.append(f"{said} of host memory (--ram replaces it)")
        named = memory_named(given)
        return given, not (named.kind or named.mts or named.measured)
    lines.append(f"{said} of host memory{now}{speed}")
    return text, True


# The graphics card


def _card(found: Found, card: FoundCard, lines: list[str]) -> tuple[str, dict[str, Any]]:
    """Return the text of a card and its figures, and say which of several it is."""
    if (number := len(found.cards)) > 1:
        others = ", ".join(each.name for each in found.cards)
        lines.append(
            f"{number} GPUs ({others}); the one with most memory is used, because how several "
            "share a model is not simulated"
        )
    size = card.memory_bytes
    spellings = [card.name] if size is None else [f"{card.name} {round(size / _GIB)}GB", card.name]
    for text in spellings:
        try:
            known = gpu_named(text).card
        except UsageError:
            continue
        if known is not None:
            lines.append(f"{_said(card)} ({known.name} in the catalogue)")
            # Some of a card's memory is kept for error correction or for the driver.
            differs = size is not None and size != known.vram_bytes
            return known.name, {"vram": f"{size}B"} if differs else {}
    lines.append(
        f"{_said(card)}; the catalogue lacks it: describe it in three numbers, or leave it out "
        "with --gpu none"
    )
    return card.name, {}


def _said(card: FoundCard) -> str:
    size = "" if card.memory_bytes is None else f", {card.memory_bytes / _GIB:.1f} GiB"
    link = _link(card)
    return f"{card.name}{size}{f', {link}' if link else ''}"


def _link(card: FoundCard) -> str:
    """Return the text of a card's link; "" if it is not known or not that of PCIe."""
    lanes = card.lanes
    if card.generation not in _GENERATIONS or lanes is None or not 1 <= lanes <= _MOST_LANES:
        return ""
    return f"PCIe {card.generation}.0 x{lanes}"


def _unified(text: str) -> str:
    """Return the name of the GPU that shares the memory of its processor; else ""."""
    try:
        card = gpu_named(text).card
    except UsageError:
        return ""
    return card.name if card is not None and card.unified else ""


def _has_link(text: str) -> bool:
    try:
        card = gpu_named(text).card
    except UsageError:
        return True  # a user describes it
    return card is not None and not card.unified


# What was measured


def with_measured(parts: Parts, reached: Reached) -> Parts:
    """Return the parts with what was measured, as texts where a text can say it."""
    figures: dict[str, Any] = {}
    if reached.reads is not None:
        reads = reached.reads.best
        text = f"~{_gb(reads)} sequential read measured"
        parts = replace(parts, ram=", ".join(filter(None, (parts.ram, text))))
        if reached.core is not None:
            # A core reads at least its share of what all read.
            core = max(reached.core.best, reads / reached.reads.threads)
            figures["core_memory_bandwidth"] = _gb(core).replace(" ", "")
        fabric = assemble("none", parts.cpu, parts.ram).hardware.cpu_memory_bytes_per_s
        if fabric is not None and fabric < reads:
            figures["cpu_memory_bandwidth"] = _gb(reads).replace(" ", "")
    if reached.copies is not None:
        text = f"H2D {_gb(reached.copies.pinned_bytes_per_s)} measured"
        parts = replace(parts, pcie=", ".join(filter(None, (parts.pcie, text))))
        pageable = _gb(reached.copies.pageable_bytes_per_s).replace(" ", "")
        figures["h2d"] = {"pageable_bandwidth": pageable}
    return replace(parts, figures={**figures, **parts.figures})


def measured_lines(reached: Reached) -> Iterator[str]:
    """Yield a sentence for each rate that was measured."""
    if reached.reads is not None:
        threads = reached.reads.threads
        who = f"{threads} threads" if threads > 1 else "one thread"
        yield f"reads of host memory by {who}: {_rounds(reached.reads)}"
    if reached.core is not None:
        yield f"reads of host memory by one core: {_rounds(reached.core)}"
    if reached.copies is not None:
        pinned, pageable = reached.copies.pinned_bytes_per_s, reached.copies.pageable_bytes_per_s
        yield (
            f"copies to the GPU: {_gb(pinned)} from page-locked memory, {_gb(pageable)} from "
            "ordinary memory"
        )


def _rounds(rounds: Rounds) -> str:
    number = len(rounds.bytes_per_s)
    text = f"{_gb(rounds.best)}, the best of {number} round{'s' if number > 1 else ''}"
    if rounds.cpu_share < _BUSY:
        mean = sum(rounds.bytes_per_s) / number
        text += (
            f"; other work left its threads {rounds.cpu_share:.0%} of the processor time: on an "
            f"idle machine they read up to {_gb(mean / rounds.cpu_share)}"
        )
    return text


def _gb(bytes_per_s: float) -> str:
    return f"{max(bytes_per_s / 1e9, 0.01):.2f} GB/s"
