"""Names for shell completion: what an option or argument may name, found without heavy imports.

typer offers those that begin with what is typed.
"""

from __future__ import annotations

from collections.abc import Iterable

import typer

__all__ = [
    "of_cards",
    "of_cpus",
    "of_formats",
    "of_hardware",
    "of_importers",
    "of_kinds",
    "of_listed",
    "of_metrics",
    "of_models",
    "of_policies",
]


def of_models() -> list[str]:
    from moesim.model.shapes import shape_names

    return shape_names()


def of_formats() -> list[str]:
    from moesim.model.formats import format_names

    return format_names()


def of_hardware() -> list[str]:
    from moesim.hardware.hardware import hardware_names
    from moesim.hardware.parts import gpus

    return sorted({*hardware_names(), *gpus()})


def of_cards() -> list[str]:
    from moesim.hardware.parts import gpus

    return ["none", *gpus()]


def of_cpus() -> Iterable[str]:
    from moesim.hardware.parts import cpus

    return cpus()


def of_importers() -> Iterable[str]:
    from moesim.trace.importers import FORMATS

    return FORMATS


def of_metrics() -> Iterable[str]:
    from moesim.results.metric_names import METRICS

    return METRICS


def of_kinds() -> list[str]:
    from moesim.cli.lists import KINDS

    return list(KINDS)


def of_listed(ctx: typer.Context) -> list[str]:
    """Return the names of the kind that stands before."""
    from moesim.cli.lists import KINDS

    kind = KINDS.get(str(ctx.params.get("kind")))
    return [] if kind is None else kind.names()


def of_policies() -> list[str]:
    from moesim.policies import names

    return names("eviction")
