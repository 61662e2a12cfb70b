"""Two queues: missing experts are divided so that CPU and GPU finish at about the same time.

HybriMoE (arXiv 2504.05897) divides them greedily. The link copies the missing expert with the most
rows, and the CPU computes the one with the fewest. Whichever of the two tasks ends first is taken,
until no expert is left. The GPU computes resident experts, and copied ones once they have landed.

The rule looks at the end of a copy, not at the GPU behind it. So it can take longer than the CPU
alone or copies alone would; then the best of the three is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import accumulate

from moesim.policies.placement.base import ARRIVING, CPU, GPU, Estimate, Placement
from moesim.policies.registry import register
from moesim.policies.view import Key, View


@register("placement", "two_queue")
class TwoQueue(Placement):
    """The heaviest missing experts are copied, the lightest run on the CPU, until both meet."""

    lanes = (CPU,)
    sees_arriving = True

    def place(self, view: View, absent: Mapping[Key, str], estimate: Estimate) -> Mapping[Key, str]:
        rows = dict(zip(view.union, view.tokens, strict=True))
        event = QueuedEvent(rows, absent, estimate)
        num_copied = event.best()
        return {key: CPU if place >= num_copied else GPU for place, key in enumerate(event.queue)}


class QueuedEvent:
    """One layer event with its estimated durations in nanoseconds.

    `rows` are the rows of each wanted key; `absent` is as in `Placement.place`. `queue` holds the
    experts to divide, those with most rows first; ties: the lower key.
    """

    def __init__(
        self, rows: Mapping[Key, int], absent: Mapping[Key, str], estimate: Estimate
    ) -> None:
        host = [key for key in rows if absent.get(key, ARRIVING) != ARRIVING]
        queue = self.queue = sorted(host, key=lambda key: (-rows[key], key))
        # A read from disk delays the task that needs it, and no other read.
        read = [estimate.read_ns(key) for key in queue]
        self._copy_ns = [estimate.copy_ns(k) + ns for k, ns in zip(queue, read, strict=True)]
        self._gpu_ns = [estimate.gpu_ns(key, rows[key]) for key in queue]
        # The CPU computes its experts in one call. Copied experts are computed in calls of their
        # own, because each starts when it has landed.
        self._call_ns = estimate.cpu_call_ns
        self._rows, self._read_ns, self._estimate = rows, read, estimate
        # How much is left of a copy under way is not known, so a whole copy is counted: it delays
        # the copies behind it by no more.
        arriving = sorted(key for key in rows if absent.get(key) == ARRIVING)
        self._arriving = [(estimate.copy_ns(k), estimate.gpu_ns(k, rows[k])) for k in arriving]
        self._residents_ns = _grouped_ns(
            [estimate.gpu_ns(key, n) for key, n in rows.items() if key not in absent],
            estimate.gpu_call_ns,
        )

    @cached_property
    def _cpu_ns(self) -> list[int]:
        # Not asked where all experts are copied, because there may be no CPU.
        cpu_ns, rows, call = self._estimate.cpu_ns, self._rows, self._call_ns
        return [
            cpu_ns(key, rows[key]) - call + read
            for key, read in zip(self.queue, self._read_ns, strict=True)
        ]

    def best(self) -> int:
        """Return how many experts of the queue are copied where that ends first."""
        # `min` returns the first of equals: the greedy division, then the CPU, then copies.
        divisions = (self.greedy(), 0, len(self.queue))
        return min(divisions, key=self.makespan_ns)

    def link_ns(self, num_copied: int) -> int:
        """Return how long the link copies, if the first experts of the queue are copied."""
        return sum([copy for copy, _ in self._arriving] + self._copy_ns[:num_copied])

    def greedy(self) -> int:
        """Return how many experts of the queue are copied; the CPU computes the others."""
        first, end = 0, len(self.queue)
        link_ns, cpu_ns = sum(copy for copy, _ in self._arriving), self._call_ns
        while first < end:
            landed_ns = link_ns + self._copy_ns[first]
            computed_ns = cpu_ns + self._cpu_ns[end - 1]
            if landed_ns < computed_ns:
                first, link_ns = first + 1, landed_ns
            else:
                end, cpu_ns = end - 1, computed_ns
        return first

    def makespan_ns(self, num_copied: int) -> int:
        """Return when CPU and GPU are both done, if the first experts of the queue are copied."""
        on_cpu = self._cpu_ns[num_copied:] if num_copied < len(self.queue) else []
        cpu_ns = self._call_ns + sum(on_cpu) if on_cpu else 0
        copies = [copy for copy, _ in self._arriving] + self._copy_ns[:num_copied]
        computes = [gpu for _, gpu in self._arriving] + self._gpu_ns[:num_copied]
        gpu_ns = self._residents_ns
        for landed_ns, compute_ns in zip(accumulate(copies), computes, strict=True):
            gpu_ns = max(gpu_ns, landed_ns) + compute_ns
        return max(cpu_ns, gpu_ns)


def _grouped_ns(durations_ns: Sequence[int], call_ns: int) -> int:
    """Return the duration of one call over experts that each take so long in a call of its own."""
    return sum(durations_ns) - call_ns * (len(durations_ns) - 1) if durations_ns else 0
