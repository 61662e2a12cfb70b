"""The interface of a machine: seven members, which are all that a server may ask for.

A server is a generator that submits work and waits for it. A machine runs it, in virtual time with
a price list, or in real time. Only the server submits work, and it is suspended while it waits. So
between two of its actions the future of every lane is fixed. That is why a machine that folds time
agrees with one that runs every event. A completion callback or an "on idle" hook would break this.

At equal times, completions come first, then the server, then lanes start work. Work that takes no
time is over after all lanes have started at that instant, so what waits for it starts after that.

**Host time.** Between two waits of the server, `now_ns` and `done` stand still. Each work has a
release: `now_ns` plus the issue times of all work submitted since the last wait, its own included.
It starts no earlier. A wait first moves the host past the last release. `promote` acts at the
release of the work submitted before it.

**Shared resources.** Work whose `Cost` has `uses` shares bandwidths with the running work of other
lanes. Its finish is not known before it is over. `moesim.machine.flows` states the rates. They are
computed once an instant, after its completions, the server's actions and the starts.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from typing import Any, Protocol

from moesim.machine.work import Work

Wait = Generator[Any, Any, None]


class Machine(Protocol):
    """The protocol of a machine.

    A lane does one thing at a time. Compute is first come first served, and so are copies within an
    urgency. At a chunk boundary an eligible demand copy goes before queued prefetches. Work is
    eligible when it is released and all of `after` is done.
    """

    @property
    def now_ns(self) -> int:
        """Return the time of the server's last wait."""

    def submit(self, work: Work) -> None:
        """Queue a work on its lane. A simulated machine prices it, the real machine does it.

        Lanes that compute, or copy from GPU memory, take no prefetches.
        """

    def promote(self, work: Work) -> None:
        """Move a queued prefetch behind the demand copies issued so far; no effect on others."""

    def cancel(self, work: Work) -> bool:
        """Remove a queued prefetch that has not started by `now_ns`; return whether it was removed.

        Promoted prefetches stay, and so do those of which a chunk has started. It takes no host
        time. The caller makes sure that no work waits for a removed one, which is never done.
        """

    def done(self, work: Work) -> bool:
        """Return whether the work finished at or before `now_ns`."""

    def wait_any(self, works: Sequence[Work], until_ns: int | None = None) -> Iterable[Any]:
        """Wait until one work is done or `until_ns` has come; use it as `yield from wait_any()`.

        The time may advance before the first `yield`, so do nothing between call and `yield from`.
        """

    def close(self) -> None:
        """Release lanes, threads and memory."""
