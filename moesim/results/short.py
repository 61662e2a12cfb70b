"""A run on one line: the few numbers that a prompt or a table of contents shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["in_short"]


def in_short(summary: Mapping[str, Any]) -> str:
    """Return a run's name, requests, makespan, speeds and stalls on one line.

    Numbers that the summary lacks are left out.
    """
    numbers = (
        ("requests", "{:.0f} requests"),
        ("makespan_s", "{:.4g} s"),
        ("decode_mean_tokens_per_s", "{:.4g} tokens/s per user"),
        ("output_tokens_per_s", "{:.4g} output tokens/s in all"),
        ("stall_share", "{:.0%} stalled"),
    )
    texts = [
        form.format(summary[key])
        for key, form in numbers
        if isinstance(summary.get(key), int | float)
    ]
    return f"{summary.get('name')}: {', '.join(texts)}"
