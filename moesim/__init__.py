"""moesim simulates mixture-of-experts inference on a GPU that cannot hold all experts.

The public API is small: load a trace and a scenario, run it, read the result (docs/api.md). Names
resolve on first use, so that `import moesim` is fast and the torch extra stays optional.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moesim.advice.advice import Advice
    from moesim.advice.ask import advise
    from moesim.report.comparison import Comparison
    from moesim.report.result import Result
    from moesim.scenario import Scenario, load_scenario
    from moesim.simulate import run
    from moesim.simulate.curve_report import curve
    from moesim.simulate.rundir import load
    from moesim.sweep.compare import compare
    from moesim.trace import Trace, load_trace

__version__ = "0.1.0"

__all__ = [
    "Advice",
    "Comparison",
    "Result",
    "Scenario",
    "Trace",
    "__version__",
    "advise",
    "compare",
    "curve",
    "load",
    "load_scenario",
    "load_trace",
    "run",
]

_HOME = {
    "Advice": "moesim.advice.advice",
    "Comparison": "moesim.report.comparison",
    "Result": "moesim.report.result",
    "Scenario": "moesim.scenario",
    "Trace": "moesim.trace",
    "advise": "moesim.advice.ask",
    "compare": "moesim.sweep.compare",
    "curve": "moesim.simulate.curve_report",
    "load": "moesim.simulate.rundir",
    "load_scenario": "moesim.scenario",
    "load_trace": "moesim.trace",
    "run": "moesim.simulate",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'moesim' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value  # later uses find the name without this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
