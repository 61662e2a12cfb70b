"""From a YAML document to a checked model, with every mistake in plain words.

pydantic finds the mistakes, all at once; this module says them as people would, each with the
place in the file, the value, the rule, and a near match or an example of a right value.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, model_validator

from moesim.config.markers import NO_PATH
from moesim.config.suggest import suggest
from moesim.config.yaml_document import Document, KeyPath, dotted
from moesim.errors import ScenarioError

__all__ = ["COMMAND_LINE", "SEVERAL", "Fault", "Strict", "check", "order", "validate"]

COMMAND_LINE: Final = "--set "
"""How the place of a value starts that was given on the command line."""

SEVERAL: Final = "several"
"""Type of an error that stands for a list of `mistakes`: paths inside the value, and messages."""

_MODELS: Final = "models"


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
    checked, faults = check(document, model, context)
    if checked is None:
        raise ScenarioError([fault.text for fault in faults])
    return checked


@dataclass(frozen=True, slots=True)
class Fault:
    """One mistake: the key it is about, and its message with the place in the file."""

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
        faults = {
            fault.text: fault
            for item in error.errors()
            for fault in _faults(document, dict(item), notes[_MODELS])
        }
        return None, sorted(faults.values(), key=lambda fault: (order(fault.text), fault.text))


def _faults(
    document: Document, error: dict[str, Any], models: Mapping[int, type[BaseModel]]
) -> Iterator[Fault]:
    """Yield the mistakes that one pydantic error stands for; `SEVERAL` brings its own."""
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
        typed = place.startswith(COMMAND_LINE)
        message = context["marker"].missing(context["value"], context["base"], typed=typed)
    else:
        message = _message(document, path, error, models)
    yield _fault(document, path, message, key=unknown)


def _fault(document: Document, path: KeyPath, message: str, *, key: bool) -> Fault:
    named = f"{dotted(path)}: " if path else ""
    return Fault(path, f"{document.place(path, key=key)}: {named}{message}")


def order(text: str) -> tuple[Any, ...]:
    """Return a sort key: by file, line and column; what was set on the command line last."""
    if text.startswith(COMMAND_LINE):
        return (1, "", 0, 0)
    place = re.match(r"(.*?):([0-9]+):([0-9]+): ", text)
    return (0, place[1], int(place[2]), int(place[3])) if place else (0, "", 0, 0)


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
            return f"unknown key{suggest(str(path[-1]), known, rest='known are' if known else '')}"
        case "missing":
            return "is required and missing" + _example(owner, path)
        case "value_error":
            return str(context["error"])
        case "literal_error" | "union_tag_invalid":
            expected = context.get("expected") or context.get("expected_tags")
            said = context.get("tag", value)
            choices = [c.strip().strip("'") for c in _choices(str(expected))]
            hint = suggest(said, choices) if isinstance(said, str) else ""
            return f"{_short(said)} is none of {', '.join(choices)}{hint}"
        case "union_tag_not_found":
            return f"needs {str(context['discriminator']).strip(chr(39))!r} to say which it is"
    rule = _rule(kind, context)
    return f"{rule or error['msg']}, not {_short(value)}{_example(owner, path)}"


def _choices(expected: str) -> list[str]:
    """The words of pydantic's `'a', 'b' or 'c'`."""
    return expected.replace(" or ", ", ").split(", ")


def _rule(kind: str, context: Mapping[str, Any]) -> str | None:
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


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
