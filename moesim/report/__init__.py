"""What a simulation came to, for people: tables, figures and comparisons of run directories.

Runs are reported from their run directories and nothing else, so a report can be made again
without simulating; a trace's routing (`redundancy`, `locality`) from what `moesim.trace` measures.
Only this package imports matplotlib, and only when something is drawn.
"""

from moesim.report.comparison import Comparison, compare_runs
from moesim.report.comparison_folder import write_comparison
from moesim.report.runs import Run, load_run, load_runs
from moesim.report.single import plots_for_run
from moesim.report.summary import print_summary

__all__ = [
    "Comparison",
    "Run",
    "compare_runs",
    "load_run",
    "load_runs",
    "plots_for_run",
    "print_summary",
    "write_comparison",
]
