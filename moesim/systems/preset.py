"""A preset: the scenario keys that make a server behave like one published offloading system.

`system: fiddler` in a scenario gives each key of the preset its value, unless the scenario sets the
key itself. A preset is a YAML file. Each setting has a source. `cannot_express` says in which ways
the system differs from these settings, because a preset is not the system.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import Field

from moesim.config.suggest import suggest
from moesim.config.validation import Strict, validate
from moesim.config.yaml_document import load_document
from moesim.errors import UsageError

__all__ = [
    "PRESETS",
    "Preset",
    "Setting",
    "check_system_name",
    "load_preset",
    "preset_keys",
    "system_names",
]

PRESETS: Final = Path(__file__).parent / "presets"
Text = Annotated[str, Field(min_length=1)]


class Setting(Strict):
    """The value of one scenario key, and where the system says so."""

    value: Any = Field(description="The value, as a scenario spells it.")
    source: Text = Field(description="The paper, code or document that the value is from.")
    beside: list[Text] = Field(
        [],
        description="Other keys. The setting is left out where the scenario gives one of them "
        "another value than the preset does.",
    )


class Preset(Strict):
    """One system: what it is, the keys that it sets, and what they cannot express."""

    name: Text = Field(description="The name in scenarios, which is that of the file.")
    about: Text = Field(description="What the system does, in a sentence or two.")
    source: Text = Field(description="The paper and the code.")
    sets: dict[str, Setting] = Field(min_length=1, description="Settings by dotted scenario key.")
    cannot_express: list[Text] = Field(
        min_length=1, description="How the system differs from these settings."
    )


def system_names() -> list[str]:
    """Return the names of all presets, sorted."""
    return sorted(file.stem for file in PRESETS.glob("*.yaml"))


def check_system_name(name: str) -> str | None:
    """Return a message with similar names if there is no system of this name, else None."""
    if name in system_names():
        return None
    hint = suggest(name, system_names(), rest="there are")
    return f"no system is called {name!r}{hint} (see `moesim list systems`)"


@cache  # every point of a sweep needs it
def load_preset(name: str) -> Preset:
    """Return the preset of a system.

    Raises:
        UsageError: there is no such system.
    """
    if wrong := check_system_name(name):
        raise UsageError(wrong)
    return validate(load_document(PRESETS / f"{name}.yaml"), Preset)


@cache
def preset_keys() -> frozenset[str]:
    """Return the keys that a comparison need not name beside the name of a system.

    They are all that some preset sets, and those inside a section that hold such keys. Keys of the
    workload are not among them: systems that serve other requests must not seem comparable.
    """
    keys = [key.split(".") for name in system_names() for key in load_preset(name).sets]
    keys = [path for path in keys if path[0] != "workload"]
    return frozenset(".".join(key[:end]) for key in keys for end in range(2, len(key) + 1))
