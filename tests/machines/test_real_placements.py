"""Placements on the real machine: the model's own text, by the decisions of the simulation."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from decided import decisions_of
from paths import ROOT
from workloads import TINY_CONFIG, plan_of, random_case, run_on, tiny_scenario, tiny_trace

torch = pytest.importorskip("torch", reason="the real machine needs the torch extra")

from plain_texts import NEW, PROMPTS, check_text, model_of  # noqa: E402

from moesim.errors import BudgetError, InvariantError, ScenarioError, UsageError  # noqa: E402
from moesim.executor import run as real  # noqa: E402
from moesim.executor.device import Device, emulated, open_device  # noqa: E402
from moesim.executor.fake import FakeDevice  # noqa: E402
from moesim.executor.generate import Generation, Serving, generate  # noqa: E402
from moesim.hardware import load_hardware  # noqa: E402
from moesim.hardware.topology import CPU  # noqa: E402
from moesim.record import record  # noqa: E402
from moesim.record.prompts import Prompt  # noqa: E402
from moesim.scenario import load_scenario  # noqa: E402
from moesim.serving.experts.host_memory import HostMemory  # noqa: E402
from moesim.simulate import Plan, finish  # noqa: E402
from moesim.simulate.build import prepare  # noqa: E402
from moesim.simulate.curve import trace_popularity  # noqa: E402
from moesim.trace import Trace  # noqa: E402

FAMILIES = ("qwen3_moe", "mixtral", "deepseek_v3", "gpt_oss")
# A CPU so slow, and a link so slow, that copies and the CPU are each the better choice at times.
SLOW: Any = {
    "cpu_flops": "0.05GFLOPS",
    "cpu_cores": 1,
    "h2d": {"latency": "2us", "pinned_bandwidth": "100MB/s", "pageable_bandwidth": "60MB/s"},
    "disk": {"latency": "80us", "bandwidth": "1GB/s"},
}
PLACEMENTS: list[tuple[str, dict[str, Any]]] = [
    ("copy", {}),
    ("cpu_layers", {"layers": 1}),
    ("cpu_layers", {"layers": "auto", "copy_rows": 3}),
    ("cpu_layers", {"layers": "all"}),
    ("cpu_experts", {"by": "uniform"}),
    ("cpu_experts", {"by": "random"}),
    ("cost", {}),
    ("two_queue", {}),
]
SMALL = {**TINY_CONFIG, "hidden_size": 32, "head_dim": 4, "intermediate_size": 64, "vocab_size": 96}
BITS = {"shape": "trace", "expert_bits": 32, "weight_bits": 32, "kv_bits": 32}
FLOAT64 = {"shape": "trace", "expert_bits": 64, "weight_bits": 64, "kv_bits": 64}

EXPERT_BYTES = 12_288  # of qwen3_moe in 64 bits: three pages

pytestmark = pytest.mark.usefixtures("one_thread")


def served(family: str, device: Any, placement: tuple[str, Any], **serving: Any) -> Generation:
    policy, options = placement
    settings: dict[str, Any] = {"token_budget": 7, "max_sequences": 3, "hardware": slow()}
    chosen = Serving(placement=policy, placement_options=options, **{**settings, **serving})
    return generate(model_of(family), PROMPTS, NEW, chosen, device=device)


def slow() -> Any:
    return load_hardware("rtx-4090", SLOW)


# --- the text ---


@pytest.mark.parametrize("placement", PLACEMENTS, ids=str)
def test_the_text_is_the_models_wherever_experts_run(
    placement: tuple[str, Any], device: Device
) -> None:
    counted = {"elsewhere": 0, "copied": 0}
    for number, slots in enumerate((0, 5, 17, 24)):
        if placement[1].get("layers") == 1 and slots < 16:
            continue  # the experts of the other layers do not fit
        ours = served(
            "qwen3_moe",
            device,
            placement,
            slots=slots,
            eviction=("lru", "lfu", "fifo")[number % 3],
            scope=("per_layer", "global")[number % 2],
            prefetch=("none", "predicted")[number // 2 % 2],
            staging=1 + number % 2,
        )
        check_text(ours, "qwen3_moe", device.torch_device)
        counted["elsewhere"] += sum(ours.server.ledger.elsewhere)
        counted["copied"] += sum(ours.server.ledger.demand_copies)
    assert bool(counted["elsewhere"]) == (placement[0] != "copy")
    mixes = placement[0] in ("copy", "cost", "two_queue") or "copy_rows" in placement[1]
    assert bool(counted["copied"]) == mixes


@pytest.mark.parametrize("family", FAMILIES)
def test_the_text_is_the_models_in_every_family(family: str) -> None:
    for number, placement in enumerate(PLACEMENTS[2:]):
        device = FakeDevice(latest_s=0.0002, seed=number)
        check_text(served(family, device, placement, slots=10), family)
        device.close()


@pytest.mark.parametrize("unit", ["page", "expert"])
@pytest.mark.parametrize("held", [1, 7, 22])
def test_the_text_is_the_models_where_experts_are_read_from_disk(
    held: int, unit: Any, device: Device
) -> None:
    room, nbytes = held * EXPERT_BYTES + 4096, 0
    for placement in (PLACEMENTS[0], PLACEMENTS[4], PLACEMENTS[6], PLACEMENTS[7]):
        ours = served(
            "qwen3_moe",
            device,
            placement,
            slots=6,
            prefetch="predicted",
            host_bytes=room,
            host_cache=unit,
        )
        check_text(ours, "qwen3_moe", device.torch_device)
        nbytes += ours.server.ledger.moved_bytes["read"]
    assert nbytes > 0


def test_logits_do_not_depend_on_the_placement() -> None:
    first = served("mixtral", "cpu", PLACEMENTS[0], slots=24)
    for placement in PLACEMENTS[2:]:
        again = served("mixtral", "cpu", placement, slots=9)
        for ours, theirs in zip(again.logits, first.logits, strict=True):
            assert torch.equal(ours, theirs)


# --- the decisions ---


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    """Return the trace of the plain model for the same prompts."""
    prompts = [Prompt(tokens=tuple(prompt)) for prompt in PROMPTS]
    folder = tmp_path_factory.mktemp("recorded") / "trace"
    return record(model_of("qwen3_moe"), None, prompts, folder, max_new_tokens=NEW)


def plan_for(
    trace: Trace, placement: tuple[str, Any], slots: int, *, eviction: str = "lru", **memory: Any
) -> Plan:
    """The scenario of `served`."""
    policy, options = placement
    scenario = tiny_scenario(
        model=FLOAT64,
        hardware={"profile": "rtx-4090", **SLOW},
        batching={"token_budget": 7, "max_sequences": 3},
        placement={"policy": policy, "options": options},
        cache={"policy": eviction, "slots": slots, "scope": "per_layer"},
        memory={"staging": 1, "kv_block_tokens": 1, **memory},
    )
    return plan_of(scenario, trace)


@pytest.mark.parametrize("placement", PLACEMENTS[:7], ids=str)
def test_a_model_that_generates_decides_as_the_simulation_of_its_trace(
    placement: tuple[str, Any], trace: Trace
) -> None:
    for slots in (0, 5, 17, 24):
        if placement[1].get("layers") == 1 and slots < 16:
            continue
        device = FakeDevice(latest_s=0.0001, seed=slots)
        run = lambda: served("qwen3_moe", device, placement, slots=slots)  # noqa: B023, E731
        assert decisions_of(run) == decisions_of(lambda: run_on(plan_for(trace, placement, slots)))  # noqa: B023
        device.close()


@pytest.mark.parametrize("slots", [0, 9])
def test_two_queues_decide_as_the_simulation_where_nothing_arrives_during_an_event(
    slots: int, trace: Trace
) -> None:
    """With copies for later events under way its answers depend on times; `static` makes none."""
    queues: tuple[str, Any] = ("two_queue", {})
    profile = trace_popularity(trace)
    ours = decisions_of(
        lambda: served("qwen3_moe", "cpu", queues, slots=slots, eviction="static", profile=profile)
    )
    assert any(event[2] for event in ours)
    assert any(event[3] for event in ours)
    plan = plan_for(trace, queues, slots, eviction="static")
    assert ours == decisions_of(lambda: run_on(plan))


@pytest.mark.parametrize(("policy", "eviction"), [("cost", "lru"), ("two_queue", "static")])
def test_experts_on_disk_are_placed_and_read_as_in_the_simulation(
    policy: str, eviction: str, trace: Trace
) -> None:
    placement: tuple[str, Any] = (policy, {})
    room = 9 * EXPERT_BYTES
    plan = plan_for(trace, placement, 6, eviction=eviction, host=room)
    assert plan.cost.expert_bytes == EXPERT_BYTES
    ours = decisions_of(
        lambda: served(
            "qwen3_moe",
            "cpu",
            placement,
            slots=6,
            eviction=eviction,
            host_bytes=room,
            profile=trace_popularity(trace),
        )
    )
    assert any(event[-2] for event in ours)
    assert ours == decisions_of(lambda: run_on(plan))


# --- a replayed trace ---


def placed_case(seed: int) -> tuple[dict[str, Any], Trace]:
    """Return a random case with a placement, and in every other case with a disk.

    Two queues look at copies under way, so only caches without such copies are drawn for them.
    """
    scenario, trace = random_case(8000 + seed, at_once=True)
    rng = random.Random(seed)
    policy, options = PLACEMENTS[seed % len(PLACEMENTS)]
    scenario["placement"] = {"policy": policy, "options": options}
    scenario["model"] = BITS
    speed = rng.choice(["0.05GFLOPS", "0.3GFLOPS"])
    scenario["hardware"].update(cpu_flops=speed, cpu_cores=1)
    if options.get("layers") == 1:
        scenario["cache"]["slots"] = rng.randint(24, 32)
    if policy == "two_queue":
        scenario["cache"] = {"policy": "static", "slots": rng.randint(0, 32)}
        scenario["prefetch"] = "none"
    if policy in ("cpu_layers", "cpu_experts"):  # experts never move, so none is fetched ahead
        scenario["prefetch"] = "none"
    if seed // len(PLACEMENTS) % 2:
        scenario["hardware"]["disk"] = SLOW["disk"]
        scenario["memory"]["host"] = 24_576 * rng.randint(8, 31) + rng.choice([0, 5000])
        scenario["memory"]["host_cache"] = rng.choice(["page", "expert"])
    return scenario, trace.with_meta(model_config=SMALL)


def run(plan: Plan, device: Device) -> None:
    executor = real.executor_for(plan, device)
    try:
        done = real.run_real(plan, executor, device, patience_s=20)
        finish(plan, done.server, done.now_ns)  # checks what must hold at the end of a run
    finally:
        executor.close()


@pytest.mark.parametrize("seed", range(16))
def test_a_replayed_trace_is_decided_as_in_the_simulation(seed: int, device: Device) -> None:
    plan = plan_of(*placed_case(seed))
    assert decisions_of(lambda: run(plan, device)) == decisions_of(lambda: run_on(plan))


def test_a_layer_whose_experts_are_all_resident_needs_no_ids_on_the_host(device: Device) -> None:
    scenario, trace = tiny_scenario(model=BITS), tiny_trace().with_meta(model_config=SMALL)
    scenario["engine"] = {"sorting": "device", "launch": "5us"}
    scenario["cache"] = {"slots": "100%", "policy": "static"}
    plan = plan_of(scenario, trace)
    assert decisions_of(lambda: run(plan, device)) == decisions_of(lambda: run_on(plan))


# --- what is refused ---


def scenario_file(folder: Path, text: str) -> Path:
    file = folder / "placed.yaml"
    file.write_text(f"trace: {ROOT / 'traces/shallow'}\nhardware: rtx-4090\n\n{text}")
    return file


@pytest.mark.parametrize(
    ("text", "place", "said"),
    [
        (
            "placement:\n  policy: cpu_layers\n  options:\n    whole_layers: 2\n",
            "placed.yaml:7:19: placement.options.whole_layers: ",
            "only experts on the CPU, not 2 whole layers",
        ),
        (
            "placement:\n  policy: cpu_layers\n  options:\n    whole_layers: all\n",
            "placed.yaml:7:19: placement.options.whole_layers: ",
            "not 4 whole layers and the end of a step",
        ),
        (
            "memory:\n  pinned: 50%\n",
            "placed.yaml:5:11: memory.pinned: ",
            "all experts or none, not 32 of 64",
        ),
    ],
)
def test_a_plan_that_no_real_machine_runs_is_refused_at_its_line(
    text: str, place: str, said: str, tmp_path: Path
) -> None:
    scenario = load_scenario(scenario_file(tmp_path, text))
    plan = prepare(scenario)
    nothing: Any = None  # neither executor nor device is touched
    with pytest.raises(ScenarioError) as error:
        real.run_real(plan, nothing, nothing)
    assert place in str(error.value)
    assert said in str(error.value)


def test_whole_layers_of_a_model_that_generates_are_refused() -> None:
    with pytest.raises(UsageError, match="runs 2 whole layers on the CPU"):
        served("qwen3_moe", "cpu", ("cpu_layers", {"whole_layers": 2}), slots=24)


def test_a_placement_without_room_says_how_many_slots_it_needs() -> None:
    with pytest.raises(UsageError, match="need 16 slots; there are 3"):
        served("qwen3_moe", "cpu", ("cpu_layers", {"layers": 1}), slots=3)
    with pytest.raises(UsageError, match="needs popularity counts"):
        served("qwen3_moe", "cpu", ("cpu_experts", {"by": "frequency"}), slots=3)


def test_the_most_used_experts_of_a_profile_are_resident() -> None:
    profile = {key: int(key in (3, 9, 20)) for key in range(24)}
    ours = served(
        "qwen3_moe", "cpu", ("cpu_experts", {"by": "frequency"}), slots=3, profile=profile
    )
    check_text(ours, "qwen3_moe")
    assert [key for cache in ours.server.caches for key in cache.slots] == [3, 9, 20]


def test_host_memory_that_cannot_hold_an_expert_is_refused() -> None:
    with pytest.raises(UsageError, match="host memory of 100 bytes is too small"):
        served("qwen3_moe", "cpu", PLACEMENTS[0], host_bytes=100)
    with pytest.raises(UsageError, match="lacks disk"):
        served("qwen3_moe", "cpu", PLACEMENTS[0], host_bytes=200_000, hardware="rtx-4090")


def test_the_rows_of_experts_that_are_read_from_disk_must_fit_in_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hardware = {"profile": "rtx-4090", "disk": SLOW["disk"]}
    scenario = tiny_scenario(model=BITS, hardware=hardware, memory={"host": 20 * 24_576})
    plan = plan_of(scenario, tiny_trace().with_meta(model_config=SMALL))
    needed = (32 + plan.buffers) * 24_576
    device = open_device("cpu")
    monkeypatch.setattr(real, "free_memory", lambda: needed + 20 * 24_576)
    real.executor_for(plan, device).close()
    monkeypatch.setattr(real, "free_memory", lambda: needed + 20 * 24_576 - 1)
    with pytest.raises(BudgetError, match="those read from disk 480 KiB; this machine has"):
        real.executor_for(plan, device)


def test_a_cpu_lane_exists_only_where_a_placement_uses_it() -> None:
    for placement in PLACEMENTS:
        ours = served("qwen3_moe", "cpu", placement, slots=24)
        assert (CPU in ours.server.ledger.busy_ns) == (placement[0] != "copy")


# --- mistakes of a server ---


def test_a_server_that_forgets_a_read_from_disk_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HostMemory, "read", forgetful(HostMemory.read))
    with pytest.raises(InvariantError, match=r"used from host memory, but \d+ of its .* on disk"):
        served("qwen3_moe", "cpu", PLACEMENTS[0], slots=3, host_bytes=9 * EXPERT_BYTES)


def forgetful(read: Any) -> Any:
    """Return a `HostMemory.read` that says 0 at the twentieth miss."""
    misses = [0]

    def reading(memory: HostMemory, key: int) -> int:
        nbytes: int = read(memory, key)
        misses[0] += nbytes > 0 and memory.on_loss is not None
        return 0 if misses[0] == 20 else nbytes

    return reading


def test_a_device_may_be_opened_with_the_links_and_the_disk_of_a_plan() -> None:
    for pinned in ("all", "none"):
        scenario = tiny_scenario(memory={"pinned": pinned})
        scenario["hardware"] = {"profile": "rtx-4090", "disk": SLOW["disk"]}
        plan = plan_of(scenario, tiny_trace())
        parts, link = emulated(plan.cost), plan.cost.hardware.h2d
        rate = link.pinned_bytes_per_s if pinned == "all" else link.pageable_bytes_per_s
        assert parts["h2d"].pinned_bytes_per_s == rate
        assert parts["disk"].latency_ns == 80_000
        open_device("cpu", **parts).close()
