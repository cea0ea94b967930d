"""What a coordinator shows of itself and the cluster: follows the log, counts, and serves the page.

It only reads. Nothing that decides waits for it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import aclosing

from dataplane.config import DataPlaneConfig
from dataplane.coordinator.queries import Queries
from dataplane.coordinator.tracer import Tracer, exporter_of
from dataplane.metrics import ENDS, Metrics
from dataplane.motion import Motion
from dataplane.overview import Overview
from dataplane.queries import AskOverview
from projections.chains import ChainRow
from projections.cluster import ClusterView
from projections.projector import Projector
from streams.codec import Recorded
from streams.log import Bus, Log, ReadingLog

logger = logging.getLogger(__name__)
#: A glance is looked at again after this, and after so many times what it cost.
GLANCE_S = 1.0
_COST_FACTOR = 5.0
_RECENT = 50


class Monitor:
    """What happens and what is, for whoever watches. `run` in a task once the views are up."""

    def __init__(
        self,
        log: Log,
        bus: Bus,
        projector: Projector,
        queries: Queries,
        config: DataPlaneConfig,
        *,
        leads: Callable[[], bool] = lambda: True,
        whole: ReadingLog | None = None,
    ) -> None:
        """`whole` is the log from its first fact on, where that is no longer on the bus.

        Raises ConfigError where `otel_endpoint` needs what is not installed."""
        self.log: ReadingLog = whole or log
        self._live = log
        self.queries = queries
        self.config = config
        self.metrics = Metrics(backs_up=config.s3_enabled)
        self.motion = Motion(bus)
        #: The newest facts, newest first.
        self.recent: deque[Recorded] = deque(maxlen=_RECENT)
        self._projector = projector
        exporter = exporter_of(config.otel_endpoint)
        self._tracer = Tracer(self.log, projector, exporter, leads=leads) if exporter else None
        self._glance: Overview | None = None
        self._look_again_at = 0.0
        self._looking = asyncio.Lock()

    async def run(self) -> None:
        """Follow the log and what moves, for ever."""
        await self.metrics.begin(self._live)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow(), name="follow")
            group.create_task(self.motion.run(), name="motion")
            if self._tracer is not None:
                group.create_task(self._tracer.run(), name="tracer")

    async def glance(self) -> Overview:
        """The cluster now, or as it was a moment ago: many who watch cost as much as one.

        Raises a `LogError` while the bus is away.
        """
        async with self._looking:
            started = time.monotonic()
            if self._glance is None or started >= self._look_again_at:
                found: Overview = await self.queries.answer("overview", AskOverview())
                took = time.monotonic() - started
                self._look_again_at = time.monotonic() + max(GLANCE_S, _COST_FACTOR * took)
                self._glance = found
            return self._glance

    async def _follow(self) -> None:
        # The projector reads the log for both: to decode each fact twice is dear.
        coming = asyncio.Queue[Sequence[Recorded]]()
        known = self._projector.checkpoint.sequence
        self._projector.on_commit.append(coming.put_nowait)
        # What was there before us is shown, and was counted by whoever was there.
        after = max(0, known - _RECENT, (await self._live.state()).first_sequence - 1)
        if after < known:
            async with aclosing(self._live.read(after=after, until=known)) as batches:
                async for batch in batches:
                    self.recent.extendleft(batch)
        while True:
            new = await coming.get()
            self.recent.extendleft(new)
            self.metrics.note(new, self._ended(new))

    def _ended(self, batch: Sequence[Recorded]) -> list[ChainRow]:
        """The chains that ended with these facts, as the views have them."""
        ends = [fact.chain for fact in batch if isinstance(fact.event, ENDS)]
        if not ends:
            return []
        with self._projector.store.read() as reader:
            view = ClusterView(reader)
            rows = [view.chain(id) for id in ends]
        return [row for row in rows if row is not None and not row.open]
