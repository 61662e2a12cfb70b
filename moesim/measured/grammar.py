"""The grammar of settings: options of llama.cpp and its kin, and phrases that people write.

A text is read from left to right. At each place the first form that fits is taken; a word that no
form takes is unknown. Nothing is guessed: an unknown word that could change the time is the reason
why a row is not predicted, and any other is noted. docs/measured.md lists the forms.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from moesim.measured.forms import Handler, Reading
from moesim.measured.option_forms import OPTION_FORMS
from moesim.measured.placement_forms import PLACEMENT_FORMS
from moesim.measured.setting import Setting

__all__ = ["MOST_CHARACTERS", "read_setting"]

MOST_CHARACTERS: Final = 2000
"""Characters of the longest setting that is read."""

# Words that change the time, so that a fragment with one of them cannot be left out.
_MATTERS: Final = re.compile(
    r"^-|=|layer|expert|exps|moe|ffn|cpu|gpu|vram|offload|resident|split|cache|draft|spec|mtp|"
    r"disk|ssd|nvme|stream|prefetch|swap|device|tensor|parallel|sequence|batch|thread",
    re.IGNORECASE,
)


@lru_cache(maxsize=4096)
def read_setting(text: str) -> Setting:
    """Return what a text says about how an engine ran."""
    if len(text) > MOST_CHARACTERS:
        why = f"the setting has {len(text)} characters; at most {MOST_CHARACTERS} are read"
        return Setting(unknown=(text[:60],), reason=why)
    reading = Reading()
    _scan(text, reading)
    held = (
        reading.unknown
        if reading.fields.get("declining")
        else [fragment for fragment in reading.unknown if not _MATTERS.search(fragment)]
    )
    notes = [*reading.notes, *(f"not understood, left out: {part!r}" for part in held)]
    faults = [*reading.faults, *(f"{part!r}" for part in reading.unknown if part not in held)]
    return Setting(
        **reading.fields, rules=tuple(reading.rules), notes=tuple(notes),
        unknown=tuple(reading.unknown),
        reason=f"setting not understood: {'; '.join(faults)}" if faults else "",
    )  # fmt: skip


_SEPARATOR: Final = re.compile(r"[\s,;|()\[\]&]+|[+/](?=\s)|(?:and|with|then|at|plus)\s")
_WORD: Final = re.compile(r"[^\s,;|()\[\]]+\s?")


def _scan(text: str, reading: Reading) -> None:
    place, unknown = 0, ""
    while place < len(text):
        match = _SEPARATOR.match(text, place)
        if match is None and (found := _form_at(text, place)) is not None:
            handler, match = found
            handler(reading, match)
        if match is None:  # neighbouring unknown words are one fragment
            word = _WORD.match(text, place)
            end = word.end() if word is not None else place + 1
            unknown, place = unknown + text[place:end], end
            continue
        if unknown:
            reading.unknown.append(unknown.strip())
            unknown = ""
        place = match.end()
    if unknown:
        reading.unknown.append(unknown.strip())


def _form_at(text: str, place: int) -> tuple[Handler, re.Match[str]] | None:
    # An option is matched whole: "-c" is no beginning of "-cmoe".
    for form, handler in _FORMS:
        if match := form.match(text, place):
            return handler, match
    return None


_FORMS: Final = [
    (re.compile(text.replace(" ", r"\s+"), re.IGNORECASE), handler)
    for text, handler in (*PLACEMENT_FORMS, *OPTION_FORMS)
]
