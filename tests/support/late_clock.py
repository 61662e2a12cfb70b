"""A clock for tests of code that sleeps: time moves only in `sleep`, which ends late."""

from __future__ import annotations


class LateClock:
    """A replacement of the module `time`; every sleep takes `late_ns` too long."""

    def __init__(self, late_ns: int = 0) -> None:
        self.now_ns = 0
        self.late_ns = late_ns

    def monotonic_ns(self) -> int:
        return self.now_ns

    def monotonic(self) -> float:
        return self.now_ns / 1e9

    def sleep(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9) + self.late_ns
