"""Kinds of rows: which are counted, and which are declined by name.

A kind follows from the setting and the GPU. The row's own field `placement` decides where these say
nothing, and where it names a kind that is not counted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from moesim.measured.engine_text import card_text, gpu_vendor, without_gpu
from moesim.measured.rows import Row
from moesim.measured.setting import Setting

__all__ = ["COUNTED", "DECLINED", "Kind", "kind_of", "spills"]

OFFLOAD: Final = "offload"
CPU_ONLY: Final = "cpu-only"
RESIDENT: Final = "resident"
UNIFIED: Final = "resident/unified"
SPILL: Final = "spill"

COUNTED: Final = (OFFLOAD, CPU_ONLY, RESIDENT, UNIFIED, SPILL)
"""Kinds of rows that a prediction is expected for."""

DECLINED: Final = {
    "several-gpus": "several GPUs share the model; the simulated machine has one",
    "unnamed-card": "the GPU is not named",
    "fewer-experts": "fewer experts per token ran than the model was trained with",
    "speculative": "several tokens may be accepted in a step, at an acceptance that is not known",
    "expert-cache": "the engine moves experts at run time by its own policy",
    "concurrent": "several requests ran at once, with lengths and arrivals that are not known",
}
"""Kinds of rows that are not counted, and why."""

# For cards that the catalogue lacks.
_SEVERAL: Final = re.compile(
    r"(?:^|[\s(])(?:[2-9]|[1-9]\d{1,2})\s*[x×]\s*\w|\b(?:dual|two|four|quad|eight)\b|\sx\s?[2-9]\b",
    re.I,
)
_UNIFIED: Final = re.compile(
    r"\bunified\b|\bstrix\b|\b80[456]0s\b|\bgb10\b|\bspark\b|\bapple\b|^m[1-5]\b|\bjetson\b", re.I
)


@dataclass(frozen=True, slots=True)
class Kind:
    """The kind of a row; `notes` say what was supposed and where the row contradicts itself."""

    name: str
    notes: tuple[str, ...] = ()

    @property
    def counted(self) -> bool:
        """Return whether a prediction is expected."""
        return self.name in COUNTED

    @property
    def reason(self) -> str:
        """Return why a row of this kind is not predicted, or ""."""
        return "" if self.counted else f"{self.name}: {DECLINED[self.name]}"


def kind_of(row: Row, setting: Setting) -> Kind:
    """Return the kind of a row. Weights that exceed a GPU's memory are `spills`' to find."""
    stated = row.placement.casefold()
    if stated in DECLINED:
        return Kind(stated)
    if declined := _declined(row, setting, stated):
        return Kind(declined, _contradiction(stated, declined))
    if setting.placement:
        derived = _derived(row, setting)
        # Whether weights spill depends on sizes, of which a setting says nothing.
        spilled = stated == SPILL and derived == RESIDENT
        return Kind(SPILL) if spilled else Kind(derived, _contradiction(stated, derived))
    return _supposed(row, setting, stated)


def spills(kind: Kind, needed_bytes: float, gpu_bytes: float) -> Kind:
    """Return kind "spill" for a resident row that needs more than the GPU's memory."""
    if kind.name != RESIDENT or needed_bytes <= gpu_bytes:
        return kind
    note = f"{needed_bytes / 1e9:.1f} GB are needed and the GPU has {gpu_bytes / 1e9:.1f} GB"
    return Kind(SPILL, (*kind.notes, note))


def _declined(row: Row, setting: Setting, stated: str) -> str:
    """Return the kind that is not counted and that setting or GPU show, or ""."""
    if setting.declining and setting.declining != "concurrent":
        return setting.declining
    if _several(row.gpu):
        return "several-gpus"
    # A batch that runs in lock-step is a kind of its own only where the row does not say.
    if setting.declining == "concurrent" and stated not in COUNTED:
        return "concurrent"
    uses_gpu = setting.placement != "cpu" and stated != CPU_ONLY and not without_gpu(row.gpu)
    return "unnamed-card" if uses_gpu and not gpu_vendor(row.gpu) else ""


def _derived(row: Row, setting: Setting) -> str:
    if setting.placement == "cpu" or without_gpu(row.gpu):
        return CPU_ONLY
    if setting.placement in ("experts", "layers"):
        return OFFLOAD
    return UNIFIED if _shares_memory(row, setting) else RESIDENT


def _supposed(row: Row, setting: Setting, stated: str) -> Kind:
    """Return the kind of a row whose setting says nothing about placement."""
    if without_gpu(row.gpu):
        return Kind(CPU_ONLY, _contradiction(stated, CPU_ONLY))
    if stated in COUNTED and stated != OFFLOAD:
        return Kind(stated)
    if stated == OFFLOAD:
        return Kind(OFFLOAD, ("the row is of kind offload, but its setting does not say of what",))
    kind = UNIFIED if _shares_memory(row, setting) else RESIDENT
    return Kind(kind, (f"the setting does not say where weights are: taken as {kind}",))


def _contradiction(stated: str, derived: str) -> tuple[str, ...]:
    if not stated or stated == derived:
        return ()
    return (f"the row is marked {stated!r}, but its setting and GPU say {derived!r}",)


def _shares_memory(row: Row, setting: Setting) -> bool:
    if setting.unified:
        return True
    found = card_text(row.gpu)
    if found is not None and found.card is not None:
        return found.card.unified
    return bool(_UNIFIED.search(row.gpu))


def _several(gpu: str) -> bool:
    if (found := card_text(gpu)) is not None:
        return found.count > 1
    # "AI MAX+ 395" is one name.
    parts = re.split(r"\s+\+\s+|\s*(?:&|\band\b|,)\s*", gpu)
    return bool(_SEVERAL.search(gpu)) or sum(bool(gpu_vendor(part)) for part in parts) > 1
