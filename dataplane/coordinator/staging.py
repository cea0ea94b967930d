"""Looks for training runs that are about to begin, and says which data should be there before.

It looks through a configuration in pages, as other sweeps do, and holds nothing but when it last
looked. It says something only where the planner would move something for it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from dataplane.planner import SyncPlanner
from dataplane.planner.targets import exclusion
from dataplane.policy import Policy
from dataplane.prestaging import Lacking, due, kinds_of, spare_bytes, trigger
from projections.cluster import ClusterView
from projections.projector import Projector
from projections.trainings import Expected, TrainingRow
from streams.codec import Fact, node_fact
from streams.values import DataType

#: A page may keep others waiting for so long, and is followed by a pause for them.
PAGE_S = 0.005
PAUSE_S = 0.001


class Stager:
    """Brings data ahead of trainings, for one coordinator."""

    def __init__(
        self,
        projector: Projector,
        policy: Policy,
        node: str,
        say: Callable[[Fact], Awaitable[None]],
        clock: Callable[[], float],
    ) -> None:
        self._projector = projector
        self._policy = policy
        self._node = node
        self._say = say
        self._clock = clock
        self._looked_at: dict[tuple[str, str], float] = {}

    async def stage_ahead(self) -> None:
        """Look at each start that is near, and say what should be there before it."""
        now, cooldown = self._clock(), self._policy.prestage.cooldown_s
        with self._projector.store.read() as reader:
            rows = {(row.node, row.config_key): row for row in ClusterView(reader).trainings()}
        for start in due(rows.values(), self._policy, now):
            key = (start.node, start.config_key)
            if now - self._looked_at.get(key, 0.0) >= cooldown:
                self._looked_at[key] = now
                await self._look(start, rows[key], now)

    async def _look(self, start: Expected, row: TrainingRow, now: float) -> None:
        with self._projector.store.read() as reader:
            planner = SyncPlanner(self._policy, ClusterView(reader), now)
            target = planner.known.node(start.node)
            if target is None or exclusion(planner.known, target, asked_for=False) is not None:
                return
        lacking = Lacking()
        for data_type in kinds_of(row):
            await self._note_lacking(lacking, start, data_type)
        with self._projector.store.read() as reader:
            view = ClusterView(reader)
            room = spare_bytes(start, target, view.in_flight(), self._policy, now)
            paths = tuple(lacking.that_fit(room))
            event, id = trigger(start, row, lacking, paths, self._policy, now)
            if not paths or not SyncPlanner(self._policy, view, now).decide(event).plans:
                return
        await self._say(node_fact(event, self._node, id))

    async def _note_lacking(self, lacking: Lacking, start: Expected, data_type: DataType) -> None:
        after: bytes | None = b""
        while after is not None:
            until = time.perf_counter() + PAGE_S
            with self._projector.store.read() as reader:
                some, after = ClusterView(reader).catalog.lacking_page(
                    start.node,
                    start.config_key,
                    data_type,
                    after,
                    lambda until=until: time.perf_counter() >= until,  # type: ignore[misc]
                )
            lacking.note(some)
            await asyncio.sleep(PAUSE_S)
