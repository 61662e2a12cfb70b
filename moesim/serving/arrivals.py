"""Arrivals: when the next request enters the server.

In an open loop, all arrival times are known in advance. In a closed loop, each of N clients sends
one request at time zero. When its request has ended (finished, or rejected), the client thinks,
and then sends the next request that was not sent yet.

Requests are numbered in the order in which they are sent. All that concerns request i is drawn
before the run: its rows, lengths, domain, and the think time that follows it. So every policy and
every machine serves the same request i. Only the time of its arrival, and the client that sends
it, depend on the run. If several clients are ready at the same time, any of them may send: no
result depends on it, because think times belong to requests and not to clients.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heappop, heappush

from moesim.serving.request import Request

__all__ = ["NOT_SENT", "Arrivals"]

NOT_SENT = -1  # arrival time of a request that no client has sent yet


class Arrivals:
    """Hands over `requests` in their order, each at the time at which it arrives.

    Requests with an arrival time are sent then, in ascending order. Each request without one
    (`NOT_SENT`) is sent when a client is ready for it.
    """

    def __init__(self, requests: Sequence[Request]) -> None:
        self._requests = requests
        self._next = 0
        # A heap of the times at which one request each can be sent.
        self._ready = [r.arrival_ns for r in requests if r.arrival_ns != NOT_SENT]
        heapify(self._ready)
        self.clients = len(self._ready)
        """Number of clients, or of requests in an open loop: the most in the system at a time."""

    @property
    def sent(self) -> int:
        """The number of requests that have arrived."""
        return self._next

    @property
    def unsent(self) -> bool:
        """Whether a request is still to arrive."""
        return self._next < len(self._requests)

    @property
    def due_ns(self) -> int | None:
        """The time of the next arrival; None if none follows, or if it waits for a request's end.

        The end of another request can make this time earlier.
        """
        return self._ready[0] if self._ready and self.unsent else None

    def take(self) -> Request:
        """Return the next request, which arrives at `due_ns`."""
        request = self._requests[self._next]
        self._next += 1
        request.arrival_ns = heappop(self._ready)
        return request

    def end(self, request: Request, now_ns: int) -> None:
        """Record that a request has finished or was rejected; its client now thinks."""
        if request.think_ns is not None:
            heappush(self._ready, now_ns + request.think_ns)
