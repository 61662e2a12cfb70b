"""Formats of stored weights: blocks with their exact bits, and mixes of blocks in one file.

A block stores a fixed number of weights in a fixed number of bytes. A mix says which block each
matrix of a file has, by role and layer; most mixes are those of llama.cpp's quantiser. Roles are
the names of GGUF tensors, such as `attn_v` and `ffn_down_exps`. The table is formats.yaml; its
sources and rules are in docs/formats.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, Final

from moesim.config.shipped_yaml import load_shipped
from moesim.config.suggest import suggest
from moesim.config.units import parse_bytes
from moesim.errors import UsageError

__all__ = [
    "Block",
    "Format",
    "NamedFormat",
    "block_named",
    "block_names",
    "check_format_name",
    "fallback",
    "format_named",
    "format_names",
]

FORMATS: Final = Path(__file__).with_name("formats.yaml")
_TABLE: Final[dict[str, Any]] = load_shipped(FORMATS)
_SIZE: Final = re.compile(r"\(\s*([0-9.]+\s*[KMGT]i?B)\s*\)\s*$")
_INTERLEAVED: Final = re.compile(r"_R(?:4|8|16)$")
_GROUP: Final = re.compile(r"-G([0-9]{1,5})$")
_PREFIX: Final = re.compile(r"^(UD|I1)-")


@dataclass(frozen=True, slots=True)
class Block:
    """A block: its stored bits a weight, its weights, and the family of kernels that read it."""

    name: str
    bits: float
    weights: int
    family: str


@dataclass(frozen=True, slots=True)
class Rule:
    """The block of some roles, where all conditions hold; see docs/formats.md."""

    roles: tuple[str, ...]
    block: str
    layers: str | None = None
    experts: int | None = None
    not_experts: int | None = None
    groups: int | None = None

    def holds(self, role: str, layer: int, model: tuple[int, int, float]) -> bool:
        """Return whether the rule decides; `model` is its layers, experts, and heads a key."""
        num_layers, num_experts, heads_per_key = model
        return (
            any(fnmatchcase(role, pattern) for pattern in self.roles)
            and self.experts in (None, num_experts)
            and self.not_experts != num_experts
            and heads_per_key >= (self.groups or 0)
            and (self.layers is None or _in_part(self.layers, layer, num_layers))
        )


@dataclass(frozen=True, slots=True)
class Format:
    """A mix: the block of each matrix. `documented`: its rules are published, not assumed."""

    name: str
    block: str
    rules: tuple[Rule, ...] = ()
    embedding: str = ""
    head: str = ""
    small: str = "F32"
    """Block of routers and norms."""
    documented: bool = True

    def block_of(self, role: str, layer: int, model: tuple[int, int, float]) -> str:
        """Return the block of a matrix; `model` as in `Rule.holds`."""
        named = {"token_embd": self.embedding, "output": self.head, "router": self.small}
        if role in ("norm", *named):
            return named.get(role, self.small) or self.block
        for rule in self.rules:
            if rule.holds(role, layer, model):
                return rule.block
        return self.block


@dataclass(frozen=True, slots=True)
class NamedFormat:
    """What a text says: a format, the size of the file, and the text that was not understood."""

    format: Format | None
    file_bytes: int | None = None
    rest: str = ""


def format_names() -> list[str]:
    """Return the names of all formats, without spellings, prefixes and interleaved forms."""
    blocks = [name for name in _TABLE["blocks"] if name not in ("Q8_1", *_TABLE["spellings"])]
    return list(dict.fromkeys([*_TABLE["mixes"], *blocks, *_TABLE["grouped"]]))


def format_named(text: str) -> NamedFormat:
    """Return the format that a text names, like `UD-Q4_K_XL` or `IQ4_XS (15.4 GiB)`.

    Case is ignored, and so are hyphens (`q4km`), `.gguf` and the prefix of imatrix files, `i1-`.
    The format is None where the name is unknown; `rest` is then the name.
    """
    file_bytes = None
    if match := _SIZE.search(text):
        file_bytes, text = parse_bytes(match[1]), text[: match.start()]
    name = text.strip()
    return NamedFormat(found := _find(name), file_bytes, "" if found else name)


def check_format_name(text: str) -> str | None:
    """Return a message if `text` names no format, else None."""
    if format_named(text).format is not None:
        return None
    name = format_named(text).rest
    hint = suggest(name, format_names(), rest="there are")
    return (
        f"no format of weights is called {name!r}, and it is no path of a .gguf file{hint} "
        "(see `moesim list formats`)"
    )


def fallback(block: str, columns: int) -> str:
    """Return the block that stores rows of `columns` weights: F16 where no block fits."""
    for name in (block, _TABLE["fallbacks"].get(block, "F16")):
        if columns % block_named(name).weights == 0:
            return str(name)
    return "F16"


def _find(name: str) -> Format | None:
    plain = _spelt(name).removesuffix(".GGUF")
    if _PREFIX.match(plain):
        found = _find(_PREFIX.sub("", plain))
        # What the recipes of this publisher add to the mix is not published.
        guessed = found is not None and plain.startswith("UD-")
        return replace(found, name=name, documented=False) if found and guessed else found
    for table in (_spellings(), _mixes()):
        if plain in table:
            return table[plain]
    if (joined := _joined(plain)) in _joined_names():
        return _find(_joined_names()[joined])
    if (group := _GROUP.search(plain)) and int(group[1]):
        whole = next((n for n in _TABLE["grouped"] if _spelt(n) == _GROUP.sub("", plain)), None)
        return _grouped(f"{whole}-g{int(group[1])}") if whole else None
    if _INTERLEAVED.search(plain):
        found = _find(_INTERLEAVED.sub("", plain))
        return found and replace(found, name=name)
    return None


def _spelt(name: str) -> str:
    """Return a name as it is compared: upper case, without `_` before `BIT`."""
    return re.sub(r"[-_ ]?(\d)[-_ ]?BIT", r"-\1BIT", name.strip().upper())


def _joined(name: str) -> str:
    return re.sub(r"[-_\s]", "", name)


@cache
def _joined_names() -> dict[str, str]:
    """Return the names by what is left of them without hyphens and blanks, like `Q4KM`."""
    return {_joined(name): name for name in (*_mixes(), *_spellings())}


@cache
def _mixes() -> dict[str, Format]:
    mixes = {_spelt(name): _mix(name, entry) for name, entry in _TABLE["mixes"].items()}
    for name in _TABLE["blocks"]:
        # A block without a mix of its name: its recipes differ between publishers.
        pure = Format(name, name, embedding="Q8_0", head="Q8_0", documented=False)
        mixes.setdefault(_spelt(name), pure)
    mixes.update((_spelt(name), _grouped(name)) for name in _TABLE["grouped"])
    del mixes["Q8_1"], mixes["MXFP4"]  # a type of activations; a spelling
    return mixes


@cache
def _spellings() -> dict[str, Format]:
    mixes = _mixes()
    return {_spelt(name): mixes[_spelt(mix)] for name, mix in _TABLE["spellings"].items()}


def _mix(name: str, entry: dict[str, Any]) -> Format:
    entry = dict(entry)
    rules = [*_TABLE["likes"].get(entry.pop("like", ""), ()), *entry.pop("rules", ())]
    read = (Rule(**{**rule, "roles": tuple(rule["roles"])}) for rule in rules)
    return Format(name, rules=tuple(read), **entry)


def _grouped(name: str) -> Format:
    """Return a format of groups: matrices of layers have it, and with MLX also the embeddings."""
    rules = (Rule(("attn_*", "ffn_*"), name),)
    ends = name if name.startswith("MLX") else ""
    return Format(name, "BF16", rules, ends, ends, small="BF16")


def _in_part(part: str, layer: int, num_layers: int) -> bool:
    """Return whether a layer is in a part of the model: `first two`, `first eighth`, `more`, ..."""
    eighth, last = num_layers // 8, 7 * num_layers // 8
    firsts = {"first two": 2, "first four": 4, "first eighth": eighth}
    firsts["first sixteenth"] = num_layers // 16
    if part in firsts:
        return layer < firsts[part]
    middle = eighth <= layer < last
    # `more`: both ends, and every third layer between them.
    return middle if part == "middle" else not middle or (layer - eighth) % 3 == 2


def block_names() -> list[str]:
    """Return the names of all blocks, and of the formats of groups."""
    return [*_TABLE["blocks"], *_TABLE["grouped"]]


@cache
def block_named(name: str) -> Block:
    """Return a block by its name, as GGUF files spell it. Raise UsageError where there is none."""
    whole, _, size = name.partition("-g")
    if entry := _TABLE["grouped"].get(whole):
        bits = entry["bits"] + entry["group_bits"] / int(size or entry["group"])
        # Libraries pad the last group of a row, so any number of columns can be stored.
        return Block(name, bits, 1, "grouped")
    for known in (name, _INTERLEAVED.sub("", name)):
        if entry := _TABLE["blocks"].get(known):
            bits = 8 * entry["nbytes"] / entry["weights"]
            return Block(name, bits, entry["weights"], entry["family"])
    raise UsageError(f"no block of weights is called {name!r}{suggest(name, _TABLE['blocks'])}")
