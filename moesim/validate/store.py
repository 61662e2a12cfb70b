"""Finished runs on disk: one `.npz` file a run, whole or absent, without pickles.

A study of many configurations takes long; what was measured survives whatever ends it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from moesim.errors import OutputError
from moesim.files import whole_file
from moesim.validate.decisions import Decisions
from moesim.validate.observation import Columns, Observation

__all__ = ["load_run", "save_run"]

_TABLES: Final = ("steps", "events", "requests")
_NUMBERS: Final = ("makespan_ns", "busy_share", "stall_share")


def save_run(file: Path, run: Observation) -> None:
    """Write a run under a temporary name and rename it.

    Raises:
        OutputError: the file cannot be written.
    """
    arrays: dict[str, Any] = {
        f"{table}.{name}": column
        for table in _TABLES
        for name, column in getattr(run, table).items()
    }
    decisions = {name: getattr(run.decisions, name) for name in Decisions.__slots__}
    facts = {**{name: getattr(run, name) for name in _NUMBERS}, "decisions": decisions}
    arrays["facts"] = np.array(json.dumps(facts))
    with whole_file(file) as partial, partial.open("wb") as handle:
        np.savez_compressed(handle, **arrays)


def load_run(file: Path) -> Observation:
    """Read a run back.

    Raises:
        OutputError: the file is not what `save_run` writes.
    """
    try:
        with np.load(file, allow_pickle=False) as arrays:
            facts = json.loads(str(arrays["facts"]))
            tables: dict[str, Columns] = {table: {} for table in _TABLES}
            for key in arrays.files:
                table, _, name = key.partition(".")
                if name:
                    tables[table][name] = arrays[key]
        made: dict[str, Any] = {**tables, **{name: facts[name] for name in _NUMBERS}}
        return Observation(**made, decisions=_decisions(facts["decisions"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(
            file, f"is no finished run ({error}); delete it to measure it again"
        ) from None


def _decisions(plain: Mapping[str, Any]) -> Decisions:
    parts = {name: _tuples(value) for name, value in plain.items() if name != "nbytes"}
    return Decisions(**parts, nbytes=dict(plain["nbytes"]))


def _tuples(value: Any) -> Any:
    """JSON knows lists only."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
