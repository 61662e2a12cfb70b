"""A card of one's own: three numbers describe a card that the catalogue lacks.

Memory, its bandwidth and the rate of 16-bit products set most of the time. All other figures are
those of a card of the same vendor, which are assumed to hold.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Final

from moesim.advice.question import Parts
from moesim.errors import UsageError, shown
from moesim.hardware.parts import gpu_named

__all__ = ["HOW_TO_DESCRIBE", "with_own_card"]

HOW_TO_DESCRIBE: Final = (
    "describe a card that is not in the catalogue in three numbers, like "
    "--vram 16GB --gpu-bandwidth 600GB/s --gpu-tflops 80"
)
_SIMILAR: Final = (
    (r"\b(?:amd|radeon|rx|instinct)", "rx-7900-xtx"),
    (r"\b(?:intel|arc)", "arc-b580"),
    ("", "rtx-4070"),
)
"""The card whose other figures stand for an unknown one, by a pattern of its name."""
_NUMBER: Final = r"\s*(\d{1,9}(?:\.\d{1,6})?)\s*"
_VRAM: Final = (re.compile(_NUMBER + r"(?:Gi?B?)?\s*", re.IGNORECASE), 2**30, "16GB")
_BANDWIDTH: Final = (re.compile(_NUMBER + r"(?:GB/s)?\s*", re.IGNORECASE), 10**9, "600GB/s")
_FLOPS: Final = (re.compile(_NUMBER + r"(?:TFLOPS?|TFLOP/s)?\s*", re.IGNORECASE), 10**12, "80")
_LARGEST: Final = 2**62


def with_own_card(parts: Parts, vram: str, bandwidth: str, tflops: str) -> Parts:
    """Return parts whose card has the figures that are given; "" leaves a figure as it is.

    A card that the catalogue has keeps its other figures. Sizes are binary: 16GB are 16 GiB.

    Raises:
        UsageError: a text is no such number, or the card is unknown and a number is missing.
    """
    given = {
        "vram": _figure("--vram", vram, *_VRAM),
        "memory_bandwidth": _figure("--gpu-bandwidth", bandwidth, *_BANDWIDTH),
        "flops": _figure("--gpu-tflops", tflops, *_FLOPS),
    }
    figures = {key: value for key, value in given.items() if value is not None}
    known = _is_known(parts.gpu)
    if not figures or (known and gpu_named(parts.gpu).card is not None):
        return replace(parts, figures={**parts.figures, **figures})
    if len(figures) < len(given) and parts.gpu == "none":
        raise UsageError(f"no card is named: name one with --gpu, or {HOW_TO_DESCRIBE}")
    if len(figures) < len(given):
        raise UsageError(f"{shown(parts.gpu)} is not in the catalogue: {HOW_TO_DESCRIBE}")
    name = "your card" if known else parts.gpu
    similar = next(card for words, card in _SIMILAR if re.search(words, name, re.IGNORECASE))
    card = gpu_named(similar).card
    assert card is not None  # the catalogue has it
    # Products of 8-bit integers keep their ratio to those of 16 bits.
    figures["int8_ops"] = figures["flops"] * card.int8_ops_per_s // card.flops_per_s
    return replace(parts, gpu=similar, own_card=name, figures={**parts.figures, **figures})


def _is_known(gpu: str) -> bool:
    try:
        gpu_named(gpu)
    except UsageError:
        return False
    return True


def _figure(option: str, text: str, form: re.Pattern[str], unit: int, like: str) -> int | None:
    if not text:
        return None
    match = form.fullmatch(text)
    value = round(float(match[1]) * unit) if match else 0
    if not 0 < value < _LARGEST:
        raise UsageError(f"{option} {shown(text)}: write a number above 0, like {like}")
    return value
