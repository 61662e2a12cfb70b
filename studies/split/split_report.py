"""The report of the study of divisions: `split.md`, and three charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from moesim.report.chart import Chart, grid, save_charts, write_whole
from moesim.report.panels import shared_legend
from moesim.report.statistics import Estimate, difference, estimate
from moesim.report.tabular import Table, markdown

__all__ = ["flat_rows", "write_report"]

FLAT: Final = 0.02
"""Divisions whose mean throughput is this close to the best count as equal to it."""
GOAL: Final = "output_tokens_per_s"
LOOKS: Final = (("#0072B2", "o"), ("#E69F00", "s"), ("#009E73", "^"), ("#CC79A7", "D"))
FOREIGN: Final = (
    "Mixtral: FOREIGN SIZES, routing recorded from a small model (traces/deep), costed as "
    "Mixtral-8x7B. DeepSeek-V2-Lite: its own routing (deepseek-ai/ESFT, task law). LRU, no "
    "prefetch. Simulated; costs assumed (datasheets)."
)
SIMULATED: Final = "Mixtral: FOREIGN SIZES; simulated; costs assumed (datasheet)"
"""What stays in the pictures of simulated times."""
THROUGHPUT_CAPTION: Final = (
    "Throughput relative to the best division of the same setting, over the share of the free "
    "memory that KV blocks get (expert slots have the rest); a panel for each context, a line "
    "for each number of clients. Lines end where more KV blocks would be of no use, or the "
    "longest request would not fit. Hollow: memory.kv: auto. Bars: 95 % intervals of the ratio "
    f"over orders of the requests. {FOREIGN}"
)
BEST_CAPTION: Final = (
    "Best share of KV blocks over the context, for each number of clients. Bars: divisions "
    f"whose mean throughput is within 2 % of the best. Hollow: memory.kv: auto. {FOREIGN}"
)
LAYERS_CAPTION: Final = (
    "Hits of slots divided by demand less those of the uniform split, learnt on the first half "
    "of each trace and replayed on the second, one token a step; need: what demand counts. "
    "Mean and range over four tasks, DeepSeek-V2-Lite's own routing (deepseek-ai/ESFT), 26 "
    "layers of 64 experts, top-6; no times."
)
Setting = Mapping[str, Any]


def tokens_per_s(row: Mapping[str, Any]) -> list[float]:
    """Return the throughput of a division for each seed."""
    return [seed[GOAL] for seed in row["seeds"]]


def mean_of(row: Mapping[str, Any], key: str = GOAL) -> float:
    """Return the mean over the seeds of a number of a division."""
    return estimate(seed[key] for seed in row["seeds"]).mean


def best_row(setting: Setting) -> Mapping[str, Any]:
    """Return the division with the highest mean throughput; of equal ones, the fewest slots."""
    best: Mapping[str, Any] = max(setting["rows"], key=mean_of)
    return best


def flat_rows(setting: Setting) -> list[Mapping[str, Any]]:
    """Return the neighbouring divisions around the best whose means are within 2 % of it."""
    rows, best = setting["rows"], best_row(setting)
    least = (1 - FLAT) * mean_of(best)
    first = last = rows.index(best)
    while first and mean_of(rows[first - 1]) >= least:
        first -= 1
    while last + 1 < len(rows) and mean_of(rows[last + 1]) >= least:
        last += 1
    return list(rows[first : last + 1])


def write_report(
    folder: Path,
    settings: Sequence[Setting],
    replayed: Sequence[Mapping[str, Any]],
    simulated: Sequence[Mapping[str, Any]],
) -> None:
    """Write `split.md` and `plots/` into a folder."""
    parts = [
        "# How one GPU memory should be divided",
        f"{lessons(settings)}\n\n{layer_lessons(replayed, simulated)}",
        "## Between KV blocks and expert slots",
        "Shares are of the memory that weights, activations and buffers leave. Closed loop: each "
        "client sends its next request when it has the answer to the last. All but the last 64 "
        "tokens of a context exist as KV entries before a request starts (`cached_prefix`), and "
        f"each answer has 32 tokens. {FOREIGN} Means and 95 % intervals over "
        f"n = {len(settings[0]['rows'][0]['seeds'])} orders of the requests. *As good*: the range "
        "of divisions around the best with a mean within 2 % of it. *Auto*: `memory.kv: auto` with "
        "`cache.slots: rest`, the default.",
        f"![throughput](plots/split_throughput.png)\n\n*{THROUGHPUT_CAPTION}*",
        f"![best shares](plots/split_best.png)\n\n*{BEST_CAPTION}*",
        *(markdown(each) for each in division_tables(settings)),
        "## Over the layers",
        "Splits learn from the first half of a trace and are used on the second. Replayed: hits of "
        "LRU and of the most popular experts (static), one token a step, DeepSeek-V2-Lite's own "
        "routing of four tasks; differences to the uniform split in percentage points, mean and "
        "range over the tasks.",
        f"![splits over layers](plots/split_layers.png)\n\n*{LAYERS_CAPTION}*",
        markdown(replayed_table(replayed)),
        "Simulated: one user, 8 requests of `traces/deep` with the sizes of Mixtral-8x7B on an RTX "
        "4090 (FOREIGN SIZES), means and 95 % intervals of differences to the uniform split, "
        f"paired by order of the requests (n = {len(simulated[0]['seeds'])}). Prefetch "
        "*predicted* uses the recorded predictions of the next layer.",
        markdown(simulated_table(simulated)),
    ]
    write_whole(folder / "split.md", "\n\n".join(parts) + "\n")
    charts = (
        partial(throughput_chart, settings),
        partial(best_chart, settings),
        partial(layers_chart, replayed),
    )
    save_charts(folder / "plots", charts)


def lessons(settings: Sequence[Setting]) -> str:
    """Return what the divisions show, in two sentences."""
    torn = [each for each in settings if len(each["rows"]) > 2]
    shares = [best_row(each)["share"] for each in torn]
    useful = [best_row(each)["kv_tokens"] / each["useful_tokens"] for each in torn]
    wide = [
        each for each in torn if flat_rows(each)[0]["share"] - flat_rows(each)[-1]["share"] >= 0.05
    ]
    losses = [auto_gain(each) for each in torn]
    behind = [each for each in losses if each.mean > FLAT]
    return (
        f"In {len(settings) - len(torn)} of {len(settings)} settings there is next to nothing to "
        f"divide; in the other {len(torn)} the best share of KV blocks goes from {min(shares):.0%} "
        f"to {max(shares):.0%}, which holds {min(useful):.0%} to {max(useful):.0%} of the KV "
        f"entries that the requests could use. The optimum is flat (2 % over 5 points of share or "
        f"more) in {len(wide)} of these {len(torn)}, and the default (`memory.kv: auto`) is more "
        f"than 2 % behind in {len(behind)}, by {max(each.mean for each in losses):.0%} at most."
    )


def layer_lessons(
    replayed: Sequence[Mapping[str, Any]], simulated: Sequence[Mapping[str, Any]]
) -> str:
    """Return what the splits over layers show, in two sentences."""
    gains = [gain for each in _sizes(replayed) for gain in _gains(replayed, each, LRU_NEED, "lru")]
    lost = sum(gain < 0 for gain in gains)
    worse = [
        row["split"]
        for row in simulated
        if row["split"] != "uniform" and _against_uniform(simulated, row).mean < -FLAT
    ]
    others = sum(row["split"] != "uniform" for row in simulated)
    return (
        f"Slots by demand change LRU's hits on the other half of the trace by {min(gains):+.1f} to "
        f"{max(gains):+.1f} points ({lost} of {len(gains)} cases lose). In the simulated runs "
        f"{len(worse)} of {others} splits are more than 2 % slower than the uniform one"
        + (
            f" ({', '.join(f'{worse.count(w)} {w}' for w in dict.fromkeys(worse))})."
            if worse
            else "."
        )
    )


def auto_gain(setting: Setting) -> Estimate:
    """Return how much faster the best division is than the default, relative, paired by seed."""
    return difference(tokens_per_s(best_row(setting)), tokens_per_s(setting["auto"]))


def _spread(value: Estimate, digits: int = 1, scale: float = 1.0) -> str:
    if value.half is None:
        return f"{scale * value.mean:.{digits}f}"
    return f"{scale * value.mean:.{digits}f} ± {scale * value.half:.{digits}f}"


def division_tables(settings: Sequence[Setting]) -> list[Table]:
    """Return a table for each case, with a row for each context and number of clients."""
    tables: dict[str, Table] = {}
    for each in settings:
        table = tables.setdefault(
            each["case"],
            Table(
                each["case"],
                ["context, clients", "best KV share (%)", "as good (%)", "of useful KV (%)",
                 "slots of experts", "tokens/s", "over auto (%)", "over least KV (%)",
                 "over most KV (%)", "hits (%)", "preemptions"],
            ),
        )  # fmt: skip
        best, flat = best_row(each), flat_rows(each)
        ends = [difference(tokens_per_s(best), tokens_per_s(each["rows"][end])) for end in (-1, 0)]
        table.add(
            f"{each['context']}, {each['clients']}",
            f"{100 * best['share']:.1f}",
            f"{100 * flat[-1]['share']:.1f} to {100 * flat[0]['share']:.1f}",
            f"{100 * best['kv_tokens'] / each['useful_tokens']:.0f}",
            f"{best['slots']} of {each['experts']}",
            _spread(estimate(tokens_per_s(best))),
            _spread(auto_gain(each), scale=100),
            *(_spread(end, scale=100) for end in ends),
            f"{100 * mean_of(best, 'on_time_hit_rate'):.1f}",
            f"{mean_of(best, 'preemptions'):.1f}",
        )
    return list(tables.values())


LRU_NEED: Final = "demand, need lru"


def _sizes(replayed: Sequence[Mapping[str, Any]]) -> list[int]:
    return list(dict.fromkeys(row["slots"] for row in replayed))


def _gains(
    replayed: Sequence[Mapping[str, Any]], slots: int, split: str, policy: str
) -> list[float]:
    """Return a split's hits less those of the uniform one in percentage points, by task."""
    by_task = {
        name: {
            row["task"]: row[policy]
            for row in replayed
            if row["slots"] == slots and row["split"] == name
        }
        for name in ("uniform", split)
    }
    return [100 * (by_task[split][task] - hits) for task, hits in by_task["uniform"].items()]


def replayed_table(replayed: Sequence[Mapping[str, Any]]) -> Table:
    """Return the gains of the splits by demand over the uniform one."""
    table = Table(
        "hits against the uniform split (points)",
        ["slots a layer, split", "LRU, mean", "LRU, range", "static, mean", "static, range"],
    )
    for slots in _sizes(replayed):
        for split in dict.fromkeys(row["split"] for row in replayed if row["split"] != "uniform"):
            cells = []
            for policy in ("lru", "static"):
                gains = _gains(replayed, slots, split, policy)
                cells += [f"{sum(gains) / len(gains):+.2f}"]
                cells += [f"{min(gains):+.2f} to {max(gains):+.2f}"]
            table.add(f"{slots} of 64, {split}", *cells)
    return table


def _against_uniform(
    simulated: Sequence[Mapping[str, Any]], row: Mapping[str, Any], key: str = GOAL
) -> Estimate:
    even = next(
        each
        for each in simulated
        if each["split"] == "uniform"
        and (each["slots"], each["prefetch"]) == (row["slots"], row["prefetch"])
    )
    values, base = ([seed[key] for seed in each["seeds"]] for each in (row, even))
    return difference(values, base, relative=key == GOAL)


def simulated_table(simulated: Sequence[Mapping[str, Any]]) -> Table:
    """Return throughput and hits of each split, and differences to the uniform one."""
    table = Table(
        "one user",
        ["slots a layer, prefetch, split", "slots: first, least, most", "tokens/s",
         "tokens/s over uniform (%)", "hits (%)", "hits over uniform (points)"],
    )  # fmt: skip
    for row in simulated:
        even = row["split"] == "uniform"
        change, hits = (_against_uniform(simulated, row, key) for key in (GOAL, "on_time_hit_rate"))
        table.add(
            f"{row['slots']} of 8, {row['prefetch']}, {row['split']}",
            f"{row['first']}, {row['least']}, {row['most']}",
            _spread(estimate(tokens_per_s(row))),
            "" if even else _spread(change, scale=100),
            f"{100 * mean_of(row, 'on_time_hit_rate'):.1f}",
            "" if even else _spread(hits, scale=100),
        )
    return table


def throughput_chart(settings: Sequence[Setting]) -> Chart:
    """Draw throughput over the share of KV blocks, a row a case and a column a context."""
    cases = list(dict.fromkeys(each["case"] for each in settings))
    contexts = list(dict.fromkeys(each["context"] for each in settings))
    clients = list(dict.fromkeys(each["clients"] for each in settings))
    chart = grid(
        "split_throughput",
        "Throughput of divisions of GPU memory",
        THROUGHPUT_CAPTION,
        ("case", "context", "clients", "kv_share", "slots", "relative", "half"),
        shape=(len(cases), len(contexts)),
        height_in=2.3 * len(cases) + 0.5,
        note=f"hollow: memory.kv: auto; {SIMULATED}",
        sharey=True,
    )
    for each in settings:
        axes = chart.axes[cases.index(each["case"])][contexts.index(each["context"])]
        color, marker = LOOKS[clients.index(each["clients"]) % len(LOOKS)]
        best = tokens_per_s(best_row(each))
        ratios = [difference(tokens_per_s(row), best) for row in each["rows"]]
        shares = [100 * row["share"] for row in each["rows"]]
        axes.errorbar(
            shares,
            [100 * (1 + ratio.mean) for ratio in ratios],
            yerr=[100 * (ratio.half or 0) for ratio in ratios],
            color=color, marker=marker, markersize=3.5, elinewidth=0.8,
            label=f"{each['clients']} clients",
        )  # fmt: skip
        auto = difference(tokens_per_s(each["auto"]), best)
        axes.plot(
            100 * each["auto"]["share"], 100 * (1 + auto.mean), marker=marker, markersize=8,
            markerfacecolor="none", markeredgecolor=color, linestyle="",
        )  # fmt: skip
        for row, ratio in zip(each["rows"], ratios, strict=True):
            chart.record(each["case"], each["context"], each["clients"], row["share"],
                         row["slots"], 1 + ratio.mean, ratio.half)  # fmt: skip
    for place, case in enumerate(cases):
        chart.axes[place][0].set_ylabel("throughput (% of best)")
        for axes, context in zip(chart.axes[place], contexts, strict=True):
            axes.set_title(f"{case.split(',')[0]}\n{context} tokens", fontsize=8)
            axes.set_ylim(0, 112)
    for axes in chart.axes[-1]:
        axes.set_xlabel("KV share of free memory (%)")
    shared_legend(chart)
    return chart


def best_chart(settings: Sequence[Setting]) -> Chart:
    """Draw the best share of KV blocks over the context, a panel a case and a line a load."""
    cases = list(dict.fromkeys(each["case"] for each in settings))
    clients = list(dict.fromkeys(each["clients"] for each in settings))
    chart = grid(
        "split_best",
        "Best share of KV blocks",
        BEST_CAPTION,
        ("case", "context", "clients", "best_pct", "flat_from_pct", "flat_to_pct", "auto_pct"),
        shape=(1, len(cases)),
        height_in=2.8,
        note=f"bars: within 2 % of the best; hollow: memory.kv: auto; {SIMULATED}",
        sharey=True,
    )
    for axes, case in zip(chart.axes[0], cases, strict=True):
        for count in clients:
            mine = [e for e in settings if (e["case"], e["clients"]) == (case, count)]
            color, marker = LOOKS[clients.index(count) % len(LOOKS)]
            best = [100 * best_row(each)["share"] for each in mine]
            flats = [[100 * row["share"] for row in flat_rows(each)] for each in mine]
            below = [one - min(flat) for one, flat in zip(best, flats, strict=True)]
            above = [max(flat) - one for one, flat in zip(best, flats, strict=True)]
            shift = 1.06 ** (clients.index(count) - 1)  # so that bars do not hide each other
            axes.errorbar(
                [each["context"] * shift for each in mine], best, yerr=[below, above], color=color,
                marker=marker, markersize=4, elinewidth=1, label=f"{count} clients",
            )  # fmt: skip
            axes.plot(
                [each["context"] * shift for each in mine],
                [100 * each["auto"]["share"] for each in mine],
                marker=marker, markersize=8, markerfacecolor="none", markeredgecolor=color,
                linestyle="",
            )  # fmt: skip
            for each, one, flat in zip(mine, best, flats, strict=True):
                auto = 100 * each["auto"]["share"]
                chart.record(case, each["context"], count, one, min(flat), max(flat), auto)
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(dict.fromkeys(each["context"] for each in settings)))
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.set_title(case.replace(", ", "\n", 1), fontsize=8)
        axes.set_xlabel("context (tokens)")
    chart.axes[0][0].set_ylim(bottom=0)  # last, because it ends the scaling of the shared axis
    chart.axes[0][0].set_ylabel("best KV share of free memory (%)")
    shared_legend(chart)
    return chart


def layers_chart(replayed: Sequence[Mapping[str, Any]]) -> Chart:
    """Draw the gains of splits by demand over the uniform one, a panel a policy."""
    splits = list(dict.fromkeys(row["split"] for row in replayed if row["split"] != "uniform"))
    chart = grid(
        "split_layers",
        "Slots by demand against as many for each layer",
        LAYERS_CAPTION,
        ("policy", "split", "slots", "mean", "low", "high"),
        shape=(1, 2),
        height_in=2.6,
        sharey=True,
        note="DeepSeek-V2-Lite's routing; mean and range over four tasks; no times",
    )
    for axes, (policy, title) in zip(
        chart.axes[0], {"lru": "LRU", "static": "static (most popular)"}.items(), strict=True
    ):
        for place, split in enumerate(splits):
            color, marker = LOOKS[place]
            sizes = _sizes(replayed)
            gains = [_gains(replayed, slots, split, policy) for slots in sizes]
            means = [sum(each) / len(each) for each in gains]
            bars = [
                [mean - min(each) for mean, each in zip(means, gains, strict=True)],
                [max(each) - mean for mean, each in zip(means, gains, strict=True)],
            ]
            axes.errorbar(
                [slots + place - 0.5 for slots in sizes], means, yerr=bars, color=color,
                marker=marker, markersize=4, elinewidth=1, label=split,
            )  # fmt: skip
            for slots, mean, each in zip(sizes, means, gains, strict=True):
                chart.record(policy, split, slots, mean, min(each), max(each))
        axes.axhline(0, color="#444444", linewidth=0.8)
        axes.set_title(title)
        axes.set_xlabel("slots a layer (of 64 experts)")
    chart.axes[0][0].set_ylabel("hits over uniform (points)")
    shared_legend(chart)
    return chart
