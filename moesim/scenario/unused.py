"""Keys of a scenario that cannot have an effect on its result; its notes list them.

A key that can act may still change nothing in a run, like a seed that nothing draws from.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from moesim.hardware.topology import CPU
from moesim.policies import find
from moesim.policies.placement import fixes_residents
from moesim.scenario.arrivals import Closed, FromFile
from moesim.scenario.split import OPTIONS_OF, split_label

if TYPE_CHECKING:
    from moesim.scenario.scenario import Scenario

__all__ = ["unused_keys", "unused_notes"]

_OF_CPU: Final = (
    "cpu_flops",
    "cpu_efficiency",
    "cpu_overhead",
    "cpu_cores",
    "cpu_threads",
    "core_memory_bandwidth",
    "cpu_int8_ops",
    "cpu_memory_bandwidth",
)
_OF_IDEAL_CPU: Final = ("cpu_efficiency", "cpu_overhead")
_OF_IDEAL_GPU: Final = ("compute_efficiency", "memory_efficiency", "kernel_overhead")
_OF_HOST_MEMORY: Final = ("host_memory_bandwidth", "host_memory_efficiency", "memory")


def unused_keys(scenario: Scenario) -> list[str]:
    """Return each key that is set and cannot act in this scenario."""
    return [key for key, _ in _unused(scenario)]


def unused_notes(scenario: Scenario) -> list[str]:
    """Return a note for each key that is set and cannot act in this scenario."""
    return [f"{key} is unused: {reason}" for key, reason in _unused(scenario)]


def _computes_on_cpu(scenario: Scenario) -> bool:
    """Return whether the placement may run experts on the CPU."""
    return CPU in getattr(find("placement", scenario.placement.policy), "lanes", ())


def _unused_of_host(scenario: Scenario) -> Iterator[tuple[str, str]]:
    """Yield the figures of the CPU, of host memory and of the disk where nothing reads them."""
    hardware, policy = scenario.hardware, scenario.placement.policy
    on_cpu = _computes_on_cpu(scenario)
    # Experts that do not fit into host memory are on disk; without a limit all of them fit.
    limited = scenario.memory.host is not None
    on_disk = limited and (hardware.gpu is None or scenario.load_hardware().disk is not None)
    for key in _OF_CPU:
        if getattr(hardware, key) is not None and not on_cpu:
            yield f"hardware.{key}", f"placement {policy} runs nothing on the CPU"
    if on_cpu and hardware.cpu_cores is not None:
        machine = scenario.load_hardware()
        if machine.cpu_threads is None and machine.core_memory_bytes_per_s is None:
            yield "hardware.cpu_cores", "all cores compute; cpu_threads would take some of them"
    for key in _OF_HOST_MEMORY:
        if getattr(hardware, key) is None or on_cpu or on_disk:
            continue
        # The text of unified memory gives the size of GPU memory, other texts that of host memory.
        gives_size = hardware.host_bytes is not None or scenario.load_hardware().unified
        if key != "memory" or not gives_size:
            yield (
                f"hardware.{key}",
                f"placement {policy} runs nothing on the CPU and nothing is read from disk",
            )
    if hardware.host_memory is not None:
        yield "hardware.host_memory", "memory.host limits what is kept in host memory"
    if hardware.disk is not None and not on_disk:
        for key in hardware.disk.model_dump(exclude_none=True):
            yield f"hardware.disk.{key}", "all experts fit into host memory"


def _unused_of_engine(scenario: Scenario) -> Iterator[tuple[str, str]]:
    """Yield the figures that an engine with kernels of its own does not read, and its interface."""
    hardware, placement, name = scenario.hardware, scenario.placement, scenario.engine.profile
    engine = scenario.load_engine()
    if not engine.gpu and scenario.engine.interface is not None:
        yield "engine.interface", f"engine {name} has no kernels of its own on the GPU"
    elif scenario.engine.interface is not None and not scenario.load_hardware().has_gpu:
        yield "engine.interface", "the machine has no GPU"
    if engine.gpu:
        for key in _OF_IDEAL_GPU:
            if getattr(hardware, key) is not None:
                yield f"hardware.{key}", f"engine {name} has kernels of its own on the GPU"
    elif hardware.int8_ops is not None:
        yield "hardware.int8_ops", f"engine {name} computes everything at the rate of floats"
    # Without a CPU lane, these keys are reported already.
    on_cpu = CPU in getattr(find("placement", placement.policy), "lanes", ())
    if engine.cpu is not None and on_cpu:
        for key in _OF_IDEAL_CPU:
            if getattr(hardware, key) is not None:
                yield f"hardware.{key}", f"engine {name} has kernels of its own on the CPU"
    if engine.cpu is None and on_cpu and hardware.cpu_int8_ops is not None:
        yield "hardware.cpu_int8_ops", f"engine {name} computes everything at the rate of floats"


def _unused_of_cache(scenario: Scenario) -> Iterator[tuple[str, str]]:
    """Yield the keys that say who leaves GPU memory, where the placement says who stays."""
    policy, cache = scenario.placement.policy, scenario.cache
    if not fixes_residents(find("placement", policy)):
        yield from _unused_of_split(scenario)
        return
    reason = f"placement {policy} fixes which experts are in GPU memory"
    for key in ("policy", "options", "scope", "split", "initial_layers", "admission", "write_back"):
        if getattr(cache, key) != type(cache).model_fields[key].default:
            yield f"cache.{key}", reason
    for key, field in type(cache.split_options).model_fields.items():
        if getattr(cache.split_options, key) != field.default:
            yield f"cache.split_options.{key}", reason


def _unused_of_split(scenario: Scenario) -> Iterator[tuple[str, str]]:
    """Yield the options that the split of slots does not read, so that splits can be swept."""
    split, options = split_label(scenario.cache.split), scenario.cache.split_options
    for key, field in type(options).model_fields.items():
        value = getattr(options, key)
        if value == field.default:
            continue
        if key not in OPTIONS_OF.get(split, ()):
            yield f"cache.split_options.{key}", f"split {split} does not read it"
        elif key in ("profile", "train") and split == "adapmoe" and options.accuracy is not None:
            yield f"cache.split_options.{key}", "accuracy gives what adapmoe would learn"


def _unused_of_model(scenario: Scenario) -> Iterator[tuple[str, str]]:
    """Yield the keys of the format where other keys give the bits."""
    model = scenario.model
    if model.format is not None and model.expert_bits and model.weight_bits:
        yield "model.format", "model.expert_bits and model.weight_bits give all bits"
    if model.format_by_layer and model.format is None:
        yield "model.format_by_layer", "there is no model.format"
    elif model.format_by_layer and model.expert_bits:
        yield "model.format_by_layer", "model.expert_bits gives the bits of all experts"


def _unused(scenario: Scenario) -> Iterator[tuple[str, str]]:
    hardware = scenario.hardware
    yield from _unused_of_model(scenario)
    yield from _unused_of_host(scenario)
    yield from _unused_of_cache(scenario)
    yield from _unused_of_engine(scenario)
    if hardware.d2h is not None and hardware.d2h.chunk is not None:
        yield "hardware.d2h.chunk", "no copy to the host is more urgent than another"
    chunked = hardware.h2d is not None and hardware.h2d.chunk is not None
    # An expert that ran on the CPU and is kept is copied for later, like a prefetch.
    for_later = _computes_on_cpu(scenario)
    if chunked and not for_later and not find("prefetch", scenario.prefetch.policy).active:
        yield "hardware.h2d.chunk", "nothing is prefetched, so no copy is more urgent than another"
    prefetch = scenario.prefetch
    if not find("prefetch", prefetch.policy).active:
        if prefetch.buffers:
            yield "prefetch.buffers", "nothing is prefetched, so they take no memory"
        if prefetch.cancel:
            yield "prefetch.cancel", "nothing is prefetched"
    unread, reason = _unread_rate(scenario)
    for direction in ("h2d", "d2h"):
        if getattr(getattr(hardware, direction), unread, None) is not None:
            yield f"hardware.{direction}.{unread}", reason
    memory = scenario.memory
    if memory.host is None and memory.host_cache != "page":
        yield "memory.host_cache", "host memory is unlimited, so nothing leaves it"
    if memory.pinned.kind != "auto" and not hardware.pinned:
        yield "hardware.pinned", "memory.pinned says which experts lie in page-locked memory"
    without_prefetch = scenario.metrics.without_prefetch
    if without_prefetch is not None and not find("prefetch", scenario.prefetch.policy).active:
        yield "metrics.without_prefetch", "nothing is prefetched"
    batching = scenario.batching
    if batching.chunked_prefill and batching.long_prompts != "exceed":
        yield "batching.long_prompts", "chunked prefill cuts prompts, so none exceeds the budget"
    arrivals, requests = scenario.workload.arrivals, scenario.workload.requests
    if scenario.workload.lengths is not None and isinstance(arrivals, FromFile):
        yield "workload.lengths", "the file gives the lengths"
    by = scenario.workload.pairing.by
    if by == "length" and scenario.workload.order != "recorded":
        yield "workload.order", "requests are paired by length"
    if by == "length" and scenario.workload.lengths is None and not isinstance(arrivals, FromFile):
        yield "workload.pairing.by", "requests have the lengths of their own sequences"
    if isinstance(arrivals, FromFile):
        yield from _unused_of_file(arrivals)
    if scenario.workload.cached_prefix and scenario.workload.prefill == "skip":
        yield "workload.cached_prefix", "with prefill: skip, whole prompts are cached"
    # Without `requests`, their number is that of the trace, which is not known here.
    if (
        isinstance(arrivals, Closed)
        and arrivals.think.mean
        and requests is not None
        and arrivals.clients >= requests
    ):
        yield "workload.arrivals.think", "no client sends a second request"


def _unused_of_file(arrivals: FromFile) -> Iterator[tuple[str, str]]:
    """Yield the keys of a file of requests that its format or its times do not read."""
    if arrivals.times != "file" and arrivals.time_scale != 1:
        yield "workload.arrivals.time_scale", "the file's times are not used"
    if arrivals.times != "gamma" and arrivals.burstiness != 1:
        yield "workload.arrivals.burstiness", "only times: gamma reads it"
    if arrivals.characters_per_token is not None and arrivals.format not in ("auto", "sharegpt"):
        yield "workload.arrivals.characters_per_token", "the file has numbers of tokens"
    if arrivals.block_tokens is not None and arrivals.format not in ("auto", "mooncake"):
        yield "workload.arrivals.block_tokens", "the format has no block ids"


def _unread_rate(scenario: Scenario) -> tuple[str, str]:
    """Return the rate of copies that is never read, and why; nothing where both may be.

    Copies of page-locked experts use one rate, those of other experts the other.
    """
    memory, pinned = scenario.memory, scenario.memory.pinned.kind
    if pinned == "auto":
        pinned = "all" if scenario.hardware.pinned else "none"
        # With a limit, they are page-locked only if they fit, which is not known here.
        if pinned == "all" and memory.host is not None:
            return "", ""
    match pinned:
        case "all":
            return "pageable_bandwidth", "experts lie in page-locked memory"
        case "none":
            return "pinned_bandwidth", "experts lie in pageable memory"
    return "", ""
