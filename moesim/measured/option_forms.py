"""Forms of the grammar for options, and for kinds of rows that are not counted."""

from __future__ import annotations

import re
from typing import Any, Final

from moesim.measured.forms import NUMBER, Form, Handler, Reading, skip
from moesim.measured.setting import Declining

__all__ = ["OPTION_FORMS"]

_TOKENS: Final = r"(?P<n>\d{1,9})(?P<k>[kK]?)(?![\w.])"
_SWITCH: Final = r"(?P<s>1|0|on|off|true|false|yes|no|auto|enabled|disabled)(?!\w)"
_FORMAT: Final = r"[a-z]{1,4}\d{1,2}(?:_\w{1,3})?"
_KV: Final = rf"(?P<f>{_FORMAT})(?!\w)"
_KV_PAIR: Final = rf"(?P<f>{_FORMAT})(?:\s*/\s*(?P<v>{_FORMAT}))?(?!\w)"
_KV_FORMATS: Final = frozenset(
    [
        "f32",
        "f16",
        "bf16",
        "fp16",
        "fp8",
        "q8_0",
        "q6_0",
        "q5_0",
        "q5_1",
        "q4_0",
        "q4_1",
        "iq4_nl",
        "q8_kv",
    ]
)
_SHORT_FORMATS: Final = {"q8": "q8_0", "q5": "q5_0", "q4": "q4_0", "fp16": "f16"}


def _option(names: str, value: str) -> str:
    """Return a pattern for `name=value`, `name value`, `-name value` and `--name=value`."""
    return rf"-{{0,2}}(?:{names})(?:\s*[=:]\s*| ){value}"


def _flag(names: str, value: str) -> str:
    """Return a pattern like that of `_option`, but a dash or "=" is needed: names may be words."""
    return rf"(?:-{{0,2}}(?:{names})\s*[=:]\s*|--?(?:{names}) ){value}"


def _tokens(match: re.Match[str]) -> int:
    return int(match["n"]) * (1024 if match["k"] else 1)


def _number(name: str) -> Handler:
    return lambda reading, match: reading.put(name, int(match["n"]))


def _count(name: str) -> Handler:
    return lambda reading, match: reading.put(name, _tokens(match))


def _fixed(name: str, value: Any) -> Handler:
    return lambda reading, match: reading.put(name, value)


def _switch(name: str, *, inverted: bool = False) -> Handler:
    def put(reading: Reading, match: re.Match[str]) -> None:
        off = match["s"].lower() in ("0", "off", "false", "no", "disabled")
        reading.put(name, off if inverted else not off)

    return put


def _note(text: str) -> Handler:
    return lambda reading, match: reading.notes.append(f"{match.group().strip()}: {text}")


def _declines(kind: Declining) -> Handler:
    return lambda reading, match: reading.decline(kind)


def _kv(*names: str) -> Handler:
    def put(reading: Reading, match: re.Match[str]) -> None:
        given = match["f"].lower()
        name = _SHORT_FORMATS.get(given, given)
        if name not in _KV_FORMATS:
            reading.unknown.append(f"{match.group().strip()} (format of the KV cache)")
            return
        for key in names:
            reading.put(key, name)

    return put


def _kv_pair(reading: Reading, match: re.Match[str]) -> None:
    """`kv=q8_0` for keys and values, `kv=q8_0/q4_0` for each."""
    for key, given in (("kv_keys", match["f"]), ("kv_values", match["v"] or match["f"])):
        name = _SHORT_FORMATS.get(given.lower(), given.lower())
        if name not in _KV_FORMATS:
            reading.unknown.append(f"{match.group().strip()} (format of the KV cache)")
            return
        reading.put(key, name)


def _mla(reading: Reading, match: re.Match[str]) -> None:
    reading.put("mla", int(match["n"] or 1))


def _vram(reading: Reading, match: re.Match[str]) -> None:
    unit = 1 << 30 if "i" in match["u"].lower() else 10**9
    reading.put("vram_bytes", round(float(match["n"]) * unit))


def _sequences(reading: Reading, match: re.Match[str]) -> None:
    reading.put("sequences", int(match["n"]))
    if int(match["n"]) > 1:
        reading.decline("concurrent")


def _batch(reading: Reading, match: re.Match[str]) -> None:
    """`batch=8` counts sequences, and `batch=2048` tokens of a logical batch."""
    count = int(match["n"] or match["n2"])
    reading.put("sequences" if count < _TOKENS_FROM else "batch", count)


_TOKENS_FROM: Final = 256


def _gpus(reading: Reading, match: re.Match[str]) -> None:
    reading.put("gpus", int(match["n"]))
    if int(match["n"]) > 1:
        reading.decline("several-gpus")


def _several_devices(reading: Reading, match: re.Match[str]) -> None:
    parts = [part for part in re.split(r"[,/]", match["v"]) if part.strip("0. ")]
    if len(parts) > 1:
        reading.decline("several-gpus")


def _device(reading: Reading, match: re.Match[str]) -> None:
    if match["v"].lower() in ("none", "cpu"):
        reading.place("cpu")
    else:
        _several_devices(reading, match)


def _experts_used(reading: Reading, match: re.Match[str]) -> None:
    if match["m"] and int(match["n"]) >= int(match["m"]):
        return
    reading.decline("fewer-experts")


def _sockets(reading: Reading, match: re.Match[str]) -> None:
    words = {"one": 1, "single": 1, "two": 2, "both": 2, "dual": 2}
    given = match["n"].lower()
    reading.put("sockets", words[given] if given in words else int(given))


def _numa(reading: Reading, match: re.Match[str]) -> None:
    reading.put("numa", match["v"].lower())


OPTION_FORMS: Final[list[Form]] = [
    # Options that change the time.
    (_option(r"ub|ubatch|ubatch-size|n[-_]ubatch", _TOKENS), _count("ubatch")),
    (_option(r"b|batch-size|n[-_]batch", _TOKENS), _count("batch")),
    (_option(r"kv|kv[-_ ]?cache|kv[-_ ]quant|kv[-_]cache[-_](?:d?type)", _KV_PAIR), _kv_pair),
    (r"(?P<f>q8_0|q4_0|f16|bf16|q8|q4) KV(?: cache)?(?!\w)", _kv("kv_keys", "kv_values")),
    (_option(r"ctk|cache-type-k", _KV), _kv("kv_keys")),
    (_option(r"ctv|cache-type-v", _KV), _kv("kv_values")),
    (r"--?(?:nkvo|no-kv-offload)(?:[\s=]+1)?(?![\w-])", _fixed("kv_on_cpu", True)),
    (_option(r"t|threads|n[-_]threads", NUMBER) + r"|(?P<n2>\d{1,4}) threads(?!\w)",
     lambda reading, match: reading.put("threads", int(match["n"] or match["n2"]))),
    (_option(r"tb|threads-batch", NUMBER), _note("threads of prefill")),
    (_option(r"c|ctx|ctx-size|n[-_]ctx|context|max-model-len", _TOKENS), _count("context")),
    (r"(?P<n>\d{1,9})(?P<k>[kK]?) (?:ctx|context)(?!\w)", _count("context")),
    (_option(r"np|parallel|max-num-seqs|concurrency", NUMBER), _sequences),
    (_option(r"bs|batch", NUMBER) + r"|batch size (?P<n2>\d{1,6})", _batch),
    (rf"{NUMBER} (?:concurrent|parallel|simultaneous|users|clients|streams|sequences)"
     r"(?: (?:users|clients|streams|sequences|requests))?(?!\w)", _sequences),
    (_option(r"fa|flash-attn|flash[-_ ]attention", _SWITCH), _switch("flash_attention")),
    (rf"fa(?=\d){_SWITCH}", _switch("flash_attention")),
    (r"(?:--?fa|--flash-attn|fa|flash[-\s]attention)(?![\w=-])", _fixed("flash_attention", True)),
    (r"(?:no|without)[\s-]+(?:fa|flash[-\s]attention)(?!\w)", _fixed("flash_attention", False)),
    (_option(r"nopo|no-op-offload", _SWITCH), _switch("op_offload", inverted=True)),
    (r"(?:--?nopo|--no-op-offload)(?![\w=-])", _fixed("op_offload", False)),
    (_option(r"rtr|run-time-repack", _SWITCH), _switch("repack")),
    (r"-{0,2}(?:rtr|run-time-repack)(?![\w=-])", _fixed("repack", True)),
    (_option(r"fmoe|fused-moe", _SWITCH), _switch("fused_moe")),
    (r"-{0,2}(?:fmoe|fused-moe)(?![\w=-])", _fixed("fused_moe", True)),
    (r"(?:--?no-fmoe|--no-fused-moe)(?![\w=-])", _fixed("fused_moe", False)),
    (r"-{0,2}mla(?:(?:-use)?[\s=]+(?P<n>\d)(?!\w))?(?![\w=-])", _mla),
    (r"(?:--?)?numa[\s=]+(?P<v>distribute|isolate|numactl|mirror|interleave)(?!\w)", _numa),
    (r"numactl (?:--)?(?P<v>interleave)(?:[ =]all)?(?!\w)", _numa),
    (r"(?P<n>one|single|two|both|dual|[1-8])[\s-]+sockets?(?!\w)", _sockets),
    (r"(?:one|single|1) (?:NUMA )?node(?!\w)", _fixed("sockets", 1)),
    (r"VRAM\s*[=:]?\s*(?P<n>\d{1,4}(?:\.\d{1,3})?)\s*(?P<u>GiB|GB|G)(?!\w)", _vram),
    # Kinds of rows that are not counted.
    (_option(r"ser|smart-expert-reduction", r"\d+(?:,[\d.]+)?"), _declines("fewer-experts")),
    (rf"{NUMBER}\s*(?:of|/)\s*(?P<m>\d{{1,6}}) (?:active )?experts(?: (?:used|active|per token))?"
     r"(?!\w)", _experts_used),
    (r"--override-kv \S*expert_used_count\S*|(?:fewer|reduced) experts(?!\w)",
     _declines("fewer-experts")),
    (r"(?:no|without)[\s-]+(?:speculative(?: decoding)?|speculation|draft(?: model)?|MTP)(?!\w)"
     r"|(?:MTP|spec(?:ulative)?|draft)(?:\s*=\s*| )(?:0|off|none|no|false|disabled)(?!\w)", skip),
    (r"(?:speculative|speculation|spec[- ]decod\w*|MTP|EAGLE\d?|n-?gram|draft|lookahead"
     r"|lookup decoding)(?:[\s=-]+(?:decoding|model|max|min|n|\d+|on|true))*(?!\w)"
     r"|--?(?:md|model-draft|draft(?:-\w+)*|spec-\S+|speculative\S*)(?:[\s=]+[^\s,;-][^\s,;]*)?",
     _declines("speculative")),
    (r"(?:LRU|LFU|expert)[\s-]+(?:expert[\s-]+)?cach\w+|cached experts|static split"
     r"|slots\s*/\s*layer", _declines("expert-cache")),
    (_option(r"ts|tensor-split", r"(?P<v>[\d.]+(?:[,/][\d.]+)*)"), _several_devices),
    (_option(r"tp|tensor[- ]parallel(?:-size)?|pp|pipeline-parallel(?:-size)?", NUMBER), _gpus),
    (rf"{NUMBER}\s*[x×]?\s*GPUs?(?!\w)", _gpus),
    (_option(r"dev|device", r"(?P<v>\w+(?:,(?:CUDA|ROCm|HIP|Vulkan|SYCL)\d)*)"), _device),
    # Options that change no time that is predicted.
    (_flag(r"sm|split-mode", r"(?:layer|none)(?!\w)"), skip),
    (_flag(r"mg|main-gpu", r"0(?!\w)"), skip),
    (r"--(?:no-mmap|mlock|mmap|no-warmup|jinja|cont-batching|no-display-prompt|verbose|color|metrics"
     r"|no-webui|swa-full|kv-unified|log-\w+)(?![\w-])", skip),
    (_flag(r"mmp|mmap|mlock|r|w|seed|s|temp|top-k|top-p|min-p|prio|poll|amb|gr|ger|no-mmap"
             r"|host|port|rep|repetitions|delay", r"[\w.]+(?![\w.])"), skip),
    (_flag(r"m|model|hf|hf-repo|alias|a", r"[^\s,;]+"), skip),
    (_flag(r"p|n|pg|n-prompt|n-gen|n-predict|d|n-depth", r"\d+(?:,\d+)*(?!\w)"), skip),
    (_flag(r"cache-ram|cache-reuse|gpu-memory-utilization", r"[\d.]+(?!\w)"), skip),
    (r"(?:no |without )?(?:prompt|prefix)[- ]cach(?:e|ing)(?: off)?(?!\w)", skip),
    (_flag("fit", "off(?!\\w)"), skip),
    (r"(?:pp|tg)\s?\d{1,7}(?!\w)", skip),
    (r"(?:llama-bench|llama-server|llama-cli|llama-batched-bench|llama-sweep-bench|sweep-bench)(?!\w)",
     skip),
]  # fmt: skip
