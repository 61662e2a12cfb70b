"""The pages of the reference, made from the code: nothing in them is written by hand."""

from __future__ import annotations

import json

import api
import commands
import lists
import metrics
import policies
import schema
from repository import ROOT


def pages() -> dict[str, str]:
    """Return the Markdown of each page by name."""
    keys = json.loads((ROOT / "moesim/scenario/scenario.schema.json").read_text("utf-8"))
    return {
        "scenario": schema.page(keys),
        "commands": commands.page(),
        "api": api.page(),
        "metrics": metrics.page(),
        "policies": policies.page(),
        "gpus": lists.figures("GPUs", "gpus", "hardware: NAME"),
        "cards": lists.rows("Cards", "cards", "hardware: {gpu: NAME}"),
        "cpus": lists.rows("CPUs", "cpus", "hardware: {cpu: NAME}"),
        "models": lists.rows("Models", "models", "model: NAME"),
        "formats": lists.rows("Formats of weights", "formats", "model: {format: NAME}"),
        "engines": lists.figures("Engines", "engines", "engine: NAME"),
        "systems": lists.systems("Systems", "system: NAME"),
    }
