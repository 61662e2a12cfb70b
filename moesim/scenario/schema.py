"""The JSON Schema of a scenario file, for editors and for other languages."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from moesim.hardware.hardware import hardware_names
from moesim.hardware.shapes import shape_names
from moesim.scenario.scenario import Scenario
from moesim.scenario.sections import SHORTHANDS

__all__ = ["SCHEMA_PATH", "json_schema"]

SCHEMA_PATH: Final = Path(__file__).with_name("scenario.schema.json")


def json_schema() -> dict[str, Any]:
    """The schema (draft 2020-12), generated from the models that check a scenario."""
    schema = Scenario.model_json_schema()
    known = {"hardware": hardware_names(), "model": ["trace", *shape_names()]}
    owners = {"": schema["properties"], "workload": schema["$defs"]["Workload"]["properties"]}
    for *outside, last in SHORTHANDS:
        field = owners[".".join(map(str, outside))][last]
        inner = {key: field.pop(key) for key in ("$ref", "oneOf", "discriminator") if key in field}
        kinds = list(inner.get("discriminator", {}).get("mapping", {}))
        inner.pop("discriminator", None)
        names = known.get(str(last), kinds)
        text = {"type": "string"}
        field["anyOf"] = [*([{"enum": names}] if names else []), text, inner]
        if kinds:
            field["anyOf"].remove(text)
    for key, info in Scenario.model_fields.items():
        # Left out by pydantic where it equals the section's own.
        schema["properties"][key].setdefault("description", info.description)
    activations = schema["$defs"]["Memory"]["properties"]["activations"]
    activations["anyOf"] = [{"const": "auto"}, *activations["anyOf"]]
    lengths = schema["$defs"]["Workload"]["properties"]["lengths"]
    lengths["anyOf"] = [{"const": "recorded"}, {"$ref": "#/$defs/Lengths"}]
    for field in (activations, lengths):
        field.pop("default", None)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "moesim scenario",
    }
