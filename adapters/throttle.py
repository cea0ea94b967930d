"""A speed limit that may change while it is used. It must never refuse: it only makes one wait."""

from __future__ import annotations

import asyncio
import time

#: Seconds of the rate that may be saved up while nobody takes.
BURST_S = 0.1
#: A waiting taker looks this often whether the rate has changed.
LOOK_S = 0.1
#: Shorter sleeps would only spin.
SHORTEST_S = 0.001


class Throttle:
    """A token bucket over bytes, first come, first served. Lives on one event loop."""

    def __init__(self, rate_mbps: float = 0.0) -> None:
        self._rate = 0.0
        self._earned = 0.0
        self._taken = 0.0
        self._earned_at = time.monotonic()
        self.set_rate(rate_mbps)

    @property
    def bytes_per_s(self) -> float:
        """The limit in bytes per second; 0 if there is none."""
        return self._rate

    def set_rate(self, rate_mbps: float) -> None:
        """Allow `rate_mbps` Mbit/s from now on, 0 for no limit; those who wait feel it at once."""
        if rate_mbps < 0:
            raise ValueError("a rate is never negative")
        self._earn()
        self._rate = rate_mbps * 1_000_000 / 8
        self._earned = min(self._earned, self._taken + self._rate * BURST_S)

    def paced(self, least: int, most: int, seconds: float) -> int:
        """As many bytes as pass in `seconds`, within bounds; `most` without a limit."""
        return max(least, min(most, int(self._rate * seconds))) if self._rate else most

    async def take(self, nbytes: int) -> None:
        """Wait until `nbytes` may pass. Bytes of a taker that is cancelled count as passed."""
        self._earn()
        self._taken += nbytes
        mine = self._taken
        while self._rate and (lacking := mine - self._earned) > 0:
            await asyncio.sleep(min(max(lacking / self._rate, SHORTEST_S), LOOK_S))
            self._earn()

    def _earn(self) -> None:
        now = time.monotonic()
        earned = self._earned + self._rate * (now - self._earned_at)
        # Without a limit nothing is owed, so that a limit set later does not charge for the past.
        self._earned = (
            min(earned, self._taken + self._rate * BURST_S) if self._rate else self._taken
        )
        self._earned_at = now
