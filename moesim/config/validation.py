"""Checking a YAML document against a pydantic model, with plain messages for all mistakes.

Pydantic finds all mistakes at once. This module writes their messages. Each has the place in the
file, the rule, the value, and a similar name or an example of a valid value.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, model_validator

from moesim.config.markers import NO_PATH, models_in
from moesim.config.reasons import reason_of
from moesim.config.suggest import suggest
from moesim.config.yaml_document import Document, KeyPath, dotted
from moesim.errors import ScenarioError, shown

__all__ = [
    "COMMAND_LINE",
    "OVERRIDE",
    "OVERRIDES",
    "SEVERAL",
    "Fault",
    "Strict",
    "check",
    "order",
    "validate",
]

COMMAND_LINE: Final = "--set "
"""Start of the place of a value that came from the command line."""
OVERRIDE: Final = "override "
"""Start of the place of a value that an override from Python set."""
OVERRIDES: Final = (COMMAND_LINE, OVERRIDE)

SEVERAL: Final = "several"
"""Type of an error that stands for several `mistakes`: pairs of a path inside the value and a
message."""

_MAPPING: Final = "must be a mapping of keys and values"
_MODELS: Final = "models"  # key of the validation context


class Strict(BaseModel):
    """Base of all models: unknown keys are refused, and values are not converted silently."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _note_model(cls, value: Any, info: ValidationInfo) -> Any:
        """Note the model of this mapping, so that messages can name its keys and examples."""
        # Pydantic's errors name keys, but not the model that a mapping was checked against.
        if isinstance(value, dict) and info.context is not None:
            info.context.setdefault(_MODELS, {})[id(value)] = cls
        return value


M = TypeVar("M", bound=Strict)


def validate(document: Document, model: type[M], context: Mapping[str, Any] | None = None) -> M:
    """Return `document` as a `model`; validators get `context`.

    Raises:
        ScenarioError: with all mistakes, in the order of the document.
    """
    checked, faults = check(document, model, context)
    if checked is None:
        raise ScenarioError([fault.text for fault in faults])
    return checked


@dataclass(frozen=True, slots=True)
class Fault:
    """One mistake: the path of its key, and its message with the place in the file."""

    path: KeyPath
    text: str


def check(
    document: Document, model: type[M], context: Mapping[str, Any] | None = None
) -> tuple[M | None, list[Fault]]:
    """Return `document` as a `model`, or None and all mistakes in the order of the document."""
    notes: dict[str, Any] = {**(context or {}), _MODELS: {}}
    try:
        return model.model_validate(document.data, context=notes), []
    except ValidationError as error:
        # By text: the branches of a union report the same mistake once each.
        faults = {
            fault.text: fault
            for item in error.errors()
            for fault in _faults(document, dict(item), notes[_MODELS])
        }
        return None, sorted(faults.values(), key=lambda fault: (order(fault.text), fault.text))


def _faults(
    document: Document, error: dict[str, Any], models: Mapping[int, type[BaseModel]]
) -> Iterator[Fault]:
    """Yield the mistakes that one pydantic error stands for: several for `SEVERAL`, else one."""
    context = error.get("ctx", {})
    path = (*_real_path(document, error["loc"]), *context.get("at", ()))
    if error["type"] == SEVERAL:
        for inside, message in context["mistakes"]:
            unknown = len(inside) == 1 and document.at((*path, *inside)) is not None
            yield _fault(document, (*path, *inside), message, key=unknown)
        return
    unknown = error["type"] == "extra_forbidden"
    place = document.place(path, key=unknown)
    if error["type"] == NO_PATH:
        typed = place.startswith(OVERRIDES)
        message = context["marker"].missing(context["value"], context["base"], typed=typed)
    else:
        message = _message(document, path, error, models)
    yield _fault(document, path, message, key=unknown)


def _fault(document: Document, path: KeyPath, message: str, *, key: bool) -> Fault:
    prefix = f"{dotted(path)}: " if path else ""
    return Fault(path, f"{document.place(path, key=key)}: {prefix}{message}")


def order(text: str) -> tuple[Any, ...]:
    """Return the sort key of a message: file, line and column; overrides come last."""
    if text.startswith(OVERRIDES):
        return (1, "", 0, 0)
    place = re.match(r"(.*?):([0-9]+):([0-9]+): ", text)
    return (0, place[1], int(place[2]), int(place[3])) if place else (0, "", 0, 0)


def _real_path(document: Document, loc: tuple[str | int, ...]) -> KeyPath:
    """Return the path of an error in the document.

    Pydantic's `loc` also holds names of branches of a union, which are no keys.
    """
    path: KeyPath = ()
    for index, part in enumerate(loc):
        here = document.at(path)
        inside = (
            (isinstance(here, dict) and part in here)
            or (isinstance(here, list) and isinstance(part, int) and part < len(here))
            or (isinstance(here, dict) and index == len(loc) - 1)  # a missing key
        )
        if inside:
            path = (*path, part)
    return path


def _message(
    document: Document,
    path: KeyPath,
    error: dict[str, Any],
    models: Mapping[int, type[BaseModel]],
) -> str:
    """Return the message of one pydantic error, without its place."""
    kind, context, value = error["type"], error.get("ctx", {}), error["input"]
    owner = models.get(id(document.at(path[:-1])))
    if "at" in context:  # raised by a model's own check, whose value would be the whole section
        return reason_of(error)
    match kind:
        case "extra_forbidden":
            names = sorted(owner.model_fields) if owner else []
            rest = "the keys here are" if names else ""
            elsewhere = _elsewhere(str(path[-1]), owner, models.get(id(document.data)))
            return f"unknown key{elsewhere or suggest(str(path[-1]), names, rest=rest)}"
        case "missing":
            if isinstance(document.at(path), str):  # a word that stands for a mapping
                return _in_full(models.get(id(value)), path, value)
            return "is required and missing" + _example(owner, path)
        case "value_error":
            return reason_of(error)
        case "literal_error" | "union_tag_invalid":
            # Pydantic gives the choices as one text.
            expected = context.get("expected") or context.get("expected_tags")
            word = context.get("tag", value)
            choices = [c.strip().strip("'") for c in _choices(str(expected))]
            hint = suggest(word, choices) if isinstance(word, str) else ""
            return f"{shown(word)} is none of {', '.join(choices)}{hint}"
        case "union_tag_not_found":
            key = str(context["discriminator"]).strip("'")
            kinds = ", ".join(_tags(owner, path, key))
            return f"needs the key {key!r}, which is one of {kinds} and decides the other keys"
    rule = _rule(kind, context)
    if value is None and rule == _MAPPING:
        return "holds nothing; indent its keys below it, or take it out"
    return f"{rule or reason_of(error)}, not {shown(value)}{_example(owner, path)}"


def _elsewhere(name: str, owner: type[BaseModel] | None, root: type[BaseModel] | None) -> str:
    """Return where a key belongs that is unknown here, if it is known in a section or outside."""
    if root is None or owner is None:
        return ""
    if owner is not root:
        known = name in root.model_fields
        return f"; {name!r} is a key of the file, not of this section" if known else ""
    sections = [
        section
        for section, field in root.model_fields.items()
        if any(name in inner.model_fields for inner in models_in(field.annotation))
    ]
    if not sections:
        return ""
    return f"; {name!r} is a key of {' or '.join(sections)}: write it inside that section"


def _in_full(model: type[BaseModel] | None, path: KeyPath, given: Mapping[str, Any]) -> str:
    """Return the message for a word whose mapping, `given`, lacks required keys of `model`."""
    fields = model.model_fields if model else {}
    required = [name for name, field in fields.items() if field.is_required()]
    missing = [name for name in required if name not in given]
    entries = {**given, **{name: (fields[name].examples or ["..."])[0] for name in missing}}
    text = ", ".join(f"{name}: {_plain(example)}" for name, example in entries.items())
    return f"{' and '.join(missing)} must be given too; write `{path[-1]}: {{{text}}}`"


def _tags(owner: type[BaseModel] | None, path: KeyPath, key: str) -> list[str]:
    """Return the values of `key` that choose a branch of the tagged union at `path`."""
    field = owner.model_fields.get(str(path[-1])) if owner else None
    branches = models_in(field.annotation) if field else ()
    return [get_args(branch.model_fields[key].annotation)[0] for branch in branches]


def _plain(example: Any) -> str:
    return example if isinstance(example, str) else json.dumps(example)


def _choices(expected: str) -> list[str]:
    """Return the words in pydantic's `'a', 'b' or 'c'`."""
    return expected.replace(" or ", ", ").split(", ")


def _rule(kind: str, context: Mapping[str, Any]) -> str | None:
    """Return the rule that an error of this type breaks; None leaves pydantic's own text."""
    match kind:
        case "int_type" | "int_parsing" | "int_from_float":
            return "must be a whole number"
        case "float_type" | "float_parsing" | "finite_number":
            return "must be a finite number"
        case "string_type" | "string_unicode":
            return "must be text"
        case "string_too_short" | "too_short":
            return "must not be empty"
        case "bool_type" | "bool_parsing":
            return "must be true or false"
        case "list_type":
            return "must be a list"
        case "dict_type" | "model_type" | "model_attributes_type":
            return _MAPPING
        case "greater_than":
            return f"must be greater than {context['gt']:g}"
        case "greater_than_equal":
            return f"must be at least {context['ge']:g}"
        case "less_than":
            return f"must be less than {context['lt']:g}"
        case "less_than_equal":
            return f"must be at most {context['le']:g}"
    return None


def _example(owner: type[BaseModel] | None, path: KeyPath) -> str:
    """Return the hint with an example of a valid value, or nothing if the key has none."""
    field = owner.model_fields.get(str(path[-1])) if owner and path else None
    if field is None or not field.examples:
        return ""
    return f"; write for example `{path[-1]}: {_plain(field.examples[0])}`"
