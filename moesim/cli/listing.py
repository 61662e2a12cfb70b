"""`moesim list`: the GPUs, engines, models and policies that a scenario can name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Final

import typer

__all__ = ["register"]

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Listing = dict[str, dict[str, Any]]
"""What `--json` prints; the tables show the same data."""


def register(app: typer.Typer) -> None:
    """Add the commands of this file to the application."""
    app.command("list")(list_kind)
    app.command(hidden=True)(policies)  # its name before `list`; scripts may still use it


def list_kind(
    kind: Annotated[
        str | None,
        typer.Argument(help="What to list: gpus, engines, models or policies.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the GPUs, engines, models or policies of scenarios, with figures and sources."""
    from moesim.cli.output import echo_json
    from moesim.config.suggest import suggest
    from moesim.errors import UsageError

    if kind not in _KINDS:
        hint = suggest(kind or "", _KINDS)
        problem = "say what to list" if kind is None else f"there is no list of {kind!r}"
        raise UsageError(f"{problem}: {', '.join(_KINDS)}{hint}")
    read, show = _KINDS[kind]
    listing = read()
    if as_json:
        echo_json(listing)
    else:
        show(listing)


def policies(as_json: JsonOption = False) -> None:
    """List policies, as `moesim list policies` does."""
    list_kind("policies", as_json)


def _gpus() -> Listing:
    """Return each shipped profile's full name and its figures, as the profile spells them."""
    from moesim.config.yaml_document import load_document
    from moesim.hardware.hardware import PROFILES, hardware_names

    profiles = {name: load_document(PROFILES / f"{name}.yaml").data for name in hardware_names()}
    return {
        name: {"name": profile["name"], "figures": dict(_figures(profile))}
        for name, profile in profiles.items()
    }


def _figures(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each figure of a profile by its dotted key: value, kind and source."""
    for key, value in section.items():
        if isinstance(value, Mapping) and "value" in value:
            yield prefix + key, dict(value)
        elif isinstance(value, Mapping):
            yield from _figures(value, f"{prefix}{key}.")


def _show_gpus(listing: Listing) -> None:
    from moesim.report.tabular import Table, write_tables

    keys = ("vram", "memory_bandwidth", "flops", "h2d.pinned_bandwidth", "d2h.pinned_bandwidth")
    headers = ("VRAM", "memory", "FLOPS", "host to GPU", "GPU to host")
    table = Table("", ["gpu", *headers, "figures are"])
    for name, gpu in listing.items():
        figures = gpu["figures"]
        kinds = sorted({figure["kind"] for figure in figures.values()})
        table.add(name, *(str(figures[key]["value"]) for key in keys), ", ".join(kinds))
    write_tables([table])
    for name, gpu in listing.items():
        typer.echo(f"\n{name}: {gpu['name']}")
        for key, figure in gpu["figures"].items():
            typer.echo(f"  {key:<22} {figure['value']:<12} {figure['kind']}: {figure['source']}")


def _engines() -> Listing:
    """Return `ideal` and each shipped engine: its description, and its figures as it spells them.

    The kind of an engine is the weakest of its figures.
    """
    from moesim.config.yaml_document import load_document
    from moesim.engines.engine import IDEAL, PROFILES, engine_names, load_engine

    listing: Listing = {}
    for name in engine_names():
        engine, profile = load_engine(name), {}
        if name != IDEAL.name:
            profile = load_document(PROFILES / f"{name}.yaml").data
        listing[name] = {
            "about": " ".join(engine.about.split()),
            "kind": engine.kind(),
            "interfaces": list(engine.gpu),
            "figures": dict(_figures(profile)),
        }
    return listing


def _show_engines(listing: Listing) -> None:
    from moesim.report.tabular import Table, write_tables

    table = Table("", ["engine", "interfaces", "CPU", "tokens a step", "rows to copy", "kinds"])
    for name, engine in listing.items():
        figures = engine["figures"]
        limits = [figures.get(key, {}).get("value", "") for key in ("ubatch", "batch_threshold")]
        kinds = sorted({figure["kind"] for figure in figures.values()}) or [engine["kind"]]
        on_cpu = "yes" if any(key.startswith("cpu.") for key in figures) else ""
        table.add(
            name, ", ".join(engine["interfaces"]), on_cpu, *map(str, limits), ", ".join(kinds)
        )
    write_tables([table])
    for name, engine in listing.items():
        typer.echo(f"\n{name}: {engine['about']}")
        for key, figure in engine["figures"].items():
            value = figure["value"]
            if isinstance(value, Mapping):
                value = ", ".join(f"{part} {number}" for part, number in value.items())
            typer.echo(f"  {key:<22} {value!s:<12} {figure['kind']}: {figure['source']}")


def _models() -> Listing:
    """Return each shipped shape's layers, experts and sizes, at the bits it is published in."""
    from moesim.model.shapes import named_shape, shape_names

    listing = {}
    for name in shape_names():
        shape = named_shape(name)
        experts = len(shape.moe_layers) * shape.num_experts
        listing[name] = {
            "num_layers": shape.num_layers,
            "num_moe_layers": len(shape.moe_layers),
            "num_experts": shape.num_experts,
            "top_k": shape.top_k,
            "expert_bits": shape.expert_bits,
            "expert_bytes": shape.expert_bytes,
            "experts_bytes": experts * shape.expert_bytes,
            "total_bytes": experts * shape.expert_bytes + shape.fixed_bytes,
            "total_params": shape.total_params,
            "source": shape.source,
        }
    return listing


def _show_models(listing: Listing) -> None:
    from moesim.config.units import format_bytes
    from moesim.report.tabular import Table, write_tables

    headers = ("layers", "MoE layers", "experts", "top-k", "bits", "one expert", "all experts")
    table = Table("", ["model", *headers, "whole model", "parameters"])
    for name, model in listing.items():
        table.add(
            name,
            str(model["num_layers"]),
            str(model["num_moe_layers"]),
            str(model["num_experts"]),
            str(model["top_k"]),
            f"{model['expert_bits']:g}",
            *(format_bytes(model[key]) for key in ("expert_bytes", "experts_bytes", "total_bytes")),
            f"{model['total_params'] / 1e9:.1f} G",
        )
    write_tables([table])
    typer.echo("\nsources")
    for name, model in listing.items():
        typer.echo(f"  {name:<22} {model['source']}")


def _policies() -> Listing:
    """Return the policies of each family with their options, also those of installed packages."""
    from dataclasses import MISSING, fields

    from moesim.policies import FAMILIES, find, names
    from moesim.policies.registry import NoOptions, broken_packages

    for message in broken_packages():
        typer.echo(f"warning: {message}", err=True)
    listing: Listing = {}
    for family in FAMILIES:
        for name in names(family):
            policy = find(family, name)
            options = {
                field.name: None if field.default is MISSING else field.default
                for field in fields(getattr(policy, "Options", NoOptions))
            }
            # The docstring is the only description that a policy of another package must have.
            summary = (policy.__doc__ or "").strip().split("\n\n")[0]
            listing.setdefault(family, {})[name] = {
                "options": options,
                "what": " ".join(summary.split()),
            }
    return listing


def _show_policies(listing: Listing) -> None:
    for family, members in listing.items():
        typer.echo(f"{family}:")
        for name, about in members.items():
            knobs = ", ".join(f"{key}={value}" for key, value in about["options"].items())
            typer.echo(f"  {name:<14} {about['what']}" + (f" [{knobs}]" if knobs else ""))


_KINDS: Final[dict[str, tuple[Callable[[], Listing], Callable[[Listing], None]]]] = {
    "gpus": (_gpus, _show_gpus),
    "engines": (_engines, _show_engines),
    "models": (_models, _show_models),
    "policies": (_policies, _show_policies),
}
