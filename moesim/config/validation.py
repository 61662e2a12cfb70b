"""From a YAML document to a checked model, with every mistake in plain words.

pydantic finds the mistakes, all at once; this module says them as people would, each with the
place in the file, the value, the rule, and a near match or an example of a right value.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, model_validator

from moesim.config.yaml_document import Document, KeyPath, dotted
from moesim.errors import ScenarioError, shown

__all__ = ["Strict", "near_match", "validate"]

_MODELS = "models"


class Strict(BaseModel):
    """A mapping with known keys only, and no silent conversion of its values."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _note_model(cls, value: Any, info: ValidationInfo) -> Any:
        """Tell the messages which keys this very mapping may have."""
        if isinstance(value, dict) and info.context is not None:
            info.context.setdefault(_MODELS, {})[id(value)] = cls
        return value


M = TypeVar("M", bound=Strict)


def validate(document: Document, model: type[M], context: Mapping[str, Any] | None = None) -> M:
    """`document` as a `model`.

    Raises:
        ScenarioError: with all mistakes, in the order of the document.
    """
    notes: dict[str, Any] = {**(context or {}), _MODELS: {}}
    try:
        return model.model_validate(document.data, context=notes)
    except ValidationError as error:
        found = [_problem(document, dict(item), notes[_MODELS]) for item in error.errors()]
        raise ScenarioError(list(dict.fromkeys(text for _, text in sorted(found)))) from None


def near_match(word: str, known: list[str]) -> str:
    """`"; did you mean 'x'?"`, or nothing where no known word is near."""
    near = difflib.get_close_matches(word, known, 1, 0.6)
    near = near or [name for name in known if name.lower() == word.lower()]
    return f"; did you mean {near[0]!r}?" if near else ""


def _problem(
    document: Document, error: dict[str, Any], models: Mapping[int, type[BaseModel]]
) -> tuple[tuple[Any, ...], str]:
    """A sort key (document order) and the text of one pydantic error."""
    path = _real_path(document, error["loc"])
    path = (*path, *error.get("ctx", {}).get("at", ()))
    unknown = error["type"] == "extra_forbidden"
    place = document.place(path, key=unknown)
    key = f"{dotted(path)}: " if path else ""
    return _order(place), f"{place}: {key}{_message(document, path, error, models)}"


def _order(place: str) -> tuple[Any, ...]:
    """`file:line:column` by number; an override's place comes last."""
    file, _, rest = place.partition(":")
    parts = [int(part) if part.isdigit() else 0 for part in rest.split(":")]
    return (place.startswith("--set"), file, parts)


def _real_path(document: Document, loc: tuple[str | int, ...]) -> KeyPath:
    """`loc` without the names that pydantic adds for branches of a union."""
    path: KeyPath = ()
    for index, part in enumerate(loc):
        here = document.at(path)
        inside = (
            (isinstance(here, dict) and part in here)
            or (isinstance(here, list) and isinstance(part, int) and part < len(here))
            or (isinstance(here, dict) and index == len(loc) - 1)
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
    kind, context, value = error["type"], error.get("ctx", {}), error["input"]
    owner = models.get(id(document.at(path[:-1])))
    match kind:
        case "extra_forbidden":
            known = sorted(owner.model_fields) if owner else []
            hint = near_match(str(path[-1]), known)
            return f"unknown key{hint or ('; known are ' + ', '.join(known) if known else '')}"
        case "missing":
            return "is required and missing" + _example(owner, path)
        case "value_error":
            return str(context["error"])
        case "literal_error" | "union_tag_invalid":
            expected = context.get("expected") or context.get("expected_tags")
            said = context.get("tag", value)
            choices = [c.strip().strip("'") for c in _choices(str(expected))]
            hint = near_match(said, choices) if isinstance(said, str) else ""
            return f"{shown(said)} is none of {', '.join(choices)}{hint}"
        case "union_tag_not_found":
            return f"needs {str(context['discriminator']).strip(chr(39))!r} to say which it is"
    rule = _rule(kind, context)
    return f"{rule or error['msg']}, not {shown(value)}{_example(owner, path)}"


def _choices(expected: str) -> list[str]:
    """The words of pydantic's `'a', 'b' or 'c'`."""
    return expected.replace(" or ", ", ").split(", ")


def _rule(kind: str, context: Mapping[str, Any]) -> str | None:
    match kind:
        case "int_type" | "int_parsing" | "int_from_float":
            return "must be a whole number"
        case "float_type" | "float_parsing" | "finite_number":
            return "must be a finite number"
        case "string_type":
            return "must be text"
        case "string_too_short" | "too_short":
            return "must not be empty"
        case "bool_type" | "bool_parsing":
            return "must be true or false"
        case "list_type":
            return "must be a list"
        case "dict_type" | "model_type" | "model_attributes_type":
            return "must be a mapping of keys and values"
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
    field = owner.model_fields.get(str(path[-1])) if owner and path else None
    if field is None or not field.examples:
        return ""
    example = field.examples[0]
    shown = example if isinstance(example, str) else json.dumps(example)
    return f"; write for example `{path[-1]}: {shown}`"
