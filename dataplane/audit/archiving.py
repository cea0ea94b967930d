"""The loop that keeps the archive up with the log, and the log as young as it is to be."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import msgspec

from adapters.blobs import Blobs, blobs_at
from adapters.errors import TransportError
from dataplane.audit.archive import extend, joined
from dataplane.audit.bounding import Hold, Shortened, shorten
from dataplane.config import DataPlaneConfig
from projections.projector import Projector
from projections.store import StoreError
from projections.travel import PointNotHeld
from streams.codec import fact_id, node_fact
from streams.events import LogShortened
from streams.jetstream import JetStreamLog
from streams.joined import JoinedLog
from streams.log import LogError

logger = logging.getLogger(__name__)


class ArchiveState(msgspec.Struct):
    """How the archive does, for a heartbeat."""

    #: The last sequence it held when that was last found out, and when that was.
    sequence: int = 0
    #: The log's last sequence then was archived at this time, seconds since 1970; 0.0: never.
    at: float = 0.0
    interval_s: float = 0.0
    #: What went wrong the last time; "" if nothing did.
    problem: str = ""
    #: What keeps the log from being shorter, while it is older than it should be.
    held: Hold | None = None


class ArchiveKeeper:
    """Keeps one log's archive. `run` in a task; `log` is the log from its first fact on."""

    def __init__(self, log: JetStreamLog, config: DataPlaneConfig) -> None:
        self._live, self._config = log, config
        self._blobs: Blobs = blobs_at(
            config.archive, endpoint_url=config.s3_endpoint, region=config.s3_region
        )
        self.log: JoinedLog = joined(log, self._blobs)
        self.state = ArchiveState(interval_s=config.archive_interval)

    async def run(self, projector: Projector, leads: Callable[[], bool]) -> None:
        """Archive what is new, again and again; what goes wrong is said and tried again.

        Several may do it for one archive: who comes second finds nothing to do, or is told. Only
        who leads removes something from the log.
        """
        while True:
            try:
                await self.archive()
                if self._config.log_max_age_seconds and leads():
                    await self.bound(projector, self._config.log_max_age_seconds)
                self.state.problem = ""
            except (LogError, TransportError, OSError, StoreError, PointNotHeld) as error:
                logger.warning("the log was not archived: %s", error)
                self.state.problem = str(error)
            await asyncio.sleep(self._config.archive_interval)

    async def archive(self) -> None:
        """Bring the archive up to the log once."""
        started = time.time()
        done = await extend(self._blobs, self._live)
        if done.messages:
            logger.info("archived up to %d in %s", done.last_sequence, done.where)
        self.state.sequence, self.state.at = done.last_sequence, started

    async def bound(self, projector: Projector, max_age_s: float) -> Shortened:
        """Remove from the log what is older than that, as far as nothing holds it, and say so."""
        now = time.time()
        done = await shorten(self._live, self._blobs, projector, max_age_s=max_age_s, now=now)
        self.state.held = await self._holds_too_long(done, max_age_s, now)
        if done.removed:
            logger.info("the log begins at %d now: %s", done.first_sequence, done.held.reason)
            event = LogShortened(
                node=self._config.node,
                first_sequence=done.first_sequence,
                removed=done.removed,
                passed_over=done.passed_over,
            )
            id = fact_id("shortened", (await self._live.state()).created, done.first_sequence)
            await self._live.publish(node_fact(event, event.node, id))
        return done

    async def _holds_too_long(self, done: Shortened, max_age_s: float, now: float) -> Hold | None:
        """What keeps something in the log for twice as long as it should be there."""
        if done.held.sequence >= (await self._live.state()).last_sequence:
            return None  # the last message stays in any case
        first = await self._live.get(done.first_sequence)
        return done.held if first is not None and now - first.time > 2 * max_age_s else None

    async def close(self) -> None:
        """Let go of the archive; `run` must have ended."""
        await self._blobs.close()
