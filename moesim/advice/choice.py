"""A choice: how an engine would hold and run a model, and the memory that this takes.

The experts of the first layers stay on the CPU, as many as needed; or the whole model runs there.
Memory is that of weights, KV entries of the whole context, and buffers. What an engine takes beside
these is assumed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from moesim.advice.question import Question
from moesim.hardware.hardware import Hardware
from moesim.model.shapes import ModelShape

__all__ = [
    "FORMATS",
    "FREE_SHARE",
    "MEMORY_ASSUMED",
    "UBATCHES",
    "Choice",
    "Memory",
    "choices",
    "disk_choices",
    "fewest_on_cpu",
    "formats_of",
    "free_share",
    "memory_of",
]

FORMATS: Final = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")
"""Formats that are compared where weights may have any, the most exact first."""
UBATCHES: Final = (512, 2048)
"""Tokens of a physical batch that are compared; 512 is the default of llama.cpp."""
_ENGINE_BYTES: Final = 600 * 10**6
"""Assumed: the context of the GPU's driver and the libraries of an engine."""
FREE_SHARE: Final = 0.03
"""Assumed: share of GPU memory that is kept free, for the screen and for fragments."""
_APPLE_FREE_SHARE: Final = 0.25
"""Assumed: macOS lets the GPU use about three quarters of the memory, unless told otherwise."""
_DISK_FORMATS: Final = 3
_LOGIT_BYTES: Final = 4
_ROW_BYTES: Final = 4  # activations have 32 bits in ggml
_SYSTEM_BYTES: Final = 2 * 10**9
"""Assumed: what the operating system takes of host memory."""
MEMORY_ASSUMED: Final = (
    f"driver and libraries take {_ENGINE_BYTES // 10**6} MB of GPU memory, {FREE_SHARE:.0%} stay "
    f"free, and the operating system takes {_SYSTEM_BYTES // 10**9} GB of host memory",
    "compute buffers are logits and activations of a physical batch, and one layer's experts",
)
"""What is assumed of memory, one sentence each."""


@dataclass(frozen=True, slots=True)
class Choice:
    """How a model is run.

    `cpu_layers` MoE layers, the first, have their experts on the CPU. With `whole` everything is
    there. `format` is "" where the file or the shape says it.
    """

    engine: str
    format: str
    cpu_layers: int = 0
    whole: bool = False
    ubatch: int = UBATCHES[0]
    kv: str = "f16"
    disk: bool = False
    """Whether experts that exceed host memory are read from a disk."""

    @property
    def placement(self) -> str:
        """Return where the experts are, in a word: `cpu`, `gpu` or `layers`."""
        if self.whole:
            return "cpu"
        return "layers" if self.cpu_layers else "gpu"

    def first_layers(self, shape: ModelShape) -> int:
        """Return the number N of `--n-cpu-moe N`, which counts dense layers too."""
        return shape.moe_layers[self.cpu_layers - 1] + 1 if self.cpu_layers else 0

    def setting(self, shape: ModelShape, *, unified: bool = False) -> str:
        """Return the choice as a setting that `moesim measured` reads."""
        if self.whole:
            where = "cpu-only"
        elif self.cpu_layers:
            where = f"ncmoe={self.first_layers(shape)}"
        else:
            where = "resident unified" if unified else "resident"
        return f"{where} ub={self.ubatch} kv={self.kv} fa=1"


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes by part in GPU memory and in host memory, and how much there is.

    `host_has` is None where the size of host memory is not known. `disk_bytes` are those of experts
    that have no room in host memory.
    """

    gpu: dict[str, int]
    host: dict[str, int]
    gpu_has: int
    host_has: int | None
    disk_bytes: int = 0

    @property
    def gpu_bytes(self) -> int:
        """Bytes used in GPU memory."""
        return sum(self.gpu.values())

    @property
    def host_bytes(self) -> int:
        """Bytes used in host memory."""
        return sum(self.host.values())

    @property
    def gpu_left(self) -> int:
        """Bytes left in GPU memory; negative if the choice does not fit."""
        return self.gpu_has - self.gpu_bytes

    @property
    def host_left(self) -> int | None:
        """Bytes left in host memory; None if its size is not known."""
        return None if self.host_has is None else self.host_has - self.host_bytes

    @property
    def fits(self) -> bool:
        """Whether everything fits; a host memory of unknown size is taken as large enough."""
        return self.gpu_left >= 0 and (self.host_left is None or self.host_left >= 0)


def free_share(hardware: Hardware) -> float:
    """Return the share of GPU memory that is kept free."""
    return _APPLE_FREE_SHARE if hardware.architecture == "apple" else FREE_SHARE


def memory_of(question: Question, choice: Choice) -> Memory:
    """Return the memory that a choice takes."""
    hardware = question.machine.hardware
    shape = question.model.stored(choice.format, choice.kv)
    weights = question.model.weights(choice.format)
    # The table of embeddings is read a row a token, and stays in host memory.
    table, rest, experts = weights.table, weights.rest, weights.experts
    on_cpu = choice.cpu_layers
    kv = shape.cache_bytes(question.context, choice.ubatch) + shape.state_bytes_per_sequence
    kv *= question.load
    buffers = _buffer_bytes(shape, choice, max(experts[:on_cpu], default=0))
    if choice.whole:
        host = {
            "weights": rest + table,
            "experts": sum(experts),
            "KV cache": kv,
            "buffers": buffers,
        }
        gpu: dict[str, int] = {}
    else:
        gpu = {
            "weights": rest,
            "experts": sum(experts[on_cpu:]),
            "KV cache": kv,
            "buffers": buffers,
            "engine": _ENGINE_BYTES,
            "kept free": round(free_share(hardware) * hardware.vram_bytes),
        }
        host = {"weights": table, "experts": sum(experts[:on_cpu])}
    has = hardware.vram_bytes if hardware.has_gpu else 0
    host["system"] = _SYSTEM_BYTES
    if hardware.unified:  # one memory holds all
        parts = dict.fromkeys((*gpu, *host))
        return Memory({part: gpu.get(part, 0) + host.get(part, 0) for part in parts}, {}, has, None)
    memory = Memory(gpu, host, has, hardware.host_memory_bytes)
    return _with_disk(memory, experts[0]) if choice.disk else memory


def _with_disk(memory: Memory, least_bytes: int) -> Memory:
    """Return the memory with experts on disk where host memory is full.

    At least one layer's experts have room, because a step needs them together.
    """
    experts, left = memory.host["experts"], memory.host_left
    missing = min(max(0, -(left or 0)), max(0, experts - least_bytes))
    host = {**memory.host, "experts": experts - missing}
    return replace(memory, host=host, disk_bytes=missing)


def _buffer_bytes(shape: ModelShape, choice: Choice, layer_bytes: int) -> int:
    """Return the bytes of compute buffers: logits and activations of a batch, a copied layer.

    Assumed after llama.cpp, which reserves logits for each token of a physical batch, and room for
    the expert weights of one layer where prompts copy them.
    """
    row = shape.vocabulary * _LOGIT_BYTES
    row += _ROW_BYTES * (4 * shape.hidden + 3 * shape.top_k * shape.expert_ffn)
    copied = 0 if choice.whole else layer_bytes
    return choice.ubatch * row + copied


def fewest_on_cpu(question: Question, choice: Choice) -> int | None:
    """Return the fewest layers of experts on the CPU with which a choice fits the GPU, or None."""
    low, high = 0, len(question.model.shape.moe_layers)
    if memory_of(question, replace(choice, cpu_layers=high)).gpu_left < 0:
        return None
    while low < high:
        middle = (low + high) // 2
        fits = memory_of(question, replace(choice, cpu_layers=middle)).gpu_left >= 0
        low, high = (low, middle) if fits else (middle + 1, high)
    return low


def formats_of(question: Question) -> tuple[str, ...]:
    """Return the formats that are compared, the most exact first."""
    if question.model.format is not None:
        return (question.model.format,)
    return question.formats or FORMATS


def choices(question: Question, ubatches: Sequence[int] = UBATCHES) -> Iterator[Choice]:
    """Yield the choices that fit the GPU: of each format, those that may be best.

    With fewer layers on the CPU decoding is faster as long as the GPU's kernels are; where they are
    not, the other end is best. So both ends are compared, and nothing between.
    """
    hardware = question.machine.hardware
    every = len(question.model.shape.moe_layers)
    for engine in question.engines:
        for form in formats_of(question):
            for kv in question.kv:
                if hardware.has_gpu:
                    for ubatch in ubatches:
                        start = Choice(engine, form, ubatch=ubatch, kv=kv)
                        if hardware.unified:  # experts on the CPU would take the same memory
                            yield start
                            continue
                        fewest = fewest_on_cpu(question, start)
                        if fewest is None:
                            continue
                        for layers in sorted({fewest, every}):
                            yield replace(start, cpu_layers=layers)
                if not hardware.unified:
                    yield Choice(engine, form, every, whole=True, kv=kv)


def disk_choices(question: Question) -> Iterator[Choice]:
    """Yield choices that read experts from a disk: all experts are in front of it, on the CPU.

    Prompts read all experts for each batch, so batches are large. Only the smaller formats are
    compared, because time is in proportion to what is read.
    """
    hardware = question.machine.hardware
    every, kv, ubatch = len(question.model.shape.moe_layers), question.kv[-1], UBATCHES[-1]
    if hardware.unified or hardware.host_memory_bytes is None:
        return
    for engine in question.engines:
        for form in formats_of(question)[-_DISK_FORMATS:]:
            start = Choice(engine, form, every, ubatch=ubatch, kv=kv, disk=True)
            for choice in (start, replace(start, whole=True)):
                if memory_of(question, choice).fits and (choice.whole or hardware.has_gpu):
                    yield choice
                    break
