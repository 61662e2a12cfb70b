"""Who makes a card, and which interfaces of kernels it can have.

The architecture tells the vendor of a card of the catalogue, and the name that of a profile.
Vulkan runs on all cards, on Apple's through MoltenVK; SYCL on all but those, through plug-ins.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from moesim.hardware.hardware import Hardware

__all__ = ["INTERFACES", "maker_of", "vendor_of"]

INTERFACES: Final[Mapping[str, tuple[str, ...]]] = {
    "NVIDIA": ("cuda", "vulkan", "sycl"),
    "AMD": ("hip", "vulkan", "sycl"),
    "Intel": ("sycl", "vulkan"),
    "Apple": ("metal", "vulkan"),
}
"""The interfaces that cards of a vendor can have, the vendor's own first."""

_ARCHITECTURES: Final = {
    "NVIDIA": "kepler|maxwell|pascal|volta|turing|ampere|ada|hopper|blackwell",
    "AMD": r"(gcn|rdna|cdna)\d*",
    "Intel": r"xe\d*",
    "Apple": "apple",
}
_NAMES: Final = {
    "NVIDIA": "nvidia|geforce|rtx|gtx|quadro|tesla",
    "AMD": "amd|radeon|instinct",
    "Intel": "intel|arc",
    "Apple": "apple",
}


def maker_of(architecture: str) -> str | None:
    """Return the vendor of an architecture of the catalogue, None for another."""
    for vendor, pattern in _ARCHITECTURES.items():
        if re.fullmatch(pattern, architecture):
            return vendor
    return None


def vendor_of(hardware: Hardware) -> str | None:
    """Return the vendor of the GPU; None where there is none, or where nothing tells it.

    The first vendor in the name of a profile counts, because a processor is named after the card.
    """
    if not hardware.has_gpu:
        return None
    if (maker := maker_of(hardware.architecture)) is not None:
        return maker
    for word in re.findall("[a-z]+", hardware.name.lower()):
        for vendor, pattern in _NAMES.items():
            if re.fullmatch(pattern, word):
                return vendor
    return None
