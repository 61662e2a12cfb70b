"""Lists of what moesim reads and writes: routing, requests, arrivals, metrics, extras."""

from __future__ import annotations

from typing import Any, Final

import typer

from moesim.cli.lists.kind import Listing, show_rows

__all__ = [
    "arrivals",
    "extras",
    "importers",
    "metrics",
    "show_arrivals",
    "show_extras",
    "show_importers",
    "show_metrics",
    "show_workloads",
    "workloads",
]

_UNITS: Final = {"/s": "1/s", "share": "share, 0 to 1", "": "count"}
"""Units that a list shows longer than `unit_of` gives them."""


def importers() -> Listing:
    """Return the formats of routing that `moesim trace convert` reads."""
    from moesim.trace.importers import FORMATS

    return {name: {"expects": each.expects} for name, each in FORMATS.items()}


def show_importers(listing: Listing) -> None:
    """Print the formats of routing."""
    show_rows(("importer", "expects"), ((name, each["expects"]) for name, each in listing.items()))
    typer.echo("\nmoesim trace convert FILE FOLDER --from NAME (docs/imports.md)")


def workloads() -> Listing:
    """Return the formats of request files, with the columns or keys that they need."""
    from moesim.workload.formats import FORMATS

    return {
        name: {
            "container": each.container,
            "arrival": each.arrival,
            "unit": each.unit if each.arrival else None,
            "prompt": each.prompt,
            "output": each.output,
            "blocks": each.blocks,
        }
        for name, each in FORMATS.items()
    }


def show_workloads(listing: Listing) -> None:
    """Print the formats of request files."""
    keys = ("container", "arrival", "unit", "prompt", "output", "blocks")
    rows = ((name, *(each[key] or "" for key in keys)) for name, each in listing.items())
    show_rows(("workload", *keys), rows)
    typer.echo("\nworkload: {arrivals: {kind: file, path: FILE, format: NAME}} (docs/workloads.md)")


def arrivals() -> Listing:
    """Return the kinds of `workload.arrivals`, with their keys and defaults."""
    from typing import get_args

    from moesim.scenario import arrivals as module

    classes = [each for each in vars(module).values() if _is_kind(each)]
    return {
        name: {
            "what": " ".join((each.__doc__ or "").split()),
            "keys": [key for key in each.model_fields if key != "kind"],
        }
        for each in classes
        for name in get_args(each.model_fields["kind"].annotation)
    }


def _is_kind(value: Any) -> bool:
    from pydantic import BaseModel

    return isinstance(value, type) and issubclass(value, BaseModel) and "kind" in value.model_fields


def show_arrivals(listing: Listing) -> None:
    """Print the kinds of arrivals."""
    rows = ((name, ", ".join(each["keys"]), each["what"]) for name, each in listing.items())
    show_rows(("arrivals", "keys", "what"), rows)
    typer.echo("\nworkload: {arrivals: {kind: NAME, ...}} (docs/workloads.md)")


def metrics() -> Listing:
    """Return the numbers of `summary.json` that a search can ask for, with their units."""
    from moesim.results.metric_names import METRICS, unit_of

    units = {name: unit_of(name) for name in METRICS}
    return {name: {"unit": _UNITS.get(unit, unit)} for name, unit in units.items()}


def show_metrics(listing: Listing) -> None:
    """Print the metrics and their units."""
    show_rows(("metric", "unit"), ((name, each["unit"]) for name, each in listing.items()))
    typer.echo('\nmoesim search X.yaml --until "METRIC <= NUMBER"; docs/results.md explains each')


def extras() -> Listing:
    """Return the optional parts of the installation, and whether their packages are there."""
    from moesim.doctor.packages import PURPOSES, extra_checks, requirements

    states = {each.name.removeprefix("extra "): each for each in extra_checks(requirements())}
    return {
        name: {
            "for": purpose,
            "state": states[name].state if name in states else "unknown",
            "found": states[name].found if name in states else "",
        }
        for name, purpose in PURPOSES.items()
    }


def show_extras(listing: Listing) -> None:
    """Print the extras."""
    rows = ((name, each["state"], each["for"]) for name, each in listing.items())
    show_rows(("extra", "state", "for"), rows)
    typer.echo(
        "\nin a clone of moesim: pip install -c constraints.txt '.[NAME]'; see `moesim doctor`"
    )
