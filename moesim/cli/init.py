"""`moesim init`: a first scenario, with a comment at each key and a trace that it can run."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from moesim.cli.complete import of_formats, of_hardware, of_models

if TYPE_CHECKING:
    from moesim.model.shapes import ModelShape
    from moesim.simulate.build import Plan
    from moesim.trace import Trace
    from moesim.trace.like import Likeness

__all__ = ["register"]

_NAME: Final = "scenario.yaml"
_MODEL: Final = "mixtral-8x7b"
_GPU: Final = "rtx-3060-12gb"
_FORMAT: Final = "Q4_K_M"
_ENDINGS: Final = (".yaml", ".yml")
_CONFIGS: Final = (".json", ".gguf")
_REQUESTS: Final = 8
_UNLIMITED: Final = "unlimited"
_DISK: Final = "disk: {latency: 100us, bandwidth: 3GB/s}"
_MEMORY: Final = "memory: DDR4-3200 2ch"  # what a disk shares its bandwidth with
_TOKENS: Final = 64  # of each prompt, and of each answer


def register(app: typer.Typer) -> None:
    """Add the command of this file to the application."""
    app.command()(init)


def init(
    path: Annotated[
        Path, typer.Argument(help="The YAML file to write, or the folder for scenario.yaml.")
    ] = Path(),
    model: Annotated[
        str | None,
        typer.Option(
            help="The model: a name from `moesim list models`, a config.json or a GGUF file "
            f"(default: {_MODEL}, or that of --trace).",
            autocompletion=of_models,
        ),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            help=f"The format of the weights (default: {_FORMAT}, or the model's own if it is "
            "published with fewer than 16 bits).",
            autocompletion=of_formats,
        ),
    ] = None,
    gpu: Annotated[
        str,
        typer.Option(
            help="The graphics card, from `moesim list gpus` or `moesim list cards`; or the path "
            "of a profile.",
            autocompletion=of_hardware,
        ),
    ] = _GPU,
    host: Annotated[
        str, typer.Option(help="Host memory for experts, like 32GiB; what exceeds it is on disk.")
    ] = _UNLIMITED,
    trace: Annotated[
        Path | None,
        typer.Option(help="A recorded trace (default: draw a synthetic one, like the model's)."),
    ] = None,
) -> None:
    """Write a first scenario that runs at once, with a comment at each key.

    Without --trace, a synthetic trace is drawn beside it, with the hit rates that are known of the
    model. The file says so. Nothing that exists is overwritten.
    """
    from moesim.errors import OutputError

    file = path if path.suffix in _ENDINGS else path / _NAME
    if os.path.lexists(file):
        raise OutputError(file, "already exists; name another file or folder")
    wanted = _Wanted(model, form, gpu, host, trace)
    with _unless_in_vain(file.parent):
        made = _written(file, wanted) if trace is not None else _drawn(file, wanted)
    typer.echo(f"wrote {file}")
    typer.echo("\n".join(made))
    run, out = ["moesim", "run", str(file)], str(file.parent / "runs" / file.stem)
    compare = ["moesim", "compare", str(file), "--set", "sweep.cache.policy=[lru, lfu, sieve]"]
    typer.echo(f"\nnext\n  {shlex.join([*run, '--out', out])}")
    typer.echo(f"  {shlex.join([*compare, '--out', f'{out}-policies'])}")


@contextmanager
def _unless_in_vain(folder: Path) -> Iterator[None]:
    """Remove the folder if it was made in the block, is empty, and the block fails."""
    there = folder.exists()
    try:
        yield
    except BaseException:
        if not there:
            with suppress(OSError):  # it holds something, or it was never made
                folder.rmdir()
        raise


@dataclass(frozen=True, slots=True)
class _Wanted:
    model: str | None
    form: str | None
    gpu: str
    host: str
    trace: Path | None


@dataclass(frozen=True, slots=True)
class _Synthetic:
    """A trace that was drawn for the scenario, and the model that it is like."""

    folder: Path
    shape: ModelShape
    likeness: Likeness


def _drawn(file: Path, wanted: _Wanted) -> list[str]:
    """Draw a trace like the model's and write the scenario; return lines about both."""
    import shutil

    from moesim.errors import OutputError, UsageError
    from moesim.model.hf_config import load_shape
    from moesim.trace import SyntheticKnobs, write_synthetic
    from moesim.trace.like import header_like, knobs_like, likeness
    from moesim.trace.localities import Sizes

    name = wanted.model or _MODEL
    shape = load_shape(name)
    if not shape.moe_layers:
        raise UsageError(f"--model {name}: the model has no routed experts, so none is offloaded")
    folder = file.parent / f"synthetic-{shape.name}"
    if os.path.lexists(folder):
        again = f"use it with --trace {shlex.quote(str(folder))}"
        raise OutputError(folder, f"already exists; {again}, or name another folder")
    found = likeness(shape.name, Sizes(len(shape.moe_layers), shape.num_experts, shape.top_k))
    size = SyntheticKnobs(
        requests=_REQUESTS,
        prompt_tokens=_TOKENS,
        output_tokens=_TOKENS,
        num_layers=found.sizes.layers,
    )
    knobs = knobs_like(found, size)
    write_synthetic(folder, knobs, meta=header_like(found, knobs, shape.moe_layers))
    try:
        said = _written(file, replace(wanted, model=name), _Synthetic(folder, shape, found))
    except BaseException:
        shutil.rmtree(folder)  # it was made here, a moment ago
        raise
    return [f"wrote {folder}: a SYNTHETIC trace, drawn at random", *said]


def _written(file: Path, wanted: _Wanted, drawn: _Synthetic | None = None) -> list[str]:
    """Write the scenario and check that it runs; return lines about what fits in GPU memory."""
    from moesim.cli.start_text import Start, start_text
    from moesim.errors import MoesimError, UsageError
    from moesim.files import output_errors
    from moesim.model.hf_config import load_shape
    from moesim.scenario import load_scenario
    from moesim.simulate import prepare
    from moesim.trace import load_trace

    trace = wanted.trace if drawn is None else drawn.folder
    assert trace is not None
    replayed, model = load_trace(trace), wanted.model
    if drawn is not None:
        shape: ModelShape | None = drawn.shape
    else:
        shape = None if model is None else load_shape(model)
    start = Start(
        trace=_seen_from(file.parent, str(trace)) if drawn is None else drawn.folder.name,
        routing=_of(replayed) if drawn is None else _about(drawn),
        model=_seen_from(file.parent, model) if model and model.endswith(_CONFIGS) else model,
        format=None if shape is None else wanted.form or _usual_format(model, shape),
        hardware=_hardware(file.parent, wanted.gpu, with_disk=wanted.host != _UNLIMITED),
        host=wanted.host,
        requests=min(_REQUESTS, replayed.num_requests),
    )
    with output_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(start_text(start), encoding="utf-8", newline="\n")
    try:
        return _room(prepare(load_scenario(file)))
    except MoesimError as error:
        file.unlink()
        raise UsageError(f"nothing is written, because this would not run: {error}") from error


def _about(drawn: _Synthetic) -> tuple[str, ...]:
    published = drawn.likeness.published
    known = "published for this model" if published else "known of similar models"
    return (
        "SYNTHETIC ROUTING: drawn at random, made by no model. Its hit rates under LRU are like",
        f"those {known} ({drawn.shape.name}); `moesim trace info` shows more.",
        "Put a recorded trace here before you decide anything: `moesim record`, or",
        "`moesim trace convert` for what another program has logged.",
    )


def _of(trace: Trace) -> tuple[str, ...]:
    return (f"The routing that is replayed: {trace}".replace("\n", " "),)


def _usual_format(model: str | None, shape: ModelShape) -> str | None:
    """Return the usual format, except for a model that is stored in fewer bits already."""
    own = shape.expert_bits < 16 or (model or "").endswith(".gguf")
    return None if own else _FORMAT


def _hardware(folder: Path, gpu: str, *, with_disk: bool) -> str:
    """Return the value of `hardware` as YAML: a profile, or a card of the catalogue.

    `with_disk` adds a usual disk, and the usual host memory that the catalogue does not give to a
    card. A profile of the user's own says both itself.
    """
    from moesim.cli.start_text import scalar
    from moesim.errors import UsageError
    from moesim.hardware.hardware import hardware_names
    from moesim.hardware.parts import gpu_named

    if gpu in hardware_names():
        return f"{{profile: {scalar(gpu)}, {_DISK}}}" if with_disk else scalar(gpu)
    if gpu.endswith(_ENDINGS):
        return scalar(_seen_from(folder, gpu))
    try:
        gpu_named(gpu)
    except UsageError as error:
        raise UsageError(f"--gpu {gpu}: {error}; profiles are in `moesim list gpus`") from None
    return f"{{gpu: {scalar(gpu)}{f', {_MEMORY}, {_DISK}' if with_disk else ''}}}"


def _seen_from(folder: Path, path: str) -> str:
    """Return a path of the command line as a file in `folder` must spell it."""
    from moesim.config.markers import seen_from

    return path if os.path.isabs(path) else seen_from(folder, path)


def _room(plan: Plan) -> list[str]:
    """Say how many experts fit in GPU memory; a run in which all fit shows no misses."""
    from moesim.config.units import format_bytes

    experts = plan.trace.num_layers * plan.trace.num_experts
    slots = min(plan.budget.slots, experts)
    size = format_bytes(plan.budget.capacity_bytes)
    said = [f"{slots} of {experts} experts fit in {size} of GPU memory beside the rest"]
    if slots == experts:
        said.append("all fit, so hardly any misses; for fewer slots: --set cache.slots=50%")
    return said
