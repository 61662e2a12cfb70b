"""The summary of one run as tables: what ran, how fast, what limited it, and its caveats."""

from __future__ import annotations

from pathlib import Path
from typing import Final, TextIO

from moesim.config.units import format_bytes
from moesim.report.lane_names import busy_key, causes_of, lanes_of
from moesim.report.marks import (
    FORESEES,
    foreseeing,
    marked,
    prefetches,
    routing_mark,
    routing_sentence,
)
from moesim.report.metrics import (
    HITS,
    LATE_HITS,
    UNDEFINED,
    costs,
    error_bar,
    number,
    saved_text,
)
from moesim.report.names import MIN_LABEL, policy_label
from moesim.report.runs import Run, load_run
from moesim.report.tabular import Table, write_tables

__all__ = ["limited_by", "print_summary", "summary_tables"]

LATENCIES: Final = {
    "ttft": "TTFT",
    "ttft_queue": "  queued (to the first step)",
    "ttft_service": "  served (to the first token)",
    "tpot": "TPOT",
    "itl": "ITL",
    "e2e": "E2E",
}
POINTS: Final = ("mean", "p50", "p90", "p95", "p99")
BUSY: Final = {
    "cpu": "CPU busy",
    "h2d": "host-to-GPU link busy",
    "d2h": "GPU-to-host link busy",
    "disk": "disk busy",
}


CAUSES: Final = {
    "policy": "policy (MIN's evictions)",
    "working_set": "working set (a slot for every expert)",
    "link": "link (copies that take no time)",
    "host": "host (the GPU waits for it)",
    "disk": "disk (the GPU waits for it)",
    "cpu": "CPU (the GPU waits for it)",
    "compute": "computing (the GPU is busy)",
}
"""The causes that can limit a run, with what their regret is."""
_BASIS: Final = {
    "documented": "exact: the published rules of the format",
    "file header": "exact: read from the file",
    "file size": "mean of experts exact: from the size of the file",
    "assumed": "assumed: the plain mix, because the rules of the format are not published",
}


def print_summary(run_dir: str | Path, stream: TextIO | None = None) -> None:
    """Write the tables of a run to `stream` (default: standard output), in colour on a terminal.

    Raises:
        UsageError: `run_dir` is not a run directory.
        DamagedRun: the directory is half-written or damaged.
    """
    write_tables(summary_tables(load_run(run_dir)), stream)


def summary_tables(run: Run) -> list[Table]:
    """Return the tables of a run, from its scenario to its notes, in the order of printing.

    A number that the run leaves undefined is shown as "undefined".
    """
    parts = (_setup, _latency, _starvation, _cache, _bytes, _time, _bounds)
    tables = [part(run) for part in parts]
    # Readers copy single tables, so each title repeats the mark.
    for table in tables:
        table.title = marked(table.title, routing_mark(run))
    tables += [*_regrets(run), *_verdict(run), _memory(run), *_host_memory(run)]
    if error_bar(run):
        tables.append(Table(error_bar(run)))
    if run.notes:
        notes = Table("notes")
        for note in run.notes:
            notes.add(f"- {note}")
        tables.append(notes)
    return tables


def _setup(run: Run) -> Table:
    table = Table(f"{run.text('name')}: {costs(run)}")
    table.add("decode speed", _speed(run))  # first: what most readers look for
    policy = policy_label(run.text("cache_policy"), run.cache_options)
    slots = number(run.value("cache_slots") / run.value("num_layers"))
    # The folder tells two traces of one model apart; the model tells whose routing they hold.
    table.add("trace", f"{run.trace} ({_routing(run.text('trace'))})")
    table.add("costed as", f"{run.text('model')} on {run.hardware}")
    if sentence := _format(run):
        table.add("format", sentence)
    if run.engine:
        table.add("engine", run.engine)
    if sentence := routing_sentence(run):
        table.add("routing", sentence)
    if seers := foreseeing(run):
        table.add(FORESEES, f"{', '.join(seers)}: a bound, not a policy")
    table.add(
        "cache",
        f"{policy}, {run.text('cache_scope').replace('_', ' ')}, {run.text('cache_slots')} slots "
        f"({slots} of {run.text('num_experts')} experts a layer)",
    )
    saved = saved_text(run)
    table.add("prefetch", run.text("prefetch_policy") + (f", {saved}" if saved else ""))
    if run.placement:
        table.add("placement", run.placement)
    if run.host_memory or set(lanes_of(run)) & {"cpu", "disk"}:
        table.add("host memory", run.host_memory or "unlimited")
    parts = run.text("batching_policy"), run.prompts, f"seed {run.text('seed')}"
    table.add("batching", ", ".join(filter(None, parts)))
    if run.arrivals:
        table.add("arrivals", run.arrivals)
    # Other counts than finished are rare and matter most when they occur: zeros would hide them.
    table.add(
        "requests",
        f"{run.text('finished')} of {run.text('requests')} finished"
        + "".join(
            f", {run.text(key)} {key}"
            for key in ("rejected", "running", "queued", "preemptions")
            if run.value(key) > 0
        ),
    )
    table.add(
        "throughput",
        f"{number(run.value('output_tokens_per_s'))} output tokens/s of all users, "
        f"{number(run.value('requests_per_s'))} requests/s "
        f"over {number(run.window_s)} s{_waiting(run)}",
    )
    if "prefix_hit_tokens" in run.summary:
        share = _share(run.value("prefix_hit_share"))
        table.add("prefix cache", f"{run.text('prefix_hit_tokens')} prompt tokens found ({share})")
    if run.windowed:
        borders = (number(run.value(f"window_{end}_s")) for end in ("from", "to"))
        table.add(
            "window",
            f"{' to '.join(borders)} s of {number(run.value('makespan_s'))} s, in which "
            f"{run.text('window_requests')} requests finished",
        )
    _align_left(table)
    return table


def _routing(model: str) -> str:
    """Return whose routing a trace holds; a drawn trace is named "routing like" its model."""
    return model if model.startswith("routing like") else f"routing of {model}"


def _speed(run: Run) -> str:
    """Return the decode speed of one user: mean, median and slow requests."""
    mean, median, *slow = (
        number(run.value(f"decode_{part}_tokens_per_s")) for part in ("mean", "p50", "p10", "p1")
    )
    if mean == UNDEFINED:
        return f"{UNDEFINED} (no finished request has two tokens)"
    return (
        f"{mean} tokens/s per user (median {median}, slowest 10 % at most {slow[0]}, "
        f"slowest 1 % at most {slow[1]})"
    )


def _format(run: Run) -> str:
    """Return the format of the weights with its bits, and whether they are exact; "" without."""
    if "format" not in run.summary:
        return ""
    basis = run.text("format_basis")
    parts = ("expert", "weight", "embedding", "head")
    experts, weights, embedding, head = (number(run.value(f"{part}_bits")) for part in parts)
    return (
        f"{run.text('format')}: bits of experts {experts}, of other weights {weights}, "
        f"of embeddings {embedding}, of the head {head} ({_BASIS.get(basis, basis)})"
    )


def _waiting(run: Run) -> str:
    """Return that arrivals limit the throughput, where they do."""
    return (
        f", limited by arrivals (idle for {run.idle_share:.0%} of it)"
        if run.limited_by_arrivals
        else ""
    )


def _latency(run: Run) -> Table:
    table = Table("latency (ms)", ["", *POINTS])
    for name, label in LATENCIES.items():
        values = (run.value(f"{name}_{point}_ms") for point in POINTS)
        table.add(label, *map(number, values))
    return table


def _starvation(run: Run) -> Table:
    table = Table("longest time that a request was not served", ["", "ms", "steps of others"])
    for label, name in (("before the first step", "wait"), ("between two steps", "pause")):
        values = (run.value(f"{name}_max_{unit}") for unit in ("ms", "steps"))
        table.add(label, *map(number, values))
    return table


def _cache(run: Run) -> Table:
    table = Table("expert accesses", ["", "count", "share"])
    for label, key in (("hits in time", "hits"), ("late hits", "late_hits"), ("misses", "misses")):
        table.add(label, run.text(key), _share(run.value(key) / _positive(run.value("accesses"))))
    if "cpu" in lanes_of(run):
        elsewhere = _share(run.value("elsewhere") / _positive(run.value("accesses")))
        table.add("  computed on the CPU", run.text("elsewhere"), elsewhere)
    table.add("all", run.text("accesses"), "")
    if prefetches(run) and "prefetch_pollution" in run.summary:
        polluted = run.value("prefetch_pollution") / _positive(run.value("accesses"))
        label = "evicted for a prefetch that was wanted later"
        table.add(label, run.text("prefetch_pollution"), _share(polluted))
    # Bounds count late hits as hits, and so does this rate. The rows above show them apart,
    # because a late hit may stall the GPU for almost a whole copy.
    table.add("hits and late hits (expert hit rate)", "", _share(run.value("expert_hit_rate")))
    table.add("  weighted by tokens (token hit rate)", "", _share(run.value("token_hit_rate")))
    table.add(
        "distinct experts per layer event", number(run.value("unique_experts_per_event_mean")), ""
    )
    waves = f"{number(run.value('waves_mean'))} (at most {number(run.value('waves_max'))})"
    table.add("waves per layer event that copies", waves, "")
    return table


def _bytes(run: Run) -> Table:
    table = Table("bytes moved", ["", "size", "share of host to GPU"])
    total = _positive(run.value("h2d_bytes"))
    # Experts that ran on the CPU and got a slot are copied behind all demand copies, too.
    kept = bool(run.placement) and not prefetches(run)
    for label, key in (
        ("host to GPU", "h2d_bytes"),
        ("  on demand", "demand_bytes"),
        ("  for later, after the CPU" if kept else "  prefetched", "prefetch_bytes"),
        ("    useful (used in time)", "prefetch_useful_bytes"),
        ("    late (used after a wait)", "prefetch_late_bytes"),
        ("    wasted (evicted unused)", "prefetch_wasted_bytes"),
        ("    unused when the run ended", "prefetch_unused_bytes"),
    ):
        table.add(label, _size(run.value(key)), _share(run.value(key) / total))
    # No share: these copies end before time zero and are not part of `h2d_bytes`.
    table.add("loaded before the start", _size(run.value("load_bytes")), "")
    table.add("GPU to host", _size(run.value("d2h_bytes")), "")
    if "cpu" in lanes_of(run):
        table.add("hidden states, both ways", _size(run.value("states_bytes")), "")
    if "disk" in lanes_of(run):
        table.add("disk to host", _size(run.value("disk_bytes")), "")
    return table


def _time(run: Run) -> Table:
    whole = "window" if run.windowed else "makespan"
    table = Table("where the GPU's time went", ["", "seconds", f"share of {whole}"])
    window = _positive(run.window_s)
    rows = [("computing", "busy_s"), ("stalled", "stall_s")]
    rows += [(f"  {label}", f"stall_{cause}_s") for cause, label in causes_of([run]).items()]
    for label, key in [*rows, ("idle, no request", "idle_s")]:
        table.add(label, number(run.value(key)), _share(run.value(key) / window))
    # The other lanes work beside the GPU, so their shares do not add up with those above.
    for lane in lanes_of(run):
        if lane != "gpu":
            label = BUSY.get(lane, f"{lane} busy")
            table.add(label, "", _share(run.value(busy_key(lane))))
    return table


def _bounds(run: Run) -> Table:
    if run.summary.get("verdict", "") is None:
        return Table("bounds: not computed")  # the setup says what prefetching saves
    # MIN and the infinite cache copy on demand only. A prefetch can turn their misses into hits.
    exception = "; the hits of this run have none, because it prefetches" if prefetches(run) else ""
    if run.summary.get("expert_sizes") == "unequal":
        exception += "; MIN bounds no hits, because experts have unequal sizes"
    if run.windowed:
        exception += "; all but this run's hits, time in steps and E2E are of the whole run"
    columns = ["", "hits", "late hits", "time in steps (s)", "makespan (s)", "E2E p95 (ms)"]
    table = Table(f"bounds{exception}", columns)
    # The ledger splits time in steps into computing and stalls; the idle time is what is left.
    steps = run.value("busy_s") + run.value("stall_s")
    table.add(
        "this run",
        *(_share(metric.of(run) / 100) for metric in (HITS, LATE_HITS)),
        *map(number, (steps, run.value("makespan_s"), run.value("e2e_p95_ms"))),
    )
    without = run.value("no_prefetch_time_in_steps_s")
    if without == without:
        table.add("without prefetch", "", "", number(without), "", "")
    for label, name in (
        (MIN_LABEL, "min"), ("infinite cache", "infinite_cache"), ("infinite link", "infinite_link")
    ):  # fmt: skip
        keys = (f"{name}_{key}" for key in ("time_in_steps_s", "makespan_s", "e2e_p95_ms"))
        times = [number(run.value(key)) if key in run.summary else "" for key in keys]
        rate = f"{name}_hit_rate"
        if rate in run.summary and prefetches(run):
            label += ", hits without prefetching"
        table.add(label, _share(run.value(rate)) if rate in run.summary else "", "", *times)
    return table


def _regrets(run: Run) -> list[Table]:
    """Return what each cause costs; [] without bounds, and in runs of older versions."""
    # They overlap, because two remedies may avoid the same copies.
    title = marked("regrets (they overlap, so they do not add up)", routing_mark(run))
    table = Table(title, ["", "seconds saved without it", "share of time in steps"])
    steps = _positive(run.value("busy_s") + run.value("stall_s"))
    for cause, label in CAUSES.items():
        seconds = run.value(f"regret_{cause}_s")
        if seconds == seconds and (seconds or cause not in ("cpu", "disk")):
            table.add(label, number(seconds), "" if run.windowed else _share(seconds / steps))
    return [table] if table.rows else []


def _verdict(run: Run) -> list[Table]:
    if not limited_by(run):
        return []
    reason = run.summary.get("verdict_reason")
    limit = marked(f"limited by {limited_by(run)}", routing_mark(run))
    return [Table(limit + (f": {reason}" if reason else ""))]


def limited_by(run: Run) -> str:
    """Return what limits a run, like `the working set`; "" if it computed no bounds."""
    if run.summary.get("verdict") is None:
        return ""
    word = run.text("verdict")
    return {"cpu": "the CPU", "compute": "computing"}.get(word, f"the {word}")


def _memory(run: Run) -> Table:
    table = Table("GPU memory", ["", "size", "share"])
    total = _positive(run.value("vram_bytes"))
    for label, key in (
        ("fixed weights", "fixed_bytes"),
        ("KV blocks", "kv_bytes"),
        ("expert slots", "slots_bytes"),
        ("staging buffers", "staging_bytes"),
        ("prefetch buffers", "prefetch_buffers_bytes"),
        ("activations", "activations_bytes"),
        ("free", "free_bytes"),
        ("budget", "vram_bytes"),
        ("peak use", "peak_vram_bytes"),
    ):
        if key != "prefetch_buffers_bytes" or key in run.summary:
            table.add(label, _size(run.value(key)), _share(run.value(key) / total))
    return table


def _host_memory(run: Run) -> list[Table]:
    """Return the split of host memory; [] where it is unlimited or the run does not say it."""
    total = _positive(run.value("host_memory_bytes"))
    if total != total:
        return []
    table = Table("host memory", ["", "size", "share"])
    for label, key in (
        ("layers on the CPU", "host_weights_bytes"),
        ("their KV entries", "host_kv_bytes"),
        ("all experts", "host_experts_bytes"),
        ("  page-locked", "pinned_bytes"),
        ("budget", "host_memory_bytes"),
    ):
        table.add(label, _size(run.value(key)), _share(run.value(key) / total))
    return [table]


def _align_left(table: Table) -> None:
    """Pad the second column, which is text here: tables align all but the first to the right."""
    from moesim.report.tabular import Cell

    width = max(len(row[1].text) for row in table.rows)
    for row in table.rows:
        row[1] = Cell(row[1].text.ljust(width))


def _share(value: float) -> str:
    return UNDEFINED if value != value else f"{value:.1%}"


def _size(value: float) -> str:
    return UNDEFINED if value != value else format_bytes(int(value))


def _positive(value: float) -> float:
    """Return `value`, or NaN where a share of it would be undefined."""
    return value if value > 0 else float("nan")
