"""Tables that `llama-bench` prints: Markdown with a column for each parameter that was changed."""

from __future__ import annotations

import re
from typing import Final

from moesim.twin.bench import bench_entry
from moesim.twin.log import Entry, Log

__all__ = ["markdown_entries"]

_COLUMNS: Final = {
    "model": "model_type",
    "size": "model_size",
    "params": "model_n_params",
    "backend": "backends",
    "ngl": "n_gpu_layers",
    "n_cpu_moe": "n_cpu_moe",
    "ncmoe": "n_cpu_moe",
    "threads": "n_threads",
    "n_batch": "n_batch",
    "n_ubatch": "n_ubatch",
    "type_k": "type_k",
    "type_v": "type_v",
    "fa": "flash_attn",
    "nkvo": "no_kv_offload",
    "nopo": "no_op_offload",
    "ot": "tensor_buft_overrides",
    "sm": "split_mode",
    "ts": "tensor_split",
    "dev": "devices",
    "main_gpu": "main_gpu",
    "mmap": "use_mmap",
    "dio": "use_direct_io",
    "lm": "load_mode",
    "embd": "embeddings",
    "noh": "no_host",
    "cpu_mask": "cpu_mask",
    "cpu_strict": "cpu_strict",
    "poll": "poll",
    "rtr": "repack_run_time",
    "fmoe": "fused_moe",
    "mla": "mla_attn",
    "amb": "attn_max_batch",
    "ser": "ser",
    "grouped_er": "grouped_er",
    "ger": "grouped_er",
    "fitt": "fit_target",
    "fitc": "fit_min_ctx",
    "test": "test",
    "t/s": "t/s",
}
_SIZE: Final = re.compile(r"\d{1,6}(?:\.\d{1,6})? [KMGT]iB")
_RULE: Final = re.compile(r"[\s|:-]+")
_TEST: Final = re.compile(
    r"(?:pp ?(?P<pp>\d{1,9}))?\+?(?:tg ?(?P<tg>\d{1,9}))?(?: ?@ ?d ?(?P<depth>\d{1,9}))?"
)
# Terminals of Windows show the sign between mean and deviation as other characters.
_SPEED: Final = re.compile(
    r"(?P<mean>\d{1,9}(?:\.\d{1,9})?)(?:\s*[^\s\d.]{1,4}\s*(?P<sd>\d{1,9}(?:\.\d{1,9})?))?"
)


def markdown_entries(log: Log, index: int, gpu: str = "") -> tuple[list[Entry], int] | None:
    """Return the entries of the table that begins at a line, and the first line after it.

    Return None where no table begins there. `gpu`: the card that the log names before it.

    Raises:
        UsageError: the table is not one of `llama-bench`, or a row of it is not understood.
    """
    if not log.lines[index].lstrip().startswith("|"):
        return None
    end = index
    while end < len(log.lines) and log.lines[end].lstrip().startswith("|"):
        end += 1
    if "Device Type" in log.lines[index] or "Device Type" in log.lines[min(index + 1, end - 1)]:
        return [], end  # the list of devices that the SYCL backend prints
    names = [name.lower() for name in _cells(log.lines[index])]
    columns = _columns(names, log, index)
    entries = []
    for place in range(index + 1, end):
        if _RULE.fullmatch(log.lines[place]):
            continue
        cells = _cells(log.lines[place])
        if [cell.lower() for cell in cells] == names:
            continue  # the header again, where outputs were joined
        fields = _fields(columns, cells, log, place)
        entries.append(bench_entry(fields, log, place, gpu))
    if not entries:
        raise log.refused(index, "a table without rows")
    return entries, end


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split("|")]


def _columns(names: list[str], log: Log, index: int) -> list[str]:
    missing = [name for name in ("model", "test", "t/s") if name not in names]
    if missing:
        raise log.refused(index, f"a table without the column {missing[0]!r} of llama-bench")
    unknown = [name for name in names if name not in _COLUMNS]
    if unknown:
        raise log.refused(index, f"the column {unknown[0]!r} is not known")
    if len(set(names)) < len(names):
        raise log.refused(index, "a column is there twice")
    return [_COLUMNS[name] for name in names]


def _fields(columns: list[str], cells: list[str], log: Log, index: int) -> dict[str, str]:
    """Return the fields of a row by their names."""
    more = len(cells) - len(columns)
    if more > 0 and "tensor_buft_overrides" in columns:  # a pattern may hold the sign `|`
        start = columns.index("tensor_buft_overrides")
        rest = start + more + 1
        cells = [*cells[:start], "|".join(cells[start:rest]), *cells[rest:]]
    if len(cells) != len(columns):
        raise log.refused(index, f"a row of {len(cells)} cells under {len(columns)} columns")
    fields = dict(zip(columns, cells, strict=True))
    test, speed = _TEST.fullmatch(fields.pop("test")), _SPEED.fullmatch(fields.pop("t/s"))
    if test is None or not (test["pp"] or test["tg"]):
        raise log.refused(index, "the test is not understood; expected one like pp512 or tg128")
    if speed is None:
        raise log.refused(index, "the speed is not understood; expected one like 12.34 ± 0.56")
    if fields.get("model_size") and not _SIZE.fullmatch(fields["model_size"]):
        raise log.refused(index, f"{fields['model_size']!r} is no size of a file")
    return {
        **fields,
        "n_prompt": test["pp"] or "0",
        "n_gen": test["tg"] or "0",
        "n_depth": test["depth"] or "0",
        "avg_ts": speed["mean"],
        "stddev_ts": speed["sd"] or "",
    }
