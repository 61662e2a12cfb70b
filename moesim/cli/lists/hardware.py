"""Lists of hardware: profiles of GPUs, cards and processors of the catalogue."""

from __future__ import annotations

import typer

from moesim.cli.lists.kind import Listing, figures_of

__all__ = ["cards", "cpus", "gpus", "show_cards", "show_cpus", "show_gpus"]


def gpus() -> Listing:
    """Return each shipped profile's full name and its figures, as the profile spells them."""
    from moesim.config.yaml_document import load_document
    from moesim.hardware.hardware import PROFILES, hardware_names

    profiles = {name: load_document(PROFILES / f"{name}.yaml").data for name in hardware_names()}
    return {
        name: {"name": profile["name"], "figures": dict(figures_of(profile))}
        for name, profile in profiles.items()
    }


def show_gpus(listing: Listing) -> None:
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


def cards() -> Listing:
    """Return each graphics card of the catalogue with its figures and their sources."""
    from moesim.hardware.parts import gpus as catalogue

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
        for name, card in catalogue().items()
    }


def show_cards(listing: Listing) -> None:
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


def cpus() -> Listing:
    """Return each processor of the catalogue with its figures and their source."""
    from moesim.hardware.parts import cpus as catalogue
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
        for name, cpu in catalogue().items()
    }


def show_cpus(listing: Listing) -> None:
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
