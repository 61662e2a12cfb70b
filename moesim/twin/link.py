"""The link to the GPU, as prompts with experts on the CPU reach it.

For a long prompt llama.cpp copies the experts of each such layer to the GPU, so the time holds the
bytes over the link. Rows with different numbers of layers on the CPU tell it from the time of
computing. The fitted factor multiplies the assumed link, and takes in other errors of the copies.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log
from typing import Final

from moesim.hardware.hardware import Hardware
from moesim.hardware.overrides import faster_link
from moesim.measured.kinds import OFFLOAD
from moesim.measured.predict import Reading
from moesim.twin.model import OpenMachine
from moesim.twin.samples import Sample, Samples

__all__ = ["Link", "learn_link"]

_LEAST_SHARE: Final = 0.3
_MOST: Final = 8.0
"""The most by which the fitted link is above or below the assumed one."""
_ROUNDS: Final = 5
_CLOSE: Final = 5e-3
_SLOWER: Final = 1.1


@dataclass(frozen=True, slots=True)
class Link:
    """The bytes per second of copies to the GPU, fitted and assumed, or why they are not seen.

    `share` is the largest share of a prompt's time that the link takes. `residuals_pct` has for
    each prompt the error of its speed at the fitted link. Without a fit, `factor` is 1.
    """

    factor: float = 1.0
    assumed: float = 0.0
    share: float = 0.0
    samples: tuple[Sample, ...] = ()
    residuals_pct: tuple[float, ...] = ()
    reason: str = ""

    @property
    def seen(self) -> bool:
        """Whether the link was fitted."""
        return not self.reason

    @property
    def value(self) -> float:
        """Bytes per second of copies to the GPU."""
        return self.factor * self.assumed


class _Times:
    """Seconds of a token of a prompt at the fitted numbers, and another link."""

    def __init__(self, samples: Samples, numbers: tuple[float, float]) -> None:
        self._models = samples.models
        self._numbers = numbers

    def hardware(self, reading: Reading) -> Hardware:
        """Return the machine of a row."""
        return OpenMachine(self._models).hardware(reading)

    def seconds(self, reading: Reading, factor: float) -> float:
        """Return the seconds of a token with a link that is faster by a factor."""
        figures = faster_link(self.hardware(reading), factor)
        return OpenMachine(self._models, figures).seconds(reading, *self._numbers)


def learn_link(samples: Samples, numbers: tuple[float, float]) -> Link:
    """Return the link that fits the prompts, or why it cannot be seen.

    `numbers` are the fitted read bandwidth and host time of a layer.
    """
    times = _Times(samples, numbers)
    prompts = [sample for sample in samples.prompts if sample.reading.kind.name == OFFLOAD]
    if not prompts:
        return Link(reason="no prompt was timed with experts on the CPU")
    if len({sample.reading.row.setting for sample in prompts}) < 2:
        return Link(reason="prompts of one setting only: link and computing cannot be told apart")
    assumed = float(times.hardware(prompts[0].reading).h2d.pinned_bytes_per_s)
    whole = [times.seconds(sample.reading, 1) for sample in prompts]
    slower = [times.seconds(sample.reading, 1 / _SLOWER) for sample in prompts]
    shares = [log(b / a) / log(_SLOWER) for a, b in zip(whole, slower, strict=True)]
    if (share := max(shares)) < _LEAST_SHARE:
        why = f"copies over the link take at most {share:.0%} of a prompt's time"
        return Link(reason=f"{why}; it is seen from {_LEAST_SHARE:.0%} on", share=share)
    logs = 0.0
    for _ in range(_ROUNDS):
        errors = [log(t * s.value) for t, s in zip(whole, prompts, strict=True)]
        step = sum(e * w for e, w in zip(errors, shares, strict=True)) / sum(w * w for w in shares)
        step = max(-log(_MOST), min(log(_MOST), logs + max(-1.0, min(1.0, step)))) - logs
        if abs(step) < _CLOSE:
            break
        before, logs = whole, logs + step
        whole = [times.seconds(sample.reading, exp(logs)) for sample in prompts]
        # Where other work hides copies, the share depends on the link.
        shares = [max(0.01, log(a / b) / step) for a, b in zip(before, whole, strict=True)]
    residuals = tuple(100 * (1 / (t * s.value) - 1) for t, s in zip(whole, prompts, strict=True))
    if abs(logs) > log(_MOST) - 0.01:
        reason = f"the prompts would need a link that differs by more than {_MOST:g} times"
        return Link(reason=reason, share=share)
    return Link(exp(logs), assumed, share, tuple(prompts), residuals)
