"""Formats of request files: where they keep a request's time, its lengths and its token blocks.

- `plain` is moesim's own CSV.
- `azure`: the Azure LLM inference traces of 2023 (Splitwise, Patel et al. 2024, arXiv 2311.18677)
  and of 2024 (DynamoLLM, Stojkovic et al. 2024, arXiv 2408.00741).
- `burstgpt`: BurstGPT (Wang et al. 2024, arXiv 2401.17644); failed requests have no output.
- `vidur`: traces of the simulator Vidur (Agrawal et al. 2024, arXiv 2405.05465).
- `mooncake`: JSON lines of Mooncake (Qin et al. 2024, arXiv 2407.00079); each hash id stands for
  512 tokens of the prompt.
- `sharegpt`: a JSON list of conversations, as text; no times.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from moesim.workload.cells import cut

__all__ = ["FORMATS", "Columns", "Format", "sniff", "with_columns"]

Container = Literal["csv", "jsonl", "json"]


@dataclass(frozen=True, slots=True)
class Columns:
    """Names that replace those of a format; None keeps the format's own.

    `unit` is the unit of arrivals: s, ms, us, ns or date.
    """

    arrival: str | None = None
    unit: str | None = None
    prompt: str | None = None
    output: str | None = None
    domain: str | None = None

    @property
    def complete(self) -> bool:
        """Whether they say where the lengths are, so that no format is needed."""
        return self.prompt is not None and self.output is not None


@dataclass(frozen=True, slots=True)
class Format:
    """Where a file keeps its requests.

    `arrival` may be None: no times. `arrival_optional`: a file may lack that column. `blocks` names
    the list of block ids, of which each stands for `block_tokens` tokens. `named_domain`: the
    user named the column of domains, so that each file must have it.
    """

    name: str
    container: Container
    arrival: str | None
    unit: str
    prompt: str
    output: str
    arrival_optional: bool = False
    blocks: str | None = None
    block_tokens: int | None = None
    domain: str = "domain"
    named_domain: bool = False

    @property
    def needed(self) -> tuple[str, ...]:
        """The columns that a file of this format must have."""
        timed = self.arrival is not None and not self.arrival_optional
        domain = (self.domain,) if self.named_domain else ()
        return (*((self.arrival or "",) if timed else ()), self.prompt, self.output, *domain)


FORMATS: Final = {
    each.name: each
    for each in (
        Format("plain", "csv", "arrival_s", "s", "prompt_tokens", "output_tokens"),
        Format("azure", "csv", "TIMESTAMP", "date", "ContextTokens", "GeneratedTokens"),
        Format("burstgpt", "csv", "Timestamp", "s", "Request tokens", "Response tokens"),
        Format(
            "vidur",
            "csv",
            "arrived_at",
            "s",
            "num_prefill_tokens",
            "num_decode_tokens",
            arrival_optional=True,
        ),
        Format(
            "mooncake",
            "jsonl",
            "timestamp",
            "ms",
            "input_length",
            "output_length",
            blocks="hash_ids",
            block_tokens=512,
        ),
        Format("sharegpt", "json", None, "s", "conversations", "conversations"),
    )
}


def sniff(container: Container, header: Sequence[str]) -> Format:
    """Return the only format whose columns a header has.

    Raise `ValueError` with the candidates if there are several, and with what each format needs if
    there is none.
    """
    candidates = _fitting(container, header)
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        names = ", ".join(each.name for each in candidates)
        raise ValueError(f"may be any of {names}: has the columns of each; say which by `format`")
    raise ValueError(
        f"is of no known format: has {_named(header)}; `format` says which it needs: "
        f"{_needs(container)}; `columns` names others"
    )


def _fitting(container: Container, header: Sequence[str]) -> list[Format]:
    present = set(header)
    return [
        each
        for each in FORMATS.values()
        if each.container == container and set(each.needed) <= present
    ]


def with_columns(form: Format, columns: Columns) -> Format:
    """Return a format with other names of columns."""
    return replace(
        form,
        arrival=columns.arrival or form.arrival,
        arrival_optional=form.arrival_optional and columns.arrival is None,
        unit=columns.unit or form.unit,
        prompt=columns.prompt or form.prompt,
        output=columns.output or form.output,
        domain=columns.domain or form.domain,
        named_domain=columns.domain is not None,
    )


def own_format(container: Container, columns: Columns) -> Format:
    """Return the format of a file whose columns are all named."""
    assert columns.prompt is not None
    assert columns.output is not None
    return Format(
        "columns",
        container,
        columns.arrival,
        columns.unit or "s",
        columns.prompt,
        columns.output,
        domain=columns.domain or "domain",
        named_domain=columns.domain is not None,
    )


def check_header(form: Format, header: Sequence[str]) -> None:
    """Raise `ValueError` if a header lacks a needed column, or has a column of the format twice."""
    if missing := [name for name in form.needed if name not in header]:
        message = f"has no column {' and no column '.join(map(repr, missing))}"
        if fits := _fitting(form.container, header):
            raise ValueError(f"{message}; its columns are those of `format: {fits[0].name}`")
        raise ValueError(
            f"{message}; it has {_named(header)}; `format` says which it needs: "
            f"{_needs(form.container)}; `columns` names others"
        )
    for name in (*form.needed, form.arrival, form.blocks, form.domain):
        if name is not None and header.count(name) > 1:
            raise ValueError(f"has several columns {name!r}; keep one of them")


def _needs(container: Container) -> str:
    """Return what each format of a container needs, for messages."""
    kinds = [each for each in FORMATS.values() if each.container == container]
    return " or ".join(f"{', '.join(dict.fromkeys(each.needed))} ({each.name})" for each in kinds)


def _named(header: Iterable[str]) -> str:
    return ", ".join(cut(name) for name in list(header)[:20]) or "no columns"
