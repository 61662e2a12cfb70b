"""The multi-task mixture: shared experts, a gate's weights for each task, a tower for each task.

mixture.py   the network
tasks.py     tasks, their losses, their examples
fitting.py   training and evaluation
served.py    a trained mixture in inference, one task at a time
requests.py  streams of tasks, and their traces
"""

from __future__ import annotations

from moesim.training.multitask.fitting import Epoch, FitSettings, Fitted, evaluate, fit
from moesim.training.multitask.mixture import Mixture, flops_per_row
from moesim.training.multitask.tasks import Examples, Task

__all__ = [
    "Epoch",
    "Examples",
    "FitSettings",
    "Fitted",
    "Mixture",
    "Task",
    "evaluate",
    "fit",
    "flops_per_row",
]
