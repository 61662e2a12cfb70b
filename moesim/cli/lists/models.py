"""Lists of models, formats of weights, and engines."""

from __future__ import annotations

import typer

from moesim.cli.lists.kind import Listing, figures_of

__all__ = ["engines", "formats", "models", "show_engines", "show_formats", "show_models"]


def models() -> Listing:
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


def show_models(listing: Listing) -> None:
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


def formats() -> Listing:
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


def show_formats(listing: Listing) -> None:
    from moesim.report.tabular import Table, write_tables

    table = Table("", ["format", "experts", "bits", "family", "rules", "also has"])
    for name, form in listing.items():
        rules = "documented" if form["documented"] else "assumed"
        also = ", ".join(form["other_blocks"])
        table.add(name, form["block"], f"{form['bits']:g}", form["family"], rules, also)
    write_tables([table])


def engines() -> Listing:
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
            "figures": dict(figures_of(profile)),
        }
    return listing


def show_engines(listing: Listing) -> None:
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
