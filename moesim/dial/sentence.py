"""One sentence: what accuracy a predictor needs to pay on a machine, or why prefetch does not pay.

It speaks of the depth at which the perfect predictor saves most, on the scenario's own link.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from moesim.dial.break_even import Plane, steps_s
from moesim.dial.grid import Link
from moesim.report.marks import marked, shared_mark
from moesim.report.runs import Run
from moesim.report.statistics import Estimate

__all__ = ["ahead", "main_link", "needed", "percent", "sentence_of"]

WORTH_IT: Final = 0.01
"""The least share of the time in steps that perfect prediction must save."""
_BUSY: Final = 0.9  # a link that is busy for more of the time has no time for copies ahead
_SMALL: Final = 0.05  # a share of the time in steps that is too small to gain much


def sentence_of(planes: Sequence[Plane], speeds: dict[Link, str]) -> str:
    """Return the sentence; `speeds` names each link."""
    links = list(dict.fromkeys(plane.link for plane in planes))
    main = main_link(planes)
    chosen = _best(planes, main)
    parts = [_of(chosen, _where(chosen.base, speeds[main]))]
    parts += [_other(_best(planes, link), speeds[link], chosen) for link in links if link != main]
    if chosen.perfect.saved.half is None:
        parts.append("there is one seed, so no interval stands behind this")
    return f"{'; '.join(parts)}."


def main_link(planes: Sequence[Plane]) -> Link:
    """Return the scenario's own link, or else the first one."""
    links = [plane.link for plane in planes]
    return next((link for link in links if link.is_own), links[0])


def _where(base: Sequence[Run], speed: str) -> str:
    """Return the machine, its link and the trace, whose mark stands behind its name."""
    trace = marked(f"trace {base[0].trace}", shared_mark(base))
    return f"On {base[0].text('hardware')} with a link of {speed} ({trace})"


def _best(planes: Sequence[Plane], link: Link) -> Plane:
    """Return the plane of a link whose perfect predictor saves most; ties: the least depth."""
    return max(
        (plane for plane in planes if plane.link == link),
        key=lambda plane: (plane.perfect.saved.mean, -plane.depth),
    )


def _of(plane: Plane, where: str) -> str:
    """Return what the plane of the scenario's own link says."""
    perfect, named = plane.perfect.saved, ahead(plane.depth)
    if perfect.mean < WORTH_IT:
        return (
            f"{where}, prefetch does not pay: even perfect prediction {named} "
            f"{_saves(perfect)}, because {why_not(plane)}"
        )
    needs = needed(plane) or "pays at no accuracy of the grid that its intervals resolve"
    return f"{where}, a predictor {named} {needs}; perfect prediction {_saves(perfect)}"


def _other(plane: Plane, speed: str, main: Plane) -> str:
    """Return what the plane of another link says, in few words; `main` was named before."""
    if plane.perfect.saved.mean < WORTH_IT:
        return f"at {speed} it never pays (perfect prediction {_saves(plane.perfect.saved)})"
    needs = needed(plane) or "pays at no accuracy of the grid"
    deeper = "" if plane.depth == main.depth else f", {ahead(plane.depth)},"
    return f"at {speed}{deeper} it {needs}"


def needed(plane: Plane) -> str:
    """Return `pays from recall 0.6 at precision 0.8`, with its alternatives; "" without any."""
    corners = plane.pays_from
    if not corners:
        return ""
    near = {border.recall: border.mean for border in plane.borders if border.claimed}
    texts = []
    for recall, precision in corners:
        mean = near.get(recall)
        even = "" if mean is None else f" (break-even near {mean:.2f})"
        texts.append(f"recall {recall:g} at precision {precision:g}{even}")
    return f"pays from {' or '.join(texts)}"


def why_not(plane: Plane) -> str:
    """Return why even perfect prediction saves next to nothing."""
    base, best = plane.base, plane.best
    if not _mean(base, "misses"):
        return "nothing is missed: every expert is in GPU memory when it is needed"
    if not _mean(best, "prefetch_bytes"):
        return "no copy ahead found a slot that was free for it"
    stalls = _mean(base, "stall_demand_s") / _steps(base)
    if stalls < _SMALL:
        return f"the GPU waits for missing experts {percent(stalls)} of this time only"
    busy = sum(run.value("h2d_busy_share") * run.window_s for run in base) / len(base)
    busy /= _steps(base)
    if busy > _BUSY:
        return (
            f"the link is busy {percent(busy)} of this time without prefetch, so there is no idle "
            "time in which to copy ahead"
        )
    late = _mean(best, "prefetch_late_bytes") / _mean(best, "prefetch_bytes")
    wasted = _mean(best, "prefetch_wasted_bytes") / _mean(best, "prefetch_bytes")
    return (
        f"{percent(late)} of the copies ahead come late and {percent(wasted)} are evicted before "
        "their use"
    )


def _mean(runs: Sequence[Run], key: str) -> float:
    values = [run.value(key) for run in runs]
    return sum(0.0 if math.isnan(value) else value for value in values) / len(values)


def _steps(runs: Sequence[Run]) -> float:
    return sum(map(steps_s, runs)) / len(runs)


def _saves(saved: Estimate) -> str:
    verb = "saves" if saved.mean >= 0 else "loses"
    spread = f" ± {100 * saved.half:.2g}" if saved.half else ""
    return f"{verb} {100 * abs(saved.mean):.2g}{spread} % of the time in steps"


def ahead(depth: int) -> str:
    """Return `one layer ahead`."""
    words = {1: "one layer", 2: "two layers", 3: "three layers"}
    return f"{words.get(depth, f'{depth} layers')} ahead"


def percent(share: float) -> str:
    """Return a share as per cent, with two significant digits."""
    return f"{100 * share:.2g} %" if share < 0.995 else f"{100 * share:.0f} %"
