"""The catalogue is sane, texts are read by their grammar, and machines follow by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moesim.errors import UsageError
from moesim.hardware import load_hardware
from moesim.hardware.parts import (
    assemble,
    cpu_named,
    cpus,
    gpu_named,
    gpus,
    memory_named,
    pcie_named,
)
from moesim.hardware.parts.tables import shares, simd_classes

ROWS = Path(__file__).resolve().parents[3] / "shared" / "data" / "measured" / "throughput.json"
NOT_A_CARD = "srv2 12 GB card"
"""The one text of the rows that names no card."""
GB = 10**9


def texts(key: str) -> list[str]:
    """Return the texts of one field of published measurements."""
    if not ROWS.is_file():
        pytest.skip("the folder shared, with published measurements, is not there")
    return sorted({row[key] for row in json.loads(ROWS.read_text(encoding="utf-8"))})


# The catalogue


@pytest.mark.parametrize("name", gpus())
def test_a_card_has_sane_figures_with_sources(name: str) -> None:
    card = gpus()[name]
    assert 2 <= card.vram <= 512
    assert 60 <= card.bandwidth <= 10_000
    assert 2e12 < card.flops_per_s < 3e15
    assert card.int8_ops_per_s == 0 or card.int8_ops_per_s >= card.flops_per_s / 2
    assert card.memory_source
    assert card.rate_source
    assert card.unified == (card.pcie is None and card.link is None)
    if card.pcie is not None:
        link = pcie_named(card.pcie)
        assert link.generation in (3, 4, 5)
        assert link.lanes in (4, 8, 16)
    if card.unified:
        assert (card.cpu or name) in cpus()


@pytest.mark.parametrize("name", [name for name, card in gpus().items() if card.bus is not None])
def test_bandwidth_is_bus_width_times_the_rate_of_a_pin(name: str) -> None:
    card = gpus()[name]
    assert card.bus is not None
    assert card.gbps is not None
    assert card.bandwidth == pytest.approx(card.bus * card.gbps / 8, rel=0.01)


@pytest.mark.parametrize("name", cpus())
def test_a_processor_has_sane_figures_with_a_source(name: str) -> None:
    cpu = cpus()[name]
    assert 4 <= cpu.all_cores <= 192
    assert cpu.cores == 0 or 1.2 <= cpu.ghz <= 5.7
    assert cpu.e_cores == 0 or 1.9 <= cpu.e_ghz <= 4.7
    assert cpu.simd in simd_classes()
    assert cpu.e_simd is None or cpu.e_simd in simd_classes()
    assert 10 <= cpu.core <= 60
    assert cpu.source
    memory = memory_named(cpu.memory)
    assert memory.unknown == ()
    assert memory.kind in shares().usual_memory
    assert memory.mts is not None
    assert 1600 <= memory.mts <= 9000
    assert memory.channels in (1, 2, 3, 4, 6, 8, 12, 16)
    assert pcie_named(cpu.pcie).lanes in (4, 8, 16)
    fabric = cpu.fabric_bytes_per_s(None, 32)
    assert fabric is None or 40 * GB <= fabric <= 1200 * GB


@pytest.mark.parametrize("name", gpus())
def test_every_card_is_found_by_its_name_and_its_aliases(name: str) -> None:
    card = gpus()[name]
    assert gpu_named(name).card == card
    for alias in card.aliases:
        assert gpu_named(f"{alias} {card.vram:g}GB").card == card


@pytest.mark.parametrize("name", cpus())
def test_every_processor_is_found_by_its_name_and_its_aliases(name: str) -> None:
    cpu = cpus()[name]
    for spelling in (name, *cpu.aliases):
        found = cpu_named(spelling)
        assert (found.cpu, found.unknown) == (cpu, ())


@pytest.mark.parametrize(
    ("name", "tflops", "int8_tops"),
    [
        ("gtx-1080-ti", 11.3, 45.4),
        ("p40", 11.8, 47),
        ("p100-sxm2", 21.2, 0),
        ("v100-sxm2-32gb", 125, 62.7),
        ("t4", 65, 130),
        ("rtx-2080-ti", 53.8, 215.2),
        ("rtx-3090", 71, 284),
        ("rtx-a6000", 154.8, 309.7),
        ("a40", 149.7, 299.3),
        ("a100-sxm-80gb", 312, 624),
        ("h100-sxm", 989.4, 1978.9),
        ("rtx-4090", 165.2, 660.6),
        ("l40s", 366, 733),
        ("rtx-5090", 209.5, 838),
        ("rtx-pro-6000-blackwell", 503.8, 1007.6),
        ("mi50-32gb", 26.5, 53),
        ("rx-7900-xtx", 122.8, 122.8),
        ("rx-9070-xt", 195, 389),
        ("mi100", 184.6, 184.6),
        ("mi300x", 1307.4, 2614.9),
        ("arc-b580", 116.5, 233),
        ("arc-b570", 101.5, 203),
        ("arc-140v", 33.5, 67),
    ],
)
def test_rates_are_those_that_vendors_publish(name: str, tflops: float, int8_tops: float) -> None:
    card = gpus()[name]
    assert card.flops_per_s / 1e12 == pytest.approx(tflops, rel=0.01)
    assert card.int8_ops_per_s / 1e12 == pytest.approx(int8_tops, rel=0.015)


# Texts


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "rtx-4090-laptop"),
        ("RTX3090Ti", "rtx-3090-ti"),
        ("4070 Ti Super", "rtx-4070-ti-super"),
        ("rtx-4060-ti-16gb", "rtx-4060-ti-16gb"),
        ("RTX 4060 Ti 8 GB", "rtx-4060-ti-8gb"),
        ("A100-SXM4-80GB", "a100-sxm-80gb"),
        ("A100 40GB", "a100-sxm-40gb"),
        ("Tesla V100-SXM2-32GB", "v100-sxm2-32gb"),
        ("H100 80GB HBM3", "h100-sxm"),
        ("AMD Radeon RX 6800XT", "rx-6800-xt"),
        ("RTX PRO 6000 Blackwell Max-Q", "rtx-pro-6000-max-q"),
        ("Radeon 8060S (Strix Halo, unified)", "radeon-8060s"),
        ("Apple M3 Max 128GB", "m3-max"),
        ("3060 12GB", "rtx-3060-12gb"),
        ("DGX Spark GB10", "gb10"),
        ("24GB, RTX 3090", "rtx-3090"),
        ("4x3090", "rtx-3090"),
        ("GH200", "gh200-96gb"),
        ("GH200 144GB", "gh200-144gb"),
        ("NVIDIA GH200 480GB", "gh200-96gb"),
        ("Grace Hopper GH200", "gh200-96gb"),
        ("Mac Studio M2 Ultra", "m2-ultra"),
        ("MacBook Pro M4 Max", "m4-max"),
        ("2080Ti 22GB", "rtx-2080-ti-22gb"),
        ("RTX 2080 Ti", "rtx-2080-ti"),
        ("7900XTX", "rx-7900-xtx"),
        ("A10G", "a10g"),
        ("W7900", "pro-w7900"),
        ("Tesla K80 24GB", "k80"),
        ("ASUS Ascent GX10", "gb10"),
        ("GB10 DGX Spark 128GB", "gb10"),
        ("H200 NVL", "h200-nvl"),
        ("RTX 5090 @ 450W", "rtx-5090"),
        ("AMD Ryzen AI MAX+ 395 w/ Radeon 8060S", "radeon-8060s"),
    ],
)
def test_a_card_is_read_from_its_text(text: str, name: str) -> None:
    found = gpu_named(text)
    assert found.card == gpus()[name]
    assert found.unknown == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("RTX 4091", "did you mean 'rtx-409"),
        ("RTX 5090 Ti", "'ti' is no variant"),
        ("RTX 3090 48GB", "rtx-3090 has 24 GiB"),
        (NOT_A_CARD, "moesim list cards"),
        ("", "moesim list cards"),
    ],
)
def test_an_unknown_card_is_refused_with_a_hint(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        gpu_named(text)


def test_several_cards_a_choice_of_memory_and_remarks_are_told() -> None:
    two = gpu_named("2x RTX 3090 watercooled")
    assert (two.count, two.unknown) == (2, ("watercooled",))
    assert "2 cards" in two.supposed[0]
    assert "rtx-4060-ti-8gb is the usual one" in gpu_named("RTX 4060 Ti").supposed[0]
    assert "RTX 2070 stands for it" in gpu_named("8 GB Turing (sm_75)").supposed[0]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("RTX 3090", 1),
        ("RTX 3090 x2", 2),
        ("RTX 3090 24GB (x2)", 2),
        ("99x RTX 4090", 99),
        ("Dual RTX 3090", 2),
        ("2 RTX 3090", 2),
        ("RTX 3090 + RTX 3090", 2),
        ("RTX 3090 and 2x RTX 3060", 3),
        ("RTX 3090, RTX 3060", 2),
        ("RTX 3090 RTX 3060", 2),
        ("Radeon 8060S (Strix Halo, unified)", 1),
        ("AMD Ryzen AI MAX+ 395 w/ Radeon 8060S", 1),
        ("7900XTX", 1),
    ],
)
def test_cards_are_counted(text: str, count: int) -> None:
    found = gpu_named(text)
    assert found.count == count
    assert (f"names {count} cards" in " ".join(found.supposed)) == (count > 1)


def test_a_power_limit_is_told_and_no_card_at_all_is_refused() -> None:
    assert "450 W" in gpu_named("RTX 5090 @ 450W").supposed[0]
    assert gpu_named("RTX 2080 Ti").supposed == ()
    with pytest.raises(UsageError, match="their number is 0"):
        gpu_named("0x RTX 4090")


def test_the_grace_hopper_has_a_processor_of_its_own() -> None:
    machine = assemble("GH200")
    assert machine.cpu == "grace"
    assert "usually has" in " ".join(machine.supposed)
    assert not machine.hardware.unified


@pytest.mark.parametrize(
    ("key", "texts", "understood"),
    [
        ("memory", ("RTX 4090", "", "DDR5-5600, 4"), "DDR5-5600"),
        ("memory", ("RTX 4090", "", "4x32GB DDR5-5600, 4"), "4x32GB DDR5-5600"),
        ("gpu", ("RTX 4090 watercooled, V2", "", ""), "rtx-4090"),
        ("gpu", ("RTX 4090", "", "DDR5-5600, 4"), "RTX 4090"),
        ("cpu", ("none", "2x Xeon Platinum 8480+ lidless, 8 threads, 8", ""),
         "2x xeon-platinum-8480, 8 threads"),
        ("memory", ("RTX 4090", "", "DDR5-5600 blue 2ch"), "DDR5-5600, 2ch"),
        ("pcie", ("RTX 4090", "", "", "PCIe 4.0 x16, riser blue"), "PCIe 4.0 x16"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_cut_by_its_place_in_its_own_text(
    key: str, texts: tuple[str, ...], understood: str
) -> None:
    machine = assemble(*texts)
    assert machine.unknown
    assert machine.understood[key].strip(" ,") == understood.strip(" ,")
    again = assemble(*machine.understood.values())
    assert again.unknown == ()
    assert (again.gpu, again.cpu) == (machine.gpu, machine.cpu)
    assert again.hardware.figures == machine.hardware.figures


@pytest.mark.parametrize("text", [None, "none", "CPU only", "none (CPU only)", "N/A", "CPU", "-"])
def test_a_text_may_say_that_there_is_no_card(text: str | None) -> None:
    assert gpu_named(text).card is None


@pytest.mark.parametrize(
    ("text", "name", "sockets", "threads"),
    [
        ("AMD Ryzen 9 7950X3D 16-Core", "ryzen-9-7950x3d", (1, 1), None),
        ("7800X3D", "ryzen-7-7800x3d", (1, 1), None),
        ("Intel Core i9-14900KF", "i9-14900k", (1, 1), None),
        ("Core Ultra 7 265K -t 16", "core-ultra-7-265k", (1, 1), 16),
        ("2x Xeon Gold 6138, 20 threads", "xeon-gold-6138", (2, 2), 20),
        ("Dual Xeon E5-2680v4", "e5-2680-v4", (2, 2), None),
        ("2x Xeon E5-2697A v4, 16 threads one node", "e5-2697a-v4", (2, 1), 16),
        ("Ryzen Threadripper PRO 5975WX", "threadripper-5975wx", (1, 1), None),
        ("EPYC 9354 x2", "epyc-9354", (2, 2), None),
        ("Ryzen AI MAX+ 395", "ryzen-ai-max-plus-395", (1, 1), None),
        ("6 cores", "unnamed", (1, 1), None),
        ("13th Gen Intel(R) Core(TM) i9-13900K", "i9-13900k", (1, 1), None),
        ("Intel(R) Xeon(R) Gold 6330 CPU @ 2.00GHz", "xeon-gold-6330", (1, 1), None),
        ("Ryzen 9 5950X 16C/32T", "ryzen-9-5950x", (1, 1), None),
        ("EPYC 7402P", "epyc-7402", (1, 1), None),
        ("AMD EPYC 9354P 32-Core Processor", "epyc-9354", (1, 1), None),
        ("i7-13700HX", "i7-13700hx", (1, 1), None),
        ("Intel Core i7-6700K", "i7-6700k", (1, 1), None),
        ("Ryzen 1700", "ryzen-7-1700", (1, 1), None),
        ("Ryzen 5 2600", "ryzen-5-2600", (1, 1), None),
        ("Ryzen 2600", "ryzen-5-2600", (1, 1), None),
        ("Threadripper 1950X", "threadripper-1950x", (1, 1), None),
        ("Xeon Platinum 8480C", "xeon-platinum-8480", (1, 1), None),
    ],
)
def test_a_processor_is_read_from_its_text(
    text: str, name: str, sockets: tuple[int, int], threads: int | None
) -> None:
    found = cpu_named(text)
    assert found.cpu == cpus()[name]
    assert (found.sockets, found.used_sockets) == sockets
    assert found.threads == threads
    assert found.unknown == ()


def test_a_processor_s_text_may_hold_figures() -> None:
    assert cpu_named("Threadripper PRO 7975WX, FCLK 2100").fclk_mhz == 2100
    virtual = cpu_named("30 vCPU host, STREAM Triad 93.7 GB/s at 30 threads")
    assert virtual.cores == 15
    assert [(rate.kind, rate.bytes_per_s) for rate in virtual.measured] == [
        ("triad", 93_700_000_000)
    ]
    assert cpu_named("unstated").cpu is None
    with pytest.raises(UsageError, match="did you mean 'ryzen-9-7950x'"):
        cpu_named("Ryzen 9 7951X")
    assert cpu_named("Ryzen 9 7950X, delidded").unknown == ("delidded",)


@pytest.mark.parametrize(
    ("text", "kind", "mts", "channels", "gib"),
    [
        ("96 GB DDR5-6400 dual channel", "DDR5", 6400, 2, 96),
        ("8ch DDR5", "DDR5", None, 8, None),
        ("192GB DDR5 @ 5200", "DDR5", 5200, None, 192),
        ("DDR5-5600 x2", "DDR5", 5600, 2, None),
        ("64GB DDR4 3200MHz", "DDR4", 3200, None, 64),
        ("2x32GB DDR5-6000 CL30", "DDR5", 6000, None, 64),
        ("192 GB 12-channel DDR5-4800 RDIMM", "DDR5", 4800, 12, 192),
        ("LPDDR5X-8000 unified", "LPDDR5X", 8000, None, None),
        ("1 TB DDR4 8ch (~200 GB/s nominal)", "DDR4", None, 8, 1024),
        ("62 GB quad-channel DDR4", "DDR4", None, 4, 62),
    ],
)
def test_memory_is_read_from_its_text(
    text: str, kind: str | None, mts: int | None, channels: int | None, gib: int | None
) -> None:
    found = memory_named(text)
    assert (found.kind, found.mts, found.channels) == (kind, mts, channels)
    assert found.nbytes == (None if gib is None else gib * 2**30)
    assert found.unknown == ()


@pytest.mark.parametrize(
    ("text", "kind", "of", "gb_per_s"),
    [
        ("29.1 GB/s sequential read measured", "read", "host", 29.1),
        ("~225 GB/s mlc", "read", "host", 225),
        ("STREAM Triad 93.7 GB/s at 30 threads", "triad", "host", 93.7),
        ("STREAM copy 50 GB/s", "copy", "host", 50),
        ("(~200 GB/s nominal)", "peak", "host", 200),
        ("GPU 212-221 GB/s measured", "read", "gpu", 216.5),
        ("1.5 TB/s", "read", "host", 1500),
    ],
)
def test_a_bandwidth_is_read_with_what_it_counts(
    text: str, kind: str, of: str, gb_per_s: float
) -> None:
    found = memory_named(text)
    assert [(rate.kind, rate.of) for rate in found.measured] == [(kind, of)]
    assert found.measured[0].bytes_per_s == round(gb_per_s * GB)
    assert found.unknown == ()


@pytest.mark.parametrize(
    "text",
    ["-50 GB/s", "64 GB, -50 GB/s", "0 GB/s", "900 TB/s", "0 channels DDR5-5600", "999999 channels",
     "25ch a socket", "DDR5-0", "DDR5-100000", f"DDR5-{'9' * 30}", "20001 MT/s", "150 MHz",
     "0 GB DDR5", "0x16GB", "-64 GB"],
)  # fmt: skip
def test_figures_that_no_memory_has_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"negative|expected"):
        memory_named(text)


@pytest.mark.parametrize(
    ("text", "bytes_per_s"), [("DDR5 - 50 GB/s", 50), ("DDR5, 40-50 GB/s", 45), ("DDR5 50GB/s", 50)]
)
def test_a_dash_before_a_bandwidth_is_no_range_of_the_type(text: str, bytes_per_s: int) -> None:
    found = memory_named(text)
    assert (found.kind, found.unknown) == ("DDR5", ())
    assert [rate.bytes_per_s for rate in found.measured] == [bytes_per_s * GB]


@pytest.mark.parametrize(
    "text", ["0x EPYC 9654", "EPYC 9654, 0 threads", "0 cores", "99x EPYC 9654"]
)
def test_processors_without_sockets_cores_or_threads_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected 1 to"):
        cpu_named(text)


@pytest.mark.parametrize("text", ["PCIe 4.0 x0", "x32"])
def test_a_link_without_lanes_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected 1 to 16"):
        pcie_named(text)


def test_a_socket_has_at_most_24_channels() -> None:
    assert assemble("none", "2x EPYC 9654", "48ch DDR5-4800").hardware.host_memory_bytes_per_s
    with pytest.raises(UsageError, match="49 channels for 2 sockets"):
        assemble("none", "2x EPYC 9654", "49ch DDR5-4800")


@pytest.mark.parametrize(
    ("cpu", "memory", "said"),
    [
        ("i5-8400", "DDR5-5600", "i5-8400 takes DDR4, and the text says DDR5"),
        ("EPYC 9654", "DDR4-3200", "epyc-9654 takes DDR5"),
        ("i5-8400", "LPDDR4X", ""),
        ("i9-13900K", "DDR4-3200", ""),
        ("6 cores", "DDR5-5600", ""),
    ],
)
def test_memory_of_another_platform_is_noted(cpu: str, memory: str, said: str) -> None:
    supposed = " ".join(assemble("RTX 4090", cpu, memory).supposed)
    assert said in supposed
    assert ("takes" in supposed) == bool(said)


@pytest.mark.parametrize(
    ("parts", "memory", "gib", "gb_per_s", "said"),
    [
        (("M2 Ultra", ""), "DDR5-5600", 192, 819.2, "DDR5 of the text is left out"),
        (("GB10", ""), "64 GB DDR5-6000 2ch", 64, 273.056, "DDR5 of the text is left out"),
        (("Radeon 8060S", "Ryzen AI Max+ 395"), "DDR5-5600 2ch", 128, 256, "is left out"),
        (
            ("Radeon 8060S", "Ryzen AI Max+ 395"),
            "96 GB LPDDR5X-8000 16ch",
            96,
            256,
            "are 4, not 16",
        ),
        (("Radeon 8060S", "Ryzen AI Max+ 395"), "LPDDR5X-7500", 128, 240, "7500, which is taken"),
        (("M4 Max", ""), "36 GB LPDDR5", 36, 546.112, ""),
        (("M3 Max", ""), "64 GB", 64, 409.6, ""),
    ],
)
def test_modules_do_not_replace_soldered_memory(
    parts: tuple[str, str], memory: str, gib: int, gb_per_s: float, said: str
) -> None:
    machine = assemble(*parts, memory)
    assert machine.hardware.vram_bytes == gib * 2**30
    assert machine.hardware.host_memory_bytes_per_s == pytest.approx(gb_per_s * GB)
    assert machine.hardware.memory_bytes_per_s == pytest.approx(gb_per_s * GB, rel=0.001)
    assert said in " ".join(machine.supposed)
    assert bool(said) == ("a part of it" in " ".join(machine.supposed))


@pytest.mark.parametrize(
    ("text", "generation", "lanes"),
    [
        ("PCIe 4.0 x16", 4, 16),
        ("4.0 x16", 4, 16),
        ("PCIe Gen4 x4", 4, 4),
        ("PCIe 3", 3, None),
        ("x8", None, 8),
        ("OCuLink", 4, 4),
        ("PCIe 4 x16, H2D 26.08 GB/s measured", 4, 16),
    ],
)
def test_a_link_is_read_from_its_text(text: str, generation: int | None, lanes: int | None) -> None:
    found = pcie_named(text)
    assert (found.generation, found.lanes, found.unknown) == (generation, lanes, ())


@pytest.mark.parametrize("key", ["gpu", "cpu", "ram", "pcie"])
def test_texts_of_published_measurements_are_understood(key: str) -> None:
    read: dict[str, Any] = {
        "gpu": gpu_named,
        "cpu": cpu_named,
        "ram": memory_named,
        "pcie": pcie_named,
    }
    for text in texts(key):
        if text == NOT_A_CARD:
            continue
        rest = () if "Windows 10" not in text else ("Windows 10",)
        assert read[key](text).unknown == rest, text


# Machines


@pytest.mark.parametrize(
    ("card", "profile"), [("rtx-4090", "rtx-4090"), ("a100-sxm-80gb", "a100-80gb"), ("t4", "t4")]
)
def test_an_assembled_card_agrees_with_the_shipped_profile(card: str, profile: str) -> None:
    ours, theirs = assemble(card).hardware, load_hardware(profile)
    assert ours.vram_bytes == theirs.vram_bytes
    assert ours.memory_bytes_per_s == theirs.memory_bytes_per_s
    assert ours.flops_per_s == pytest.approx(theirs.flops_per_s, rel=0.01)
    assert ours.h2d.pinned_bytes_per_s == pytest.approx(theirs.h2d.pinned_bytes_per_s, rel=0.02)
    assert ours.compute_efficiency == theirs.compute_efficiency
    assert ours.memory_efficiency == theirs.memory_efficiency
    assert ours.kernel_overhead_ns == theirs.kernel_overhead_ns


def test_a_desktop_by_hand() -> None:
    machine = assemble("RTX 4090", "Ryzen 9 7950X", "64 GB DDR5-6000 dual channel", "PCIe 4.0 x8")
    hardware = machine.hardware
    assert machine.supposed == ()
    assert machine.unknown == ()
    assert hardware.flops_per_s == 128 * 2520 * 512 * 10**6
    assert hardware.int8_ops_per_s == 128 * 2520 * 2048 * 10**6
    assert hardware.host_memory_bytes_per_s == 2 * 6000 * 10**6 * 8
    assert hardware.host_memory_efficiency == 0.87
    assert hardware.host_memory_bytes == 64 * 2**30
    assert hardware.cpu_flops_per_s == 16 * 5 * 32 * GB  # AVX-512 in two passes
    assert hardware.cpu_int8_ops_per_s == 16 * 5 * 128 * GB
    assert hardware.cpu_memory_bytes_per_s == 2 * 2000 * 32 * 10**6
    assert hardware.cpu_cores == 16
    assert hardware.cpu_threads is None
    assert hardware.h2d.pinned_bytes_per_s == round(1.969 * 8 * GB * 0.79)
    assert hardware.cost_kind == "assumed"
    assert all(figure.source for figure in hardware.figures.values())
    assert not any(figure.bare for figure in hardware.figures.values())


def test_efficiency_cores_count_at_their_own_clock_and_width() -> None:
    hardware = assemble("RTX 3060", "i5-13600K", "DDR5-5600 2ch").hardware
    assert hardware.cpu_cores == 14
    expected = (6 * 5.1 * 32 + 8 * 3.9 * 16) * GB
    assert hardware.cpu_flops_per_s == pytest.approx(expected, rel=1e-9)


def test_one_die_reads_what_the_fabric_carries() -> None:
    one = assemble("RTX 4090", "Ryzen 7 7800X3D", "DDR5-6000 2ch").hardware
    assert one.cpu_memory_bytes_per_s == 64 * GB
    faster = assemble("RTX 4090", "Ryzen 7 7800X3D, FCLK 2133", "DDR5-6000 2ch").hardware
    assert faster.cpu_memory_bytes_per_s == 2133 * 32 * 10**6
    assert assemble("RTX 4090", "i5-12400").hardware.cpu_memory_bytes_per_s is None


@pytest.mark.parametrize(
    ("cpu", "memory", "gb_per_s"),
    [
        ("2x Xeon Gold 6138", "512 GB DDR4-2666 12ch", 12 * 2.666 * 8),
        ("2x Xeon Gold 6138", "DDR4-2666 6ch", 12 * 2.666 * 8),
        ("2x Xeon E5-2697A v4, 16 threads one node", "4ch DDR4-2400 a socket", 4 * 2.4 * 8),
        ("2x Xeon E5-2697A v4", "DDR4-2400", 8 * 2.4 * 8),
        ("EPYC 7773X", "1 TB DDR4 8ch (~200 GB/s nominal)", 200),
        ("EPYC 7773X", "", 8 * 3.2 * 8),
        ("i9-10900X", "62 GB quad-channel DDR4", 4 * 2.933 * 8),
        ("i5-12400", "32 GB DDR4", 2 * 3.2 * 8),
    ],
)
def test_the_peak_of_memory_is_channels_times_transfers(
    cpu: str, memory: str, gb_per_s: float
) -> None:
    hardware = assemble("none", cpu, memory).hardware
    assert hardware.host_memory_bytes_per_s == pytest.approx(gb_per_s * GB)


def test_what_no_text_says_is_supposed_and_said() -> None:
    machine = assemble("RTX 4090", "Ryzen 7 5800X", "32 GB DDR4")
    said = " ".join(machine.supposed)
    assert "DDR4-3200" in said
    assert "2 channels" in said
    assert "PCIe 4.0 x16" in said
    assert assemble("RTX 4090").hardware.host_memory_bytes_per_s is None
    assert assemble("RTX 4090").cpu is None
    unknown = assemble("RTX 4090", "Ryzen 7 5800X", "32 GB DDR4, blue").unknown
    assert unknown == ("blue",)


def test_measured_bandwidths_replace_the_share_of_the_peak() -> None:
    read = assemble("none", "6 cores", "DDR5-5600 single channel, 29.1 GB/s").hardware
    assert (read.host_memory_bytes_per_s, read.host_memory_efficiency) == (29_100_000_000, 1.0)
    assert read.figures["host_memory_bandwidth"].kind == "measured"
    triad = assemble("none", "8 cores, STREAM Triad 90 GB/s").hardware
    assert triad.host_memory_bytes_per_s == 120 * GB
    assert triad.figures["host_memory_bandwidth"].kind == "assumed"
    # At most the peak, where the platform is known.
    capped = assemble("none", "Ryzen 7 5800X", "DDR4-3200 2ch, STREAM Triad 45 GB/s").hardware
    assert capped.host_memory_bytes_per_s == 51_200_000_000
    link = assemble("A100 80GB", pcie="PCIe 4 x16, H2D 26.08 GB/s measured").hardware
    assert link.h2d.pinned_bytes_per_s == 26_080_000_000
    assert link.figures["h2d.pinned_bandwidth"].kind == "measured"
    assert link.d2h.pinned_bytes_per_s == round(1.969 * 16 * GB * 0.79)


def test_the_link_is_the_lower_of_card_processor_and_text() -> None:
    def pinned(*parts: str) -> float:
        return assemble(*parts).hardware.h2d.pinned_bytes_per_s / GB / 0.79

    assert pinned("RTX A1000", "i9-9900T") == pytest.approx(0.985 * 8)
    assert pinned("RTX 5060 Ti", "i5-14600KF") == pytest.approx(3.938 * 8)
    assert pinned("RTX 5060 Ti", "i5-14600KF", "", "PCIe 4.0 x16") == pytest.approx(1.969 * 8)
    assert pinned("RTX 3090", "Xeon Platinum 8480+") == pytest.approx(1.969 * 16)
    assert pinned("GH200 96GB", "Grace") == pytest.approx(450)


def test_threads_of_a_text_are_those_that_compute() -> None:
    assert assemble("none", "2x Xeon Gold 6138, 20 threads").hardware.cpu_threads == 20
    assert assemble("none", "Ryzen 9 7950X, 16 threads").hardware.cpu_threads is None
    many = assemble("none", "Ryzen 9 7950X, 32 threads")
    assert many.hardware.cpu_threads is None
    assert "two a core" in " ".join(many.supposed)
    changed = assemble("none", "Ryzen 9 7950X, 8 threads", overrides={"cpu_threads": 4})
    assert changed.hardware.cpu_threads == 4


def test_unified_memory_is_one_memory() -> None:
    text = "128 GB LPDDR5X-8000 unified, GPU 212-221 GB/s measured"
    hardware = assemble("Radeon 8060S", "Ryzen AI MAX+ 395", text).hardware
    assert hardware.unified
    assert hardware.vram_bytes == hardware.host_memory_bytes == 128 * 2**30
    assert hardware.memory_bytes_per_s == hardware.host_memory_bytes_per_s == 256 * GB
    assert hardware.memory_efficiency == pytest.approx(216.5 / 256)
    assert hardware.figures["memory_efficiency"].kind == "measured"
    assert hardware.cpu_memory_bytes_per_s == 128 * GB
    # The processor is a part of the same chip.
    assert assemble("M2 Ultra 192GB").cpu == "m2-ultra"
    assert assemble("M2 Ultra 192GB").hardware.vram_bytes == 192 * 2**30


def test_a_machine_without_gpu_has_no_figure_of_one() -> None:
    hardware = assemble("none", "EPYC 9654").hardware
    assert not hardware.has_gpu
    assert hardware.vram_bytes == hardware.flops_per_s == hardware.memory_bytes_per_s == 1
    assert hardware.cpu_cores == 96
    assert assemble("RTX 4090").hardware.has_gpu


def test_overrides_replace_figures_of_an_assembled_machine() -> None:
    machine = assemble("RTX 3090", overrides={"vram": "48GiB", "h2d": {"bandwidth": "5GB/s"}})
    assert machine.hardware.vram_bytes == 48 * 2**30
    assert machine.hardware.h2d.pageable_bytes_per_s == 5 * GB
    assert machine.hardware.memory_bytes_per_s == 936 * GB
