"""Which of an engine's kernels for GPUs run on a machine: those of an interface that it can have.

The interface of the card's vendor is the default, where the engine has it.
"""

from __future__ import annotations

from moesim.engines.engine import Engine
from moesim.errors import UsageError
from moesim.hardware.hardware import Hardware
from moesim.hardware.vendors import INTERFACES, vendor_of

__all__ = ["foreign_interface", "interface_for"]


def interface_for(engine: Engine, hardware: Hardware, chosen: str | None = None) -> str | None:
    """Return the interface of an engine on a machine; None for an engine without kernels on GPUs.

    `chosen` is that of the scenario. Without it: the first of the vendor's interfaces that the
    engine has; else, or where the vendor is not known, the first of the engine.

    Raises:
        UsageError: the engine lacks the chosen interface, or the card cannot have it.
    """
    if not engine.gpu:
        return None
    vendor = vendor_of(hardware)
    possible = [name for name in INTERFACES.get(vendor or "", engine.gpu) if name in engine.gpu]
    if chosen is None:
        return next(iter([*possible, *engine.gpu]))
    engine.kernels(chosen)
    if vendor is not None and chosen not in INTERFACES[vendor]:
        other = f"write {' or '.join(possible)}" if possible else f"{engine.name} has no other"
        raise UsageError(
            f"{chosen} does not run on cards of {vendor}, like {hardware.name}; {other}, or leave "
            "the interface out"
        )
    return chosen


def foreign_interface(engine: Engine, hardware: Hardware) -> str | None:
    """Return the vendor of a card for which an engine has no kernels; None where it has some."""
    vendor = vendor_of(hardware)
    if vendor is None or not engine.gpu or set(INTERFACES[vendor]) & engine.gpu.keys():
        return None
    return vendor
