"""A layer event: two threads compute its experts, on the device and on the CPU."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="layer events need the torch extra")

from router_models import tiny  # noqa: E402

from moesim.executor import layer_event  # noqa: E402
from moesim.executor.expert_buffers import Pool  # noqa: E402
from moesim.executor.layer_event import LayerEvent  # noqa: E402
from moesim.record.routers import find_moe_layers  # noqa: E402

EXPERTS = 8  # in each layer of a tiny model
PATIENCE_S = 60  # a wait this long is a hang


def together(works: Sequence[Callable[[], None]]) -> None:
    """Run each work in a thread; all begin at the same time."""
    barrier = threading.Barrier(len(works))
    errors: list[BaseException] = []

    def begin(work: Callable[[], None]) -> None:
        try:
            with torch.inference_mode():
                barrier.wait(PATIENCE_S)
                work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=begin, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert not errors


def pool_of(family: str) -> tuple[Pool, Any]:
    """Return a tiny model's experts in host memory, and its module for them."""
    modules: list[Any] = [layer.experts for layer in find_moe_layers(tiny(family))]
    return Pool(modules, EXPERTS, buffers=1, device=torch.device("cpu")), modules[0]


def test_states_that_are_sent_again_do_not_disturb_those_that_have_landed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As with one event a key: the next key's states are under way when the last is computed."""
    pool, template = pool_of("qwen3_moe")
    landed = iter([True, False])
    monkeypatch.setattr(layer_event, "landing", lambda _: partial(bool, next(landed)))
    with torch.inference_mode():
        hidden, gates = torch.arange(64.0).view(2, 32), torch.ones(2, 1)
        event = LayerEvent(0, template, EXPERTS, hidden, gates, lambda: np.array([[3], [3]]))
        event.send_inputs()
        event.send_inputs()
        event.compute_on_host([(3, 2, pool.weights_of(pool.host_of(3)))])


def test_the_cpu_reads_a_copy_of_the_states_not_those_on_the_device() -> None:
    pool, template = pool_of("qwen3_moe")
    ids = np.array([[3], [3]])
    totals = []
    with torch.inference_mode():
        for later in (1.0, 0.0):
            hidden, gates = torch.arange(64.0).view(2, 32), torch.ones(2, 1)
            event = LayerEvent(0, template, EXPERTS, hidden, gates, lambda: ids)
            event.send_inputs()
            hidden *= later
            gates *= later
            event.compute_on_host([(3, 2, pool.weights_of(pool.host_of(3)))])
            event.return_outputs()
            totals.append(event.total())
    assert torch.equal(*totals)


@pytest.mark.usefixtures("eager_switches")
def test_two_threads_compute_experts_of_one_event() -> None:
    """The event is arranged once, and no assignment is lost or counted twice."""
    pool, template = pool_of("qwen3_moe")
    rng = np.random.default_rng(0)
    with torch.inference_mode():
        hidden, gates = torch.randn(30, 32), torch.rand(30, 2)
        for _ in range(50):
            _two_threads_against_one(pool, template, rng, hidden, gates)


@pytest.fixture
def eager_switches() -> Iterator[None]:
    """Let the interpreter switch between threads as often as it can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def _two_threads_against_one(
    pool: Pool, template: Any, rng: np.random.Generator, hidden: Any, gates: Any
) -> None:
    ids = np.stack([rng.permutation(EXPERTS)[:2] for _ in hidden])
    work = [
        (expert, int((ids == expert).sum()), pool.weights_of(pool.host_of(expert)))
        for expert in range(EXPERTS)
    ]
    asked: list[int] = []

    def answer() -> Any:
        asked.append(1)
        return ids

    both, alone = (LayerEvent(0, template, EXPERTS, hidden, gates, answer) for _ in range(2))
    both.send_inputs()
    cut = int(rng.integers(1, EXPERTS))

    def on_device() -> None:
        for each in work[:cut]:
            both.compute(*each)

    def on_host() -> None:
        for each in work[cut:]:
            both.compute_on_host([each])

    together([on_device, on_host])
    assert len(asked) == 1
    both.return_outputs()
    for each in work:
        alone.compute(*each)
    assert torch.equal(both.total(), alone.total())
