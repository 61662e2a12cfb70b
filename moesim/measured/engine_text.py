"""The text of an engine: its name, its version, the backend that computes, the system."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from moesim.errors import UsageError

if TYPE_CHECKING:
    from moesim.hardware.parts import GpuText

__all__ = ["Engine", "card_text", "gpu_vendor", "impossible_backend", "read_engine", "without_gpu"]


@dataclass(frozen=True, slots=True)
class Engine:
    """What ran a model. `name` is "" where no known engine is named.

    `build` is the number of a build of llama.cpp (b5921, 4706), None where unknown. `backend` is
    "CUDA", "ROCm", "Vulkan", "SYCL", "Metal", "CPU" or another that the text names; "" where
    neither the text nor the GPU tells. `driver` is a Vulkan driver.
    """

    name: str = ""
    version: str = ""
    build: int | None = None
    backend: str = ""
    backend_version: str = ""
    driver: str = ""
    system: str = ""
    notes: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


# In order: a name that holds another one is first.
_NAMES: Final = (
    (r"ik[-_ ]?llama(?:\.cpp)?", "ik_llama.cpp", ""),
    (r"llama\.?cpp|llama[-_.]cpp|llama-(?:bench|server|cli)", "llama.cpp", ""),
    (r"ollama", "llama.cpp", "ollama runs llama.cpp"),
    (r"lm[ -]?studio", "llama.cpp", "LM Studio runs llama.cpp"),
    (r"kobold(?:\.?cpp)?", "llama.cpp", "KoboldCpp runs llama.cpp"),
    (r"llamafile", "llama.cpp", "llamafile runs llama.cpp"),
    (r"k[-_ ]?transformers", "ktransformers", ""),
    (r"vllm", "vllm", ""),
    (r"sglang", "sglang", ""),
    (r"exllama(?:v?[23])?|tabby\w*", "exllama", ""),
    (r"tensorrt[-_ ]?llm|trt-?llm", "tensorrt-llm", ""),
    (r"mlx(?:[-_ ]?lm)?", "mlx", ""),
    (r"mistral\.?rs", "mistral.rs", ""),
    (r"powerinfer", "powerinfer", ""),
    (r"moearc", "moearc", ""),
    (r"transformers", "transformers", ""),
)
_VERSION: Final = r"(?P<v>v?\d+(?:\.\d+)+|v\d+|(?:build[ :]*)?b?(?P<b>\d{4,6}))"
_BACKENDS: Final = (
    (r"(?:CUDA|cuBLAS)", "CUDA"),
    (r"(?:ROCm|HIP(?:BLAS)?)", "ROCm"),
    (r"Vulkan", "Vulkan"),
    (r"(?:SYCL|oneAPI)", "SYCL"),
    (r"Metal", "Metal"),
    (r"OpenCL", "OpenCL"),
    (r"OpenVINO", "OpenVINO"),
    (r"CPU(?:[- ]only)?", "CPU"),
)
_FORMS: Final = tuple(
    (re.compile(rf"{text}(?![a-z0-9])", re.IGNORECASE), kind, name, note)
    for text, kind, name, note in (
        *((text, "name", name, note) for text, name, note in _NAMES),
        *(
            (rf"{text}(?:[- ]v?(?P<bv>\d+(?:\.\d+)*))?", "backend", name, "")
            for text, name in _BACKENDS
        ),
        (r"(?P<v>RADV|AMDVLK|Mesa(?: \d[\d.]*)?|Dozen|ANV)", "driver", "", ""),
        (r"(?P<v>Windows(?: (?:10|11))?|WSL ?2?|Linux|Ubuntu(?: \d\d\.\d\d)?|Fedora(?: \d+)?"
         r"|Debian(?: \d+)?|Arch|macOS(?: [\d.]+)?)", "system", "", ""),
        (r"fork(?: of)?", "fork", "", ""),
        (r"(?:main(?:line)?|master|version|build|release|nightly|backend|with|and|on|docker)",
         "word", "", ""),
        (_VERSION, "version", "", ""),
        (r"(?P<v>[0-9a-f]{7,40})", "version", "", ""),
    )
)  # fmt: skip
_SEPARATOR: Final = re.compile(r"[\s,;()/@+:_-]+")
_WORD: Final = re.compile(r"[^\s,;()]+")


@lru_cache(maxsize=4096)
def read_engine(text: str, gpu: str = "", *, cpu_only: bool = False) -> Engine:
    """Return what a text says about an engine.

    Where it names no backend, the vendor of `gpu` does: CUDA for NVIDIA, ROCm for AMD, SYCL for
    Intel, Metal for Apple, and CPU where the row uses no GPU. The notes say so.
    """
    fields: dict[str, str] = {}
    notes: list[str] = []
    unknown: list[str] = []
    place = 0
    while place < len(text):
        if (match := _SEPARATOR.match(text, place)) is None:
            match = _take(text, place, fields, notes, unknown)
        place = match.end() if match is not None else place + 1
    build = fields.pop("build", None)
    if not fields.get("backend") and (backend := _backend_of(gpu, cpu_only)):
        fields["backend"] = backend
        notes.append(f"the engine names no backend: {backend}, as the {_why(gpu, cpu_only)}")
    notes.extend(f"engine: not understood, left out: {word!r}" for word in unknown)
    return Engine(
        **fields, build=int(build) if build else None, notes=tuple(notes), unknown=tuple(unknown)
    )


def _take(
    text: str, place: int, fields: dict[str, str], notes: list[str], unknown: list[str]
) -> re.Match[str] | None:
    """Read one form or word at a place, and return what was read."""
    for form, kind, name, note in _FORMS:
        match = form.match(text, place)
        if match is None:
            continue
        groups = match.groupdict()
        value = name or groups.get("v") or ""
        if kind in ("name", "backend", "version", "driver", "system"):
            held = fields.setdefault(kind, value)
            # Whole layers or experts may be on the CPU beside any other backend.
            if kind in ("name", "backend") and value not in (held, "CPU"):
                what = "engine" if kind == "name" else "backend"
                notes.append(f"the {what} is {held} first, then {value}: the former")
        if groups.get("bv"):
            fields.setdefault("backend_version", groups["bv"])
        if groups.get("b"):
            fields.setdefault("build", groups["b"])
        if kind == "fork":
            note = "a fork, taken as the engine that it is a fork of"
        if note and note not in notes:
            notes.append(note)
        return match
    match = _WORD.match(text, place)
    if match is not None:
        unknown.append(match.group())
    return match


# For cards that the catalogue lacks. The first match decides.
_VENDORS: Final = (
    ("apple", r"\bapple\b|^m[1-9](?: (?:pro|max|ultra))?\b|\bmac(?:book)?\b"),
    ("intel", r"\barc\b|\bintel\b|\ba3[15]0m?\b"),
    ("amd", r"\bradeon\b|\brx ?\d|\bamd\b|\binstinct\b|\bmi\d{2,3}x?\b|\bstrix\b|\b80[456]0s\b"
            r"|\bvega\b|\bnavi\b|\bai max\b|\br9700\b|\bw[67]\d00\b"),
    ("nvidia", r"\b[rg]tx ?\d*|\btesla\b|\bquadro\b|\bnvidia\b|\bgeforce\b|\bturing\b|\bampere\b"
               r"|\bada\b|\bhopper\b|\bblackwell\b|\bpascal\b|\bvolta\b|\bsm_\d+|\bg[bh]\d+\b|\bspark\b"
               r"|\b[ahblptvk]\d{1,3}[gs]?(?:-|\b)|\btitan\b|\bjetson\b|\bcmp\b|\bcuda\b"),
)  # fmt: skip
_VENDOR_FORMS: Final = tuple((name, re.compile(text, re.IGNORECASE)) for name, text in _VENDORS)
_BACKENDS_OF: Final = {
    "nvidia": ("CUDA", "OpenCL", "SYCL"),
    "amd": ("ROCm", "OpenCL", "SYCL"),
    "intel": ("SYCL", "OpenCL", "OpenVINO"),
    "apple": ("Metal",),
}
"""Backends of each vendor's GPUs, the usual one first; Vulkan and the CPU are everywhere."""
_EVERYWHERE: Final = ("Vulkan", "CPU")


@lru_cache(maxsize=4096)
def card_text(gpu: str) -> GpuText | None:
    """Return what the catalogue reads in a text of a GPU; None where it knows no such card."""
    from moesim.hardware.parts import gpu_named  # whose tables are read at the first use

    try:
        return gpu_named(gpu)
    except UsageError:
        return None


def without_gpu(gpu: str) -> bool:
    """Return whether a text says that there is no GPU."""
    found = card_text(gpu)
    return found is not None and found.card is None


@lru_cache(maxsize=4096)
def gpu_vendor(gpu: str) -> str:
    """Return "nvidia", "amd", "intel" or "apple", or "" where a text names no GPU of theirs."""
    if (found := card_text(gpu)) is not None and found.card is not None:
        return found.card.vendor
    return next((name for name, form in _VENDOR_FORMS if form.search(gpu)), "")


def impossible_backend(engine: Engine, gpu: str) -> str:
    """Return why a GPU cannot run the engine's backend, or ""."""
    possible = _BACKENDS_OF.get(vendor := gpu_vendor(gpu))
    backend = engine.backend
    if not backend or possible is None or backend in (*possible, *_EVERYWHERE):
        return ""
    if backend == "Metal" and engine.system.startswith("macOS"):  # Macs had GPUs of others
        return ""
    known = ", ".join((*possible, *_EVERYWHERE))
    return f"the backend {backend} does not run on {gpu!r}, a GPU of {vendor}; possible: {known}"


def _backend_of(gpu: str, cpu_only: bool) -> str:
    if cpu_only or without_gpu(gpu):
        return "CPU"
    return next(iter(_BACKENDS_OF.get(gpu_vendor(gpu), ())), "")


def _why(gpu: str, cpu_only: bool) -> str:
    return (
        "row uses no GPU" if _backend_of(gpu, cpu_only) == "CPU" else f"GPU is of {gpu_vendor(gpu)}"
    )
