"""Reports: tables, figures and comparisons of finished runs, for people.

A report reads run directories, or results in memory, and nothing else. So it can be made again
without simulating.
`redundancy` and `locality` report what `moesim.trace` measures of a trace's routing. Only this
package imports matplotlib, and only `page` imports Altair and Jinja2, when they are used.
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
