"""Names for shell completion: what an option or argument may name, found without heavy imports."""

from __future__ import annotations

from collections.abc import Callable, Iterable

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


def _starting(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        return [name for name in names() if name.startswith(incomplete)]

    return complete


def _models() -> list[str]:
    from moesim.model.shapes import shape_names

    return shape_names()


def _formats() -> list[str]:
    from moesim.model.formats import format_names

    return format_names()


def _hardware() -> list[str]:
    from moesim.hardware.hardware import hardware_names
    from moesim.hardware.parts import gpus

    return sorted({*hardware_names(), *gpus()})


def _cards() -> list[str]:
    from moesim.hardware.parts import gpus

    return ["none", *gpus()]


def _cpus() -> Iterable[str]:
    from moesim.hardware.parts import cpus

    return cpus()


def _importers() -> Iterable[str]:
    from moesim.trace.importers import FORMATS

    return FORMATS


def _metrics() -> Iterable[str]:
    from moesim.results.metric_names import METRICS

    return METRICS


def _kinds() -> list[str]:
    from moesim.cli.lists import KINDS

    return list(KINDS)


def of_listed(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the names of the kind that stands before."""
    from moesim.cli.lists import KINDS

    kind = KINDS.get(str(ctx.params.get("kind")))
    return [] if kind is None else _starting(kind.names)(incomplete)


def _policies() -> list[str]:
    from moesim.policies import names

    return names("eviction")


of_cards = _starting(_cards)
of_cpus = _starting(_cpus)
of_importers = _starting(_importers)
of_metrics = _starting(_metrics)
of_kinds = _starting(_kinds)
of_models = _starting(_models)
of_formats = _starting(_formats)
of_hardware = _starting(_hardware)
of_policies = _starting(_policies)
