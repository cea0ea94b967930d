"""The silent stop: a loop that is there, says nothing is wrong, and does nothing.

Readings and the time come in, a reason to start the process anew goes out. It must never take an
empty queue, or a bus that is away, for a loop that stands still.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

#: Work that has waited for so long while nothing was done means that nobody does it.
STANDSTILL_S = 60.0


class Progress(msgspec.Struct, frozen=True):
    """One loop at one moment: how much waits for it, and how often it has done something."""

    loop: str
    waiting: int
    turns: int


class StandsStill(Exception):
    """A loop does nothing though it should: the process must be started anew."""


class Standstill:
    """Remembers since when each loop has had work and done none."""

    def __init__(self, limit_s: float = STANDSTILL_S) -> None:
        self._limit_s = limit_s
        self._since: dict[str, tuple[int, float]] = {}

    def judge(self, loops: Iterable[Progress], now: float) -> str:
        """Which loop stands still, in words; "" if none. `now` is any clock that never jumps.

        A loop that is not among them any more is forgotten.
        """
        before, self._since = self._since, {}
        problem = ""
        for one in loops:
            turns, since = before.get(one.loop, (-1, now))
            idle = one.waiting > 0 and one.turns == turns
            self._since[one.loop] = one.turns, since if idle else now
            if idle and now - since > self._limit_s:
                what = f"has done nothing for {now - since:.0f} s"
                problem = problem or f"the {one.loop} {what} while {one.waiting} wait for it"
        return problem

    def forget(self) -> None:
        """Nothing could be asked: what was seen before says nothing any more."""
        self._since.clear()
