"""Mistakes that show only once other mistakes are gone.

The checks that need a trace or a model run only on a scenario that the schema accepts. Here the
keys that it refuses are left out, so that one attempt reports the remaining mistakes as well.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from moesim.config.markers import BASE_DIR
from moesim.config.validation import check
from moesim.config.yaml_document import Document, KeyPath
from moesim.errors import ScenarioError
from moesim.hardware.hardware import hardware_names
from moesim.scenario.scenario import SHORTHANDS, Scenario
from moesim.scenario.sweep import expand_sweep, oversize, vary
from moesim.scenario.system import with_system

if TYPE_CHECKING:
    from moesim.trace import Trace

__all__ = ["mistakes_behind"]

_ROUNDS: Final = 5  # leaving a key out may expose another mistake in the section around it


def mistakes_behind(document: Document, base_dir: Path) -> list[str]:
    """Return the other mistakes of a document that the schema refuses.

    The wrong keys are left out. The rest is checked against its trace, model and machine, with
    every value of each swept key.
    """
    from moesim.simulate.checks import further_mistakes  # which imports this package

    scenario, wrong = _without_mistakes(document, base_dir)
    if scenario is None:
        return []
    mistakes: list[str] = []
    try:
        expand_sweep(scenario)
    except ScenarioError as error:
        mistakes += error.problems
    if oversize(scenario):
        # Trying every value would take as long as the refused sweep: check the scenario alone.
        scenario = scenario.model_copy(update={"sweep": {}})
    points, without_value = vary(scenario)
    traces: dict[Path, Trace] = {}
    for point in points:
        mistakes += further_mistakes(point, wrong | without_value, traces)
    return mistakes


def _without_mistakes(document: Document, base_dir: Path) -> tuple[Scenario | None, set[KeyPath]]:
    """Return the scenario without its wrong keys, and these keys.

    The scenario is None where mistakes are left after `_ROUNDS` rounds.
    """
    wrong: set[KeyPath] = set()
    for _ in range(_ROUNDS):
        scenario, faults = check(with_system(document, SHORTHANDS), Scenario, {BASE_DIR: base_dir})
        if scenario is not None:
            scenario._document, scenario._base_dir = document, base_dir
            return scenario, wrong
        for fault in faults:
            document = document.without(fault.path)
            wrong.add(fault.path)
        # The two required keys need some value. As they count as wrong, no check reads it.
        for key, placeholder in (("trace", "."), ("hardware", hardware_names()[0])):
            if key not in document.data:
                document = document.with_value((key,), placeholder, document.place((key,)), {})
                wrong.add((key,))
    return None, wrong
