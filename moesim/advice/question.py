"""The question: a model, a machine, and what it is for.

A model is a shipped shape, a Hugging Face `config.json`, or a GGUF file, of which only the header
is read. A machine is described by the names of its parts. The goal says how long prompts and
answers are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

from moesim.errors import MoesimError, UsageError, shown
from moesim.hardware.parts import Machine, assemble, gpu_named, memory_named
from moesim.model.format_bits import bits_for, with_bits_of
from moesim.model.formats import block_named, check_format_name, format_named
from moesim.model.hf_config import load_config, load_shape
from moesim.model.shapes import ModelShape, stored_bytes

__all__ = [
    "GOALS",
    "KV_FORMATS",
    "Goal",
    "Model",
    "Parts",
    "Question",
    "Weights",
    "tokens_of",
    "unreadable",
]

GoalName = Literal["chat", "agent", "batch", "rag"]
KV_FORMATS: Final = ("f16", "q8_0")
"""Formats of the KV cache that are compared, the most exact first."""
_MOST_TOKENS: Final = 1 << 24
_TEXTS: Final = ("gpu", "cpu", "ram", "pcie")
_MOST_TEXT: Final = 200
"""Characters of the longest text of a part."""
_TOKENS: Final = re.compile(r"(\d{1,9})\s*([kK]?)")
_USUAL_CORES: Final = 6
_CORES_A_CHANNEL: Final = 4
"""Assumed: cores of servers and workstations, by their channels of memory."""
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
    own_card: str = ""
    """The name of a card that `gpu` stands for."""

    def __post_init__(self) -> None:
        for name in _TEXTS:
            if len(text := getattr(self, name)) > _MOST_TEXT:
                raise UsageError(
                    f"--{name}: a text of {len(text)} characters; at most {_MOST_TEXT} are read"
                )

    def filled(self) -> tuple[Parts, tuple[str, ...]]:
        """Return the parts with usual ones where none are given, and what was assumed."""
        card = gpu_named(self.gpu).card
        if card is not None and card.unified:
            return self, ()  # the card's chip is the processor, and its memory is known
        # A hyphen for a blank, so that no quotes are needed: `4.0-x16`.
        given, notes = replace(self, pcie=self.pcie.replace("-", " ")), []
        if self.own_card:
            notes.append(f"overheads of {self.own_card} are those of {self.gpu}")
        if not self.cpu.strip():
            cpu = _usual_cpu(self.ram)
            given = replace(given, cpu=cpu)
            notes.append(f"the processor has {cpu} with AVX2, because none is named")
            if not self.ram.strip():
                given = replace(given, ram=_USUAL_RAM)
                notes.append(f"host memory is {_USUAL_RAM}, because no text says it")
        return given, tuple(notes)

    def machine(self) -> Machine:
        """Return the machine.

        Raises:
            UsageError: a part is not known, a text has words that are not understood, a link has
                no card, or there are several GPUs.
        """
        given, _ = self.filled()
        machine = assemble(given.gpu, given.cpu, given.ram, given.pcie, overrides=given.figures)
        if machine.num_gpus > 1:
            raise UsageError(
                f"{self.gpu!r} are {machine.num_gpus} GPUs: how several share a model is not "
                "simulated (which layers each holds, and what moves between them); ask for one"
            )
        if self.pcie.strip() and (not machine.hardware.has_gpu or machine.hardware.unified):
            what = "shares the processor's memory" if machine.hardware.has_gpu else "is not there"
            raise UsageError(
                f"--pcie {shown(self.pcie)}: a card that {what} has no link (--gpu {self.gpu})"
            )
        if machine.unknown:
            words = " and ".join(map(repr, machine.unknown))
            named = [name for name in _TEXTS if machine.unknown[0] in getattr(self, name)]
            option = f"--{named[0]}: " if named else ""
            raise UsageError(
                f"{option}{words} is not understood; docs/machines.md says what a text may say"
            )
        return machine


@dataclass(frozen=True)
class Model:
    """A model: `name` in reports, `section` of a scenario without a format, and its shape.

    `format` is None where weights may have any format; "" where the file or the shape says it.
    `longest` is the longest context that the model was made for; None where it is not known.
    `asked` is the name that was asked for, where it is another.
    """

    name: str
    section: Mapping[str, str]
    shape: ModelShape
    format: str | None = None
    longest: int | None = None
    asked: str = ""

    @property
    def title(self) -> str:
        """Return the name that was asked for, with that of the shape where it is another."""
        return f"{self.asked} (the shape of {self.name})" if self.asked else self.name

    @classmethod
    def of(cls, text: str) -> Model:
        """Return the model that a text names: a shipped name, or a path.

        Raises:
            UsageError: there is no such model or file, or it has no routed experts.
        """
        text = _resolved(text)
        try:
            shape = load_shape(text)
        except UsageError as error:
            if _is_dense(text):
                raise UsageError(f"{text} {_DENSE}") from error
            raise
        if not shape.moe_layers:
            raise UsageError(f"{text} {_DENSE}")
        file = text.endswith(".gguf")
        own = "" if file else _NATIVE if shape.expert_bits < _NATIVE_BITS else None
        named = text.endswith((".json", ".gguf")) or text.lower() == shape.name
        return cls(shape.name, {"shape": text}, shape, own, _longest(text), "" if named else text)

    def stored(self, form: str, kv: str) -> ModelShape:
        """Return the shape with weights in a format ("": its own) and KV entries in another."""
        key = (form, kv)
        if key not in self._stored:
            bits = block_named(kv.upper()).bits
            self._stored[key] = replace(self._with_weights(form), kv_bits=bits)
        return self._stored[key]

    def weights(self, form: str) -> Weights:
        """Return the bytes of the parts of the model with weights in a format."""
        if form not in self._weights:
            self._weights[form] = Weights.of(self._with_weights(form))
        return self._weights[form]

    def _with_weights(self, form: str) -> ModelShape:
        if form not in self._shapes:
            shape = self.shape
            if form:
                named = format_named(form)
                assert named.format is not None  # checked where the question is asked
                shape = with_bits_of(shape, bits_for(named.format, shape, named.file_bytes))
            self._shapes[form] = shape
        return self._shapes[form]

    @cached_property
    def _stored(self) -> dict[tuple[str, str], ModelShape]:
        return {}

    @cached_property
    def _shapes(self) -> dict[str, ModelShape]:
        return {}

    @cached_property
    def _weights(self) -> dict[str, Weights]:
        return {}


@dataclass(frozen=True, slots=True)
class Weights:
    """The bytes of a model's parts. They are asked for often, and long to sum.

    `experts` has those of all routed experts of each MoE layer, `table` the table of embeddings
    where it is not the head too, `rest` all other weights.
    """

    experts: tuple[int, ...]
    table: int
    rest: int

    @classmethod
    def of(cls, shape: ModelShape) -> Weights:
        """Return the parts of a shape."""
        sizes, number = shape.sizes(), shape.num_experts
        experts = tuple(
            sum(sizes[start : start + number]) for start in range(0, len(sizes), number)
        )
        table = 0 if shape.tied_embeddings else shape.end_bytes - _head_bytes(shape)
        whole = shape.layers_bytes(range(shape.num_layers + 1))
        return cls(experts, table, whole - table)


def _head_bytes(shape: ModelShape) -> int:
    """Return the bytes of the output head, norms and a decoupled router."""
    matrix = shape.vocabulary * shape.hidden
    rest = shape.hidden + shape.router_params
    return stored_bytes(matrix, shape.bits_of_head) + stored_bytes(rest, shape.weight_bits)


_DENSE: Final = (
    "has no routed experts: it is a dense model. All of its weights are read for every token, so "
    "no experts can be left in host memory, and no advice is given"
)


def _resolved(text: str) -> str:
    """Return the path of a model's file without `~` and links, and a name as it is."""
    try:
        if Path(text).is_dir():
            text = str(Path(text, "config.json"))
        if text.endswith((".json", ".gguf")):
            text = str(Path(text).expanduser().resolve())
    except OSError as error:
        raise UsageError(f"{shown(text)}: cannot be a path: {error.strerror}") from error
    except (ValueError, RuntimeError) as error:  # a NUL character, or no home folder
        raise UsageError(f"{shown(text)}: cannot be a path: {shown(str(error))}") from error
    return text


def _longest(path: str) -> int | None:
    """Return the longest context in a `config.json`; None for other models."""
    if not path.endswith(".json"):
        return None
    config = load_config(path)
    inner = config.get("text_config")
    tokens = (inner if isinstance(inner, dict) else config).get("max_position_embeddings")
    return tokens if type(tokens) is int and tokens > 0 else None


def _is_dense(path: str) -> bool:
    """Return whether a file describes a model, and no part of it speaks of experts."""
    try:
        if path.endswith(".json"):
            config = load_config(path)
            return "model_type" in config and "expert" not in str(config)
        if path.endswith(".gguf"):
            from moesim.model.gguf_file import read_header

            header = read_header(path)
            names = [*header.metadata, *(tensor.name for tensor in header.tensors)]
            return bool(header.tensors) and not any("exp" in name for name in names)
    except MoesimError:
        pass
    return False


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
                f"--context {self.context}: an answer of --goal {self.goal} has {self.output} "
                "tokens, which leave none for the prompt; ask for more"
            )
        if self.formats and self.model.format is not None:
            kept = "the file says the type of every tensor"
            if self.model.format:
                kept = f"it is published in {self.model.format}"
            raise UsageError(
                f"--format {shown(self.formats[0])}: {self.model.name} has one format, because "
                f"{kept}; leave --format out"
            )
        for name in self.formats:
            if wrong := check_format_name(name):
                raise UsageError(f"--format {shown(name)}: {wrong}")
            for engine in self.engines:
                if wrong := unreadable(name, engine):
                    raise UsageError(f"--format {name}: {wrong}")

    @cached_property
    def machine(self) -> Machine:
        """The machine of `parts`."""
        return self.parts.machine()

    @cached_property
    def assumed(self) -> tuple[str, ...]:
        """What was assumed of the machine, one sentence each."""
        machine = self.machine
        size = machine.hardware.host_memory_bytes
        unknown = "host memory is taken as large enough, because no text says its size"
        sizes = (unknown,) if size is None and not machine.hardware.unified else ()
        return (*self.parts.filled()[1], *machine.supposed, *sizes, *self._contexts())

    def _contexts(self) -> Iterator[str]:
        longest = self.model.longest
        if longest is None:
            yield f"the model takes contexts of {self.context:,} tokens"
        elif longest < self.context:
            yield (
                f"RoPE scaling extends contexts to {self.context:,} tokens: the model was made for "
                f"{longest:,}, and answers may get worse"
            )

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
            "figures": dict(self.parts.figures),
            "context": self.context,
            "goal": self.goal,
            "load": self.load,
        }


_NO_GGUF: Final = re.compile(r"(?:AWQ|GPTQ|HQQ|MLX|FP8|INT8|NF4)\b.*")
_OF_IK: Final = re.compile(r"mix-.*|Q6_0|Q8_K|.*_R\d+|IQ\d_K(?:S|L|T|SS)?")


def unreadable(form: str, engine: str) -> str:
    """Return why a GGUF engine cannot read a format, or ""."""
    named = format_named(form).format
    name = named.name if named is not None else form
    if _NO_GGUF.fullmatch(name):
        return "no GGUF file has it, and the engines that are priced read GGUF; try Q4_K_M"
    if engine != "ik_llama.cpp" and _OF_IK.fullmatch(name):
        return "only ik_llama.cpp reads it (--engine ik_llama.cpp)"
    return ""


def _usual_cpu(ram: str) -> str:
    """Return the text of a usual processor, with more cores beside more channels of memory."""
    channels = memory_named(ram).channels or 2
    return f"{_USUAL_CORES if channels <= 2 else _CORES_A_CHANNEL * channels} cores"


def tokens_of(text: str) -> int:
    """Return the tokens in a text like `16k` (k is 1024). Raise UsageError for another text."""
    match = _TOKENS.fullmatch(text.strip())
    number = int(match[1]) * (1024 if match[2] else 1) if match else 0
    if not 1 <= number <= _MOST_TOKENS:
        raise UsageError(f"--context {shown(text)}: write a number of tokens, like 16k or 16384")
    return number
