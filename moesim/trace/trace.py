"""A trace: the decisions of a real MoE model's routers, token by token and layer by layer.

Arrays are indexed `[row, layer, place]`; a row is one token passing through the model. A
request of P prompt and O output tokens owns P + O - 1 consecutive rows: its prompt's, then one
for each decoded token but the last, which is never fed back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from operator import index
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moesim.errors import TraceError, shown
from moesim.progress import Counter
from moesim.trace.health import check_prefixes, check_requests, check_shard, check_static
from moesim.trace.meta import ROLES, TraceMeta
from moesim.trace.rows import Rows

Array = npt.NDArray[Any]
REQUEST_COLUMNS = (
    "prompt_tokens",
    "output_tokens",
    "arrival_s",
    "domain",
    "first_row",
    "num_rows",
)


_HEADER_ARGUMENTS = {field.name for field in fields(TraceMeta)} - {
    "num_layers", "num_experts", "top_k", "prediction_depth",
}  # fmt: skip
"""Fields of the header that `Trace.from_arrays` takes; the others follow from its arrays."""


class Trace:
    """Routing decisions and the requests they belong to; immutable.

    Attributes: `meta`; `requests`, a dict of equally long columns (`prompt_tokens`,
    `output_tokens`, `arrival_s` in seconds or NaN, `domain` or "", `first_row`, `num_rows`);
    `expert_ids` uint (rows, layers, k), unused places hold `meta.unused`; `gate_weights` float16
    (rows, layers, k) or None; `predictions` uint (rows, layers, depth, k) or None, where
    `[t, l, d]` was guessed at layer l for layer l + 1 + d; `probabilities` (rows, layers,
    experts) or None; `path`, the folder or None for a trace in memory; `prefix_blocks`, for each
    request the identities of its prompt's blocks of `meta.prefix_block_tokens` tokens, or None.
    """

    def __init__(
        self,
        meta: TraceMeta,
        requests: dict[str, Array],
        arrays: Mapping[Any, Rows],
        path: Path | None = None,
        prefix_blocks: Sequence[tuple[int, ...]] | None = None,
    ) -> None:
        self.meta = meta
        self.requests = requests
        self.path = path
        self.prefix_blocks = prefix_blocks
        self.expert_ids = arrays["expert_ids"]
        self.gate_weights = arrays.get("gate_weights")
        self.predictions = arrays.get("predictions")
        self.probabilities = arrays.get("probabilities")

    @classmethod
    def from_arrays(
        cls,
        *,
        expert_ids: npt.ArrayLike,
        seq_len: npt.ArrayLike,
        num_experts: int,
        gate_weights: npt.ArrayLike | None = None,
        prompt_tokens: npt.ArrayLike | None = None,
        predictions: npt.ArrayLike | None = None,
        probabilities: npt.ArrayLike | None = None,
        domain: Sequence[str] | str | None = None,
        arrival_s: npt.ArrayLike | None = None,
        prefix_blocks: Sequence[Sequence[int]] | None = None,
        **meta: Any,
    ) -> Trace:
        """Make a trace from your own arrays.

        `expert_ids` (rows, layers, k) integers, -1 where a place is unused; `seq_len` (requests,):
        rows of each request, consecutive; `prompt_tokens` (requests,): how many of them are prompt
        rows (default: all, so that a request is a prompt and one output token). `predictions`
        (rows, layers, depth, k); `probabilities` (rows, layers, experts). `prefix_blocks`: for each
        request the identities of its prompt's blocks; it needs `prefix_block_tokens`. Further
        keywords are fields of `TraceMeta` (`model`, `router`, `expert_bytes`, …).

        Raise `TraceError` if the arrays disagree or break a rule of the format.
        """
        if wrong := sorted(meta.keys() - _HEADER_ARGUMENTS):
            raise TraceError(wrong[0], "", f"must be one of {', '.join(sorted(_HEADER_ARGUMENTS))}")
        ids = _array("expert_ids", expert_ids)
        if ids.ndim != 3:
            raise TraceError(
                "expert_ids",
                "",
                f"must have three axes (rows, layers, k), not the {ids.ndim} of shape {ids.shape}",
            )
        if not np.issubdtype(ids.dtype, np.integer):
            raise TraceError("expert_ids", "", f"must be integers, not {ids.dtype}")
        guesses = None if predictions is None else _array("predictions", predictions)
        if guesses is not None and guesses.ndim != 4:
            raise TraceError(
                "predictions",
                "",
                "must have four axes (rows, layers, depth, k), not the "
                f"{guesses.ndim} of shape {guesses.shape}",
            )
        header = _header(ids, guesses, num_experts, meta)
        if header.prompt_rows == "absent" and prompt_tokens is None:
            raise TraceError("prompt_tokens", "", "must be given when prompt rows are absent")
        lengths = _whole_numbers("seq_len", seq_len)
        if len(ids) == 0 or len(lengths) == 0:
            raise TraceError("expert_ids", "", "a trace needs at least one row and one request")
        requests = _request_columns(header, lengths, prompt_tokens, domain, arrival_s)
        sources = {
            "expert_ids": ids,
            "gate_weights": gate_weights,
            "predictions": guesses,
            "probabilities": probabilities,
        }
        arrays: dict[str, Rows] = {}
        for role in ROLES:
            if sources[role] is None:
                continue
            array = as_stored(header, role, _array(role, sources[role]))
            if len(array) != len(ids):
                raise TraceError(role, "", f"has {len(array)} rows, expert_ids has {len(ids)}")
            check_shard(header, role, array, file=role)
            arrays[role] = Rows([array])
        check_requests(header, requests, len(ids), "seq_len")
        blocks = None if prefix_blocks is None else as_blocks(prefix_blocks)
        check_prefixes(header, requests, blocks, "prefix_blocks")
        trace = cls(header, requests, arrays, prefix_blocks=blocks)
        check_static(trace)
        return trace

    num_rows = property(lambda self: len(self.expert_ids))
    num_requests = property(lambda self: len(self.requests["num_rows"]))
    num_layers = property(lambda self: self.meta.num_layers)
    num_experts = property(lambda self: self.meta.num_experts)
    top_k = property(lambda self: self.meta.top_k)

    def __repr__(self) -> str:
        name = f"{self.meta.model} (synthetic)" if self.meta.synthetic else self.meta.model
        return (
            f"<Trace {name}: {self.num_requests} requests, {self.num_rows} rows, "
            f"{self.num_layers} layers x {self.num_experts} experts, top-{self.top_k}>"
        )

    def slice(self, request: int) -> slice:
        """Return the rows of one request."""
        first = int(self.requests["first_row"][request])
        return slice(first, first + int(self.requests["num_rows"][request]))

    def save(
        self, path: str | Path, *, force: bool = False, progress: Counter | None = None
    ) -> Trace:
        """Write the trace as a folder and return it as loaded from there.

        `progress(done, total)` counts requests.

        Raise `OutputError` if the folder exists (without `force`) or cannot be written.
        """
        from moesim.trace.writer import TraceWriter

        columns = self.requests
        with TraceWriter(path, self.meta, force=force) as writer:
            for number in range(self.num_requests):
                rows = self.slice(number)
                arrival = float(columns["arrival_s"][number])
                writer.add_request(
                    expert_ids=self.expert_ids[rows],
                    gate_weights=None if self.gate_weights is None else self.gate_weights[rows],
                    predictions=None if self.predictions is None else self.predictions[rows],
                    probabilities=None if self.probabilities is None else self.probabilities[rows],
                    prompt_tokens=int(columns["prompt_tokens"][number]),
                    output_tokens=int(columns["output_tokens"][number]),
                    arrival_s=None if np.isnan(arrival) else arrival,
                    domain=str(columns["domain"][number]) or None,
                    prefix_blocks=None
                    if self.prefix_blocks is None
                    else self.prefix_blocks[number],
                )
                if progress is not None:
                    progress(number + 1, self.num_requests)
        return writer.trace

    def with_meta(self, **changes: Any) -> Trace:
        """Return the same rows under a changed header (a name, a router kind, …)."""
        arrays = {role: getattr(self, role) for role in ROLES if getattr(self, role) is not None}
        meta = replace(self.meta, **changes)
        return Trace(meta, self.requests, arrays, prefix_blocks=self.prefix_blocks)


def _header(
    ids: Array, guesses: Array | None, num_experts: object, meta: dict[str, Any]
) -> TraceMeta:
    """Return the header of a trace with these arrays. Raise `TraceError` if it breaks a rule."""
    try:
        experts = index(num_experts)  # type: ignore[arg-type]
    except Exception:
        raise TraceError(
            "num_experts", "", f"must be a whole number, not {shown(num_experts)}"
        ) from None
    header = TraceMeta(
        num_layers=ids.shape[1],
        num_experts=experts,
        top_k=ids.shape[2],
        prediction_depth=0 if guesses is None else int(guesses.shape[2]),
        **meta,
    )
    if problem := header.problem():
        raise TraceError("header", "", problem)
    return header


def as_stored(meta: TraceMeta, role: Any, array: Array) -> Array:
    """Check an array's shape and return a copy in its stored type.

    -1 becomes `meta.unused`, and so does the maximum of the given type if it names no expert.
    Raise `TraceError` for another shape or type, or an id out of range.
    """
    if array.shape[1:] != meta.row_shape(role):
        raise TraceError(
            role, "", f"rows must have shape {meta.row_shape(role)}, not {array.shape[1:]}"
        )
    whole = np.issubdtype(array.dtype, np.integer)
    if role in ("gate_weights", "probabilities"):
        if not whole and not np.issubdtype(array.dtype, np.floating):
            raise TraceError(role, "", f"must hold numbers, not {array.dtype}")
        with np.errstate(over="ignore"):  # a weight too large becomes infinite; checks refuse it
            return array.astype(np.float16, order="C")
    if not whole:
        raise TraceError(role, "", f"must hold integers, not {array.dtype}")
    # Ids in the stored type already mark unused places by its maximum.
    if array.dtype == meta.id_dtype:
        return array.copy(order="C")
    wide = array.astype(np.int64)
    highest = int(np.iinfo(array.dtype).max)
    if highest >= meta.num_experts:
        wide[array == highest] = meta.unused
    wide[wide == -1] = meta.unused
    wrong = (wide < 0) | (wide > meta.unused)
    if wrong.any():
        row, layer, *_ = np.argwhere(wrong)[0].tolist()
        raise TraceError(
            role,
            f"row {row}, layer {layer}",
            f"expert id {int(wide[wrong][0])} is out of range for {meta.num_experts} experts",
        )
    return wide.astype(meta.id_dtype, order="C")


def _request_columns(
    meta: TraceMeta,
    lengths: npt.NDArray[np.int64],
    prompt_tokens: npt.ArrayLike | None,
    domain: Sequence[str] | str | None,
    arrival_s: npt.ArrayLike | None,
) -> dict[str, Array]:
    count = len(lengths)
    prompt = lengths if prompt_tokens is None else _whole_numbers("prompt_tokens", prompt_tokens)
    domains = _domains(domain, count)
    arrivals = np.full(count, np.nan) if arrival_s is None else _array("arrival_s", arrival_s)
    if arrivals.dtype.kind not in "fiu":
        raise TraceError("arrival_s", "", "must hold numbers (seconds)")
    columns: dict[str, Array] = {
        "prompt_tokens": prompt,
        "arrival_s": arrivals.astype(np.float64),
        "domain": np.array(domains, dtype=object),
        "first_row": np.concatenate(([0], np.cumsum(lengths)[:-1])).astype(np.int64),
        "num_rows": lengths,
    }
    for name, column in columns.items():
        if column.shape != (count,):
            raise TraceError(name, "", f"must have {count} entries (one a request)")
    recorded = prompt if meta.prompt_rows == "recorded" else 0
    return {**columns, "output_tokens": lengths + 1 - recorded}


def as_blocks(prefix_blocks: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Return the identities of each request's blocks as plain integers. Raise `TraceError`."""
    try:
        return [tuple(index(block) for block in blocks) for blocks in prefix_blocks]
    except Exception as error:  # what is given may convert itself
        raise TraceError(
            "prefix_blocks", "", f"must hold a list of whole numbers for each request: {error}"
        ) from None


def _domains(domain: Sequence[str] | str | None, count: int) -> list[str]:
    try:
        domains = [domain] * count if isinstance(domain, str) or domain is None else list(domain)
        names = ["" if name is None else str(name) for name in domains]
        for name in names:
            name.encode()
    except Exception as error:
        raise TraceError("domain", "", f"must hold texts, one a request: {error}") from None
    return names


def _array(name: str, values: npt.ArrayLike | None) -> Array:
    """`values` as an array. Raise `TraceError` where they are none."""
    try:
        return np.asarray(values)
    except Exception as error:  # what is given may convert itself
        raise TraceError(
            name, "", f"must be an array with one number in each place: {error}"
        ) from None


def _whole_numbers(name: str, values: npt.ArrayLike) -> npt.NDArray[np.int64]:
    array = np.atleast_1d(_array(name, values))
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise TraceError(name, "", f"must hold whole numbers, one a request, not {array.dtype}")
    if array.size and int(array.max()) > np.iinfo(np.int64).max:
        raise TraceError(name, "", f"holds {array.max()}, which is too large")
    return array.astype(np.int64)
