"""The question: a model, a machine, and what it is for.

A model is a shipped shape, a Hugging Face `config.json`, or a GGUF file, of which only the header
is read. A machine is described by the names of its parts. The goal says how long prompts and
answers are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

from moesim.errors import UsageError
from moesim.hardware.parts import Machine, assemble, cpu_named, gpu_named
from moesim.model.format_bits import bits_for, with_bits_of
from moesim.model.formats import block_named, check_format_name, format_named
from moesim.model.hf_config import load_shape
from moesim.model.shapes import ModelShape

__all__ = ["GOALS", "KV_FORMATS", "Goal", "Model", "Parts", "Question", "tokens_of"]

GoalName = Literal["chat", "agent", "batch", "rag"]
KV_FORMATS: Final = ("f16", "q8_0")
"""Formats of the KV cache that are compared, the most exact first."""
_MOST_TOKENS: Final = 1 << 24
_TOKENS: Final = re.compile(r"(\d{1,9})\s*([kK]?)")
_USUAL_CPU: Final = "6 cores"
_USUAL_RAM: Final = "32 GB DDR4-3200 dual channel"
_NATIVE: Final = "MXFP4_MOE"
_NATIVE_BITS: Final = 8
"""A model whose experts are published with fewer bits is compared in that format only."""


@dataclass(frozen=True, slots=True)
class Goal:
    """What a model is for: tokens of a usual prompt and answer, and sequences at once.

    `prompt` None is three quarters of the context. `about` says it in words. All are assumed.
    """

    about: str
    prompt: int | None
    output: int
    load: int = 1


GOALS: Final[Mapping[GoalName, Goal]] = {
    "chat": Goal("short questions, and answers of a page", 512, 400),
    "agent": Goal("tool results of some pages, and short answers", 4096, 600),
    "rag": Goal("prompts that fill three quarters of the context", None, 300),
    "batch": Goal("many requests, of which eight run at once", 1024, 512, load=8),
}


@dataclass(frozen=True, slots=True)
class Parts:
    """The texts of a machine's parts; "" where nothing is said.

    `figures` of the machine replace those of its parts. Keys are those of `hardware` in scenarios.
    """

    gpu: str = "none"
    cpu: str = ""
    ram: str = ""
    pcie: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)

    def filled(self) -> tuple[Parts, tuple[str, ...]]:
        """Return the parts with usual ones where none are given, and what was assumed."""
        card = gpu_named(self.gpu).card
        if card is not None and card.unified:
            return self, ()  # the card's chip is the processor, and its memory is known
        given, notes = self, []
        if not self.cpu:
            given = replace(given, cpu=_USUAL_CPU)
            notes.append(f"the processor has {_USUAL_CPU} with AVX2, because none is named")
        if not self.ram and not cpu_named(given.cpu).cpu:
            given = replace(given, ram=_USUAL_RAM)
            notes.append(f"host memory is {_USUAL_RAM}, because no text says it")
        return given, tuple(notes)

    def machine(self) -> Machine:
        """Return the machine.

        Raises:
            UsageError: a part is not known, a text has words that are not understood, or there are
                several GPUs.
        """
        given, _ = self.filled()
        machine = assemble(given.gpu, given.cpu, given.ram, given.pcie, overrides=given.figures)
        if machine.num_gpus > 1:
            raise UsageError(
                f"{self.gpu!r} are {machine.num_gpus} GPUs: how several share a model is not "
                "simulated (which layers each holds, and what moves between them); ask for one"
            )
        if machine.unknown:
            words = " and ".join(map(repr, machine.unknown))
            raise UsageError(
                f"{words} is not understood; docs/machines.md says what a text may say"
            )
        return machine


@dataclass(frozen=True)
class Model:
    """A model: `name` in reports, `section` of a scenario without a format, and its shape.

    `format` is None where weights may have any format; "" where the file or the shape says it.
    """

    name: str
    section: Mapping[str, str]
    shape: ModelShape
    format: str | None = None

    @classmethod
    def of(cls, text: str) -> Model:
        """Return the model that a text names: a shipped name, or a path.

        Raises:
            UsageError: there is no such model or file, or it has no routed experts.
        """
        if Path(text).is_dir():
            text = str(Path(text, "config.json"))
        if text.endswith((".json", ".gguf")):
            text = str(Path(text).expanduser().resolve())
        shape = load_shape(text)
        if not shape.moe_layers:
            raise UsageError(f"{text} has no routed experts: nothing of a dense model is divided")
        file = text.endswith(".gguf")
        own = "" if file else _NATIVE if shape.expert_bits < _NATIVE_BITS else None
        return cls(shape.name, {"shape": text}, shape, own)

    def stored(self, form: str, kv: str) -> ModelShape:
        """Return the shape with weights in a format ("": its own) and KV entries in another."""
        key = (form, kv)
        if key not in self._stored:
            shape = self.shape
            if form:
                named = format_named(form)
                assert named.format is not None  # checked where the question is asked
                shape = with_bits_of(shape, bits_for(named.format, shape, named.file_bytes))
            self._stored[key] = replace(shape, kv_bits=block_named(kv.upper()).bits)
        return self._stored[key]

    @cached_property
    def _stored(self) -> dict[tuple[str, str], ModelShape]:
        return {}


@dataclass(frozen=True)
class Question:
    """What is asked. `context`: tokens of the longest conversation; `load`: sequences at once.

    `formats` and `kv` limit what is compared; empty: all that moesim compares.
    """

    model: Model
    parts: Parts
    context: int
    goal: GoalName = "chat"
    load: int = 1
    engines: tuple[str, ...] = ("llama.cpp",)
    formats: tuple[str, ...] = ()
    kv: tuple[str, ...] = KV_FORMATS

    def __post_init__(self) -> None:
        if self.output >= self.context:
            raise UsageError(
                f"--context {self.context}: an answer of {self.goal} has {self.output} tokens; "
                "ask for more"
            )
        if self.formats and self.model.format is not None:
            raise UsageError(
                f"--format {self.formats[0]}: {self.model.name} is stored in one format already"
            )
        for name in self.formats:
            if wrong := check_format_name(name):
                raise UsageError(f"--format {name}: {wrong}")

    @cached_property
    def machine(self) -> Machine:
        """The machine of `parts`."""
        return self.parts.machine()

    @cached_property
    def assumed(self) -> tuple[str, ...]:
        """What was assumed of the machine, one sentence each."""
        return (*self.parts.filled()[1], *self.machine.supposed)

    @property
    def output(self) -> int:
        """Tokens of a usual answer."""
        return GOALS[self.goal].output

    @property
    def prompt(self) -> int:
        """Tokens of a usual prompt: what is new in it."""
        wanted = GOALS[self.goal].prompt
        most = self.context - self.output
        return min(most, self.context * 3 // 4 if wanted is None else wanted)

    def plain(self) -> dict[str, Any]:
        """Return the question as plain data."""
        parts = {key: getattr(self.parts, key) for key in ("gpu", "cpu", "ram", "pcie")}
        return {
            "model": self.model.name,
            **parts,
            "context": self.context,
            "goal": self.goal,
            "load": self.load,
        }


def tokens_of(text: str) -> int:
    """Return the tokens in a text like `16k` (k is 1024). Raise UsageError for another text."""
    match = _TOKENS.fullmatch(text.strip())
    number = int(match[1]) * (1024 if match[2] else 1) if match else 0
    if not 1 <= number <= _MOST_TOKENS:
        raise UsageError(f"--context {text}: write a number of tokens, like 16k or 16384")
    return number
