"""Who of several coordinators leads: one value in a bucket, changed only by who knows its last one.

No machine's clock is compared with another's: each watches by its own how long the value has stood
still. A lease keeps two coordinators from doing the same work; it is not what keeps them from
doing harm: that is the log's guards, which hold also for one that was paused and does not know it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from streams.log import Bus, LogError
from streams.topology import LEASE_BUCKET

logger = logging.getLogger(__name__)

LEADER = "coordinator"
#: A lease that was not renewed for so long is anybody's.
LEASE_S = 3.0
RENEW_S = 0.75
LOOK_S = 0.25


class Held(msgspec.Struct, frozen=True):
    """The value: who leads, and how often that was said."""

    #: "" if whoever led has given it up.
    holder: str
    #: Raised by each new leader.
    term: int
    renewals: int = 0


class LeaseLost(Exception):
    """This process leads no more; whatever it has under way must end."""


class Lease:
    """One process's claim to lead. `acquire`, then `keep` while leading, then `release`.

    `holder` must belong to this process alone: what it finds held by that name is taken at once.
    """

    def __init__(
        self, bus: Bus, holder: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._bus = bus
        self._holder = holder
        self._clock = clock
        self._revision = 0
        self._mine: Held | None = None
        self._until = 0.0
        #: When each value was first seen, to know how long it has stood still.
        self._seen: tuple[int, float] = (-1, 0.0)

    @property
    def held(self) -> bool:
        """Whether this process may lead now. After a pause this is False before anything else."""
        return self._mine is not None and self._clock() < self._until

    @property
    def term(self) -> int:
        """Which leader this is; 0 if it does not lead."""
        return self._mine.term if self._mine is not None and self.held else 0

    async def acquire(self) -> None:
        """Wait until this process leads."""
        while True:
            with contextlib.suppress(LogError):
                if await self._try():
                    return
            await asyncio.sleep(LOOK_S)

    async def keep(self) -> None:
        """Renew until somebody else leads or the bus stays away too long; raises LeaseLost."""
        while self._mine is not None:
            await asyncio.sleep(RENEW_S)
            left = self._until - self._clock()
            if left <= 0:
                break
            with contextlib.suppress(LogError, TimeoutError):
                async with asyncio.timeout(left):
                    if not await self._write(
                        msgspec.structs.replace(self._mine, renewals=self._mine.renewals + 1)
                    ):
                        break
        self._mine = None
        raise LeaseLost(f"{self._holder} leads no more")

    async def release(self) -> None:
        """Give it up, so that another need not wait. Harmless if it is not held."""
        mine, self._mine = self._mine, None
        if mine is None or self._clock() >= self._until:
            return
        with contextlib.suppress(LogError, TimeoutError):
            async with asyncio.timeout(1.0):
                value = msgspec.json.encode(Held("", mine.term))
                await self._bus.kv_update(LEASE_BUCKET, LEADER, value, self._revision)

    async def _try(self) -> bool:
        """Take the lease if it is free, ours, or has stood still for too long."""
        self._revision, value = await self._bus.kv_entry(LEASE_BUCKET, LEADER)
        found = Held("", 0) if value is None else msgspec.json.decode(value, type=Held)
        now = self._clock()
        if self._seen[0] != self._revision:
            self._seen = self._revision, now
        if found.holder not in ("", self._holder) and now - self._seen[1] < LEASE_S:
            return False
        return await self._write(Held(self._holder, found.term + 1))

    async def _write(self, value: Held) -> bool:
        began = self._clock()
        body = msgspec.json.encode(value)
        revision = await self._bus.kv_update(LEASE_BUCKET, LEADER, body, self._revision)
        if revision is None:
            return False
        # Counted from before it was sent: nobody else may count from earlier.
        self._revision, self._mine, self._until = revision, value, began + LEASE_S
        return True


def holder_of(directory: Path, node: str) -> str:
    """The name under which the process that works on `directory` leads; kept over restarts.

    Only who has the directory's lock may use it: the one that had it before is dead.
    """
    file = directory / "leader_id"
    try:
        return file.read_text()
    except FileNotFoundError:
        name = f"{node}-{secrets.token_hex(8)}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
        return name
