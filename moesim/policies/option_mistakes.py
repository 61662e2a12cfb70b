"""Mistakes in a policy's options: where each is, and what can be written instead.

Pydantic reports every branch of a union by itself, at a path that names the branch. Here the
branches of one value are one mistake, at a path of keys and indexes alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from moesim.config.reasons import reason_of
from moesim.errors import shown

__all__ = ["Where", "mistakes_in"]

Where = tuple[str | int, ...]
"""The path of a value inside the options."""


def mistakes_in(
    options: Mapping[str, Any], errors: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[Where, str]]:
    """Yield each mistake's path and message, for the `errors` that pydantic found in `options`."""
    values: dict[Where, list[Mapping[str, Any]]] = {}
    for error in errors:
        values.setdefault(_split(options, error)[0], []).append(error)
    for where, branches in values.items():
        if len(branches) == 1:
            error = branches[0]
            before, behind = _split(options, error)
            yield (*before, *behind), f"{reason_of(error)} (got {error['input']!r})"
            continue
        # By text: two branches may ask for the same.
        wanted = list(dict.fromkeys(each for error in branches for each in _wanted(options, error)))
        *most, last = wanted
        choice = f"{', '.join(most)} or {last}" if most else last
        yield where, f"is {shown(_at(options, where))}; write {choice}"


def _split(options: Mapping[str, Any], error: Mapping[str, Any]) -> tuple[Where, Where]:
    """Return the path of the value whose union fails, and the path inside this value.

    The second is empty where no union is on the way.
    """
    here: Any = options
    before: list[str | int] = []
    behind: list[str | int] = []
    path, loc = before, error["loc"]
    for index, part in enumerate(loc):
        if _is_inside(here, part):
            path.append(part)
            here = here[part]
        elif error["type"] == "missing" and index == len(loc) - 1:
            path.append(part)  # a key that should be there
        else:
            path = behind  # the part names a branch
    return tuple(before), tuple(behind)


def _is_inside(value: Any, part: str | int) -> bool:
    if isinstance(value, Mapping):
        return part in value
    return isinstance(value, list | tuple) and isinstance(part, int) and part < len(value)


def _at(options: Mapping[str, Any], where: Where) -> Any:
    here: Any = options
    for part in where:
        here = here[part]
    return here


def _wanted(options: Mapping[str, Any], error: Mapping[str, Any]) -> list[str]:
    """Return what one branch of a union accepts, in words; several for a choice of words."""
    behind = _split(options, error)[1]
    place = f" at {'.'.join(map(str, behind))}" if behind else ""
    if error["type"] == "literal_error":  # pydantic gives the choices as one text
        choices = str(error["ctx"]["expected"]).replace(" or ", ", ").split(", ")
        return [choice.strip("'") + place for choice in choices]
    words = _words(error["type"], error.get("ctx", {}))
    return [(words or f"a value that mends: {reason_of(error)}") + place]


def _words(kind: str, context: Mapping[str, Any]) -> str | None:
    """Return what a rule of pydantic's accepts; None for a rule without words here."""
    match kind:
        case "greater_than_equal":
            return f"a number from {context['ge']:g}"
        case "greater_than":
            return f"a number above {context['gt']:g}"
        case "less_than_equal":
            return f"a number up to {context['le']:g}"
        case "less_than":
            return f"a number below {context['lt']:g}"
        case "int_type" | "int_parsing" | "int_from_float":
            return "a whole number"
        case "float_type" | "float_parsing" | "finite_number":
            return "a number"
        case "string_type" | "path_type":
            return "text"
        case "bool_type" | "bool_parsing":
            return "true or false"
        case "list_type" | "tuple_type" | "set_type":
            return "a list"
        case "dict_type" | "dataclass_type":
            return "a mapping of keys and values"
        case "none_required":
            return "null"
    return None
