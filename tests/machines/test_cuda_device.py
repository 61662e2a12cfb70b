"""The CUDA device without a GPU: its clock, its streams, and how it waits."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_cuda import LAUNCH_NS, WAKE_NS, Clock, Torch, rehearse
from workloads import TINY_CONFIG, decisions, plan_of, random_case, run_on

torch = pytest.importorskip("torch", reason="the real machine needs the torch extra")

from moesim.errors import BudgetError  # noqa: E402
from moesim.executor import cuda, run  # noqa: E402
from moesim.executor.device import open_device  # noqa: E402
from moesim.executor.run import executor_for, run_real  # noqa: E402
from moesim.hardware.topology import GPU, H2D, HOST, Lane, Topology  # noqa: E402
from moesim.simulate import finish  # noqa: E402


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock of a fake CUDA GPU that drifts by 20 us a second."""
    clock = Clock(drift=20e-6)
    monkeypatch.setattr(cuda, "torch", Torch(clock))
    monkeypatch.setattr(cuda, "time", clock)
    monkeypatch.setattr(cuda, "_STREAMS", {})
    return clock


def calls() -> Any:
    """Return what the device asked of the fake `torch.cuda`."""
    module: Any = cuda
    return module.torch.cuda


def work(clock: Clock, duration_ns: int) -> Any:
    def run() -> None:
        clock.now_ns += duration_ns

    return run


def test_times_stay_those_of_the_host_clock_for_hours(clock: Clock) -> None:
    device = cuda.CudaDevice()
    slack_ns = LAUNCH_NS + WAKE_NS
    for _ in range(5):
        clock.now_ns += 900 * 10**9
        # By then the device's clock is off by 18 ms, and a float of milliseconds rounds to 61 us.
        before_ns = clock.now_ns
        mark = device.submit(GPU, work(clock, 70_000))
        mark.wait()
        assert before_ns <= mark.start_ns + slack_ns
        assert mark.finish_ns <= clock.now_ns + slack_ns
        assert mark.finish_ns - mark.start_ns == pytest.approx(70_000 + LAUNCH_NS, abs=200)


def test_the_float_of_one_far_origin_would_not_do(clock: Clock) -> None:
    hour_ms, piece_ms = 3.6e6, 0.07
    assert np.float32(hour_ms + piece_ms) - np.float32(hour_ms) != pytest.approx(piece_ms, rel=0.5)


def test_an_anchor_is_as_old_as_a_second_at_most(clock: Clock) -> None:
    device = cuda.CudaDevice()
    waited = calls().waits
    for _ in range(10):
        device.submit(GPU, work(clock, 50_000_000))
    assert calls().waits == waited  # half a second: no new anchor
    clock.now_ns += 600_000_000
    device.submit(GPU, work(clock, 0))
    assert calls().waits == waited + 5


def test_a_process_has_one_stream_for_each_lane_that_touches_the_gpu(clock: Clock) -> None:
    lanes = (*Topology.single_gpu().lanes, Lane("cpu", HOST, HOST))
    for _ in range(3):
        cuda.CudaDevice().add_lanes(lanes)
    assert calls().streams == 4  # and one for the clock


def test_lanes_begin_only_after_all_that_was_under_way(clock: Clock) -> None:
    device = cuda.CudaDevice()
    before = calls().synchronized
    device.add_lanes(Topology.single_gpu().lanes)
    assert calls().synchronized == before + 1


def test_waiting_asks_the_event_once_and_polls_nothing(clock: Clock) -> None:
    device = cuda.CudaDevice()
    mark = device.submit(H2D, work(clock, 1000), nbytes=4096)
    waited = calls().waits
    mark.wait()
    assert (calls().waits, calls().queries) == (waited + 1, 0)


def test_work_of_a_lane_without_a_stream_is_done_at_once(clock: Clock) -> None:
    device = cuda.CudaDevice()
    mark = device.submit("cpu", work(clock, 5_000))
    assert mark.done()
    assert mark.finish_ns - mark.start_ns == 5_000


@pytest.mark.parametrize(("spins", "blocking"), [(True, False), (False, True)])
def test_a_waiting_thread_spins_or_sleeps(clock: Clock, spins: bool, blocking: bool) -> None:
    mark: Any = cuda.CudaDevice(spins=spins).submit(GPU, work(clock, 0))
    assert mark._last.blocking is blocking


def test_free_memory_of_a_gpu_counts_what_torch_keeps_of_closed_executors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called = rehearse(monkeypatch)
    assert run.free_gpu_memory() == 8 << 30
    assert called == ["empty_cache", "mem_get_info"]


def test_buffers_that_do_not_fit_into_gpu_memory_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rehearse(monkeypatch)
    device: Any = SimpleNamespace(torch_device="cuda")
    run._check_device_memory(device, 8 << 30)
    with pytest.raises(BudgetError, match=r"buffers need 9 GiB.*Lower cache\.slots"):
        run._check_device_memory(device, 9 << 30)


@pytest.mark.parametrize("seed", range(2))
def test_the_real_machine_decides_alike_through_streams_and_events(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way through `CudaDevice`, on a stand-in for `torch.cuda` that works at once."""
    called = rehearse(monkeypatch)
    monkeypatch.setattr(cuda, "_STREAMS", {})
    monkeypatch.setattr(cuda.CudaDevice, "torch_device", "cpu")
    cudart = SimpleNamespace(cudaHostRegister=lambda *_: 0, cudaHostUnregister=lambda *_: 0)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cudart)
    scenario, trace = random_case(8000 + seed, at_once=True)
    bits = {"shape": "trace", "expert_bits": 32, "weight_bits": 32, "kv_bits": 32}
    plan = plan_of({**scenario, "model": bits}, trace.with_meta(model_config=TINY_CONFIG))
    device = open_device("cuda")
    executor = executor_for(plan, device)
    done = run_real(plan, executor, device, patience_s=60)
    executor.close()
    device.close()
    assert decisions(finish(plan, done.server, done.now_ns)) == decisions(run_on(plan))
    works = [issued.work for issued in done.works]
    assert all(0 <= work.start_ns <= work.finish_ns for work in works)
    assert called.count("stream") >= len(works)
