"""Measure a machine: serve designed workloads until all intervals are narrow or time is over."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from moesim.calibrate.bench import Bench, DeviceBench, machine_facts, today, total_bytes
from moesim.calibrate.copies import (
    CopyPoint,
    fit_copies,
    measure_copies,
    measure_overlap,
    measure_rates,
)
from moesim.calibrate.design import Design, Limits, Subject, designs
from moesim.calibrate.profile import Profile, figure
from moesim.calibrate.samples import Samples, read_works
from moesim.calibrate.times import fit_operations, fit_times, with_copies
from moesim.errors import UsageError
from moesim.executor.device import emulated
from moesim.hardware.hardware import Link
from moesim.hardware.measurement import OperationTimes
from moesim.progress import Progress
from moesim.serving.budget import largest_step
from moesim.workload.workload import build_workload

if TYPE_CHECKING:
    from moesim.executor.executor import Executor
    from moesim.model.shapes import ModelShape
    from moesim.serving.run_log import Issued
    from moesim.simulate.build import Plan

__all__ = ["Measurement", "Slices", "calibrate", "calibrate_plan", "measure"]

NARROW: Final = 0.02
"""Half of a 95 % interval that counts as narrow, relative to the median."""

_CYCLE: Final = 6  # workloads; that many cover all batch sizes
_COPIES_SHARE, _OVERLAP_SHARE, _RATES_SHARE = 0.1, 0.08, 0.05  # of the time
_ROUND_SHARE: Final = 0.12  # of the time: the longest workload


@dataclass(slots=True)
class Measurement:
    """The result of the designed workloads."""

    samples: Samples
    times: OperationTimes
    rounds: int
    narrow: bool


def calibrate(
    subject: Subject,
    *,
    device: str = "cpu",
    h2d: Link | None = None,
    d2h: Link | None = None,
    limits: Limits | None = None,
    budget_s: float = 60.0,
    progress: Progress | None = None,
    seed: int = 0,
    command: str = "",
) -> Profile:
    """Measure this machine with a model of the subject's shape and random weights.

    `h2d` and `d2h` emulate links, on the CPU only. `budget_s` bounds the time of measuring, without
    the building of the model. `progress(phase, done, total)` reports tenths of seconds: those spent
    in a phase, and those planned for it.

    Raises:
        UsageError: this machine has no such device, the time is too short for a fit, or experts
            have unequal sizes.
        BudgetError: the model does not fit into the memory of the machine.
        ScenarioError: a model of this shape cannot be built.
        MissingExtra: torch is not installed.
        DeviceError, InvariantError: the machine failed.
    """
    if budget_s <= 0:
        raise UsageError(f"a calibration takes time; the budget of {budget_s:g} s leaves none")
    shape = subject.shape
    if not shape.equal_sizes:
        raise UsageError(
            "a calibration measures experts of one size; leave model.expert_bits_by out"
        )
    clock = _Clock(budget_s, progress)
    clock.begin("building the model")
    with closing(DeviceBench(subject, device, limits or Limits(), h2d=h2d, d2h=d2h)) as bench:
        clock.start()
        with closing(bench.open()) as opened:
            memory = total_bytes(opened)
            clock.begin("rates", _RATES_SHARE * budget_s)
            flops, moved = measure_rates(opened, shape, budget_s=_RATES_SHARE * budget_s)
            clock.begin("copies", _COPIES_SHARE * budget_s)
            copies = measure_copies(opened, shape.expert_bytes, budget_s=_COPIES_SHARE * budget_s)
            clock.begin("overlap", _OVERLAP_SHARE * budget_s)
            overlap = measure_overlap(opened, shape, budget_s=_OVERLAP_SHARE * budget_s)
            pins = opened.pins
        clock.begin("operations", clock.left_s)
        result = measure(subject, bench, clock, seed=seed)
        link = bench.link
    lines = _links(copies, pins)
    nominal = lines["h2d"] if link is None else link
    result.times = with_copies(result.times, result.samples, nominal)
    data = {
        "name": f"{device} of this machine, with {shape.name}",
        **_figures(
            result.times,
            subject,
            lines,
            flops=flops,
            moved=moved,
            memory=memory,
            on_cpu=not device.startswith("cuda"),
        ),
        "measured": {
            "device": device,
            "date": today(),
            "command": command,
            "machine": machine_facts(device),
        },
        "overlap": overlap.model_dump(),
        "operations": [result.times.model_dump(exclude_defaults=True)],
    }
    return Profile(
        data,
        result.times,
        result.samples,
        tuple(copies),
        result.rounds,
        result.narrow,
        nominal,
        lines if link is None else None,
    )


def calibrate_plan(
    plan: Plan,
    *,
    device: str = "cpu",
    budget_s: float = 10.0,
    progress: Progress | None = None,
    seed: int = 0,
    command: str = "",
) -> Profile:
    """Calibrate for one plan: with its model, its slots, its steps' sizes and its links.

    Raise as `calibrate` does.
    """
    return calibrate(
        _subject(plan),
        device=device,
        **_emulated(plan, device),
        limits=_limits(plan),
        budget_s=budget_s,
        progress=progress,
        seed=seed,
        command=command,
    )


class Slices:
    """A calibration for one plan in slices, between other measurements.

    So calibration and the runs that it predicts see the same machine load.
    """

    def __init__(
        self, plan: Plan, *, device: str = "cpu", executor: Executor | None = None
    ) -> None:
        """Build the plan's model, or borrow an executor of it. Raise as `calibrate` does."""
        self._subject = _subject(plan)
        self._pace = _Pace()
        self._borrowed = executor is not None
        links = _emulated(plan, device)
        self._bench = DeviceBench(self._subject, device, _limits(plan), **links, executor=executor)

    def sample(self, budget_s: float, *, seed: int) -> Samples:
        """Return samples of designed workloads that take about `budget_s`.

        An executor that was borrowed has just run, and needs a warm-up for the first slice only.
        """
        if not self._borrowed:
            self._pace = _Pace()
        samples = Samples()
        for more in _serve(self._subject, self._bench, _Clock(budget_s), seed, self._pace):
            samples.add(more)
        return samples

    @staticmethod
    def fit(shape: ModelShape, samples: Samples, link: Link) -> OperationTimes:
        """Return the times of a shape's operations from the samples of all slices.

        `link` gives the nominal cost of copies from host to device.
        """
        return fit_operations(shape, samples, link)

    def close(self) -> None:
        """Release the model."""
        self._bench.close()


def _limits(plan: Plan) -> Limits:
    """Return the largest steps that a plan can have."""
    batching = plan.scenario.batching
    contexts = [request.max_kv_tokens for request in build_workload(plan.scenario, plan.trace)]
    return Limits(
        sequences=min(batching.max_sequences, len(contexts)),
        tokens=largest_step(batching, contexts),
        context=max(contexts),
        residencies=(sum(plan.slots),),
    )


def _emulated(plan: Plan, device: str) -> dict[str, Link]:
    """Return the plan's links if the device emulates them."""
    if device != "cpu":
        return {}
    parts = emulated(plan.cost)
    return {"h2d": parts["h2d"], "d2h": parts["d2h"]}


def _subject(plan: Plan) -> Subject:
    """Return the model of a plan, with the configuration that its shape was read from."""
    return Subject(plan.cost.shape, plan.model_config)


class _Clock:
    """The time budget, and the progress of each phase."""

    def __init__(self, budget_s: float, progress: Progress | None = None) -> None:
        self.budget_s = budget_s
        self._progress = progress
        self._began_s = time.monotonic()
        self._phase = ""
        self._phase_began_s = self._phase_budget_s = 0.0

    def start(self) -> None:
        self._began_s = time.monotonic()

    @property
    def left_s(self) -> float:
        return self._began_s + self.budget_s - time.monotonic()

    def begin(self, phase: str, budget_s: float = 0.0) -> None:
        """Begin a phase of the calibration; this ends the phase before."""
        self.show(done=True)
        self._phase, self._phase_budget_s = phase, budget_s
        self._phase_began_s = time.monotonic()
        self.show()

    def show(self, *, done: bool = False) -> None:
        if self._progress is not None and self._phase:
            whole = max(1, round(10 * self._phase_budget_s))
            spent = round(10 * (time.monotonic() - self._phase_began_s))
            self._progress(self._phase, whole if done else min(whole, spent), whole)


def measure(
    subject: Subject,
    bench: Bench,
    clock: _Clock | float,
    *,
    seed: int = 0,
    most_rounds: int | None = None,
) -> Measurement:
    """Serve designed workloads until all intervals are narrow, or a limit is reached.

    The limits are the time of `clock` (or a number of seconds) and `most_rounds` workloads.
    """
    if not isinstance(clock, _Clock):
        clock = _Clock(clock)
    samples = Samples()
    rounds, narrow = 0, False
    for more in _serve(subject, bench, clock, seed):
        samples.add(more)
        rounds += 1
        if rounds % _CYCLE == 0 and rounds >= 2 * _CYCLE:
            narrow = _is_narrow(fit_times(subject.shape, samples, seed=seed))
        if narrow or rounds == most_rounds:
            break
    times = fit_times(subject.shape, samples, seed=seed)
    clock.show(done=True)
    return Measurement(samples, times, rounds, _is_narrow(times))


def _serve(
    subject: Subject, bench: Bench, clock: _Clock, seed: int, pace: _Pace | None = None
) -> Iterator[Samples]:
    """Serve designed workloads until the time is over, at least one; yield the samples of each.

    A warm-up comes first, unless the `pace` of an earlier call is known.
    """
    pace = pace or _Pace()
    source = designs(subject.shape, bench.limits, seed=seed)
    if not pace.known:
        pace.serve(bench, replace(next(source), prompts=(4, 4), outputs=(3, 3), sequences=2))
    for design in source:
        short = pace.shortened(design, _ROUND_SHARE * clock.budget_s)
        yield read_works(pace.serve(bench, short), link=bench.link)
        clock.show()
        if clock.left_s <= 0:
            return


class _Pace:
    """The seconds that a row and a step of the last workload took."""

    def __init__(self) -> None:
        self.known = False
        self._row_s = self._step_s = 0.0

    def serve(self, bench: Bench, design: Design) -> Sequence[Issued]:
        """Serve a workload, and note its pace."""
        works = bench.serve(design)
        taken_s = max(issued.work.finish_ns for issued in works) / 1e9
        self._row_s, self._step_s = taken_s / design.rows, taken_s / design.steps
        self.known = True
        return works

    def shortened(self, design: Design, budget_s: float) -> Design:
        """Return a design that takes about `budget_s` at this pace."""
        return design.shortened(int(budget_s / self._row_s), int(budget_s / self._step_s))


def _is_narrow(times: OperationTimes) -> bool:
    return all(residual.interval <= NARROW for residual in times.residuals.values())


def _links(copies: list[CopyPoint], pins: bool) -> dict[str, Link]:
    """Fit a line through the copies of each direction; a CPU has one kind of memory only."""
    links = {}
    for direction in ("h2d", "d2h"):
        lines = [
            fit_copies(copies, direction, pinned=pinned).coefficients
            for pinned in ((True, False) if pins else (True, True))
        ]
        latency = min(line[0] for line in lines)
        rates = [round(1e9 / max(line[1], 1e-6)) for line in lines]
        links[direction] = Link(round(latency), *rates)
    return links


def _figures(
    times: OperationTimes,
    subject: Subject,
    lines: Mapping[str, Link],
    *,
    flops: int,
    moved: int,
    memory: int,
    on_cpu: bool,
) -> dict[str, Any]:
    """Return the figures of a profile, which also price models that were not measured.

    `on_cpu`: the device is the CPU, so its rates are those of the host too. Those of a host with a
    GPU are not measured, and left out.
    """
    shape, experts = subject.shape, times.experts
    reading = shape.expert_bytes / max(experts.each_ns[0], 1.0) * 1e9
    most, longest = experts.tokens[-1], max(experts.each_ns[-1], 1.0)
    working = 2 * most * shape.expert_params / longest * 1e9
    figures: dict[str, Any] = {
        "vram": figure(memory, "memory of the device, as its driver or system says"),
        "flops": figure(flops, "a large matrix product, median of repeats"),
        "memory_bandwidth": figure(moved, "a large copy within memory, read and written"),
        "compute_efficiency": figure(
            _share(working / flops), f"experts with {most} rows against the large product"
        ),
        "memory_efficiency": figure(
            _share(reading / moved), "reading an expert's weights against the large copy"
        ),
        "kernel_overhead": figure(round(experts.call_ns), "a call over experts, beside its rows"),
    }
    for direction, link in lines.items():
        way = "to" if direction == "h2d" else "from"
        source = f"a line through copies {way} the device around the size of an expert"
        figures[direction] = {
            "latency": figure(link.latency_ns, source),
            "pinned_bandwidth": figure(link.pinned_bytes_per_s, source),
            "pageable_bandwidth": figure(link.pageable_bytes_per_s, source),
        }
    readback = "from the end of a front to the first work of its layer event, in runs"
    figures["readback_latency"] = figure(round(times.readback.base_ns), readback)
    if on_cpu:
        figures["host_memory_bandwidth"] = figure(moved, "as memory_bandwidth")
        figures["cpu_flops"] = figure(flops, "as flops")
    return figures


def _share(value: float) -> float:
    return float(min(1.0, max(1e-6, round(value, 4))))
