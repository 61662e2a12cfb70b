"""Names of parts in free text: which run of words names a part of the catalogue.

Case, hyphens, brackets and the names of vendors do not count. A part is found by the longest run of
words that, written together, is its name or one of its aliases. Words that tell two parts apart
(`Ti`, `Laptop`, `SXM`) may not be left over, because the part would be another one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Generic, NamedTuple, TypeVar

from moesim.config.suggest import suggest
from moesim.errors import UsageError

__all__ = ["Index", "Named", "words_of"]

T = TypeVar("T")

_VENDORS: Final = frozenset(
    {
        "nvidia",
        "geforce",
        "amd",
        "radeon",
        "intel",
        "apple",
        "tesla",
        "instinct",
        "gpu",
        "graphics",
        "card",
        "igpu",
        "tm",
        "founders",
        "edition",
        "fe",
        "desktop",
        "cpu",
        "processor",
        "core",
        "series",
        "workstation",
        "asus",
        "evga",
        "gigabyte",
        "msi",
        "palit",
        "pny",
        "sapphire",
        "zotac",
    }
)
_SAME: Final = {"mobile": "laptop", "notebook": "laptop", "sxm4": "sxm", "sxm5": "sxm"}
_TELLS: Final = frozenset(
    {
        "ti",
        "super",
        "laptop",
        "xt",
        "xtx",
        "gre",
        "max",
        "pro",
        "ultra",
        "d",
        "sxm",
        "sxm2",
        "pcie",
        "nvl",
        "ada",
        "blackwell",
        "server",
        "plus",
    }
)
"""Words that tell two parts apart."""
_BRANDS: Final = ("rtx", "gtx", "rx", "arc", "xeon", "ryzen")


class Named(NamedTuple, Generic[T]):
    """The parts that a text may name, and the words that are left over."""

    parts: tuple[T, ...]
    rest: tuple[str, ...]


def words_of(text: str) -> list[str]:
    """Return the words of a name in lower case, without vendors."""
    plain = re.sub(r"\((?:r|tm)\)|[®™]", " ", text.lower()).replace("+", " plus ")
    plain = re.sub(r"max\s*-?\s*q\b", "maxq", plain)
    words = [_SAME.get(word, word) for word in re.split(r"[^a-z0-9.@]+", plain)]
    return [word for word in words if word and word not in _VENDORS]


def _key(text: str) -> str:
    return "".join(words_of(text))


class Index(Generic[T]):
    """The parts of one table by their names, aliases and shorter spellings."""

    def __init__(
        self,
        parts: Mapping[str, T],
        aliases: Callable[[T], Iterable[str]],
        *,
        kind: str,
        listing: str,
    ) -> None:
        self.kind, self.listing = kind, listing
        self.names = list(parts)
        self._by_key: dict[str, list[T]] = {}
        for name, part in parts.items():
            for spelling in (name, re.sub(r"-\d+gb$", "", name), *aliases(part)):
                self._add(_key(spelling), part)
        # `3090` for `rtx-3090`, where one part only would have the shorter spelling.
        shorter: dict[str, list[T]] = {}
        for key, found in self._by_key.items():
            for brand in _BRANDS:
                if key.startswith(brand):
                    shorter.setdefault(key.removeprefix(brand), []).extend(found)
        for key, found in shorter.items():
            self._by_key.setdefault(key, found)

    def _add(self, key: str, part: T) -> None:
        found = self._by_key.setdefault(key, [])
        if part not in found:
            found.append(part)

    def find(self, text: str) -> Named[T]:
        """Return the parts that `text` names.

        Raise UsageError, with the most similar name, where it names none.
        """
        words = words_of(text)
        for length in range(len(words), 0, -1):
            for start in range(len(words) - length + 1):
                found = self._by_key.get("".join(words[start : start + length]))
                if found:
                    rest = (*words[:start], *words[start + length :])
                    if told := [word for word in rest if word in _TELLS]:
                        raise self._unknown(text, f"{' '.join(told)!r} is no variant of it")
                    return Named(tuple(found), rest)
        raise self._unknown(text)

    def _unknown(self, text: str, why: str = "") -> UsageError:
        spelt = "-".join(words_of(text))
        hint = suggest(spelt, self.names) if not why else ""
        reason = f" ({why})" if why else ""
        return UsageError(
            f"no {self.kind} of the catalogue is called {' '.join(text.split())!r}{reason}{hint} "
            f"(see `moesim list {self.listing}`)"
        )
