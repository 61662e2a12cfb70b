"""The keys of a scenario as Markdown, from the JSON Schema that editors read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from markdown_table import cell, table

Schema = Mapping[str, Any]
HEAD = """# Keys of a scenario

Every key with its type, its default and its meaning, made from the code. `moesim schema` prints the
same as a JSON Schema, which editors understand. Where a key takes a quantity, write the number with
its unit, like `24GiB`, `25GB/s` or `20us`. A key that is *required* has no default.
"""
NAMES = {"null": "", "object": "mapping", "boolean": "true or false", "string": "text"}


def page(schema: Schema) -> str:
    """Return a section for each top key, with a table of all keys below it."""
    parts = [HEAD]
    for key, value in schema["properties"].items():
        rows = [_row(*row) for row in keys(schema, key, value, key in schema["required"])]
        text = table(("key", "type and unit", "default", "meaning"), rows)
        parts.append(f"## `{key}`\n\n{text}")
    return "\n".join(parts)


def keys(
    schema: Schema, key: str, value: Schema, required: bool, only: str = ""
) -> Iterator[tuple[str, Schema, bool, str]]:
    """Yield a key and all keys below it: dotted name, schema, whether required, needed kind."""
    yield key, value, required, only
    sections = [_resolved(schema, part) for part in _parts(value) if "$ref" in part]
    for section in sections:
        properties = section.get("properties", {})
        kind = properties.get("kind", {}).get("const", "")
        for name, below in properties.items():
            if not ("const" in below and name == "kind"):
                need = name in section.get("required", ())
                yield from keys(schema, f"{key}.{name}", below, need, kind or only)


def _parts(value: Schema) -> Iterator[Schema]:
    """Yield the alternatives of a value, however deep they are nested."""
    choices = value.get("anyOf") or value.get("oneOf")
    if not choices:
        yield value
    for choice in choices or ():
        yield from _parts(choice)


def _resolved(schema: Schema, part: Schema) -> Schema:
    section: Schema = schema["$defs"][part["$ref"].rpartition("/")[2]]
    return section


def _row(key: str, value: Schema, required: bool, only: str) -> tuple[str, str, str, str]:
    types = dict.fromkeys(filter(None, map(_type, _parts(value))))
    meaning = value.get("description", "")
    if only:
        meaning = f"(kind `{only}`) {meaning}"
    return f"`{key}`", cell(", ".join(types)), _default(value, required), cell(meaning)


def _type(part: Schema) -> str:
    if "$ref" in part:
        return "section"
    if "enum" in part:
        names = [f"`{value}`" for value in part["enum"]]
        more = f" or {len(names) - 4} other names" if len(names) > 12 else ""
        return "one of " + ", ".join(names[:4] if more else names) + more
    if "const" in part:
        return f"`{part['const']}`"
    if "pattern" in part and (units := re.search(r"\(([^()]+)\)\\s\*\$$", part["pattern"])):
        return "quantity in " + ", ".join(units[1].split("|"))
    name = str(part.get("type", "any"))
    if name == "array":
        return "list of " + " or ".join(dict.fromkeys(map(_type, _parts(part.get("items", {})))))
    return NAMES.get(name, name)


def _default(value: Schema, required: bool) -> str:
    if required:
        return "required"
    default = value.get("default")
    if isinstance(default, Mapping) and default:
        return "see below"
    text = default if isinstance(default, str) else json.dumps(default, ensure_ascii=False)
    return "none" if default is None else f"`{text}`"
