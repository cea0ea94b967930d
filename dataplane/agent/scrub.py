"""Reads this node's replicas again, little by little, so that rot is found while a good copy lives.

What has rotted is set aside and said as a fact, and asked for anew from whoever holds it whole. It
must never take more of the disks than its budget, nor touch a file of the node's own.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from adapters.files.inventory import Inventory
from adapters.files.rot import Rot
from streams import events
from streams.codec import Fact, fact_id, node_fact
from streams.values import DataEntry

logger = logging.getLogger(__name__)

#: What is due is looked for at least this often.
_LOOK_S = 60.0
_BITS_PER_BYTE, _MEGABIT = 8, 1e6
#: Says facts so that they are said even if this process dies now, and in the end.
Say = Callable[[Fact], Awaitable[object]]


class Scrubber:
    """Reads again what was read longest ago. `run` in a task."""

    def __init__(
        self,
        node: str,
        inventory: Inventory,
        say: Say,
        *,
        interval_s: float,
        limit_mbps: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._node = node
        self._inventory = inventory
        self._say = say
        self._interval_s = interval_s
        self._limit_mbps = limit_mbps
        self._clock = clock
        self._began = clock()
        self._read_at: dict[str, float] = {}
        #: Files of the node's own that were said to be rotten; they stay, and are said once.
        self._left: set[tuple[str, str]] = set()
        #: For health: replicas read again, their bytes, and those found rotten.
        self.read = 0
        self.bytes_read = 0
        self.rotten = 0

    async def run(self) -> None:
        """Read again what is due, for ever."""
        if not self._interval_s:
            return
        while True:
            for entry in (*self._inventory.spoiled(), *self.due()):
                # Paced by the block: a large file would have the disk to itself for an hour.
                await self.scrub(entry, pace(self._limit_mbps))
            await asyncio.sleep(min(_LOOK_S, self._interval_s / 4))

    def due(self) -> list[DataEntry]:
        """What was not read within the interval, longest ago first.

        When something was read is forgotten with the process, so that for who starts anew the
        count begins at the start: what was due is spread over a whole interval again.
        """
        here = self._inventory.at_rest()
        paths = {entry.path for _, entry in here}
        self._read_at = {path: at for path, at in self._read_at.items() if path in paths}
        # What lies ahead was noted before the clock was set back: when it was nobody knows.
        now = self._clock()
        self._began = min(self._began, now)

        def last_read(at: float, path: str) -> float:
            known = (at, self._read_at.get(path, self._began))
            return max((time for time in known if 0 < time <= now), default=self._began)

        last = [(last_read(at, entry.path), entry) for at, entry in here]
        oldest = now - self._interval_s
        return [e for at, e in sorted(last, key=lambda pair: pair[0]) if at <= oldest]

    async def scrub_at(self, path: str) -> Rot | None:
        """Read again what is here under a path, because somebody found it to be another content.

        None as well where nothing is, or where it can't be read again as it is.
        """
        entries = (*self._inventory.spoiled(), *(entry for _, entry in self._inventory.at_rest()))
        entry = next((one for one in entries if one.path == path), None)
        return None if entry is None else await self.scrub(entry)

    async def scrub(
        self, entry: DataEntry, pause: Callable[[int], float] | None = None
    ) -> Rot | None:
        """Read one replica again, and say what is wrong with it; as slowly as `pause` says."""
        rot = await self._inventory.scrub(entry.path, pause=pause)
        now = self._clock()
        self._read_at[entry.path] = now
        self.read += 1
        self.bytes_read += entry.size_bytes
        content = entry.path, entry.checksum
        if rot is not None and content not in self._left:
            self._left.add(content)
            self.rotten += 1
            logger.error("%s has rotted: %s", rot.local, rot.reason)
            for fact in damage_facts(self._node, entry, rot, now):
                await self._say(fact)
            if rot.set_aside:
                self._left.discard(content)
                await self._inventory.reported((), (entry.path,))
        return rot


def pace(limit_mbps: float, clock: Callable[[], float] = time.monotonic) -> Callable[[int], float]:
    """Says after each of several blocks, by its bytes, how long to rest so that all that was read
    since this call keeps to the limit.
    """
    began, read = clock(), 0

    def pause(nbytes: int) -> float:
        nonlocal read
        read += nbytes
        return max(0.0, began + read * _BITS_PER_BYTE / (limit_mbps * _MEGABIT) - clock())

    return pause


def damage_facts(node: str, entry: DataEntry, rot: Rot, now: float) -> Sequence[Fact]:
    """That a copy is damaged, and that the node needs it from somebody who holds it whole."""
    damaged = events.FileQuarantined(
        node=node, path=entry.path, checksum=entry.checksum, reason=rot.reason
    )
    needed = events.DataNeeded(
        node=node, config_key=entry.config_key, data_type=entry.data_type, paths=(entry.path,)
    )
    about = fact_id("rotten", node, entry.path, entry.checksum, now)
    return (
        node_fact(damaged, node, about),
        node_fact(needed, node, fact_id(about, "needed"), cause=about),
    )
