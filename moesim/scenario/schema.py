"""The JSON Schema of a scenario file, for editors and for other languages."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from moesim.scenario.scenario import Scenario

__all__ = ["SCHEMA_PATH", "json_schema"]

SCHEMA_PATH: Final = Path(__file__).with_name("scenario.schema.json")


def json_schema() -> dict[str, Any]:
    """Return the schema (draft 2020-12) of the models that check a scenario."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Scenario.model_json_schema(),
        "title": "moesim scenario",
    }
