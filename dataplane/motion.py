"""Transfers as they move: heard from who carries them out, and forgotten when they fall silent.

Nothing here is a fact.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from contextlib import aclosing

import msgspec

from dataplane.agent.progress import ProgressMessage
from streams.foreign import Unreadable, from_json
from streams.log import Bus
from streams.subjects import PROGRESS_SUBJECTS

#: A transfer that says nothing for so long no longer moves.
SILENT_S = 5.0
#: A rate is the mean of about so many seconds.
_SMOOTH_S = 2.0


class Moving(msgspec.Struct, frozen=True):
    """How far a transfer is."""

    transfer: str
    source: str
    target: str
    path: str
    config_key: str
    done: int
    total: int
    #: Bytes a second lately; 0 before the second word of it.
    rate: float
    #: By the clock of who listens.
    heard_at: float

    @property
    def share(self) -> float:
        """Between 0 and 1."""
        return min(1.0, self.done / self.total) if self.total else 1.0


class Traffic(msgspec.Struct, frozen=True):
    """Bytes a second that come to a node and leave it."""

    received: float = 0.0
    sent: float = 0.0


class Motion:
    """What moves now. `run` in a task."""

    def __init__(self, bus: Bus, clock: Callable[[], float] = time.time) -> None:
        self._bus, self._clock = bus, clock
        self._moving: dict[str, Moving] = {}
        #: Counts what was heard, so that who draws knows whether anything changed.
        self.heard = 0

    async def run(self) -> None:
        """Listen for ever."""
        async with aclosing(self._bus.listen(PROGRESS_SUBJECTS)) as messages:
            async for _, body in messages:
                try:
                    self.note(from_json(body, ProgressMessage))
                except Unreadable:
                    continue

    def note(self, said: ProgressMessage) -> None:
        """Take in one word of progress."""
        now = self._clock()
        before = self._moving.get(said.transfer)
        self._moving[said.transfer] = Moving(
            transfer=said.transfer,
            source=said.source,
            target=said.target,
            path=said.path,
            config_key=said.config_key,
            done=said.done,
            total=said.total,
            rate=_rate(before, said, now),
            heard_at=now,
        )
        self.heard += 1

    def now(self) -> dict[str, Moving]:
        """What moves, by transfer."""
        oldest = self._clock() - SILENT_S
        self._moving = {
            id: one
            for id, one in self._moving.items()
            if one.heard_at >= oldest and (one.done < one.total or one.heard_at > oldest + 4.0)
        }
        return dict(self._moving)

    def traffic(self) -> dict[str, Traffic]:
        """By node."""
        received: Counter[str] = Counter()
        sent: Counter[str] = Counter()
        for one in self.now().values():
            if one.done < one.total:
                received[one.target] += round(one.rate)
                sent[one.source] += round(one.rate)
        return {name: Traffic(received[name], sent[name]) for name in {*received, *sent}}


def _rate(before: Moving | None, said: ProgressMessage, now: float) -> float:
    """Smoothed over time; begins anew where a transfer does."""
    if before is None or said.done < before.done:
        return 0.0
    passed = now - before.heard_at
    if passed <= 0:
        return before.rate
    latest = (said.done - before.done) / passed
    if not before.rate:
        return latest
    weight = 1 - math.exp(-passed / _SMOOTH_S)
    return before.rate + weight * (latest - before.rate)
