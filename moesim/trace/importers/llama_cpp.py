"""CSV logs of llama.cpp, of one sequence: which experts each pass chose at each layer.

Four forms are in use. `layer,expert` has one line per use (examples/moe-trace, ggml-org/llama.cpp
pull request 28544), and `layer_id,expert_ids` one line per token and layer (okuvshynov's fork).
Both leave out tokens: they are found from the order, because a layer that does not rise begins a
new pass. `phase,token,layer,rank,expert` and `call,phase,row,layer,expert` name their tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from moesim.errors import SourceError
from moesim.progress import Counter
from moesim.trace.importers.base import Format, Imported, Options
from moesim.trace.importers.build import built, most_id
from moesim.trace.importers.columns import Row, rows_of, split_header
from moesim.trace.importers.source import Glimpse
from moesim.trace.importers.uses import Uses

__all__ = ["FORMAT"]

_PLAIN: Final = ("layer", "expert")
_LISTS: Final = ("layer_id", "expert_ids")
_NUMBERED: Final = ("phase", "token", "layer", "rank", "expert")
_CALLS: Final = ("call", "phase", "row", "layer", "expert")
_FORMS: Final = (_PLAIN, _LISTS, _NUMBERED, _CALLS)
_UNLIKELY: Final = math.log(1e-6)


def _sniff(glimpse: Glimpse) -> bool:
    return split_header(glimpse.first_line) in _FORMS or _bare(glimpse)


def _bare(glimpse: Glimpse) -> bool:
    """Return whether a file starts with two lines of a layer and an expert, without a header."""
    lines = glimpse.head.split(b"\n", 2)[:2]
    cells = [line.strip().split(b",") for line in lines]
    numbers = [cell.isdigit() for pair in cells for cell in pair]
    return len(numbers) == 4 and all(numbers) and cells[0][0] == cells[1][0]


def _read(path: Path, options: Options) -> Imported:
    glimpse = Glimpse(path)
    header = split_header(glimpse.first_line)
    if header in (_NUMBERED, _CALLS):
        return _read_numbered(path, options, header == _CALLS)
    bare = all(cell.isdigit() for cell in header) and len(header) == 2
    if header not in (_PLAIN, _LISTS) and not bare:
        next(rows_of(path), None)  # whatever else the file is, its own error comes first
        raise SourceError(path, "line 1", f"is no header of {FORMAT.expects}")
    return _read_passes(path, options, _LISTS if header == _LISTS else _PLAIN, bare)


@dataclass(slots=True)
class _Run:
    """Consecutive lines of one layer: its ids in order, and the line of each."""

    layer: int
    ids: list[int]
    lines: list[int]
    width: int | None = None  # experts of a token, where a line lists them


def _runs(
    path: Path, form: tuple[str, ...], bare: bool, progress: Counter | None
) -> Iterator[_Run]:
    run: _Run | None = None
    for row in rows_of(path, _PLAIN if bare else None, progress):
        layer = row.whole(form[0])
        ids = row.wholes(form[1]) if form == _LISTS else [row.whole(form[1])]
        if not ids:
            raise row.error("lists no expert")
        if run is None or run.layer != layer:
            if run is not None:
                yield run
            run = _Run(layer, [], [], len(ids) if form == _LISTS else None)
        if run.width not in (None, len(ids)):
            raise row.error(f"lists {len(ids)} experts, and the line before {run.width}")
        run.ids += ids
        run.lines += [row.line] * len(ids)
    if run is not None:
        yield run


def _read_passes(path: Path, options: Options, form: tuple[str, ...], bare: bool) -> Imported:
    runs = list(_runs(path, form, bare, options.progress))
    if not runs:
        raise SourceError(path, "", "lists no use of an expert")
    notes: list[str] = []
    k = _top_k(path, runs, options, notes)
    uses = Uses(path, most_id(path, options))
    passes = _passes(uses, runs, k)
    sizes = [max(len(run.ids) // k for run in one) for one in passes]
    single = sizes.index(1) if 1 in sizes else len(sizes)
    if any(size > 1 for size in sizes[single:]):
        late = next(n for n in range(single, len(sizes)) if sizes[n] > 1)
        raise uses.error(
            passes[late][0].lines[0],
            "a pass of several tokens follows single ones: the log holds several requests and does "
            "not say which token is whose; log one request in a file",
        )
    prompt = sum(sizes[:single])
    if options.decoded_only:
        passes, sizes = passes[single:], sizes[single:]
    else:
        _check_whole(uses, passes, sizes, k)
        _check_strides(uses, runs, k)
    tokens = 0
    for one, size in zip(passes, sizes, strict=True):
        for run in one:
            for place, (expert, line) in enumerate(zip(run.ids, run.lines, strict=True)):
                uses.add(line, "", tokens + place // k, run.layer, expert)
        tokens += size
    arrays = uses.arrays(k)
    return built(
        path, FORMAT.name, arrays, options, notes=notes,
        **_prompt(path, prompt, options, notes),
    )  # fmt: skip


def _passes(uses: Uses, runs: list[_Run], k: int) -> list[list[_Run]]:
    """Return the runs of each pass: a layer that does not rise begins one."""
    passes: list[list[_Run]] = []
    for run in runs:
        if len(run.ids) % k:
            raise uses.error(
                run.lines[-1],
                f"layer {run.layer} has {len(run.ids)} uses in this pass, no multiple of the {k} "
                "experts of a token",
            )
        if not passes or run.layer <= passes[-1][-1].layer:
            passes.append([])
        passes[-1].append(run)
    return passes


def _check_whole(uses: Uses, passes: list[list[_Run]], sizes: list[int], k: int) -> None:
    for one, size in zip(passes, sizes, strict=True):
        for run in one:
            if len(run.ids) != size * k:
                raise uses.error(
                    run.lines[0],
                    f"layer {run.layer} has {len(run.ids) // k} tokens in a pass of {size} "
                    "(llama.cpp computes a prompt's last layer for its last token only); import "
                    "what was decoded with --decoded-only",
                )


def _top_k(path: Path, runs: list[_Run], options: Options, notes: list[str]) -> int:
    """Return the experts of a token: as listed, as stated, or those of the passes of one token."""
    widths = {run.width for run in runs}
    if None not in widths:
        if len(widths) > 1:
            wrong = next(run for run in runs if run.width != runs[0].width)
            raise SourceError(
                path,
                f"line {wrong.lines[0]}",
                f"lists {wrong.width} experts, and the lines before {runs[0].width}",
            )
        own = int(runs[0].width or 0)
        if options.top_k not in (None, own):
            raise SourceError(path, "", f"lists {own} experts, and --top-k says {options.top_k}")
        return own
    if options.top_k is not None:
        return options.top_k
    lengths = np.array([len(run.ids) for run in runs])
    least = int(lengths.min())
    # Passes of one token are the shortest, and in a log of generated text most are such.
    if (lengths == least).mean() <= 0.5 or len({run.layer for run in runs}) == len(runs):
        raise SourceError(
            path, "", "does not say how many experts a token uses; state it with --top-k"
        )
    notes.append(
        f"{least} experts a token: the uses of one layer in most passes, because the log does not "
        "say; state it with --top-k"
    )
    return least


def _prompt(path: Path, prompt: int, options: Options, notes: list[str]) -> dict[str, Any]:
    """Return the fields of the prompt: its tokens, and whether their rows are there."""
    known = prompt if options.prompt_tokens is None else options.prompt_tokens
    if options.decoded_only:
        if not known:
            raise SourceError(
                path, "", "does not say where the prompt ends; state it with --prompt-tokens"
            )
        notes.append(f"decoded tokens only, after {known} prompt tokens")
        return {"prompt_rows": "absent", "prompt_tokens": [known]}
    if options.prompt_tokens is not None:
        return {}
    if not prompt:
        notes.append(
            "all tokens count as prompt, because the log does not say where the prompt ends; state "
            "it with --prompt-tokens"
        )
        return {}
    notes.append(f"{prompt} prompt tokens: those of the passes before the first of one token")
    return {"prompt_tokens": [prompt]}


def _check_strides(uses: Uses, runs: list[_Run], k: int) -> None:
    """Refuse a log whose passes of several tokens list a ranking of experts, not choices.

    The example reads a strided view as if it were dense: the first token's whole ranking of the
    experts, cut into tokens. Within it no expert occurs twice, at any layer.
    """
    experts = 1 + max(max(run.ids) for run in runs)
    chance = 0.0
    first = next((run for run in runs if len(run.ids) > k), None)
    for run in runs:
        if len(run.ids) <= k:
            continue
        ids = run.ids[:experts]
        if len(set(ids)) < len(ids):
            return
        chance += _chance_apart(len(ids), k, experts)
    if first is not None and chance < _UNLIKELY:
        raise uses.error(
            first.lines[0],
            "no expert occurs twice among the tokens of a pass, at any layer: llama-moe-trace "
            "wrote the first token's ranking here; import what was decoded with --decoded-only",
        )


def _chance_apart(count: int, k: int, experts: int) -> float:
    """Return the log of the chance that uniform draws of k experts, `count` in all, never meet."""
    total = 0.0
    for used in range(k, count, k):
        size = min(k, count - used)
        free = experts - used
        if free < size:
            return 10 * _UNLIKELY
        total += math.lgamma(free + 1) - math.lgamma(free - size + 1)
        total -= math.lgamma(experts + 1) - math.lgamma(experts - size + 1)
    return total


def _read_numbered(path: Path, options: Options, by_call: bool) -> Imported:
    uses = Uses(path, most_id(path, options))
    prompt, decoded = 0, False
    last, call, base = -1, -1, 0
    for row in rows_of(path, progress=options.progress):
        decoding = _is_decoding(row)
        if by_call:
            number = row.whole("call")
            if number < call:
                raise row.error(f"call {number} follows call {call}")
            if number != call:
                call, base = number, last + 1
            token = base + row.whole("row")
        else:
            token = row.whole("token")
        if decoded and not decoding:
            raise row.error("a prefill follows decoding: log one request in a file")
        if decoding and by_call and row.whole("row"):
            raise row.error("a decoding call has several rows: log one request in a file")
        if not by_call:
            row.whole("rank")
        decoded |= decoding
        if options.decoded_only and not decoding:
            prompt, last = max(prompt, token + 1), max(last, token)
            continue
        prompt = prompt if decoding else max(prompt, token + 1)
        last = max(last, token)
        uses.add(row.line, "", token, row.whole("layer"), row.whole("expert"))
    arrays = uses.arrays(options.top_k)
    notes: list[str] = []
    if not prompt or options.decoded_only:
        known = prompt or options.prompt_tokens
        if not known:
            raise SourceError(
                path, "", "holds decoding only: state the prompt's length with --prompt-tokens"
            )
        return built(
            path, FORMAT.name, arrays, options, notes=notes, prompt_rows="absent",
            prompt_tokens=[known],
        )  # fmt: skip
    prompt_tokens: dict[str, Any] = (
        {} if options.prompt_tokens is not None else {"prompt_tokens": [prompt]}
    )
    return built(path, FORMAT.name, arrays, options, notes=notes, **prompt_tokens)


def _is_decoding(row: Row) -> bool:
    phase = row.cells["phase"]
    if phase in ("prefill", "p", "prompt"):
        return False
    if phase in ("decode", "d"):
        return True
    raise row.error(f"phase must be prefill or decode, not {phase!r}")


FORMAT = Format(
    "llama_cpp",
    "a CSV log of llama.cpp with the columns layer,expert or layer_id,expert_ids or "
    "phase,token,layer,rank,expert or call,phase,row,layer,expert",
    _sniff,
    _read,
)
