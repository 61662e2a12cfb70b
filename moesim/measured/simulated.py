"""Predictions by the ordinary simulator: a row becomes a scenario, which is planned and served.

Nothing here knows a measured value. The routing is uniform, from a fixed seed: where no expert is
cached, the choice of experts changes no decode time, and prompts use nearly all experts of a layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from moesim.config.reasons import reason_of
from moesim.engines.engine import engine_names, load_engine
from moesim.errors import MoesimError, UsageError
from moesim.measured.fit import Fitted, owned_by
from moesim.measured.intervals import interval_of
from moesim.measured.kinds import CPU_ONLY, OFFLOAD, RESIDENT, UNIFIED
from moesim.measured.places import EXPERTS
from moesim.measured.predict import (
    SHORT_DEPTH,
    USUAL_PROMPT,
    Answer,
    Declined,
    Prediction,
    Reading,
)
from moesim.measured.setting import placed
from moesim.trace.localities import Sizes

if TYPE_CHECKING:
    from moesim.hardware.hardware import Hardware
    from moesim.hardware.parts import Machine
    from moesim.measured.cached import ExpertCache
    from moesim.measured.rows import Row
    from moesim.measured.setting import Setting
    from moesim.model.shapes import ModelShape
    from moesim.serving.ledger import Ledger
    from moesim.simulate.build import Plan
    from moesim.trace import Trace

__all__ = ["NamedModel", "Simulated", "case_of", "in_one_line", "timeline_of"]

_DECODED: Final = 4  # tokens of a decode row that are simulated; their times hardly differ
_SEED: Final = 0
_MOST_ROWS: Final = 2048  # of a sequence with routing of its own; then it repeats
_LAYER_KERNELS: Final = 40
_IDEAL_KERNEL_NS: Final = 1000
_MOST_STEPS: Final = 32
_PARTS: Final = 8  # steps that stand for all of a long prompt
_MOST_SEQUENCES: Final = 64  # with routing of their own; others share it
_SECOND_NS: Final = 10**9
_ROOMY: Final = 0.85
_TOO_MUCH: Final = 1.1
_ROOM_FOR_CACHE: Final = 4
_UBATCH: Final = 512  # the default of llama.cpp
_Q8_KV_BITS: Final = 8  # one scale a row, which hardly counts


class NamedModel(NamedTuple):
    """A model by the `model` section of a scenario, and its shape."""

    section: Mapping[str, str]
    shape: ModelShape


@dataclass(frozen=True, slots=True)
class Case:
    """A row as moesim understands it: its scenario as plain data, and what it stands for."""

    scenario: Mapping[str, Any]
    shape: ModelShape
    machine: Machine
    prompt: int
    """Tokens of each sequence's prompt whose time is asked for, or 0 for decode."""
    notes: tuple[str, ...]
    cache: ExpertCache | None = None
    """An expert cache on the GPU, whose hit rate is given."""

    @property
    def sizes(self) -> Sizes:
        """The MoE layers, experts and k of the model."""
        return Sizes(len(self.shape.moe_layers), self.shape.num_experts, self.shape.top_k)


class Simulated:
    """A `Predictor` and a `TimeModel`. `fits` replaces two numbers of the machines it names.

    `models` are models that rows name and moesim does not ship: a scenario's `model` section and
    the shape, by name. The section may lack the format, which a row without `quant` then lacks too.
    `overrides` are figures of every row's machine that replace those of its parts. `memory` is the
    `memory` section of every row's scenario: with `host` and a disk in `overrides`, experts are
    read from disk. With `cache`, rows that leave experts on the CPU have a cache of experts on the
    GPU instead.
    """

    def __init__(
        self,
        fits: Sequence[Fitted] = (),
        models: Mapping[str, NamedModel] | None = None,
        overrides: Mapping[str, Any] | None = None,
        memory: Mapping[str, Any] | None = None,
        cache: ExpertCache | None = None,
    ) -> None:
        self._fits = {(fit.machine, fit.engine, fit.owner): fit for fit in fits}
        self._models = models or {}
        self._overrides = overrides or {}
        self._memory = memory or {}
        self._cache = cache

    def predict(self, reading: Reading) -> Answer:
        """Return the simulated tokens per second, or why there are none."""
        fit = self._fits.get(owned_by(reading))
        try:
            case = self.case_of(reading)
            if fit is None:
                seconds = _seconds(case)
            else:
                seconds = self.seconds(reading, fit.read_bandwidth, fit.layer_ns)
        except (MoesimError, ValueError) as error:
            return Declined(in_one_line(error))
        rate = 1 / seconds
        # A row with all weights on the GPU uses nothing else.
        open_parts = () if reading.kind.name in (RESIDENT, UNIFIED) else case.notes
        low, high = interval_of(reading, open_parts, fitted=fit is not None)
        return Prediction(rate, rate * low, rate * high, case.notes)

    def assumed(self, reading: Reading) -> tuple[float, float]:
        """Return the peak bandwidth of reads (bytes/s), and the fixed time of a layer (ns).

        What reads reach is in proportion to the peak.

        Layers differ between models and placements. So a layer stands here for 40 kernels on the
        GPU, or on the CPU without one, and a fit multiplies all fixed times by the same factor.
        """
        return _assumed(self.case_of(reading), reading)

    def seconds(self, reading: Reading, read_bandwidth: float, layer_ns: float) -> float:
        """Return the seconds of a token at another bandwidth of reads and time of a layer."""
        case = self.case_of(reading)
        bandwidth, assumed_ns = _assumed(case, reading)
        return _seconds(case, reads=read_bandwidth / bandwidth, kernels=layer_ns / assumed_ns)

    def with_fitted(self, fits: Sequence[Fitted]) -> Simulated:
        """Return the model with the fitted numbers of some machines."""
        return Simulated(fits, self._models, self._overrides, self._memory, self._cache)

    def case_of(self, reading: Reading) -> Case:
        """Return the scenario of a row. Raise UsageError as the function `case_of`."""
        model = self._models.get(reading.row.model)
        case = case_of(reading, model, self._overrides, self._memory)
        return case if self._cache is None else _with_cache(case, self._cache)


def case_of(
    reading: Reading,
    model: NamedModel | None = None,
    overrides: Mapping[str, Any] | None = None,
    memory: Mapping[str, Any] | None = None,
) -> Case:
    """Return the scenario of a row, of a shipped model or of `model`.

    `overrides` are figures of the machine that replace those of its parts. `memory` is the section
    of the scenario with this name.

    Raises:
        UsageError: a part of the row is not known, or is not simulated.
    """
    from moesim.hardware.parts import assemble
    from moesim.model.formats import format_named
    from moesim.model.shapes import named_shape

    row, setting = reading.row, reading.setting
    if setting.kv_on_cpu:
        raise UsageError("KV entries in host memory, with layers on the GPU, are not simulated")
    if reading.engine.name not in engine_names():
        raise UsageError(f"no figures of the engine {reading.engine.name} are known")
    section: dict[str, Any] = {"shape": row.model} if model is None else {**model.section}
    shape = named_shape(row.model) if model is None else model.shape
    machine = assemble(row.gpu or None, row.cpu, row.ram, row.pcie, overrides=overrides)
    named = format_named(row.quant)
    if row.quant or model is None:
        if named.format is None:
            raise UsageError(f"no format of weights is called {row.quant!r}")
        section["format"] = row.quant
    layers = _layers(reading, shape)
    prompt, depth = (0, row.depth or 0) if reading.decodes else _prompt(row)
    scenario: dict[str, Any] = {
        "name": f"row-{row.index}",
        "trace": ".",
        "model": section,
        "hardware": {**_hardware(reading, machine), **(overrides or {})},
        "engine": {"profile": reading.engine.name, "interface": _interface(reading)},
        "batching": {"max_sequences": max(1, row.batch)},
        "workload": {"requests": max(1, row.batch)},
        "bounds": False,
        "seed": _SEED,
    }
    if memory:
        scenario["memory"] = dict(memory)
    if setting.kv_keys or setting.kv_values:
        scenario["model"]["kv_bits"] = _kv_bits(setting)
    if setting.ubatch is not None:
        scenario["batching"]["token_budget"] = setting.ubatch
    if layers.experts or layers.whole:
        scenario["placement"] = {
            "policy": "cpu_layers",
            "options": {"layers": layers.experts, "whole_layers": layers.whole},
        }
        # Repacked weights have the layout of the CPU's kernels, so the GPU cannot use them.
        if setting.repack or setting.op_offload is False:
            scenario["placement"]["options"]["copy_rows"] = None
    else:
        scenario["cache"] = {"initial_layers": len(shape.moe_layers)}
    lengths = {"prompt": max(1, depth), "output": _DECODED}
    if prompt:
        lengths = {"prompt": depth + prompt, "output": 1}
        scenario["workload"]["cached_prefix"] = depth
    else:
        scenario["workload"]["prefill"] = "skip"
    scenario["workload"]["lengths"] = lengths
    notes = [*machine.supposed, *(f"not understood: {part!r}" for part in machine.unknown)]
    notes += [*named.rest, *layers.notes, *_make_room(reading, scenario, machine, layers)]
    return Case(scenario, shape, machine, prompt, tuple(notes))


def _with_cache(case: Case, cache: ExpertCache) -> Case:
    """Return the case with a cache of experts on the GPU, instead of layers on the CPU.

    Raises:
        UsageError: a batch decodes, for which no hit rates are published.
    """
    scenario = {**case.scenario, **cache.sections()}
    if scenario["batching"]["max_sequences"] > 1:
        raise UsageError("hit rates of a cache are published for one sequence at a time")
    workload = {**scenario["workload"], "requests": 2}  # the first one fills the cache
    if not case.prompt:
        steps = cache.steps(case.sizes)
        workload["lengths"] = {**workload["lengths"], "output": 1 + steps}
    scenario["workload"] = workload
    # Who asks knows that the slots fit. The simulator counts other buffers.
    vram = case.machine.hardware.vram_bytes
    scenario["hardware"] = {**scenario["hardware"], "vram": _ROOM_FOR_CACHE * vram}
    return replace(case, scenario=scenario, cache=cache)


def _make_room(
    reading: Reading, scenario: dict[str, Any], machine: Machine, layers: _Layers
) -> Iterator[str]:
    """Give the GPU the memory that a row needs, if it nearly has it; yield a note if it has less.

    The row did run, and sizes are known to some per cent: an engine may keep a table of embeddings
    on the host, or have smaller buffers. The KV cache has the tokens that it was made for.

    Raises:
        UsageError: the row needs much more than the GPU has.
    """
    from moesim.scenario import Scenario

    if reading.kind.name not in (OFFLOAD, RESIDENT, UNIFIED) or layers.whole == "all":
        return
    shape = Scenario.model_validate(scenario).load_shape(None)
    row, lengths = reading.row, scenario["workload"]["lengths"]
    used = sum(lengths.values()) * max(1, row.batch)
    tokens = max(used, row.allocated or 0, reading.setting.context or 0)
    on_gpu = range(layers.whole, shape.num_layers + 1)
    experts = (len(shape.moe_layers) - layers.experts) * shape.num_experts
    weights = shape.layers_bytes(on_gpu) + experts * shape.expert_bytes
    # The simulator keeps all KV entries; an engine drops those that have left a layer's window.
    planned = weights + tokens * shape.kv_bytes_per_token
    sequences, ubatch = max(1, row.batch), reading.setting.ubatch or _UBATCH
    needed = weights + sequences * shape.cache_bytes(-(-tokens // sequences), ubatch)
    has = machine.hardware.vram_bytes
    if needed > _TOO_MUCH * has:
        raise UsageError(
            f"spill: {needed / 1e9:.1f} GB are needed and the GPU has {has / 1e9:.1f} GB"
        )
    if planned > _ROOMY * has:
        scenario["hardware"]["vram"] = round(planned / _ROOMY)
    if needed > has:
        yield (
            f"{needed / 1e9:.1f} GB are needed and the GPU has {has / 1e9:.1f} GB: as the row ran, "
            "it is taken to fit"
        )


class _Layers(NamedTuple):
    """How many MoE layers have their experts on the CPU, and how many layers run there whole."""

    experts: int
    whole: int | Literal["all"]
    notes: tuple[str, ...]


def _layers(reading: Reading, shape: ModelShape) -> _Layers:
    setting, notes = reading.setting, []
    where = placed(setting, shape.num_layers, shape.moe_layers)
    number = sum("attn_q" in names for names in where.on_cpu)
    # A layer with one or two of its three expert matrices on the CPU counts as that share.
    parts = [
        len(where.on_cpu[layer].intersection(EXPERTS)) / len(EXPERTS) for layer in shape.moe_layers
    ]
    if any(part not in (0, 1) for part in parts):
        notes.append("layers whose experts are divided count in part")
    if setting.model_layers not in (None, shape.num_layers, shape.num_layers + 1):
        notes.append(f"the setting names {setting.model_layers} layers, not {shape.num_layers}")
    everything = where.output_on_cpu and number == shape.num_layers
    if reading.kind.name == CPU_ONLY or everything:
        return _Layers(len(parts), "all", tuple(notes))
    return _Layers(round(sum(parts)), number, tuple(notes))


def _kv_bits(setting: Setting) -> float:
    """Return the bits of a number in the KV cache, the mean of keys and values."""
    from moesim.model.formats import block_named

    def bits(name: str) -> float:
        return _Q8_KV_BITS if name == "q8_kv" else block_named((name or "f16").upper()).bits

    return (bits(setting.kv_keys) + bits(setting.kv_values)) / 2


def _prompt(row: Row) -> tuple[int, int]:
    """Return the tokens of a timed prompt, and those before it.

    A short depth without a prompt is the prompt: people who time `pp512` write 512 there.
    """
    depth = row.depth or 0
    if row.prompt:
        return row.prompt, depth
    return (depth, 0) if 0 < depth <= SHORT_DEPTH else (USUAL_PROMPT, depth)


def _hardware(reading: Reading, machine: Machine) -> dict[str, Any]:
    # The case's notes list what is not understood; a scenario would refuse it.
    hardware: dict[str, Any] = {name: text for name, text in machine.understood.items() if text}
    threads = reading.threads
    if threads is not None and machine.hardware.cpu_cores is not None:
        # Threads beyond the cores share them.
        hardware["cpu_threads"] = max(1, min(threads, machine.hardware.cpu_cores))
    return hardware


def _interface(reading: Reading) -> str | None:
    names = {"rocm": "hip", "cpu": None, "": None}
    backend = reading.engine.backend.lower()
    return names.get(backend, backend)


def _seconds(case: Case, *, reads: float = 1.0, kernels: float = 1.0) -> float:
    """Return the seconds of one token, over all sequences of the batch.

    `reads` multiplies what reads of weights reach, `kernels` all fixed times. A prompt of many
    steps is not simulated whole: the time of a step changes evenly with the depth, so the mean of
    some steps is taken.
    """
    from moesim.scenario import Scenario

    budget = Scenario.model_validate(case.scenario).batching.token_budget
    batch = case.scenario["batching"]["max_sequences"]
    if not case.prompt:
        steps = _DECODED - 1 if case.cache is None else case.cache.steps(case.sizes)
        return _run_s(case, reads, kernels) / float(batch * steps)
    if case.prompt * batch <= _MOST_STEPS * budget:
        return _run_s(case, reads, kernels) / float(batch * case.prompt)
    rows = max(1, budget // batch)
    depth = case.scenario["workload"]["cached_prefix"]
    middles = [round(case.prompt * (part + 0.5) / _PARTS) for part in range(_PARTS)]
    parts = [depth + middle - rows // 2 for middle in middles]
    times = [_run_s(_prompt_case(case, rows, part), reads, kernels) for part in parts]
    return float(sum(times) / (_PARTS * rows * batch))


def _prompt_case(case: Case, prompt: int, depth: int) -> Case:
    """Return the case with another prompt behind another depth."""
    workload = {
        **case.scenario["workload"],
        "cached_prefix": depth,
        "lengths": {"prompt": depth + prompt, "output": 1},
    }
    return replace(case, scenario={**case.scenario, "workload": workload}, prompt=prompt)


def timeline_of(case: Case) -> Ledger:
    """Return the ledger of a row's run, with the times of all work in its timeline."""
    from moesim.simulate.build import serve

    kept = {**case.scenario, "timeline": {"first_step": 0, "steps": _MOST_STEPS}}
    server, _ = serve(_plan(replace(case, scenario=kept)))
    return server.ledger


def _run_s(case: Case, reads: float, kernels: float) -> float:
    """Return the seconds until all sequences are done; with a cache, those of the second one."""
    from moesim.serving.ledger import STEP_COLUMNS
    from moesim.simulate.build import serve

    server, end_ns = serve(_plan(case, reads=reads, kernels=kernels))
    start_ns = 0
    if case.cache is not None:
        steps = server.ledger.steps
        start_ns = steps[len(steps) // 2][STEP_COLUMNS.index("start_ns")]
    return float(end_ns - start_ns) / _SECOND_NS


def _plan(case: Case, *, reads: float = 1.0, kernels: float = 1.0) -> Plan:
    from moesim.scenario import Scenario
    from moesim.simulate.build import prepare

    scenario = Scenario.model_validate(case.scenario)
    unified = case.machine.hardware.unified
    engine = scenario.load_engine().scaled(
        kernels, cpu_reads=reads, gpu_reads=reads if unified else 1
    )
    return prepare(scenario, _trace_of(case), engine=engine)


def _assumed(case: Case, reading: Reading) -> tuple[float, float]:
    """Return what `Simulated.assumed` does."""
    engine, hardware = load_engine(reading.engine.name), case.machine.hardware
    kernels = engine.kernels(_interface(reading)) if hardware.has_gpu else engine.cpu
    kernel_ns = _IDEAL_KERNEL_NS
    if kernels is not None:
        threads = 0 if hardware.has_gpu else hardware.cpu_threads or hardware.cpu_cores or 0
        kernel_ns = kernels.kernel_ns + threads * kernels.thread_ns
    return float(_peak_of_reads(hardware)), float(_LAYER_KERNELS * kernel_ns)


def _peak_of_reads(hardware: Hardware) -> int:
    """Return the bytes/s of the memory whose reads are fitted.

    That is host memory, which the CPU reads; on a machine with unified memory it is the only one.
    """
    host = hardware.host_memory_bytes_per_s
    return hardware.memory_bytes_per_s if host is None or hardware.unified else host


def _trace_of(case: Case) -> Trace:
    if case.cache is not None and not case.prompt:
        return _cached_routing(case.cache, case.sizes)
    shape = case.shape
    rows = max(_DECODED + 1, min(case.prompt, _MOST_ROWS) + 1)
    sequences = min(case.scenario["workload"]["requests"], _MOST_SEQUENCES)
    prompt = rows - 1
    if "memory" in case.scenario and not case.prompt:
        prompt = 1  # generated tokens repeat no expert by design, which counts behind a cache
    return _trace(len(shape.moe_layers), shape.num_experts, shape.top_k, sequences, rows, prompt)


@lru_cache(maxsize=8)
def _cached_routing(cache: ExpertCache, sizes: Sizes) -> Trace:
    return cache.routing(sizes)


@lru_cache(maxsize=4)
def _trace(layers: int, experts: int, top_k: int, sequences: int, rows: int, prompt: int) -> Trace:
    """Return requests of `rows` rows whose tokens choose their experts at random, all alike.

    The first `prompt` rows are those of prompts. Rows beyond the last repeat generated ones.
    """
    import numpy as np

    from moesim.trace import Trace

    rng = np.random.default_rng(_SEED)
    shape = (rows, layers, experts)
    draws = (rng.random(shape, dtype=np.float32) for _ in range(sequences))
    ids = [np.argpartition(keys, top_k - 1, axis=2)[:, :, :top_k] for keys in draws]
    return Trace.from_arrays(
        expert_ids=np.concatenate(ids), seq_len=[rows] * sequences, num_experts=experts,
        prompt_tokens=[prompt] * sequences, model="uniform routing",
    )  # fmt: skip


def in_one_line(error: Exception) -> str:
    """Return why a row cannot be simulated, without what its scenario's author could try."""
    from pydantic import ValidationError

    text = str(error)
    if isinstance(error, ValidationError):
        found = error.errors()[0]
        text = f"{'.'.join(map(str, found['loc']))}: {reason_of(found)}"
    lines = [" ".join(line.split()) for line in text.removeprefix("scenario: ").splitlines()]
    return "; ".join(line for line in lines if not line.startswith("try "))
