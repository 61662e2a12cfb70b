"""One test of `llama-bench`, by the names of its fields, as an entry.

The fields are those of its JSON, CSV and JSONL; `markdown` has other names for them. The setting is
written as a person would write it, so that `moesim.measured.grammar` reads it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isfinite
from typing import Final

from moesim.measured.rows import Row
from moesim.twin.devices import devices_text
from moesim.twin.log import Entry, Log

__all__ = ["FIELDS", "bench_entry", "format_of_type", "split_type"]

_SETTING: Final = {
    "n_threads": "t={}",
    "n_batch": "b={}",
    "n_ubatch": "ub={}",
    "type_k": "ctk={}",
    "type_v": "ctv={}",
    "mla_attn": "mla={}",
}
_SWITCHES: Final = {
    "no_kv_offload": "-nkvo 1",
    "no_op_offload": "nopo=1",
    "repack_run_time": "rtr=1",
    "fused_moe": "fmoe=1",
}
_IK_ONLY: Final = ("fused_moe", "mla_attn", "repack_run_time", "attn_max_batch", "ser")
_NEEDED: Final = frozenset(
    re.findall(
        r"\w+",
        """model_type model_size model_n_params model_filename backends gpu_info cpu_info
        build_number n_gpu_layers n_cpu_moe flash_attn tensor_buft_overrides split_mode devices
        tensor_split
        n_prompt n_gen n_depth avg_ts stddev_ts""",
    )
)
_WITHOUT_EFFECT: Final = frozenset(
    re.findall(
        r"\w+",
        """build_commit main_gpu cpu_mask cpu_strict poll use_mmap use_direct_io load_mode lazy_mode
        embeddings no_host repack fit_target fit_min_ctx test_time avg_ns stddev_ns samples_ns
        samples_ts defrag_thold n_gen_warmup cuda vulkan kompute metal sycl rpc gpu_blas blas opencl
        attn_max_batch graph_reuse grouped_er""",
    )
)
FIELDS: Final = _NEEDED | _WITHOUT_EFFECT | {"ser"} | set(_SETTING) | set(_SWITCHES)
"""The fields that are known."""

_TYPE: Final = re.compile(
    r"(?P<model>.+?)\s+(?:all |mostly )?(?P<form>(?:I?Q|TQ)\d\w*|BF16|F16|F32|MXFP4|NVFP4)"
    r"(?P<size> - (?:Small|Medium|Large))?(?P<mix> mix)?(?: - [\d.]{1,8} bpw(?: ternary)?)?"
    r"(?: MoE)?(?: \(guessed\))?"
)
_LETTERS: Final = {"Small": "S", "Medium": "M", "Large": "L"}
_BACKENDS: Final = ("CUDA", "ROCm", "HIP", "Vulkan", "SYCL", "Metal", "MTL", "OpenCL", "CPU")
_ON: Final = frozenset(("1", "true", "on"))
_OFF: Final = frozenset(("", "0", "none", "false", "off", "0.00", "0/0"))


def bench_entry(
    fields: Mapping[str, str], log: Log, index: int, gpu: str = "", notes: tuple[str, ...] = ()
) -> Entry:
    """Return the entry of one test. `gpu`: what the log says before it, where no field does.

    Raises:
        UsageError: a number is missing or none, or the test has no tokens.
    """
    prompt, output, depth = (
        _count(fields, key, log, index) for key in ("n_prompt", "n_gen", "n_depth")
    )
    value = _rate(fields.get("avg_ts", ""), log, index)
    deviation = _deviation(fields.get("stddev_ts", ""))
    if not prompt and not output:
        raise log.refused(index, "a test without tokens")
    model, form = split_type(fields.get("model_type", ""))
    backend = _backend(fields.get("backends", ""))
    kind = "ik_llama.cpp" if any(key in fields for key in _IK_ONLY) else "llama.cpp"
    build = fields.get("build_number", "")
    row = Row(
        model=model,
        quant=_sized(form, fields.get("model_size", "")),
        gpu="none" if backend == "CPU" else devices_text(fields.get("gpu_info", "")) or gpu,
        cpu=fields.get("cpu_info", ""),
        engine=" ".join(part for part in (kind, f"b{build}" if build else "", backend) if part),
        setting=_setting(fields, backend),
        metric="decode_tok_s" if output else "prefill_tok_s",
        depth=depth,
        prompt=None if output else prompt,
    )
    left_out = "a prompt and its answer are timed together" if prompt and output else ""
    return Entry(row, value, deviation, log.place(index), left_out, notes)


def split_type(text: str) -> tuple[str, str]:
    """Return the model and the format in a text like `qwen3moe 30B.A3B Q4_K - Medium`.

    The format is "" where the text has none.
    """
    match = _TYPE.fullmatch(text.strip())
    if match is None:
        return text.strip(), ""
    return match["model"], format_of_type(text.strip()[match.end("model") :])


def format_of_type(text: str) -> str:
    """Return the name of a format as llama.cpp prints its file types, like `Q4_K - Medium`."""
    match = _TYPE.fullmatch(f"x {text.strip()}")
    if match is None:
        return text.strip()
    form = match["form"]
    if match["mix"]:  # IQ3_S mix and IQ2_S mix are the files called IQ3_M and IQ2_M
        return form.removesuffix("_S") + "_M"
    letter = _LETTERS[match["size"].removeprefix(" - ")] if match["size"] else ""
    if form == "Q2_K" and letter == "M":
        letter = ""
    return f"{form}_{letter}" if letter else form


def _setting(fields: Mapping[str, str], backend: str) -> str:
    """Return the options of a test as one text."""
    parts = []
    if backend == "CPU":
        parts.append("cpu-only")
    elif layers := fields.get("n_gpu_layers", ""):
        parts.append(f"ngl={layers}")
    if (count := fields.get("n_cpu_moe", "")) not in ("", "0"):
        parts.append(f"ncmoe={count}")
    parts += [text.format(fields[key]) for key, text in _SETTING.items() if fields.get(key)]
    if (attention := fields.get("flash_attn", "").lower()) in _ON | _OFF and attention:
        parts.append(f"fa={int(attention in _ON)}")
    parts += [text for key, text in _SWITCHES.items() if fields.get(key, "").lower() in _ON]
    if (rules := fields.get("tensor_buft_overrides", "")).lower() not in _OFF:
        parts.append(f'-ot "{rules.replace(";", ",")}"')
    if (split := fields.get("tensor_split", "")).lower() not in _OFF and split:
        parts.append(f"ts={split}")
    if (fewer := fields.get("ser", "")).lower() not in _OFF | {"-1,0", "-1,0.0"}:
        parts.append(f"ser={fewer}")
    return " ".join(parts)


def _backend(text: str) -> str:
    """Return the backend that computes, of a list like `Vulkan,RPC`."""
    names = [name.strip() for name in text.split(",")]
    found = next((each for each in _BACKENDS if each in names), "")
    if not found and "BLAS" in names:
        return "CPU"
    return {"MTL": "Metal", "HIP": "ROCm"}.get(found, found or text.strip())


def _sized(form: str, nbytes: str) -> str:
    """Return a format with the size of its file, as `format_named` reads it."""
    if not form or not nbytes:
        return form
    size = f"{int(nbytes) / 2**30:.3f} GiB" if nbytes.isdecimal() else nbytes
    return f"{form} ({size})"


def _count(fields: Mapping[str, str], key: str, log: Log, index: int) -> int:
    text = fields.get(key, "") or "0"
    if not text.isdecimal() or len(text) > 9:
        raise log.refused(index, f"{key} {text!r} is no number of tokens")
    return int(text)


def _rate(text: str, log: Log, index: int) -> float:
    try:
        rate = float(text)
    except ValueError:
        raise log.refused(index, f"{text!r} is no number of tokens per second") from None
    if not (isfinite(rate) and rate > 0):
        raise log.refused(index, f"{text} tokens per second: expected more than none")
    return rate


def _deviation(text: str) -> float | None:
    """Return a standard deviation; None for none, and for 0, which one repetition prints."""
    try:
        deviation = float(text)
    except ValueError:
        return None
    return deviation if isfinite(deviation) and deviation > 0 else None
