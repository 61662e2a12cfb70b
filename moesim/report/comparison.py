"""A comparison: several runs, grouped by the scenario keys in which they differ.

Runs that differ in their seed alone are one *row*. The other keys that differ are of two kinds.
*Policy keys* say how the server decides: everything under `cache`, `prefetch`, `batching` and
`placement`, and `replay`, except the sizes of cache and batch. *Setting keys* say what the server
works with: trace, hardware, memory, workload and these sizes. The values of the policy keys
name a *variant*. Variants are compared within one setting, never across two. If no policy key
differs, the settings themselves are compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from moesim.config.spelling import spelled
from moesim.errors import UsageError
from moesim.report.labels import differs, identity, labels, value_at
from moesim.report.marks import (
    FORESEES,
    foreseeing,
    marked,
    prefetches,
    shared_mark,
    shared_sentence,
)
from moesim.report.metrics import (
    ELSEWHERE,
    FROM_DISK,
    HEADLINE,
    HITS_LEGEND,
    Metric,
    caveats_sentence,
    costs,
    costs_sentence,
    of_requests,
)
from moesim.report.names import policy_label
from moesim.report.runs import MOST_IDLE, Run
from moesim.report.seeds import repeated
from moesim.report.statistics import Estimate, estimate
from moesim.systems.preset import preset_keys

if TYPE_CHECKING:
    import pandas as pd

    from moesim.report.plots import ComparisonPlots

__all__ = ["Comparison", "Row", "compare_runs", "varying_keys"]

# Both change the number of slots, which is the axis of the charts against capacity.
CAPACITY_KEYS: Final = ("cache.slots", "memory.capacity")
# A batch of another size is another load, so policies are compared at each size.
LOAD_KEYS: Final = ("batching.max_sequences",)
POLICY_SECTIONS: Final = ("system", "cache", "prefetch", "batching", "placement", "replay")
# Never compared: the seed repeats a point, the others change a run's name or what it records.
IGNORED: Final = frozenset(
    {"name", "seed", "sweep", "timeline", "bounds", "metrics.without_prefetch"}
)
OF_ENGINES: Final = frozenset(
    {
        "batching.token_budget",
        "hardware.pinned",
        "placement.options",
        "placement.options.copy_rows",
        "placement.options.copy_rows_of",
    }
)
"""Keys that an engine has values for. Where they follow from a swept engine, they are no label."""
OF_PARTS: Final = ("memory.host",)
"""Keys that the texts of a machine have values for, likewise."""
ARRIVALS_LIMIT: Final = (
    f"arrivals limit throughput: no request to serve for more than {MOST_IDLE:.0%} of the time"
)


@dataclass(frozen=True, slots=True)
class Row:
    """The runs of one point of the sweep, one per seed, in the order of their seeds."""

    runs: tuple[Run, ...]
    variant: str
    values: Mapping[str, Any]
    facet: str
    """The setting without the size of the cache; "" where all rows share it."""
    capacity: str
    """The size of the cache as text; "" where all rows share it."""
    named: Mapping[str, str] = field(default_factory=dict)
    """The label of each key's value, like `bandwidth = 25GB/s`; not of the size of the cache."""
    repeats: bool = False
    """Whether all seeds gave the same numbers, so that they are one observation."""

    def __repr__(self) -> str:
        where = f" in {self.setting}" if self.setting else ""
        return f"<Row {self.variant}{where}: {len(self.runs)} runs>"

    @property
    def setting(self) -> str:
        """Return the setting as text, like `bandwidth = 25GB/s, 4 of 8 experts a layer`."""
        return ", ".join(part for part in (self.facet, self.capacity) if part)

    @property
    def slots_per_layer(self) -> float:
        """Return the mean expert slots per layer; NaN where the summaries lack the numbers."""
        return self.mean("cache_slots") / self.mean("num_layers")

    @property
    def knows_the_future(self) -> bool:
        """Return whether the variant is a bound, not a policy: MIN, or learnt in hindsight."""
        return any(map(foreseeing, self.runs))

    @property
    def label(self) -> str:
        """Return the variant, marked where it knows the future."""
        return marked(self.variant, FORESEES if self.knows_the_future else "")

    @property
    def prefetches(self) -> bool:
        """Return whether any of the runs may prefetch."""
        return any(map(prefetches, self.runs))

    @property
    def seeds(self) -> tuple[int | None, ...]:
        """Return the seeds in the order of the runs; None for a run without one."""
        return tuple(run.seed for run in self.runs)

    @property
    def has_interval(self) -> bool:
        """Return whether the seeds give an interval."""
        return len(self.runs) > 1 and not self.repeats

    def mean(self, key: str) -> float:
        """Return the mean of a summary key over the seeds that define it; NaN where none does."""
        return self.over_seeds(lambda run: run.value(key)).mean

    def estimate(self, metric: Metric) -> Estimate:
        """Return the mean of a metric over the seeds, with its interval, in the metric's unit."""
        return self.over_seeds(metric.of)

    def over_seeds(self, of: Callable[[Run], float]) -> Estimate:
        """Return the mean of a number over the seeds, with its interval unless they repeat."""
        found = estimate(map(of, self.runs))
        return replace(found, half=None) if self.repeats else found


@dataclass(frozen=True, slots=True)
class Comparison:
    """Rows in the order of the sweep, with the notes that their readers need."""

    rows: tuple[Row, ...]
    policy_keys: tuple[str, ...]
    setting_keys: tuple[str, ...]
    notes: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()
    """One line for each point that could not be simulated: its values, and why."""

    def __repr__(self) -> str:
        variants, settings = len(self.variants), len({row.setting for row in self.rows})
        failed = f", {len(self.failures)} points failed" if self.failures else ""
        return (
            f"<Comparison: {len(self.runs)} runs in {len(self.rows)} rows, "
            f"{variants} variants, {settings} settings{failed}>"
        )

    def _repr_html_(self) -> str:
        """Return a table of the headline metrics, for a notebook."""
        from moesim.report.notebook import html_table

        metrics = self.headline
        rows = [
            (row.label, row.setting, *(metric.text(row.estimate(metric)) for metric in metrics))
            for row in self.rows
        ]
        title = "; ".join(filter(None, (self.mark(), repr(self)[1:-1], *self.failures)))
        return html_table(title, ("variant", "setting", *(m.title for m in metrics)), rows)

    @property
    def frame(self) -> pd.DataFrame:
        """The rows as a pandas DataFrame, as in `compare.csv`: one row per point, seeds averaged.

        Columns are the swept keys, the keys of `summary.json` with their units, and after each
        number `…_half_interval`, half of its 95 % interval over the seeds; NaN where undefined.
        """
        import pandas as pd  # slow to import, and only needed here

        from moesim.report.tables import points_table

        columns, rows = points_table(self)
        return pd.DataFrame(rows, columns=columns)

    @property
    def plot(self) -> ComparisonPlots:
        """The plots of this comparison: `comparison.plot.throughput()` returns matplotlib Axes."""
        from moesim.report.plots import ComparisonPlots

        return ComparisonPlots(self)

    @property
    def runs(self) -> list[Run]:
        """Return the runs of all rows, row by row."""
        return [run for row in self.rows for run in row.runs]

    @property
    def variants(self) -> list[str]:
        """Return every variant once, in the order of the sweep."""
        return list(dict.fromkeys(row.variant for row in self.rows))

    @property
    def facets(self) -> list[str]:
        """Return every facet once, in the order of the sweep."""
        return list(dict.fromkeys(row.facet for row in self.rows))

    @property
    def settings(self) -> list[str]:
        """Return every setting, with ascending cache sizes within a facet."""
        rows = sorted(self.rows, key=lambda row: (self.facets.index(row.facet), _size(row)))
        return list(dict.fromkeys(row.setting for row in rows))

    def within(self, setting: str) -> list[Row]:
        """Return the rows of one setting, in the order of the variants."""
        rows = [row for row in self.rows if row.setting == setting]
        return sorted(rows, key=lambda row: self.variants.index(row.variant))

    def series(self, facet: str, variant: str) -> list[Row]:
        """Return the rows of one variant in one facet, with ascending cache sizes."""
        rows = [row for row in self.rows if (row.facet, row.variant) == (facet, variant)]
        return sorted(rows, key=_size)

    @property
    def headline(self) -> tuple[Metric, ...]:
        """Return the metrics to compare, each in a unit that suits all rows."""
        # One unit for all rows: columns that mix ms and s cannot be compared by eye.
        return tuple(
            metric.in_readable_unit(row.mean(metric.key) for row in self.rows)
            for metric in self.metrics
        )

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Return the metrics to compare, without those of a CPU or a disk that no run used."""
        optional = (ELSEWHERE, FROM_DISK)
        return tuple(
            metric
            for metric in HEADLINE
            if metric not in optional or any(row.mean(metric.key) > 0 for row in self.rows)
        )

    @property
    def has_intervals(self) -> bool:
        """Return whether the seeds of any row give an interval."""
        return any(row.has_interval for row in self.rows)

    @property
    def equal_seeds(self) -> bool:
        """Return whether there are several seeds, of which none changes a number."""
        return not self.has_intervals and any(row.repeats for row in self.rows)

    @property
    def seeds(self) -> list[int]:
        """Return all seeds, ascending."""
        return sorted({run.seed for run in self.runs if run.seed is not None})

    def caption(self, *, hits: bool = False, intervals: bool = True) -> str:
        """Return the text under a figure: workload, seeds, trace, model, hardware and caveats.

        With `hits`, it defines hits. With `intervals`, it says how intervals were computed, or
        that there are none.
        """
        runs = self.runs
        text = (
            f"{of_requests(_spelt(run.text('requests') for run in runs))} a run, "
            f"{_arriving(runs)}"
            f"{_prompts(runs)}{self._placement()}"
            f"{_seeds(self.rows, intervals)}; "
            f"trace {_spelt(run.trace for run in runs)} costed as "
            f"{_spelt(run.text('model') for run in runs)} on "
            f"{_spelt(run.hardware for run in runs)}{_engines(runs)}; "
            f"{_spelt(map(costs_sentence, runs))}."
            f"{caveats_sentence(_counted(runs, lambda run: run.caveats))}"
        )
        return " ".join(filter(None, (shared_sentence(runs), text, HITS_LEGEND if hits else "")))

    def note(self) -> str:
        """Return the line inside every figure: requests and seeds of a point, and whose times."""
        requests = of_requests(_spelt(run.text("requests") for run in self.runs))
        counts = _spelt(str(len(row.runs)) for row in self.rows)
        plural = "" if counts == "1" else "s"
        origin = _spelt(map(costs, self.runs))
        return f"n = {requests}, {counts} seed{plural} a point; {origin}"

    def _placement(self) -> str:
        """Return the placement policy, with a comma behind it; "" if rows name it, or for copy."""
        names = {run.placement.partition(" ")[0] for run in self.runs}
        swept = any(key in ("placement", "placement.policy") for key in self.policy_keys)
        return "" if swept or names == {""} else f"{_spelt(sorted(names - {''}))} placement, "

    def mark(self, rows: Sequence[Row] | None = None) -> str:
        """Return the marks that numbers of these rows (default: all) need; "" without any."""
        return shared_mark([run for row in rows or self.rows for run in row.runs])


def only_setting(comparison: Comparison, setting: str) -> Comparison:
    """Return the comparison with the rows of one setting."""
    return replace(comparison, rows=tuple(comparison.within(setting)))


def compare_runs(runs: Sequence[Run]) -> Comparison:
    """Group runs into rows by the scenario keys in which they differ.

    Of several runs with the same scenario and seed only the first counts; a note says so.

    Raises:
        UsageError: there are no runs.
    """
    if not runs:
        raise UsageError("no runs to compare; name at least one run directory")
    keys = varying_keys(runs)
    policy_keys = tuple(k for k in keys if k.split(".")[0] in POLICY_SECTIONS)
    policy_keys = tuple(k for k in policy_keys if k not in (*CAPACITY_KEYS, *LOAD_KEYS))
    # "Facet" is the plotting term: each value gets its own panel or table.
    facet_keys = tuple(k for k in keys if k not in policy_keys and k not in CAPACITY_KEYS)
    if facet_keys and not policy_keys:
        policy_keys, facet_keys = facet_keys, ()
    groups: dict[str, list[int]] = {}
    for place, run in enumerate(runs):
        groups.setdefault("\n".join(identity(run, key) for key in keys), []).append(place)
    notes = _notes(runs)
    named = labels(runs, [*policy_keys, *facet_keys])
    rows = []
    for places in groups.values():
        members = [runs[place] for place in places]
        # Reversed, so that the first run of each seed is the one that stays.
        first_by_seed = {run.seed: run for run in reversed(members)}
        if len(first_by_seed) < len(members):
            notes.append(
                f"{members[0].path} and {len(members) - len(first_by_seed)} more differ neither in "
                "scenario nor in seed: only the first of each seed counts"
            )
        chosen = sorted(first_by_seed.values(), key=lambda run: (run.seed is None, run.seed or 0))
        variant, facet = (
            ", ".join(named[key][places[0]] for key in part) for part in (policy_keys, facet_keys)
        )
        values = {key: value_at(members[0], key) for key in keys}
        texts = {key: named[key][places[0]] for key in named}
        variant = variant or _policy(members[0])
        rows.append(Row(tuple(chosen), variant, values, facet, "", texts, repeated(chosen)))
    rows = _with_capacities(rows, [key for key in keys if key in CAPACITY_KEYS])
    setting_keys = tuple(key for key in keys if key not in policy_keys)
    return Comparison(tuple(rows), policy_keys, setting_keys, (*notes, *_seed_notes(rows)))


def _policy(run: Run) -> str:
    """Return the eviction policy, which names the row where runs differ in nothing."""
    return policy_label(run.text("cache_policy"), run.cache_options)


def _with_capacities(rows: Sequence[Row], keys: Sequence[str]) -> list[Row]:
    """Return the rows with the sizes of their caches, if sizes vary.

    Sizes are in slots per layer. Where these do not tell two rows apart, the scenario's own
    spelling is added.
    """
    if not keys:
        return list(rows)
    slots = _rounded([row.slots_per_layer for row in rows])
    sizes = [
        f"{text} of {row.mean('num_experts'):g} experts a layer"
        for text, row in zip(slots, rows, strict=True)
    ]
    names = [(row.variant, row.facet, size) for row, size in zip(rows, sizes, strict=True)]
    spellings = [
        ", ".join(f"{key.split('.')[-1]} = {spelled(row.values[key])}" for key in keys)
        for row in rows
    ]
    ambiguous = len(set(names)) < len(names)
    return [
        replace(row, capacity=f"{size} ({spelling})" if ambiguous else size)
        for row, size, spelling in zip(rows, sizes, spellings, strict=True)
    ]


def _rounded(values: Sequence[float]) -> list[str]:
    """Return numbers with three digits, or with as many as keep different numbers apart."""
    full = len({f"{value:g}" for value in values})
    for digits in (3, 4, 5):
        # Twice: the first rounds, the second writes no exponent.
        texts = [f"{float(f'{value:.{digits}g}'):g}" for value in values]
        if len(set(texts)) == full:
            return texts
    return [f"{value:g}" for value in values]


def varying_keys(runs: Sequence[Run]) -> list[str]:
    """Return the dotted keys whose values differ between runs, those of the sweep first."""
    swept = list(dict.fromkeys(key for run in runs for key in run.point if key not in IGNORED))
    keys = [key for key in swept if differs(identity(run, key) for run in runs)]
    # Runs of several sweeps may differ in keys that no sweep varied.
    for path in _differences([run.world for run in runs]):
        if {path, path.split(".")[0]} & IGNORED or any(_inside(path, key) for key in swept):
            continue
        keys.append(path)
    follows: set[str] = set()
    if {"engine", "engine.profile"} & set(keys):
        follows.update(OF_ENGINES)
    if {"hardware", "hardware.memory"} & set(keys):
        follows.update(OF_PARTS)
    if "system" in keys:
        follows.update(preset_keys(), OF_ENGINES)
    own = [key for key in keys if key in swept or key not in follows]
    return [key for key in keys if key in own or not _follows(runs, key, own)]


def _follows(runs: Sequence[Run], key: str, others: Sequence[str]) -> bool:
    """Return whether the values of `others` determine that of a key in all runs."""
    values: dict[tuple[str, ...], set[str]] = {}
    for run in runs:
        group = tuple(identity(run, other) for other in others)
        values.setdefault(group, set()).add(identity(run, key))
    return all(len(seen) == 1 for seen in values.values())


def _differences(values: Sequence[Any], prefix: str = "") -> Iterable[str]:
    """Yield the dotted paths at which values differ, as deep as all values are mappings."""
    if all(isinstance(value, Mapping) for value in values):
        for key in dict.fromkeys(key for value in values for key in value):
            inner = [value.get(key) for value in values]
            yield from _differences(inner, f"{prefix}.{key}" if prefix else str(key))
    elif differs(values):
        yield prefix


def _inside(path: str, key: str) -> bool:
    return path == key or path.startswith(f"{key}.")


def _size(row: Row) -> float:
    return row.slots_per_layer


def _spelt(values: Iterable[str]) -> str:
    """Return the different values as one text, for a caption."""
    values = list(dict.fromkeys(values))
    if len(values) > 3:
        return f"{values[0]} … {values[-1]} ({len(values)} values)"
    return " / ".join(values)


def _arriving(runs: Sequence[Run]) -> str:
    """Return when requests arrive, with a comma behind it; "" if no scenario says so."""
    spelt = _spelt(run.arrivals for run in runs if run.arrivals)
    return f"arrivals {spelt}, " if spelt else ""


def _prompts(runs: Sequence[Run]) -> str:
    """Return that prompts are not cut, with a comma behind it; "" if all may be cut."""
    spelt = _spelt(run.prompts or "prompts may be cut" for run in runs)
    return f"{spelt}, " if any(run.prompts for run in runs) else ""


def _engines(runs: Sequence[Run]) -> str:
    """Return the engines, with a comma before them; "" if no summary names one."""
    spelt = _spelt(run.engine for run in runs if run.engine)
    return f", engine {spelt}" if spelt else ""


def _seeds(rows: Sequence[Row], intervals: bool) -> str:
    counts = sorted({len(row.runs) for row in rows})
    seeds = sorted({run.seed for row in rows for run in row.runs if run.seed is not None})
    names = ", ".join(map(str, seeds)) if len(seeds) <= 8 else f"{seeds[0]} … {seeds[-1]}"
    if counts[-1] == 1:
        return f"seed {names}, so no intervals" if intervals else f"seed {names}"
    if not any(row.has_interval for row in rows):
        return f"seeds {names}, which gave the same numbers{', so no intervals' * intervals}"
    n = "–".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    if not intervals:
        return f"seeds {names} (n = {n})"
    return f"seeds {names}; intervals: 95 % t-interval over n = {n} seeds"


def _notes(runs: Sequence[Run]) -> list[str]:
    """Return warnings about the set of runs, then the notes of each run."""
    notes = []
    if differs(run.world.get("trace") for run in runs):
        traces = ", ".join(dict.fromkeys(run.trace for run in runs))
        notes.append(
            f"WARNING: these runs replay different traces ({traces}); compare only runs of the "
            "same trace"
        )
    if len({run.text("cost_kind") for run in runs}) > 1:
        notes.append(
            "WARNING: costs are assumed in some of these runs and measured in others; do not "
            "compare times between them"
        )
    notes += _counted(runs, lambda run: [ARRIVALS_LIMIT] if run.limited_by_arrivals else [])
    return [*notes, *_counted(runs, lambda run: run.notes)]


def _counted(runs: Sequence[Run], notes_of: Callable[[Run], Sequence[str]]) -> list[str]:
    """Return each different note once, with the number of runs unless all have it."""
    counts = Counter(note for run in runs for note in dict.fromkeys(notes_of(run)))
    return [
        note if count == len(runs) else f"{note} ({count} of {len(runs)} runs)"
        for note, count in counts.items()
    ]


def _seed_notes(rows: Sequence[Row]) -> list[str]:
    counts = {len(row.runs) for row in rows}
    if counts == {1}:
        return [
            "one seed per point: no intervals; sweep the seed (seed: [0, 1, 2]) to get them, with "
            "workload.order: resampled if nothing else is drawn at random"
        ]
    if not any(row.has_interval for row in rows):
        return [
            "WARNING: all seeds gave the same numbers, because the workload draws nothing at "
            "random; so there are no intervals, and no difference is called better or worse; set "
            "workload.order: resampled"
        ]
    notes = [
        "± is half the 95 % t-interval over the seeds; with the same seed, all variants get the "
        "same workload"
    ]
    if len(counts) > 1:
        notes.append(f"points have different numbers of seeds ({min(counts)} to {max(counts)})")
    if repeating := sum(row.repeats for row in rows):
        notes.append(
            f"all seeds gave the same numbers in {repeating} of {len(rows)} points, which have no "
            "intervals"
        )
    return notes
