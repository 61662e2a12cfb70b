"""A report as one HTML file that needs no server, network or other file.

`write_page` makes the page of one run or of a comparison. Altair makes the plots, as Vega-Lite
specifications with their rows. The scripts that draw them are in the page once. Every plot has a
table with the same numbers, and the page can be read without scripts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from moesim.files import PAGE, check_may_write
from moesim.report.chart import write_whole
from moesim.report.comparison import compare_runs
from moesim.report.page.extra import require_html
from moesim.report.runs import Run
from moesim.results.what_if import WhatIfs

__all__ = ["check_page", "page_of", "write_page"]


def check_page(file: Path) -> None:
    """Raise an error, before any work, where the page cannot be written.

    Raises:
        MissingExtra: the packages of the extra `html` are not installed.
        UsageError: the name does not end in .html, or is that of a folder.
        OutputError: the file exists, and moesim did not write it.
    """
    require_html()
    check_may_write(file, "--out", *PAGE)


def page_of(runs: Sequence[Run], command: str, what_if: WhatIfs | None = None) -> str:
    """Return the HTML of one run or of a comparison. Equal runs and commands give equal text.

    `command` is the command line that made the page, which shows it. `what_if` are the what-ifs
    of one run; without them the page says how to compute them.

    Raises:
        MissingExtra: the packages of the extra `html` are not installed.
        DamagedRun: a file is not as it was written.
        UsageError: there are no runs.
    """
    from moesim.report.page.render import rendered

    require_html()
    if len(runs) == 1:
        from moesim.report.page.run_page import run_page

        return rendered(run_page(runs[0], command, what_if))
    from moesim.report.page.comparison_page import comparison_page

    return rendered(comparison_page(compare_runs(runs), command))


def write_page(
    file: Path, runs: Sequence[Run], command: str, what_if: WhatIfs | None = None
) -> None:
    """Write the page of runs to a file, which is whole or not there.

    Raises:
        OutputError: the file cannot be written.
        MissingExtra, DamagedRun, UsageError: as `page_of`.
    """
    write_whole(file, page_of(runs, command, what_if))
