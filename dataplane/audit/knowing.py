"""All that was known after a fact of the log, so that the past is asked what the present is.

It is folded for whoever asks, and thrown away again.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, TypeVar

import msgspec

from dataplane.config import DataPlaneConfig
from dataplane.evidence import facts_about, span_of
from dataplane.planner import SyncPlanner
from dataplane.queries import QUERIES, Ask, AskWhy, Reading
from projections.cluster import ClusterView
from projections.snapshot import Snapshots
from projections.store import Reader
from projections.travel import folded
from streams.codec import Recorded
from streams.log import LogState, ReadingLog

T = TypeVar("T")


class UpTo:
    """A log as it was when it ended with the fact `last`: see `streams.log.ReadingLog`."""

    def __init__(self, log: ReadingLog, last: int) -> None:
        self._log, self._last = log, last

    async def state(self) -> LogState:
        """Which log this is, and how far it went."""
        return msgspec.structs.replace(await self._log.state(), last_sequence=self._last)

    def read(
        self, *, after: int = 0, until: int | None = None, subjects: Sequence[str] = ()
    ) -> AsyncGenerator[list[Recorded], None]:
        """As `ReadingLog.read`; it has an end."""
        until = self._last if until is None else min(until, self._last)
        return self._log.read(after=after, until=until, subjects=subjects)

    async def get(self, sequence: int) -> Recorded | None:
        """As `ReadingLog.get`."""
        return await self._log.get(sequence) if sequence <= self._last else None

    async def close(self) -> None:
        """As `ReadingLog.close`."""
        await self._log.close()


class Then(NamedTuple):
    """What was known after a fact, and the log as it was."""

    known: Reading
    log: ReadingLog

    async def answer(self, name: str, ask: Ask) -> Any:
        """What a question of `dataplane.queries` would have found. Raises ServiceRefusal."""
        if isinstance(ask, AskWhy):
            span = span_of(self.known.view.catalog, ask.path)
            self.known.facts = await facts_about(self.log, ask.path, span)
        return QUERIES[name][2](ask, self.known)

    async def read(self, work: Callable[[Reading], T]) -> T:
        """Do `work` on all that was known."""
        return work(self.known)


@asynccontextmanager
async def known_at(log: ReadingLog, last: int, config: DataPlaneConfig) -> AsyncIterator[Then]:
    """All that was known after the fact `last`; what was in nobody's log then, such as heartbeats,
    is not known.

    Raises `projections.travel.PointNotHeld`.
    """
    async with folded(log, last, Snapshots(config.snapshots_dir)) as store:
        with store.read() as reader:
            yield then_of(reader, log, last, config)


def then_of(reader: Reader, log: ReadingLog, last: int, config: DataPlaneConfig) -> Then:
    """The same by views that are folded up to there."""
    view = ClusterView(reader)
    now = view.checkpoint.time
    planner = SyncPlanner(config.policy(), view, now)
    return Then(Reading(view, planner, now, {}, last, config, None), UpTo(log, last))
