"""Experts on the CPU lane of the real machine: the model's texts at every split, in one order.

The scripts split each layer event's experts at random between resident, copied and CPU. Works in a
wrong order are errors that name it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the real machine needs the torch extra")

from placed_experts import WITH_CPU, PlacedTexts  # noqa: E402
from plain_texts import logit_tolerance  # noqa: E402
from router_models import tiny  # noqa: E402

from moesim.errors import InvariantError, UsageError  # noqa: E402
from moesim.executor.batch import Batch, Span  # noqa: E402
from moesim.executor.cpu import CpuDevice  # noqa: E402
from moesim.executor.device import Device  # noqa: E402
from moesim.executor.executor import Executor  # noqa: E402
from moesim.executor.expert_buffers import swiglu  # noqa: E402
from moesim.executor.fake import FakeDevice  # noqa: E402
from moesim.executor.machine import RealMachine  # noqa: E402
from moesim.hardware.ops import (  # noqa: E402
    BatchShape,
    Copy,
    Dense,
    Experts,
    Front,
    Op,
    Readback,
    States,
    Tail,
)
from moesim.hardware.topology import (  # noqa: E402
    CPU,
    D2H,
    DISK,
    GPU,
    H2D,
    HOST,
    Lane,
    Topology,
)
from moesim.machine.threads import drive  # noqa: E402
from moesim.machine.work import Work  # noqa: E402

PROMPTS = ([5, 9, 31, 7, 12, 40, 3], [11, 22, 33, 44], [50, 2])
NEW = 4
PATIENCE_S = 60  # a wait this long is a hang
BATCH = BatchShape(1, 1, 1, 1)
FAMILIES = ("qwen3_moe", "mixtral", "deepseek_v3", "gpt_oss", "qwen2_moe")


@cache
def model_of(family: str, dtype: str = "float64") -> Any:
    model = tiny(family).to(getattr(torch, dtype))
    model.set_experts_implementation("eager")  # the loop over experts, which knows all types
    return model


@cache
def plain(family: str) -> list[tuple[list[int], Any]]:
    """Greedy text of each prompt, and the logits of its tokens, by full forward passes."""
    texts = []
    for prompt in PROMPTS:
        tokens, rows = list(prompt), []
        for _ in range(NEW):
            with torch.no_grad():
                rows.append(model_of(family)(input_ids=torch.tensor([tokens])).logits[0, -1])
            tokens.append(int(rows[-1].argmax()))
        texts.append((tokens[len(prompt) :], torch.stack(rows)))
    return texts


def placed(
    device: Device, family: str, buffers: int, dtype: str = "float64", **how: Any
) -> PlacedTexts:
    executor = Executor(
        model_of(family, dtype), buffers=buffers, device=device.torch_device, pinned=device.pins
    )
    try:
        machine = RealMachine(executor, device, topology=WITH_CPU, patience_s=PATIENCE_S)
        texts = PlacedTexts(executor, machine, PROMPTS, new=NEW, **how)
        run(machine, texts.run)
    finally:
        executor.close()
    return texts


def run(
    machine: RealMachine, script: Callable[[], Any], at_last: Callable[[], object] = int
) -> None:
    machine.start()
    try:
        drive(script())
    finally:
        at_last()
        machine.close()


def check(texts: PlacedTexts, family: str, device: Device) -> None:
    tolerance = logit_tolerance(family, device.torch_device)
    for tokens, logits, (expected, rows) in zip(
        texts.tokens, texts.logits, plain(family), strict=True
    ):
        assert tokens == expected
        torch.testing.assert_close(torch.stack(logits).cpu(), rows, rtol=0, atol=tolerance)


@pytest.mark.parametrize("buffers", [0, 1, 2, 5, 12, 24])
def test_the_text_is_the_models_at_every_capacity_and_split(buffers: int, device: Device) -> None:
    for seed, share in enumerate((0.0, 0.3, 0.7, 1.0)):
        texts = placed(device, "qwen3_moe", buffers, cpu_share=share, seed=seed)
        check(texts, "qwen3_moe", device)
        assert bool(texts.counts["cpu"]) == (share > 0 or not buffers)
        assert bool(texts.counts["copied"]) == (share < 1 and buffers > 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_text_is_the_models_in_every_family(family: str, device: Device) -> None:
    texts = placed(device, family, 6, seed=7)
    check(texts, family, device)
    assert all(texts.counts.values())  # resident, copied and on the CPU


def test_logits_do_not_depend_on_the_placement() -> None:
    """On the CPU both memories compute alike, so even the bits are equal."""
    first = placed(CpuDevice(), "mixtral", 24, "float32", cpu_share=0.0)
    for seed in range(6):
        device = FakeDevice(latest_s=0.0002, seed=seed)
        again = placed(device, "mixtral", 4 * seed, "float32", cpu_share=seed / 5, seed=seed)
        device.close()
        for ours, theirs in zip(again.logits, first.logits, strict=True):
            assert torch.equal(torch.stack(ours), torch.stack(theirs))


# --- single steps ---


class Steps:
    """A layer event of a tiny model, whose works a test issues one by one."""

    def __init__(self, device: Device, topology: Topology = WITH_CPU) -> None:
        self.executor = Executor(model_of("qwen3_moe"), buffers=8, device=device.torch_device)
        self.machine = RealMachine(self.executor, device, topology=topology, patience_s=PATIENCE_S)
        self.executor.begin(Batch((Span(0, 0, 4, 8, True),), [5, 9, 31, 7]))

    def issue(self, lane: str, op: Op, *after: Work, buffer: int = -1) -> Work:
        work = Work(lane, op, after, buffer=buffer)
        self.machine.submit(work)
        return work

    def front(self) -> Any:
        """Run the model up to the ids of its first layer event."""
        before: tuple[Work, ...] = ()
        for layer in range(self.executor.model_layers[0]):
            before = (self.issue(GPU, Dense(layer, BATCH), *before),)
        front = self.issue(GPU, Front(self.executor.model_layers[0], BATCH), *before)
        yield from self.wait(front)
        yield from self.wait(self.issue(D2H, Readback(64)))

    def experts(self, *chosen: int) -> Experts:
        """The work of the wanted experts with these numbers in order, or of all."""
        ids = self.executor.ids(0)
        wanted = [int(expert) for expert in np.unique(ids)]
        keys = tuple(wanted[number] for number in chosen) if chosen else tuple(wanted)
        return Experts(0, keys, tuple(int((ids == key).sum()) for key in keys))

    def states(self, lane: str, *after: Work) -> Work:
        return self.issue(lane, States(0, 4, 64), *after)

    def after(self) -> Op:
        """The operation that follows the first layer event."""
        following = self.executor.model_layers[0] + 1
        if following in self.executor.model_layers:
            return Front(following, BATCH)
        return (
            Dense(following, BATCH) if following < self.executor.num_model_layers else Tail(BATCH)
        )

    def wait(self, *works: Work) -> Any:
        for work in works:
            yield from self.machine.wait_any((work,))

    def run(self, script: Callable[[], Any], at_last: Callable[[], object] = int) -> None:
        try:
            run(self.machine, script, at_last)
        finally:
            self.executor.close()


class HeldCpu(CpuDevice):
    """Computes nothing on the CPU lane before `release` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.release = threading.Event()

    def submit(self, lane: str, work: Callable[[], None], **given: Any) -> Any:
        if lane == CPU:
            assert self.release.wait(PATIENCE_S)
        return super().submit(lane, work, **given)


def test_the_gpu_computes_experts_while_the_cpu_does() -> None:
    device = HeldCpu()
    steps = Steps(device)

    def script() -> Any:
        yield from steps.front()
        on_cpu = steps.issue(CPU, steps.experts(0), steps.states(D2H))
        other = steps.experts(1)
        copy = Copy(other.keys[0], steps.executor.expert_bytes)
        on_gpu = steps.issue(GPU, other, steps.issue(H2D, copy, buffer=0))
        yield from steps.wait(on_gpu)
        assert not steps.machine.done(on_cpu)
        device.release.set()
        yield from steps.wait(steps.states(H2D, on_cpu))

    steps.run(script, at_last=device.release.set)


# --- wrong orders ---


def test_experts_whose_states_are_not_on_the_host_are_an_error(device: Device) -> None:
    steps = Steps(device)

    def script() -> Any:
        yield from steps.front()
        yield from steps.wait(steps.issue(CPU, steps.experts()))

    with pytest.raises(InvariantError, match="on the CPU before its states landed in host memory"):
        steps.run(script)


class HeldStates(CpuDevice):
    """Copies no states to the host before `release` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.release = threading.Event()

    def submit(self, lane: str, work: Callable[[], None], **given: Any) -> Any:
        if lane == D2H and given["nbytes"]:  # a readback has none
            assert self.release.wait(PATIENCE_S)
        return super().submit(lane, work, **given)


def test_experts_do_not_read_states_that_are_still_on_their_way() -> None:
    device = HeldStates()
    steps = Steps(device)

    def script() -> Any:
        yield from steps.front()
        steps.states(D2H)
        yield from steps.wait(steps.issue(CPU, steps.experts()))  # it should wait for the states

    with pytest.raises(InvariantError, match="on the CPU before its states landed in host memory"):
        steps.run(script, at_last=device.release.set)


def test_states_before_the_router_are_an_error(device: Device) -> None:
    steps = Steps(device)

    def script() -> Any:
        yield from steps.wait(steps.states(D2H))

    with pytest.raises(InvariantError, match="states of layer 0 before its router"):
        steps.run(script)


def test_outputs_that_are_not_computed_cannot_be_brought_back(device: Device) -> None:
    steps = Steps(device)

    def script() -> Any:
        yield from steps.front()
        yield from steps.wait(steps.states(D2H))
        yield from steps.wait(steps.states(H2D))

    with pytest.raises(InvariantError, match="brought back before the CPU has computed any"):
        steps.run(script)


@pytest.fixture
def held_experts(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Hold the first expert's computation: events that say it has begun, and let it end."""
    begun, release = threading.Event(), threading.Event()

    def hold(*given: Any) -> Any:
        begun.set()
        assert release.wait(PATIENCE_S)
        return swiglu(*given)

    monkeypatch.setattr("moesim.executor.layer_event.swiglu", hold)
    return begun, release


@pytest.mark.parametrize("following", ["return", "layer"])
def test_what_the_cpu_still_computes_is_waited_for(
    following: str, held_experts: tuple[threading.Event, threading.Event]
) -> None:
    steps, (begun, release) = Steps(CpuDevice()), held_experts

    def script() -> Any:
        yield from steps.front()
        steps.issue(CPU, steps.experts(), steps.states(D2H))
        assert begun.wait(PATIENCE_S)
        early = steps.states(H2D) if following == "return" else steps.issue(GPU, steps.after())
        yield from steps.wait(early)

    wrong = "brought back before" if following == "return" else "not back on the device"
    with pytest.raises(InvariantError, match=wrong):
        steps.run(script, at_last=release.set)


def test_the_next_layer_needs_the_outputs_on_the_device(device: Device) -> None:
    steps = Steps(device)

    def script() -> Any:
        yield from steps.front()
        states = steps.states(D2H)
        computed = steps.issue(CPU, steps.experts(), states)
        yield from steps.wait(steps.issue(GPU, steps.after(), computed))

    with pytest.raises(
        InvariantError, match=r"outputs of 12 of its assignments .* are not back on the device"
    ):
        steps.run(script)


def test_an_expert_is_computed_once(device: Device) -> None:
    steps = Steps(device)

    def script() -> Any:
        yield from steps.front()
        one = steps.experts(0)
        copy = Copy(one.keys[0], steps.executor.expert_bytes)
        on_cpu = steps.issue(CPU, one, steps.states(D2H))
        landing = steps.issue(H2D, copy, on_cpu, buffer=0)
        yield from steps.wait(steps.issue(GPU, one, landing))

    with pytest.raises(InvariantError, match=r"layer 0: expert \d is computed twice"):
        steps.run(script)


def test_the_rows_of_an_expert_on_the_cpu_are_those_routed_to_it(device: Device) -> None:
    steps = Steps(device)

    def script() -> Any:
        yield from steps.front()
        one = steps.experts(0)
        more = one._replace(tokens=(one.tokens[0] + 1,))
        yield from steps.wait(steps.issue(CPU, more, steps.states(D2H)))

    with pytest.raises(InvariantError, match=r"rows were announced for expert \d, \d are routed"):
        steps.run(script)


# --- what the machine cannot do ---


@pytest.mark.parametrize("op", [Front(0, BATCH), Dense(0, BATCH), Tail(BATCH)], ids=str)
def test_whole_layers_run_on_the_gpu_lane_only(op: Op) -> None:
    steps = Steps(CpuDevice())

    def script() -> Any:
        steps.issue(CPU, op)
        yield from ()

    with pytest.raises(UsageError, match=r"cannot run on lane 'cpu': .* on the GPU lane only"):
        steps.run(script)


def test_works_that_a_lane_cannot_do_are_refused() -> None:
    disk = Topology((*WITH_CPU.lanes, Lane(DISK, DISK, HOST)))
    wrong: list[tuple[str, Op, type[Exception], str]] = [
        (DISK, Copy(3, 64), UsageError, "cannot read key 3 from disk"),
        (H2D, Readback(8), InvariantError, r"lane 'h2d' .* cannot do Readback"),
        (CPU, Copy(3, 64), InvariantError, r"lane 'cpu' .* cannot do Copy"),
        (D2H, Experts(0, (1,), (1,)), InvariantError, r"lane 'd2h' .* cannot do Experts"),
        (GPU, States(0, 1, 64), InvariantError, r"lane 'gpu' .* cannot do States"),
    ]
    executor = Executor(model_of("qwen3_moe"), buffers=1)
    machine = RealMachine(executor, CpuDevice(), topology=disk)
    for lane, op, kind, said in wrong:
        with pytest.raises(kind, match=said):
            machine.submit(Work(lane, op))
    executor.close()


def test_lanes_that_the_machine_does_not_have_are_refused() -> None:
    executor = Executor(model_of("qwen3_moe"), buffers=1)
    with pytest.raises(UsageError, match=r"no lane like 'peer', from 'gpu' to 'gpu1'"):
        RealMachine(executor, CpuDevice(), topology=Topology((Lane("peer", "gpu", "gpu1"),)))
    executor.close()


def test_a_lane_computes_in_one_thread_of_torch() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    seen: dict[str, int] = {}

    class Asked(CpuDevice):
        def submit(self, lane: str, work: Callable[[], None], **given: Any) -> Any:
            seen[lane] = torch.get_num_threads()
            return super().submit(lane, work, **given)

    try:
        placed(Asked(), "qwen3_moe", 4)
    finally:
        torch.set_num_threads(before)
    assert seen == {GPU: 1, CPU: 1, H2D: 1, D2H: 1}
