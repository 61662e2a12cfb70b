"""The lists of `moesim list`: what a scenario or a command can name."""

from __future__ import annotations

from typing import Final

from moesim.cli.lists import hardware, inputs, models, policies, systems
from moesim.cli.lists.kind import Kind, Listing

__all__ = ["KINDS", "Kind", "Listing"]

KINDS: Final[dict[str, Kind]] = {
    "gpus": Kind("GPU profiles", "hardware: NAME", hardware.gpus, hardware.show_gpus),
    "cards": Kind(
        "graphics cards of the catalogue", "hardware: {gpu: NAME}", hardware.cards,
        hardware.show_cards,
    ),
    "cpus": Kind(
        "processors of the catalogue", "hardware: {cpu: NAME}", hardware.cpus, hardware.show_cpus
    ),
    "models": Kind("model shapes", "model: NAME", models.models, models.show_models),
    "formats": Kind(
        "formats of weights", "model: {format: NAME}", models.formats, models.show_formats
    ),
    "engines": Kind("engine profiles", "engine: NAME", models.engines, models.show_engines),
    "policies": Kind(
        "policies of four families", "cache: {policy: NAME}", policies.policies,
        policies.show_policies, nested=True,
    ),
    "systems": Kind(
        "presets of offloading systems", "system: NAME", systems.systems, systems.show_systems,
        systems.show_system,
    ),
    "arrivals": Kind(
        "ways in which requests arrive", "workload: {arrivals: {kind: NAME}}", inputs.arrivals,
        inputs.show_arrivals,
    ),
    "workloads": Kind(
        "formats of request files", "arrivals: {kind: file, format: NAME}", inputs.workloads,
        inputs.show_workloads,
    ),
    "importers": Kind(
        "formats of recorded routing", "moesim trace convert --from NAME", inputs.importers,
        inputs.show_importers,
    ),
    "metrics": Kind(
        "numbers of a run, with units", "moesim search --minimize NAME", inputs.metrics,
        inputs.show_metrics,
    ),
    "extras": Kind(
        "optional parts of the installation", "pip install '.[NAME]'", inputs.extras,
        inputs.show_extras,
    ),
}  # fmt: skip
"""The kinds in the order in which `moesim list` shows them."""
