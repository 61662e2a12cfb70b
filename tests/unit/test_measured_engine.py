"""The text of an engine, and the backend that follows from a GPU."""

from __future__ import annotations

import json
from typing import Any

import pytest
from paths import ROOT

from moesim.hardware.parts import gpus
from moesim.measured.engine_text import gpu_vendor, impossible_backend, read_engine

PUBLISHED = ROOT.parent / "shared/data/measured/throughput.json"


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("llama.cpp", {"name": "llama.cpp"}),
        ("ik_llama.cpp", {"name": "ik_llama.cpp"}),
        ("ik_llama.cpp 4706", {"name": "ik_llama.cpp", "build": 4706}),
        ("llama.cpp 10155", {"build": 10155, "version": "10155"}),
        ("llama.cpp b10788 SYCL", {"build": 10788, "version": "b10788", "backend": "SYCL"}),
        ("llama.cpp-hip b5921", {"name": "llama.cpp", "build": 5921, "backend": "ROCm"}),
        ("llama.cpp-vulkan b5922", {"backend": "Vulkan", "build": 5922}),
        (
            "llama.cpp ROCm 7.2.3",
            {"backend": "ROCm", "backend_version": "7.2.3", "version": "", "build": None},
        ),
        ("llama.cpp Vulkan RADV", {"backend": "Vulkan", "driver": "RADV"}),
        (
            "llama.cpp b11146 Vulkan, Windows 11",
            {"build": 11146, "backend": "Vulkan", "system": "Windows 11"},
        ),
        ("llama.cpp (CUDA 12.8, build 6123)", {"backend_version": "12.8", "build": 6123}),
        ("llama.cpp @ 1a2b3c4d", {"version": "1a2b3c4d", "build": None}),
        ("vLLM 26.02", {"name": "vllm", "version": "26.02"}),
        ("vllm v0.11.0", {"name": "vllm", "version": "v0.11.0"}),
        ("KTransformers 0.3", {"name": "ktransformers", "version": "0.3"}),
        ("Ollama 0.9.1", {"name": "llama.cpp", "version": "0.9.1"}),
        ("LM Studio", {"name": "llama.cpp"}),
        ("koboldcpp", {"name": "llama.cpp"}),
        ("MoEArc (expert cache engine)", {"name": "moearc"}),
        ("homemade", {"name": ""}),
        ("", {"name": ""}),
    ],
)
def test_an_engine_is_read(text: str, fields: dict[str, Any]) -> None:
    engine = read_engine(text)
    assert {key: getattr(engine, key) for key in fields} == fields


@pytest.mark.parametrize(
    ("gpu", "backend"),
    [
        ("RTX 4090", "CUDA"),
        ("A100-SXM4-80GB", "CUDA"),
        ("8 GB Turing (sm_75)", "CUDA"),
        ("DGX Spark GB10", "CUDA"),
        ("H100 80GB", "CUDA"),
        ("RX 6700 XT 12GB", "ROCm"),
        ("Radeon 8060S (Strix Halo, unified)", "ROCm"),
        ("MI300X", "ROCm"),
        ("Arc B580 12GB", "SYCL"),
        ("Apple M3 Ultra", "Metal"),
        ("none", "CPU"),
        ("srv2 12 GB card", ""),
        ("", ""),
    ],
)
def test_a_backend_that_is_not_named_follows_from_the_gpu_and_is_noted(
    gpu: str, backend: str
) -> None:
    engine = read_engine("llama.cpp", gpu)
    assert engine.backend == backend
    assert any("names no backend" in note for note in engine.notes) == bool(backend)


def test_a_named_backend_wins_and_a_row_without_gpu_runs_on_the_cpu() -> None:
    assert read_engine("llama.cpp Vulkan", "RTX 4090").backend == "Vulkan"
    assert read_engine("llama.cpp", "RTX 4090", cpu_only=True).backend == "CPU"
    assert read_engine("llama.cpp Vulkan", "RTX 4090", cpu_only=True).backend == "Vulkan"


@pytest.mark.parametrize(
    ("gpu", "engine", "why"),
    [
        ("RTX 4090", "llama.cpp ROCm", "ROCm does not run on 'RTX 4090', a GPU of nvidia"),
        ("RTX 4090", "llama.cpp Metal", "Metal does not run"),
        ("RX 7900 XTX", "llama.cpp CUDA", "a GPU of amd"),
        ("Apple M3 Max", "llama.cpp CUDA", "a GPU of apple"),
        ("Arc B580", "llama.cpp ROCm", "a GPU of intel"),
        ("RX 6900 XT", "llama.cpp Metal, macOS 14", ""),
        ("RTX 4090", "llama.cpp", ""),
        ("RTX 4090", "llama.cpp SYCL", ""),
        ("srv2 12 GB card", "llama.cpp ROCm", ""),
        *((gpu, "llama.cpp Vulkan", "") for gpu in ("RTX 4090", "M2", "Arc B580", "MI300X")),
        *((gpu, "llama.cpp CPU", "") for gpu in ("RTX 4090", "M2", "none")),
    ],
)
def test_a_backend_that_the_gpu_cannot_run_is_told(gpu: str, engine: str, why: str) -> None:
    said = impossible_backend(read_engine(engine, gpu), gpu)
    assert why in said
    assert bool(why) == bool(said)


def test_several_engines_or_backends_in_one_text_are_noted() -> None:
    two = read_engine("vLLM and SGLang")
    assert two.name == "vllm"
    assert two.notes == ("the engine is vllm first, then sglang: the former",)
    assert "CUDA first, then Vulkan" in read_engine("llama.cpp CUDA Vulkan").notes[0]
    for text in ("llama.cpp llama-bench CUDA", "llama.cpp CUDA CPU", "ik_llama.cpp CUDA 12.8"):
        assert read_engine(text).notes == ()


def test_what_is_not_understood_is_noted() -> None:
    engine = read_engine("llama.cpp turboquant patch")
    assert engine.unknown == ("turboquant", "patch")
    assert len(engine.notes) == 2
    assert "fork" in read_engine("ik_llama.cpp fork").notes[0]
    assert "ollama" in read_engine("ollama").notes[0]


def test_the_vendor_of_an_arc_is_not_that_of_a_tesla() -> None:
    assert gpu_vendor("Arc A770") == gpu_vendor("B580") == "intel"
    assert gpu_vendor("B200") == gpu_vendor("A100") == gpu_vendor("Tesla P40") == "nvidia"


@pytest.mark.parametrize("name", gpus())
def test_the_vendor_of_a_card_is_that_of_its_family(name: str) -> None:
    card = gpus()[name]
    sources = f"{card.memory_source} {card.rate_source} {card.family}".lower()
    assert gpu_vendor(name) == card.vendor
    assert card.vendor in sources


@pytest.mark.parametrize(
    ("gpu", "vendor"),
    [
        ("A100 40GB", "nvidia"),
        ("A100 80GB", "nvidia"),
        ("B200 180GB", "nvidia"),
        ("B300", "nvidia"),
        ("GB300", "nvidia"),
        ("Jetson Thor", "nvidia"),
        ("RTX9999", "nvidia"),
        ("Arc A310", "intel"),
        ("A770 16GB", "intel"),
        ("RX 9999 XT", "amd"),
        ("MacBook", "apple"),
        ("srv2 12 GB card", ""),
    ],
)
def test_a_vendor_is_that_of_the_card_or_else_of_the_words(gpu: str, vendor: str) -> None:
    assert gpu_vendor(gpu) == vendor


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the published rows are not beside this clone")
def test_every_published_engine_is_understood() -> None:
    rows = json.loads(PUBLISHED.read_text())
    engines = {(row["engine"], row["gpu"]) for row in rows}
    assert len(engines) > 20
    for text, gpu in engines:
        engine = read_engine(text, gpu)
        assert engine.name, text
        assert engine.backend or gpu == "srv2 12 GB card", (text, gpu)
        assert engine.unknown in ((), ("expert", "cache", "engine")), text
