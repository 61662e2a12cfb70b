"""The timeline of a run as a file that ui.perfetto.dev and chrome://tracing load.

The format is Chrome's trace event format: a JSON object with a list of events. Each lane of the
machine is a thread with one slice for each work. Requests are asynchronous spans with their phases.
Flow arrows lead from a copy to the work that waited for it. Counters are of the whole run.
"""

from moesim.report.perfetto.write import Written, check_timeline, write_perfetto

__all__ = ["Written", "check_timeline", "write_perfetto"]
