"""The graphics cards of this machine: NVIDIA's management library (NVML), or its tool.

`nvidia-ml-py` asks the library. Without that package, `nvidia-smi` gives the same figures. A driver
that is missing or broken is no error: the machine then has no card that can be used.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

__all__ = ["FoundCard", "cards_in", "found_cards", "nvml_cards", "output_of"]

_MIB: Final = 2**20
_TIMEOUT_S: Final = 10
_COLUMNS: Final = "name,memory.total,pcie.link.gen.max,pcie.link.width.max"
_SMI: Final = ("nvidia-smi", f"--query-gpu={_COLUMNS}", "--format=csv,noheader,nounits")


@dataclass(frozen=True, slots=True)
class FoundCard:
    """A card: its name, its memory, and the best link it has with this board; None is unknown."""

    name: str
    memory_bytes: int | None = None
    generation: int | None = None
    lanes: int | None = None


def found_cards(
    load: Callable[[str], Any] = import_module, query: Callable[[], str] | None = None
) -> tuple[tuple[FoundCard, ...], tuple[str, ...]]:
    """Return the cards of this machine, and a sentence about why there are none.

    `load` imports a module, and `query` returns what nvidia-smi prints.
    """
    try:
        cards, why = nvml_cards(load("pynvml")), "NVML lists none"
    except Exception as error:  # each release of the library has errors of its own
        cards, why = (), f"NVML: {_said(error)}"
    if not cards:
        cards = cards_in(output_of(_SMI) if query is None else query())
    return cards, () if cards else (f"no NVIDIA card ({why})",)


def nvml_cards(nvml: Any) -> tuple[FoundCard, ...]:
    """Return the cards that the module `pynvml` lists; what a card cannot say is None.

    Raises:
        Exception: the library or the driver is missing or broken.
    """
    nvml.nvmlInit()
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        return tuple(_card(nvml, handle) for handle in handles)
    finally:
        nvml.nvmlShutdown()


def _card(nvml: Any, handle: Any) -> FoundCard:
    name = nvml.nvmlDeviceGetName(handle)
    if isinstance(name, bytes):  # releases before 11.5
        name = name.decode("utf-8", "replace")
    memory = _asked(nvml.nvmlDeviceGetMemoryInfo, handle)
    return FoundCard(
        str(name),
        None if memory is None else int(memory.total) or None,
        # The current generation falls while a card idles; the greatest one does not.
        _asked(nvml.nvmlDeviceGetMaxPcieLinkGeneration, handle),
        _asked(nvml.nvmlDeviceGetMaxPcieLinkWidth, handle),
    )


def _asked(function: Callable[[Any], Any], handle: Any) -> Any:
    """Return what a function of the library says of a card; None if the card does not have it."""
    try:
        return function(handle)
    except Exception:
        return None


def cards_in(table: str) -> tuple[FoundCard, ...]:
    """Return the cards of a table that nvidia-smi printed; a line of another form is no card."""
    cards = []
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.rsplit(",", 3)]
        if len(cells) == 4 and cells[0]:
            memory, generation, lanes = (
                int(cell) if cell.isdigit() else None for cell in cells[1:]
            )
            cards.append(
                FoundCard(cells[0], None if memory is None else memory * _MIB, generation, lanes)
            )
    return tuple(cards)


def output_of(command: Sequence[str]) -> str:
    """Return what a tool of the system prints; "" if it fails or takes long."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return ""
    return done.stdout


def _said(error: Exception) -> str:
    if isinstance(error, ImportError):
        return "nvidia-ml-py is not installed"
    return " ".join(str(error).split()) or type(error).__name__
