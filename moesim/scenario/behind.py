"""The mistakes behind the first ones: those that show only once the wrong keys are left out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from moesim.config.markers import BASE_DIR
from moesim.config.validation import check
from moesim.config.yaml_document import Document, KeyPath
from moesim.errors import ScenarioError
from moesim.hardware.hardware import hardware_names
from moesim.scenario.scenario import Scenario
from moesim.scenario.sweep import expand_sweep, vary

if TYPE_CHECKING:
    from moesim.trace import Trace

__all__ = ["mistakes_behind"]

_ROUNDS: Final = 5  # a key left out may uncover another mistake in the section around it


def mistakes_behind(document: Document, base_dir: Path) -> list[str]:
    """Return what else is wrong with a document that the schema refuses.

    The wrong keys are left out. The rest is checked against its trace, its model and its machine;
    of a sweep, every value of each key is tried.
    """
    from moesim.checks import further_mistakes

    scenario, wrong = _mended(document, base_dir)
    if scenario is None:
        return []
    mistakes: list[str] = []
    try:
        expand_sweep(scenario)
    except ScenarioError as error:
        mistakes += error.problems
    points, useless = vary(scenario)
    traces: dict[Path, Trace] = {}
    for point in points:
        mistakes += further_mistakes(point, wrong | useless, traces)
    return mistakes


def _mended(document: Document, base_dir: Path) -> tuple[Scenario | None, set[KeyPath]]:
    """Return the scenario without what is wrong in it, and the keys that were left out."""
    wrong: set[KeyPath] = set()
    for _ in range(_ROUNDS):
        scenario, faults = check(document, Scenario, {BASE_DIR: base_dir})
        if scenario is not None:
            scenario._document, scenario._base_dir = document, base_dir
            return scenario, wrong
        for fault in faults:
            document = document.without(fault.path)
            wrong.add(fault.path)
        for key, stand_in in (("trace", "."), ("hardware", hardware_names()[0])):
            if key not in document.data:
                document = document.with_value((key,), stand_in, document.place((key,)), {})
                wrong.add((key,))
    return None, wrong
