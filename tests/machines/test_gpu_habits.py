"""What would make a GPU wait, or keep memory, is absent from the executor: seen without a GPU."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from workloads import TINY_CONFIG, plan_of, tiny_scenario, tiny_trace

torch = pytest.importorskip("torch", reason="the executor needs the torch extra")

from executor_driver import BATCH, run_step  # noqa: E402
from router_models import tiny  # noqa: E402
from torch.multiprocessing.reductions import StorageWeakRef  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from moesim.executor import executor as executing  # noqa: E402
from moesim.executor import layer_event, pinned, state_copies  # noqa: E402
from moesim.executor.batch import Batch, Span  # noqa: E402
from moesim.executor.device import open_device  # noqa: E402
from moesim.executor.executor import Executor  # noqa: E402
from moesim.executor.run import executor_for, run_real  # noqa: E402
from moesim.hardware.ops import Front  # noqa: E402

FAMILIES = ("deepseek_v2", "deepseek_v3", "gpt_oss", "mixtral", "olmoe", "qwen2_moe", "qwen3_moe")
ASKS_A_VALUE = {  # of these operators a GPU brings a number to the host, and the host waits
    *("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.equal"),
    *("aten._unique2", "aten.is_nonzero", "aten.item", "aten.repeat_interleave.Tensor"),
}

pytestmark = pytest.mark.usefixtures("one_thread")


class Watch(TorchDispatchMode):
    """Collects the operators that would make the host wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: set[str] = set()
        self.seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen += 1
        names = {str(func), str(func).rpartition(".")[0]}
        # An index that is a mask: its number of true places decides a shape.
        indices = args[1] if str(func).startswith("aten.index.") else ()
        masks = [each for each in indices if each is not None and each.dtype == torch.bool]
        if names & ASKS_A_VALUE or masks:
            self.asked.add(str(func))
        return func(*args, **(kwargs or {}))


def replayed(executor: Executor, spans: tuple[Span, ...]) -> Batch:
    """A batch whose experts and weights are known before the step, as in a replay."""
    rng = np.random.default_rng(0)
    tokens = sum(span.tokens for span in spans)
    shape = (tokens, executor.num_layers)
    ids = np.argsort(rng.random((*shape, executor.num_experts)), axis=2)[:, :, : executor.top_k]
    return Batch(spans, None, ids.astype(np.int64), rng.random(ids.shape).astype(np.float32))


SPANS = (Span(0, 0, 5, 9, True), Span(1, 0, 3, 9, True))


@pytest.mark.parametrize("family", FAMILIES)
def test_no_operator_of_a_step_makes_the_host_wait_for_a_number(family: str) -> None:
    executor = Executor(tiny(family), buffers=3)
    layers = executor.model_layers
    with Watch() as watch:
        for position in (0, 5):
            spans = tuple(
                span._replace(position=position and span.tokens, tokens=1 if position else 5)
                for span in (SPANS[0], SPANS[1]._replace(tokens=5))
            )
            run_step(executor, replayed(executor, spans), layers, executor.num_model_layers)
    assert watch.seen > 100
    # The driver reads the sampled tokens, which are in host memory by then.
    assert not watch.asked
    executor.close()


def test_the_watch_sees_what_it_looks_for() -> None:
    numbers = torch.arange(4.0)
    with Watch() as watch:
        int(numbers[0])
        numbers[numbers > 1]
    assert {name.partition(".default")[0] for name in watch.asked} >= {"aten._local_scalar_dense"}
    assert any("index" in name or "nonzero" in name for name in watch.asked)


def test_known_ids_are_sorted_in_the_front_and_not_in_the_first_experts_time() -> None:
    executor = Executor(tiny("mixtral"), buffers=3)
    executor.begin(replayed(executor, SPANS))
    executor.run(Front(executor.model_layers[0], BATCH))
    assert executor._event is not None
    assert executor._event._inputs is not None
    executor.close()


def test_ids_that_the_model_chooses_are_sorted_once_they_are_known() -> None:
    executor = Executor(tiny("mixtral"), buffers=3)
    executor.begin(Batch(SPANS, [1] * 8))
    executor.run(Front(executor.model_layers[0], BATCH))
    assert executor._event is not None
    assert executor._event._inputs is None
    executor.close()


def test_all_small_numbers_reach_the_device_through_page_locked_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ids, positions, rows to keep, gate weights, and the order of each layer's assignments."""
    brought: list[int] = []

    def staged(numbers: Any, device: Any) -> Any:
        brought.append(numbers.numel())
        return state_copies.staged(numbers, device)

    monkeypatch.setattr(executing, "staged", staged)
    monkeypatch.setattr(layer_event, "staged", staged)
    executor = Executor(tiny("mixtral"), buffers=3)
    layers = executor.model_layers
    run_step(executor, replayed(executor, SPANS), layers, executor.num_model_layers)
    assert len(brought) == 3 + 2 * executor.num_layers
    executor.close()


def test_numbers_for_a_gpu_are_locked_first_and_nothing_waits_for_them() -> None:
    calls: list[Any] = []

    class Numbers:
        def pin_memory(self) -> Numbers:
            calls.append("pin")
            return self

        def to(self, device: Any, **options: bool) -> str:
            calls.append(options)
            return "there"

    numbers: Any = Numbers()
    assert state_copies.staged(numbers, torch.device("cuda")) == "there"
    assert calls == ["pin", {"non_blocking": True}]
    del calls[:]
    state_copies.staged(numbers, torch.device("cpu"))
    assert calls == [{}]


class Cudart:
    """CUDA's runtime, as far as locking memory goes."""

    def __init__(self, result: int = 0) -> None:
        self.result = result
        self.locked: dict[int, int] = {}
        self.synchronized = 0

    def cudart(self) -> Cudart:
        return self

    def synchronize(self) -> None:
        self.synchronized += 1

    def cudaHostRegister(self, address: int, nbytes: int, flags: int) -> int:  # noqa: N802
        if not self.result:
            self.locked[address] = nbytes
        return self.result

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802
        assert self.synchronized  # a copy may be under way before
        del self.locked[address]
        return 0


@contextmanager
def fake_cudart(monkeypatch: pytest.MonkeyPatch, result: int = 0) -> Iterator[Any]:
    """Replace torch in `pinned`; yield the runtime and the options of allocations."""
    runtime, asked = Cudart(result), []

    def empty(*shape: Any, **options: Any) -> Any:
        asked.append(options.pop("pin_memory", False))
        return torch.empty(*shape, **options)

    def zeros(*_: Any, **__: Any) -> Any:
        raise RuntimeError("the last error of CUDA, which this call takes away")

    fake = SimpleNamespace(cuda=runtime, empty=empty, zeros=zeros, uint8=torch.uint8)
    monkeypatch.setattr(pinned, "torch", fake)
    yield runtime, asked


def test_experts_are_locked_in_whole_pages_of_their_own_and_not_in_a_power_of_two(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with fake_cudart(monkeypatch) as (runtime, asked):
        rows, unlock = pinned.page_locked((3, 1001), torch.float32)
        ((address, nbytes),) = runtime.locked.items()
        assert nbytes == 3 * 4096
        assert (address % 4096, address) == (0, rows.data_ptr())
        assert rows.shape == (3, 1001)
        rows.fill_(7)
        assert asked == [False]
        unlock()
        assert not runtime.locked


def test_where_memory_cannot_be_registered_torch_locks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_cudart(monkeypatch, result=801) as (_, asked):
        rows, unlock = pinned.page_locked((3, 5), torch.float32)
        unlock()
    assert asked == [False, True]
    assert rows.shape == (3, 5)


def test_a_pool_that_is_dropped_without_close_is_unlocked(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_cudart(monkeypatch) as (runtime, _):
        executor = Executor(tiny("mixtral"), buffers=2, pinned=True)
        pool = weakref.ref(executor._pool)
        assert len(runtime.locked) == 1
        del executor
        gc.collect()
        assert pool() is None
        assert not runtime.locked


@pytest.mark.parametrize("name", ["cpu", "fake"])
def test_a_closed_executor_frees_its_memory_without_the_garbage_collector(name: str) -> None:
    bits = {"shape": "trace", "expert_bits": 32, "weight_bits": 32, "kv_bits": 32}
    plan = plan_of(tiny_scenario(model=bits), tiny_trace().with_meta(model_config=TINY_CONFIG))
    device = open_device(name)
    executor = executor_for(plan, device)
    weights = next(p for p in executor._model.parameters() if not p.is_meta)
    held = [
        StorageWeakRef(tensor.untyped_storage())
        for tensor in (executor.host, executor.buffers, weights)
    ]
    del weights
    gc.disable()
    try:
        run_real(plan, executor, device)
        executor.close()
        device.close()
        del executor
        assert [each.expired() for each in held] == [True] * 3
    finally:
        gc.enable()
