"""Detection: what the system's files and tools say of a machine, as texts of its parts."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from moesim.advice.cards import FoundCard, cards_in, found_cards
from moesim.advice.detect import Found, Limits, detect, limits_in, linux, macos, modules_in
from moesim.advice.probe import Copies, Reached, Rounds
from moesim.advice.question import Parts
from moesim.advice.this_machine import described, measured_lines, with_measured
from moesim.errors import UsageError

GIB = 2**30


def cpuinfo(*cores: tuple[int, int, int], name: str = "AMD Ryzen 9 7950X 16-Core Processor") -> str:
    """Return the file of processors, each with its number, its socket and its core."""
    return "\n".join(
        f"processor\t: {number}\nmodel name\t: {name}\nphysical id\t: {socket}\n"
        f"core id\t\t: {core}\npower management:\n"
        for number, socket, core in cores
    )


ARM = "processor\t: 0\nBogoMIPS\t: 50.00\n\nprocessor\t: 1\nBogoMIPS\t: 50.00\n\nHardware\t: x\n"
MEMINFO = "MemTotal:       65536000 kB\nMemFree: 1 kB\nMemAvailable:   32768000 kB\n"


def made(root: Path, **files: str) -> Path:
    """Write files below a root; two underscores in a name are a slash."""
    for name, text in files.items():
        write(root, name.replace("__", "/"), text)
    return root


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


# Linux


def test_processors_of_one_core_are_one_core(tmp_path: Path) -> None:
    text = cpuinfo((0, 0, 0), (1, 0, 1), (2, 0, 0), (3, 0, 1))
    found = linux(made(tmp_path, proc__cpuinfo=text), {0, 1, 2, 3})
    assert (found.cores, found.sockets) == (2, 1)
    assert found.cpu.startswith("AMD Ryzen 9 7950X")


def test_cores_of_two_sockets_may_have_the_same_number(tmp_path: Path) -> None:
    text = cpuinfo((0, 0, 0), (1, 1, 0))
    found = linux(made(tmp_path, proc__cpuinfo=text), {0, 1})
    assert (found.cores, found.sockets) == (2, 2)


def test_only_allowed_processors_count(tmp_path: Path) -> None:
    text = cpuinfo(*((n, n // 4, n % 4) for n in range(8)))
    found = linux(made(tmp_path, proc__cpuinfo=text), {0, 1, 2})
    assert (found.cores, found.sockets) == (3, 1)


def test_processors_of_arm_have_no_name_and_are_cores(tmp_path: Path) -> None:
    found = linux(made(tmp_path, proc__cpuinfo=ARM), {0, 1})
    assert (found.cpu, found.cores) == ("", 2)


def test_a_system_without_files_has_what_its_affinity_says(tmp_path: Path) -> None:
    assert linux(tmp_path, {0, 1, 2}) == Found(cores=3)


def test_sizes_of_memory_are_bytes(tmp_path: Path) -> None:
    found = linux(made(tmp_path, proc__meminfo=MEMINFO), {0})
    assert (found.memory_bytes, found.free_bytes) == (65536000 * 1024, 32768000 * 1024)


def test_caches_of_the_last_level_add_up_and_each_counts_once(tmp_path: Path) -> None:
    for number in range(4):
        cache = f"sys/devices/system/cpu/cpu{number}/cache"
        for index, level, size, shared in (
            (0, 1, "32K", str(number)),
            (3, 3, "16M" if number < 2 else "8192K", "0-1" if number < 2 else "2-3"),
        ):
            for name, text in (("level", str(level)), ("size", size), ("shared_cpu_list", shared)):
                write(tmp_path, f"{cache}/index{index}/{name}", f"{text}\n")
    assert linux(tmp_path, {0}).cache_bytes == 24 * 2**20


def test_a_card_of_amd_is_told_and_not_used(tmp_path: Path) -> None:
    write(tmp_path, "sys/class/drm/card0/device/vendor", "0x1002\n")
    write(tmp_path, "sys/class/drm/card0/device/mem_info_vram_total", f"{24 * GIB}\n")
    write(tmp_path, "sys/class/drm/card1/device/vendor", "0x1002\n")
    write(tmp_path, "sys/class/drm/card1/device/mem_info_vram_total", f"{GIB // 2}\n")
    (note,) = linux(tmp_path, {0}).notes
    assert "24 GiB" in note
    assert "--gpu" in note


# Control groups


def test_the_tightest_group_above_a_process_limits_it(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "0::/user/app\n")
    write(tmp_path, "sys/fs/cgroup/user/cpu.max", "150000 100000\n")
    write(tmp_path, "sys/fs/cgroup/user/app/cpu.max", "200000 100000\n")
    write(tmp_path, "sys/fs/cgroup/cpu.max", "max 100000\n")
    write(tmp_path, "sys/fs/cgroup/user/memory.max", f"{5 * GIB}\n")
    write(tmp_path, "sys/fs/cgroup/user/app/memory.max", f"{4 * GIB}\n")
    assert limits_in(tmp_path) == Limits(1.5, 4 * GIB)


def test_a_container_sees_its_own_group_at_the_top(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "0::/\n")
    write(tmp_path, "sys/fs/cgroup/cpu.max", "400000 100000\n")
    assert limits_in(tmp_path) == Limits(4.0, None)


def test_groups_of_version_1_limit_as_well(tmp_path: Path) -> None:
    groups = "5:cpu,cpuacct:/docker/ab\n4:memory:/docker/ab\n3:pids:/docker/ab\n"
    write(tmp_path, "proc/self/cgroup", groups)
    # The folder of the host's path is not there in a container: the top is its own group.
    write(tmp_path, "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "200000\n")
    write(tmp_path, "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n")
    write(tmp_path, "sys/fs/cgroup/memory/memory.limit_in_bytes", f"{2 * GIB}\n")
    assert limits_in(tmp_path) == Limits(2.0, 2 * GIB)


@pytest.mark.parametrize(("quota", "limit"), [("-1", "9223372036854771712"), ("x", ""), ("", "-1")])
def test_no_limit_is_none(tmp_path: Path, quota: str, limit: str) -> None:
    write(tmp_path, "proc/self/cgroup", "5:cpu:/\n4:memory:/\nnonsense\n")
    write(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", quota)
    write(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000")
    write(tmp_path, "sys/fs/cgroup/memory/memory.limit_in_bytes", limit)
    assert limits_in(tmp_path) == Limits()


def test_limits_replace_what_the_machine_has_and_are_told(tmp_path: Path) -> None:
    made(tmp_path, proc__cpuinfo=cpuinfo(*((n, 0, n) for n in range(8))), proc__meminfo=MEMINFO)
    write(tmp_path, "proc/self/cgroup", "0::/\n")
    write(tmp_path, "sys/fs/cgroup/cpu.max", "250000 100000\n")
    write(tmp_path, "sys/fs/cgroup/memory.max", f"{8 * GIB}\n")
    found = linux(tmp_path, set(range(8)))
    assert (found.cores, found.memory_bytes, found.free_bytes) == (3, 8 * GIB, 8 * GIB)
    assert len(found.notes) == 2
    assert "2.5 processors" in found.notes[0]


# Modules of memory


def udev(*modules: dict[str, str]) -> str:
    """Return what udev knows of the slots of a board."""
    lines = [
        f"E:MEMORY_DEVICE_{number}_{key}={value}"
        for number, module in enumerate(modules)
        for key, value in module.items()
    ]
    return "\n".join(["I:123", "E:MEMORY_ARRAY_NUM_DEVICES=4", *lines])


def module(channel: str, speed: str = "3200", kind: str = "DDR4", **more: str) -> dict[str, str]:
    size = str(16 * GIB)
    return {"SIZE": size, "TYPE": kind, "SPEED_MTS": "9999", "CONFIGURED_SPEED_MTS": speed,
            "BANK_LOCATOR": channel, **more}  # fmt: skip


EMPTY = {"PRESENT": "0", "TYPE": "Unknown", "BANK_LOCATOR": "P0 CHANNEL C"}


@pytest.mark.parametrize(
    ("slots", "text"),
    [
        ((module("P0 CHANNEL A"), module("P0 CHANNEL B"), EMPTY), "DDR4-3200 2ch"),
        ((module("P0 CHANNEL A"), module("P0 CHANNEL A")), "DDR4-3200 1ch"),
        ((module("P0 CHANNEL A"), module("P1 CHANNEL A")), "DDR4-3200 2ch"),
        ((module("BANK 0", LOCATOR="Controller0-ChannelA-DIMM0"),
          module("BANK 0", LOCATOR="Controller1-ChannelA-DIMM0")), "DDR4-3200 2ch"),
        ((module("BANK 0"), module("P0 CHANNEL B")), "DDR4-3200"),
        ((module("P0 CHANNEL A", kind="<OUT OF SPEC>", speed="5600"),), "5600 MT/s 1ch"),
        ((module("P0 CHANNEL A"), module("P0 CHANNEL B", speed="2666")), ""),
        ((EMPTY,), ""),
        ((), ""),
    ],
)  # fmt: skip
def test_modules_say_type_speed_and_channels(slots: tuple[dict[str, str], ...], text: str) -> None:
    assert modules_in(udev(*slots)) == text


# Other systems


def test_macos_names_its_chip_and_its_memory() -> None:
    text = (
        "machdep.cpu.brand_string: Apple M2 Max\nhw.physicalcpu: 12\nhw.packages: 1\n"
        f"hw.memsize: {64 * GIB}\nhw.cachelinesize: 128\n"
    )
    found = macos(text)
    assert found == Found(cpu="Apple M2 Max", cores=12, memory_bytes=64 * GIB)
    machine = described(found)
    assert (machine.parts.gpu, machine.probes_card) == ("m2-max", None)
    hardware = machine.parts.machine().hardware
    assert hardware.unified
    assert hardware.vram_bytes == 64 * GIB


def test_macos_without_its_tool_still_has_cores() -> None:
    assert macos("").cores >= 1


@pytest.mark.parametrize("system", ["win32", "darwin", "freebsd14"])
def test_detection_ends_on_every_system(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "psutil", "pynvml")
    monkeypatch.setenv("PATH", os.devnull)
    monkeypatch.setattr(sys, "platform", system)
    found = detect()
    assert found.cores >= 1
    assert any("psutil" in note for note in found.notes)


@pytest.mark.parametrize("system", ["win32", "freebsd14"])
def test_psutil_counts_cores_and_memory(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    psutil = SimpleNamespace(
        cpu_count=lambda logical: 8 if not logical else 16,
        virtual_memory=lambda: SimpleNamespace(total=32 * GIB, available=20 * GIB),
    )
    monkeypatch.setitem(sys.modules, "psutil", psutil)
    without(monkeypatch, "pynvml")
    monkeypatch.setenv("PATH", os.devnull)
    monkeypatch.setattr(sys, "platform", system)
    found = detect()
    assert (found.cores, found.memory_bytes, found.free_bytes) == (8, 32 * GIB, 20 * GIB)


def tool(folder: Path, name: str, printed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a tool of the system that prints a text, the only one there is."""
    (folder / "printed").write_text(printed)
    (folder / name).write_text(f"#!/bin/sh\nexec /bin/cat {folder}/printed\n")
    (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_macos_is_asked_with_its_own_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "psutil", "pynvml")
    tool(tmp_path, "sysctl", f"hw.physicalcpu: 10\nhw.memsize: {16 * GIB}\n", monkeypatch)
    monkeypatch.setattr(sys, "platform", "darwin")
    found = detect()
    assert (found.cores, found.memory_bytes) == (10, 16 * GIB)


def test_the_tool_of_the_driver_is_run_without_its_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "pynvml")
    tool(tmp_path, "nvidia-smi", "NVIDIA L4, 23034, 4, 16\n", monkeypatch)
    assert detect().cards == (FoundCard("NVIDIA L4", 23034 * 2**20, 4, 16),)


def without(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """Make imports of modules fail, as if they were not installed."""
    for name in modules:
        monkeypatch.setitem(sys.modules, name, None)


# Graphics cards


class Nvml:
    """A stand-in for `pynvml`. `cards` are names and bytes; `failing` functions raise."""

    def __init__(self, *cards: tuple[str | bytes, int], failing: tuple[str, ...] = ()) -> None:
        self.cards, self.failing, self.ended = cards, failing, 0

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("nvml") and name in self.failing:
            raise RuntimeError(f"{name} is broken")
        return object.__getattribute__(self, name)

    def nvmlInit(self) -> None:  # noqa: N802
        pass

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.ended += 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetName(self, handle: int) -> str | bytes:  # noqa: N802
        return self.cards[handle][0]

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:  # noqa: N802
        if not self.cards[handle][1]:
            raise RuntimeError("Not Supported")
        return SimpleNamespace(total=self.cards[handle][1])

    def nvmlDeviceGetMaxPcieLinkGeneration(self, handle: int) -> int:  # noqa: N802
        return 4

    def nvmlDeviceGetMaxPcieLinkWidth(self, handle: int) -> int:  # noqa: N802
        return 16


def found_with(nvml: Any, printed: str = "") -> tuple[tuple[FoundCard, ...], tuple[str, ...]]:
    return found_cards(lambda name: nvml, lambda: printed)


def test_nvml_names_cards_their_memory_and_their_link() -> None:
    nvml = Nvml(("NVIDIA GeForce RTX 3060", 12 * GIB), (b"Tesla T4", 0))
    cards, notes = found_with(nvml)
    assert cards == (
        FoundCard("NVIDIA GeForce RTX 3060", 12 * GIB, 4, 16),
        FoundCard("Tesla T4", None, 4, 16),
    )
    assert notes == ()
    assert nvml.ended == 1


@pytest.mark.parametrize(
    "failing", ["nvmlInit", "nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex", "nvmlShutdown"]
)
def test_a_broken_library_is_no_card_and_says_so(failing: str) -> None:
    cards, (note,) = found_with(Nvml(("NVIDIA L4", GIB), failing=(failing,)))
    assert cards == ()
    assert f"{failing} is broken" in note


def test_an_absent_library_is_no_card_and_says_so() -> None:
    def load(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}")

    cards, (note,) = found_cards(load, lambda: "")
    assert cards == ()
    assert "nvidia-ml-py is not installed" in note


def test_what_a_card_does_not_know_is_none() -> None:
    failing = ("nvmlDeviceGetMaxPcieLinkGeneration", "nvmlDeviceGetMemoryInfo")
    nvml = Nvml(("NVIDIA L4", GIB))
    for name in failing:
        setattr(nvml, name, lambda handle: 1 / 0)
    (card,), _ = found_with(nvml)
    assert card == FoundCard("NVIDIA L4", None, None, 16)


def test_without_the_library_its_tool_is_asked() -> None:
    printed = "NVIDIA GeForce RTX 4090, 24564, 4, 16\nNVIDIA A, B, [N/A], [N/A], 8\nno devices\n"
    assert cards_in(printed) == (
        FoundCard("NVIDIA GeForce RTX 4090", 24564 * 2**20, 4, 16),
        FoundCard("NVIDIA A, B", None, None, 8),
    )
    cards, notes = found_with(Nvml(failing=("nvmlInit",)), printed)
    assert cards == cards_in(printed)
    assert notes == ()


# The texts of parts


RYZEN = Found(cpu="AMD Ryzen 9 7950X 16-Core Processor", cores=16, memory_bytes=64 * GIB)


def with_cards(*cards: FoundCard) -> Found:
    return Found(RYZEN.cpu, 16, memory_bytes=64 * GIB, cards=cards)


@pytest.mark.parametrize(
    ("name", "mib", "card"),
    [
        ("NVIDIA GeForce RTX 3060", 12288, "rtx-3060-12gb"),
        ("NVIDIA GeForce RTX 4060 Ti", 16380, "rtx-4060-ti-16gb"),
        ("NVIDIA GeForce RTX 4060 Ti", 8188, "rtx-4060-ti"),
        ("NVIDIA GeForce RTX 4090", 24564, "rtx-4090"),
        ("NVIDIA GeForce RTX 3080 Laptop GPU", 16384, "rtx-3080-laptop"),
        ("Tesla T4", 15360, "t4"),
        ("NVIDIA A100-SXM4-80GB", 81920, "a100"),
        ("NVIDIA H100 80GB HBM3", 81559, "h100"),
        ("NVIDIA H200", 143771, "h200"),
        ("NVIDIA RTX 6000 Ada Generation", 49140, "rtx-6000-ada"),
        ("NVIDIA L4", 23034, "l4"),
        ("NVIDIA L40S", 46068, "l40s"),
    ],
)
def test_names_of_nvml_are_found_in_the_catalogue(name: str, mib: int, card: str) -> None:
    machine = described(with_cards(FoundCard(name, mib * 2**20, 4, 16)))
    assert machine.parts.gpu.startswith(card)
    built = machine.parts.machine()
    assert built.hardware.vram_bytes == mib * 2**20
    assert machine.probes_card == name
    assert machine.parts.pcie == "PCIe 4.0 x16"


def test_of_several_cards_that_with_most_memory_is_used_and_told() -> None:
    small = FoundCard("NVIDIA GeForce RTX 3060", 12 * GIB, 4, 16)
    large = FoundCard("NVIDIA GeForce RTX 3090", 24 * GIB, 4, 16)
    machine = described(with_cards(small, large))
    assert machine.parts.gpu == "rtx-3090"
    (line,) = [line for line in machine.lines if "2 GPUs" in line]
    assert "most memory" in line
    assert machine.parts.machine().num_gpus == 1


def test_a_card_that_the_catalogue_lacks_is_told_and_refused_by_its_name() -> None:
    machine = described(with_cards(FoundCard("NVIDIA GeForce MX999", 2 * GIB)))
    assert any("the catalogue lacks it" in line for line in machine.lines)
    with pytest.raises(UsageError, match="MX999"):
        machine.parts.machine()


def test_a_chip_with_its_own_memory_is_its_processor_too() -> None:
    found = Found(cores=20, memory_bytes=119 * GIB, cards=(FoundCard("NVIDIA GB10"),))
    machine = described(found)
    assert (machine.parts.gpu, machine.parts.cpu, machine.probes_card) == ("gb10", "", None)
    assert machine.parts.machine().hardware.unified


def test_a_text_that_is_given_replaces_what_was_found_of_its_part() -> None:
    found = with_cards(FoundCard("NVIDIA GeForce RTX 3090", 24 * GIB, 4, 16))
    machine = described(found, gpu="rtx-4090", cpu="i9-13900k", ram="32GB-ddr5-5600-2ch")
    assert machine.parts == Parts("rtx-4090", "i9-13900k", "32GB-ddr5-5600-2ch")
    assert (machine.probes_reads, machine.probes_card) == (False, None)
    assert sum("replaces it" in line for line in machine.lines) == 3
    assert described(found, gpu="none").parts.gpu == "none"
    linked = described(found, pcie="3.0 x4")
    assert (linked.parts.pcie, linked.probes_card) == ("3.0 x4", None)


def test_a_size_of_memory_that_is_given_leaves_its_rate_to_the_probe() -> None:
    assert described(RYZEN, ram="48 GB").probes_reads
    assert not described(RYZEN, ram="48 GB, ~40 GB/s measured").probes_reads


@pytest.mark.parametrize(
    ("name", "cores", "sockets", "text"),
    [
        ("AMD Ryzen 9 7950X 16-Core Processor", 16, 1, "ryzen-9-7950x"),
        ("13th Gen Intel(R) Core(TM) i9-13900K", 24, 1, "i9-13900k"),
        ("Intel(R) Xeon(R) Gold 6138 CPU @ 2.00GHz", 40, 2, "2x xeon-gold-6138"),
        ("Intel(R) Xeon(R) Gold 6138 CPU @ 2.00GHz", 4, 4, "xeon-gold-6138, 4 cores"),
        ("AMD EPYC", 2, 1, "2 cores"),
        ("Intel(R) Xeon(R) CPU @ 2.20GHz", 1, 1, "1 core"),
        ("", 4, 1, "4 cores"),
    ],
)
def test_a_processor_becomes_its_name_and_the_cores_that_may_be_used(
    name: str, cores: int, sockets: int, text: str
) -> None:
    machine = described(Found(cpu=name, cores=cores, sockets=sockets, memory_bytes=16 * GIB))
    assert machine.parts.cpu == text
    hardware = machine.parts.machine().hardware
    assert (hardware.cpu_threads or hardware.cpu_cores) == cores
    assert hardware.host_memory_bytes == 16 * GIB
    lacks = any("the catalogue lacks it" in line for line in machine.lines)
    assert lacks == (text == f"{cores} core{'s' if cores > 1 else ''}")


# What was measured


def reached(reads: float, core: float = 20e9, threads: int = 16, **more: Any) -> Reached:
    return Reached(Rounds(threads, (reads / 2, reads)), Rounds(1, (core,)), **more)


def test_measured_reads_are_figures_of_the_kind_measured() -> None:
    hardware = with_measured(described(RYZEN).parts, reached(41.234e9)).machine().hardware
    assert hardware.host_memory_bytes_per_s == 41_230_000_000
    assert hardware.host_memory_efficiency == 1
    assert hardware.figures["host_memory_bandwidth"].kind == "measured"
    assert hardware.core_memory_bytes_per_s == 20_000_000_000
    assert hardware.host_memory_bytes == 64 * GIB


def test_a_core_reads_at_least_its_share() -> None:
    parts = with_measured(Parts(cpu="2 cores"), reached(20e9, core=6e9, threads=2))
    assert parts.machine().hardware.core_memory_bytes_per_s == 10_000_000_000


def test_reads_are_not_held_below_what_was_measured() -> None:
    """The catalogue's rate between dies follows from a clock that is assumed."""
    one_die = Parts(cpu="ryzen-7-7700x")
    fabric = one_die.machine().hardware.cpu_memory_bytes_per_s
    assert fabric is not None
    faster = with_measured(one_die, reached(fabric + 3e9)).machine().hardware
    assert faster.cpu_memory_bytes_per_s == pytest.approx(fabric + 3e9, rel=1e-3)
    slower = with_measured(one_die, reached(fabric - 3e9)).machine().hardware
    assert slower.cpu_memory_bytes_per_s == fabric


def test_measured_copies_are_the_rates_of_the_link() -> None:
    found = with_cards(FoundCard("NVIDIA GeForce RTX 3090", 24 * GIB, 4, 16))
    only = Reached(copies=Copies(24.5e9, 8.125e9))
    hardware = with_measured(described(found).parts, only).machine().hardware
    assert hardware.h2d.pinned_bytes_per_s == 24_500_000_000
    assert hardware.h2d.pageable_bytes_per_s == 8_120_000_000
    assert hardware.figures["h2d.pinned_bandwidth"].kind == "measured"


def test_figures_that_a_user_has_set_are_kept() -> None:
    parts = Parts(cpu="2 cores", figures={"core_memory_bandwidth": "5GB/s"})
    assert with_measured(parts, reached(20e9, threads=2)).figures == parts.figures


def test_nothing_measured_changes_nothing() -> None:
    parts = described(RYZEN).parts
    assert with_measured(parts, Reached(notes=("no memory",))) == parts
    assert list(measured_lines(Reached(notes=("no memory",)))) == []


def test_each_rate_is_told_and_a_busy_machine_too() -> None:
    whole = Reached(Rounds(2, (8e9, 10e9), 0.5), Rounds(1, (6e9,)), Copies(25e9, 9e9))
    reads, core, copies = measured_lines(whole)
    assert "2 threads: 10.00 GB/s, the best of 2 rounds" in reads
    assert "50% of the processor time" in reads
    assert "18.00 GB/s" in reads  # the mean rate in the time that they had
    assert core == "reads of host memory by one core: 6.00 GB/s, the best of 1 round"
    assert "25.00 GB/s from page-locked memory, 9.00 GB/s" in copies
