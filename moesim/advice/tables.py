"""Tables and plain data of an advice, for a terminal and for programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from moesim.advice.advice import Advice
from moesim.advice.cached import Cached
from moesim.advice.choice import Choice, Memory
from moesim.advice.flags import flags_of, left_out
from moesim.advice.grounds import Grounds
from moesim.advice.price import Priced, Span
from moesim.advice.terms import Term
from moesim.advice.upgrades import MOST_CONTEXT, Cliff, Upgrade
from moesim.config.units import format_bytes
from moesim.measured.predict import Declined
from moesim.model.shapes import ModelShape
from moesim.report.tabular import Cell, Table

__all__ = [
    "as_plain",
    "cache_lines",
    "cliff_lines",
    "extras_as_plain",
    "front_table",
    "memory_table",
    "recommendation",
    "terms_table",
    "upgrade_table",
]


def front_table(advice: Advice, *, whole: bool = False) -> Table:
    """Return the best choice of each format, or the whole Pareto front; the best is marked."""
    table = Table(
        "choices that no other beats" if whole else "the best choice of each format, decoding at "
        f"{advice.question.context:,} tokens (▲ recommended; in brackets: the interval)",
        (
            "weights", "bits", "experts on the CPU", "-ub", "KV", "decode, tokens/s",
            "prompt, tokens/s", "first token, s", "GPU memory", "left", "host memory",
        ),
    )  # fmt: skip
    for one in advice.front if whole else advice.by_format():
        mark = "best" if one == advice.best else ""
        choice, memory = one.choice, one.memory
        table.add(
            Cell(choice.format or "its own", mark),
            f"{one.bits:.2f}",
            place_of(choice, advice.question.model.shape),
            str(choice.ubatch),
            choice.kv,
            span(one.decode),
            span(one.prefill),
            span(one.first_token_s),
            format_bytes(memory.gpu_bytes),
            format_bytes(memory.gpu_left),
            format_bytes(memory.host_bytes),
        )
    return table


def place_of(choice: Choice, shape: ModelShape) -> str:
    """Return where a choice has its experts, in a word or two."""
    if choice.whole:
        return "all, with all layers"
    every = len(shape.moe_layers)
    return f"{choice.cpu_layers} of {every} layers" if choice.cpu_layers else "none"


def memory_table(memory: Memory) -> Table:
    """Return the parts of each memory."""
    table = Table("memory", ("part", "GPU", "host"))
    for part in dict.fromkeys((*memory.gpu, *memory.host)):
        table.add(part, *(format_bytes(each.get(part, 0)) for each in (memory.gpu, memory.host)))
    if memory.disk_bytes:
        table.add("experts on disk", "", format_bytes(memory.disk_bytes))
    unknown = "not known" if memory.host else "-"
    left = unknown if memory.host_left is None else format_bytes(memory.host_left)
    table.add("left", format_bytes(memory.gpu_left), left)
    return table


def recommendation(advice: Advice) -> Iterator[str]:
    """Yield the lines that recommend a choice, with the flags of each engine."""
    one = advice.best
    form = one.choice.format or "the file as it is"
    where = place_of(one.choice, advice.question.model.shape)
    yield (
        f"recommended: {form}, experts on the CPU: {where}; {span(one.decode)} tokens/s, first "
        f"token after {span(one.first_token_s)} s"
    )
    if one.choice.disk:
        yield (
            f"warning: {format_bytes(one.memory.disk_bytes)} of experts do not fit into host "
            "memory, and are read from a disk again and again"
        )
    for engine, flags in flags_of(advice.question, one.choice).items():
        priced = "" if engine == one.choice.engine else " (another speed)"
        yield f"  {engine}{priced}: {flags}"
    for engine, reason in left_out(advice.question, one.choice).items():
        yield f"  not {engine}: {reason}"


def terms_table(terms: Sequence[Term]) -> Table:
    """Return what takes the time of a decode step."""
    table = Table("a step that decodes", ("part", "ms", "share"))
    for term in terms:
        table.add(term.name, f"{term.ms:.2f}", f"{term.share:.0%}")
    table.add("in all", f"{sum(term.ms for term in terms):.2f}", "100%")
    return table


def upgrade_table(advice: Advice, found: Sequence[Upgrade]) -> Table:
    """Return the upgrades with the speeds that they give, and the time of a request they save."""
    table = Table(
        "what would help most",
        ("upgrade", "decode, tokens/s", "first token, s", "time of a request"),
    )
    for each in found:
        then = each.then
        gain = each.gain_span
        saved = f"-{gain.value:.0%} ({gain.low:.0%} to {gain.high:.0%})"
        table.add(each.name, span(then.decode), span(then.first_token_s), saved)
    return table


def cliff_lines(advice: Advice, cliff: Cliff) -> Iterator[str]:
    """Yield what happens with longer contexts than asked."""
    if cliff.context < MOST_CONTEXT:
        yield f"memory holds contexts of up to {cliff.context:,} tokens"
    else:
        yield f"memory holds contexts of {cliff.context:,} tokens and more"
    if cliff.decode is None:
        yield f"a context of {cliff.doubled:,} does not fit with this format, KV cache and batch"
    elif cliff.moved is not None:
        layers = "layer" if cliff.moved == 1 else "layers"
        moved = f"{cliff.moved} more {layers} on the CPU" if cliff.moved else "the same layers"
        speed = f"{span(cliff.decode)} tokens/s at its end"
        yield f"a context of {cliff.doubled:,} needs {moved}: {speed}"


def cache_lines(cached: Cached | Declined) -> Iterator[str]:
    """Yield what an expert cache on the GPU would give, or why none is priced."""
    if isinstance(cached, Declined):
        yield f"expert cache: none, because {cached.reason}"
        return
    one, hits = cached.priced, cached.hits
    rates = f"{hits.value:.0%} ({hits.low:.0%} to {hits.high:.0%})"
    yield (
        f"expert cache: an engine with one (LRU, slots for {cached.slots} of {cached.experts} "
        f"experts of each layer, missing ones copied) would hit {rates} of the time: "
        f"{span(one.decode)} tokens/s, first token after {span(one.first_token_s)} s"
    )
    yield f"  {hits.source}"


def span(value: Span) -> str:
    """Return a value and its interval, like `34 (25 to 47)`."""
    return f"{_short(value.value)} ({_short(value.low)} to {_short(value.high)})"


def _short(value: float) -> str:
    """Return a number with two digits, and all before the point."""
    if value >= 10:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def as_plain(advice: Advice, grounds: Grounds | None = None) -> dict[str, Any]:
    """Return an advice as plain data for JSON."""
    best = advice.best
    return {
        "question": advice.question.plain(),
        "recommended": {
            **_plain(best),
            "flags": flags_of(advice.question, best.choice),
            "left_out": left_out(advice.question, best.choice),
        },
        "front": [_plain(one) for one in advice.front],
        "notes": list(best.notes),
        **({} if grounds is None else {"grounds": grounds.plain()}),
    }


def extras_as_plain(
    terms: Sequence[Term], found: Sequence[Upgrade], cliff: Cliff, cached: Cached | Declined
) -> dict[str, Any]:
    """Return the terms of a step, the upgrades, the cliff and an expert cache as plain data."""
    return {
        "expert_cache": (
            {"reason": cached.reason} if isinstance(cached, Declined) else cached.plain()
        ),
        "terms": [{"name": term.name, "ms": term.ms, "share": term.share} for term in terms],
        "upgrades": [
            {
                "name": each.name,
                "saves": each.gain_span.plain(),
                "decode_tok_s": each.then.decode.plain(),
                "first_token_s": each.then.first_token_s.plain(),
            }
            for each in found
        ],
        "cliff": {
            "longest_context": cliff.context,
            "twice_the_context": cliff.doubled,
            "more_layers_on_cpu": cliff.moved,
            "decode_tok_s": None if cliff.decode is None else cliff.decode.plain(),
        },
    }


def _plain(one: Priced) -> dict[str, Any]:
    choice, memory = one.choice, one.memory
    return {
        "engine": choice.engine,
        "format": choice.format or None,
        "bits": one.bits,
        "cpu_layers": choice.cpu_layers,
        "all_on_cpu": choice.whole,
        "ubatch": choice.ubatch,
        "kv": choice.kv,
        "decode_tok_s": one.decode.value,
        "low": one.decode.low,
        "high": one.decode.high,
        "prefill_tok_s": one.prefill.plain(),
        "first_token_s": one.first_token_s.plain(),
        "request_s": one.request_s.plain(),
        "gpu_bytes": memory.gpu,
        "gpu_left_bytes": memory.gpu_left,
        "host_bytes": memory.host,
        "host_left_bytes": memory.host_left,
        "disk_bytes": memory.disk_bytes,
    }
