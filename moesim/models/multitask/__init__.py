"""The multi-task mixture: shared experts, a gate's weights for each task, a tower for each task.

mixture.py   the network
tasks.py     what is learnt from what: tasks, their losses, examples
fitting.py   training, and how well a mixture does
served.py    a trained mixture as inference runs it, a task at a time
requests.py  streams of tasks, and their traces
"""

from __future__ import annotations

from moesim.models.multitask.fitting import Epoch, Fitted, Settings, evaluate, fit
from moesim.models.multitask.mixture import Mixture, flops_per_row
from moesim.models.multitask.tasks import Examples, Task

__all__ = [
    "Epoch",
    "Examples",
    "Fitted",
    "Mixture",
    "Settings",
    "Task",
    "evaluate",
    "fit",
    "flops_per_row",
]
