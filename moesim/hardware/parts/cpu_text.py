"""The grammar of a processor's text: `2x Xeon Gold 6138, 20 threads` or `Ryzen 9 7950X`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Final

from moesim.hardware.parts.names import Index
from moesim.hardware.parts.scan import Measured, Scanner
from moesim.hardware.parts.tables import Cpu, cpus

__all__ = ["CpuText", "cpu_named"]

_HARMLESS: Final = (
    "host",
    "machine",
    r"\d+c/\d+t",
    r"\d+th gen",
    r"CPU @ [\d.]+ ?GHz",  # the base clock, which is not that of all cores
)
_MOST_SOCKETS, _MOST_CORES, _MOST_MHZ = 16, 4096, 10_000
_NOT_NAMED: Final = re.compile(r"\s*(?:unstated|unknown|not stated|\?|n/a)?\s*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class CpuText:
    """The processor that a text names, and what it says about it; `cpu` is None without any.

    `sockets` are there, and `used_sockets` of them compute. `cores` is the number in the text for
    a processor that it does not name.
    """

    cpu: Cpu | None
    sockets: int = 1
    used_sockets: int = 1
    threads: int | None = None
    cores: int | None = None
    fclk_mhz: int | None = None
    measured: tuple[Measured, ...] = ()
    supposed: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    understood: str = ""
    """The text without what is unknown, and with the catalogue's name if that is a part of it."""


@cache
def _index() -> Index[Cpu]:
    # A model's number follows a hyphen: `i9-13900KF` is `i9-13900k` without graphics.
    return Index(cpus(), _spellings, kind="processor", listing="cpus")


def _spellings(cpu: Cpu) -> list[str]:
    """Return aliases: the clocks of `K`, `KF` and `KS` are close, and `PRO` changes no figure."""
    names = [cpu.name, *cpu.aliases]
    spellings = list(cpu.aliases)
    for name in names:
        if re.fullmatch(r"(?:core-)?(?:i\d|ultra-\d)-\d+k", name):
            spellings += [f"{name}f", f"{name}s"]
        if re.fullmatch(r"i\d-\d+", name):
            spellings += [f"{name}f"]
        if match := re.fullmatch(r"ryzen-\d-(\d\w+)", name):
            spellings.append(f"ryzen-{match[1]}")  # `Ryzen 7800X3D`
        if re.fullmatch(r"epyc-[\dhkjv]+", name):
            spellings.append(f"{name}p")  # the same part, for one socket
        if name.startswith("threadripper"):
            spellings += [name.replace("threadripper", other) for other in _THREADRIPPERS]
        if name.startswith("core-ultra"):
            spellings.append(name.removeprefix("core-"))
        if name.startswith("e5-"):
            spellings += [
                f"xeon-{name}",
                name.replace("-v", "v"),
                f"xeon-{name.replace('-v', 'v')}",
            ]
        if name.startswith("xeon-") and (match := re.search(r"-(\d{4}\w*)$", name)):
            spellings.append(f"xeon-{match[1]}")
    return spellings


_THREADRIPPERS: Final = ("threadripper-pro", "ryzen-threadripper", "ryzen-threadripper-pro")


def cpu_named(text: str) -> CpuText:
    """Return the processor that `text` names; None for an empty text.

    Raise UsageError, with the most similar name, for an unknown processor, and for numbers of
    sockets, cores or threads that no machine has.
    """
    if _NOT_NAMED.fullmatch(text):
        return CpuText(None)
    scanner, supposed = Scanner(text), []
    measured = tuple(scanner.rates())
    threads = _number(scanner, r"(?:\bat\s+|-t\s*)?\b(\d+)\s*threads?\b")
    if threads is None:
        threads = _number(scanner, r"-t\s*(\d+)\b")
    virtual = _number(scanner, r"\b(\d+)\s*vCPUs?(?:\s+host)?\b")
    cores = _number(scanner, r"\b(\d+)[\s-]*(?:physical\s+)?cores?\b")
    fclk = _number(scanner, r"\bFCLK\s*(?:at\s*)?(\d+)(?:\s*MHz)?\b")
    one_node = scanner.first(r"\b(?:on\s+)?(?:one|1|single)\s+(?:NUMA\s+)?(?:node|socket)\b")
    counted = (
        scanner.first(r"^\s*(\d{1,2})\s*[x×]\s*")
        or scanner.first(r"^\s*(dual)\b")
        or scanner.first(r"\s[x×]\s*(\d)\s*$")
    )
    sockets = 1 if counted is None else 2 if counted[1].lower() == "dual" else int(counted[1])
    for number, most, what in (
        (sockets, _MOST_SOCKETS, "sockets"), (threads, _MOST_CORES, "threads"),
        (cores, _MOST_CORES, "cores"), (virtual, _MOST_CORES, "virtual processors"),
        (fclk, _MOST_MHZ, "MHz of the fabric"),
    ):  # fmt: skip
        scanner.check(number, 1, most, f"the number of {what}")
    if virtual is not None and cores is None:
        cores = max(1, virtual // 2)
        supposed.append(f"{virtual} virtual processors are the threads of {cores} cores")
    # Only the first part can be the name; in others a number may stand for anything.
    left = scanner.left(*_HARMLESS)
    unknown, cut = tuple(left.values()), dict.fromkeys(left, "")
    if left:
        first, *_ = left
        named = _index().find(left[first])
        cpu, unknown = named.parts[0], (*named.rest, *unknown[1:])
        cut[first] = cpu.name
    else:
        cpu = cpus()["unnamed"]
        supposed.append("the text names no processor; cores with AVX2 at 4 GHz stand for its own")
    return CpuText(
        cpu,
        sockets,
        1 if one_node else sockets,
        threads,
        cores,
        fclk,
        measured,
        tuple(supposed),
        unknown,
        scanner.without(cut) if unknown else text,
    )


def _number(scanner: Scanner, pattern: str) -> int | None:
    match = scanner.first(pattern)
    return int(match[1]) if match else None
