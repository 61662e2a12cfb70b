"""What-ifs: the fitted machine in another setting, format, or with another part.

A what-if changes the row of a sample, and is predicted as that sample is. Where a part of the
machine changes, the ratios of fitted to assumed numbers stay, and the interval is that of a machine
without a fit: the new part was not measured.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, log, sqrt
from typing import Any, Final

import numpy as np

from moesim.engines.engine import engine_names
from moesim.errors import MoesimError, UsageError
from moesim.hardware.parts import memory_named
from moesim.measured.engine_text import gpu_vendor
from moesim.measured.fit import engine_of, machine_of, owned_by, parts_of
from moesim.measured.intervals import interval_of
from moesim.measured.predict import Answer, Declined, Prediction, Reading, read
from moesim.measured.rows import Row
from moesim.measured.setting import Setting
from moesim.measured.simulated import Simulated
from moesim.model.formats import check_format_name
from moesim.twin.learn import Learned, slopes_of
from moesim.twin.link import Link, link_figures
from moesim.twin.samples import Samples

__all__ = ["Change", "Imagined", "answer", "change_of"]
