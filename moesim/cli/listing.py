"""`moesim list`: what a scenario can name (GPUs, engines, models, ...), with figures."""

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
        typer.Argument(
            help="What to list: gpus, engines, models, formats, policies, cards or cpus.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List what a scenario can name: GPUs, engines, models, formats, policies, cards and CPUs."""
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
    typer.echo("\n`moesim list cards` has more GPUs, for `hardware: {gpu: ...}`.")
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
    from moesim.cli.engine_figures import show_figures
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
        if engine["figures"]:
            show_figures(engine["figures"])


def _cards() -> Listing:
    """Return each graphics card of the catalogue with its figures and their sources."""
    from moesim.hardware.parts import gpus

    return {
        name: {
            "family": card.family,
            "architecture": card.architecture,
            "vram_bytes": card.vram_bytes,
            "memory_bytes_per_s": card.memory_bytes_per_s,
            "flops_per_s": card.flops_per_s,
            "int8_ops_per_s": card.int8_ops_per_s,
            "pcie": card.pcie,
            "unified": card.unified,
            "kind": "assumed",
            "memory_source": card.memory_source,
            "rate_source": card.rate_source,
        }
        for name, card in gpus().items()
    }


def _show_cards(listing: Listing) -> None:
    from moesim.report.tabular import Table, write_tables

    headers = ("GiB", "memory GB/s", "FP16 TFLOPS", "INT8 TOPS", "link", "architecture")
    table = Table("", ["gpu", *headers])
    for name, card in listing.items():
        table.add(
            name,
            f"{card['vram_bytes'] / 2**30:g}",
            f"{card['memory_bytes_per_s'] / 1e9:.0f}",
            f"{card['flops_per_s'] / 1e12:.1f}",
            f"{card['int8_ops_per_s'] / 1e12:.0f}",
            card["pcie"] or ("one memory" if card["unified"] else "C2C"),
            card["architecture"],
        )
    write_tables([table])
    _show_sources(listing, ("memory_source", "rate_source"))


def _cpus() -> Listing:
    """Return each processor of the catalogue with its figures and their source."""
    from moesim.hardware.parts import cpus
    from moesim.hardware.parts.tables import simd_source

    return {
        name: {
            "family": cpu.family,
            "cores": cpu.all_cores,
            "flops_per_s": cpu.ops_per_s("fp32"),
            "int8_ops_per_s": cpu.ops_per_s("int8"),
            "instructions": cpu.simd,
            "memory": cpu.memory,
            "pcie": cpu.pcie,
            "kind": "assumed",
            "source": cpu.source,
            "rate_source": simd_source(),
        }
        for name, cpu in cpus().items()
    }


def _show_cpus(listing: Listing) -> None:
    from moesim.report.tabular import Table, write_tables

    headers = ("cores", "FP32 GFLOPS", "INT8 GOPS", "instructions", "memory", "PCIe")
    table = Table("", ["cpu", *headers])
    for name, cpu in listing.items():
        table.add(
            name,
            str(cpu["cores"]),
            f"{cpu['flops_per_s'] / 1e9:.0f}",
            f"{cpu['int8_ops_per_s'] / 1e9:.0f}",
            cpu["instructions"],
            cpu["memory"],
            cpu["pcie"],
        )
    write_tables([table])
    _show_sources(listing, ("source", "rate_source"))


def _show_sources(listing: Listing, keys: tuple[str, ...]) -> None:
    """Print the sources of each family once; all figures of a catalogue are assumed."""
    typer.echo("\nAll figures are assumed. Sources:")
    sources = {part["family"]: "; ".join(part[key] for key in keys) for part in listing.values()}
    for family, text in sources.items():
        typer.echo(f"  {family}: {text}")


def _models() -> Listing:
    """Return each shipped shape's layers, experts and sizes, at the bits it is published in."""
    from moesim.model.shapes import named_shape, shape_aliases, shape_names

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
            "aliases": shape_aliases(name),
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
    typer.echo("\naliases")
    for name, model in listing.items():
        if model["aliases"]:
            typer.echo(f"  {name:<22} {', '.join(model['aliases'])}")


def _formats() -> Listing:
    """Return each format's block, bits, family and other blocks, and whether its rules are known.

    `bits` are those of the block of most matrices; the mean depends on the model.
    """
    from moesim.model.formats import block_named, format_named, format_names

    listing: Listing = {}
    for name in format_names():
        form = format_named(name).format
        assert form is not None
        # Formats that quantise only layers name the block of their matrices in a rule.
        main = form.block_of("ffn_gate_exps", 0, (0, 2, 1.0))
        others = {rule.block for rule in form.rules} | {form.block, form.embedding, form.head}
        block = block_named(main)
        listing[form.name] = {
            "block": main,
            "bits": block.bits,
            "family": block.family,
            "other_blocks": sorted(others - {main, ""}),
            "documented": form.documented,
        }
    return listing


def _show_formats(listing: Listing) -> None:
    from moesim.report.tabular import Table, write_tables

    table = Table("", ["format", "experts", "bits", "family", "rules", "also has"])
    for name, form in listing.items():
        rules = "documented" if form["documented"] else "assumed"
        also = ", ".join(form["other_blocks"])
        table.add(name, form["block"], f"{form['bits']:g}", form["family"], rules, also)
    write_tables([table])


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
    "formats": (_formats, _show_formats),
    "policies": (_policies, _show_policies),
    "cards": (_cards, _show_cards),
    "cpus": (_cpus, _show_cpus),
}
