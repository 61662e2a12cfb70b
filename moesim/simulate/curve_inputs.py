"""What a curve is given as text: the size of an expert, and a link."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moesim.config.units import exact_bandwidth, parse_bandwidth, parse_bytes
from moesim.errors import UsageError
from moesim.hardware import load_hardware
from moesim.model.hf_config import load_shape, shape_from_config
from moesim.model.shapes import named_shape
from moesim.report.curve_points import CopyLink

if TYPE_CHECKING:
    from moesim.trace import Trace

__all__ = ["check", "link_of", "size_of_an_expert"]


def check(size: tuple[int, str] | None, link: CopyLink | None, seed: int) -> None:
    """Raise `UsageError` for a negative seed, or a link where no size of an expert is known."""
    if seed < 0:
        raise UsageError(f"seed must not be negative, not {seed}")
    if link is not None and size is None:
        raise UsageError(
            "--link needs the size of an expert, and neither the trace nor the name of its model "
            "tells it; add --expert-bytes 16.5MiB, or --model MODEL"
        )


def size_of_an_expert(
    trace: Trace, model: str | None, expert_bytes: str | int | None
) -> tuple[int, str] | None:
    """Return the bytes of an expert and where they are from; None where they are not known.

    Raises:
        UsageError: a size or model is wrong, or the model's experts are not those of the trace.
    """
    if expert_bytes is not None and model is not None:
        raise UsageError("--expert-bytes and --model both state a size; leave one of them away")
    if expert_bytes is not None:
        try:
            nbytes = parse_bytes(expert_bytes)
        except ValueError as error:
            raise UsageError(f"--expert-bytes {expert_bytes}: {error}") from None
        if nbytes < 1:
            raise UsageError(f"--expert-bytes {expert_bytes}: must be positive")
        return nbytes, "as stated"
    if model is not None:
        shape = load_shape(model)
        layers, experts = len(shape.moe_layers), shape.num_experts
        if (layers, experts) != (trace.num_layers, trace.num_experts):
            raise UsageError(
                f"--model {model}: has {layers} layers of {experts} experts, and the trace "
                f"{trace.num_layers} of {trace.num_experts}; state --expert-bytes instead"
            )
        if not shape.equal_sizes:
            raise UsageError(
                f"--model {model}: its experts have unequal sizes, and a curve counts experts; "
                "state their mean size with --expert-bytes"
            )
        return shape.expert_bytes, f"{shape.name}, {shape.expert_bits:g} bits"
    if trace.meta.expert_bytes is not None:
        return trace.meta.expert_bytes, "the trace's header"
    try:
        config = trace.meta.model_config
        shape = named_shape(trace.meta.model) if config is None else shape_from_config(config)
    except UsageError:
        return None
    fits = (len(shape.moe_layers), shape.num_experts) == (trace.num_layers, trace.num_experts)
    if not fits or not shape.equal_sizes:
        return None
    return shape.expert_bytes, f"{shape.name}, {shape.expert_bits:g} bits"


def link_of(text: str) -> CopyLink:
    """Return the link of a bandwidth, or of a hardware profile. Raise `UsageError` otherwise."""
    try:
        bytes_per_s = parse_bandwidth(text)
    except ValueError:
        try:
            hardware = load_hardware(text)
        except UsageError as error:
            raise UsageError(
                f"--link {text}: is no bandwidth like 25GB/s, and no hardware profile: {error}"
            ) from None
        link = hardware.h2d
        return CopyLink(hardware.name, link.pinned_bytes_per_s, link.latency_ns)
    if bytes_per_s < 1:
        raise UsageError(f"--link {text}: must be positive")
    return CopyLink(exact_bandwidth(bytes_per_s), bytes_per_s)
