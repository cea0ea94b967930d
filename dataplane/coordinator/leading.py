"""What only the coordinator that leads does: deciding, assigning, sweeping, missing silent nodes.

It holds nothing that a kill could lose. What it decides is guarded by the log, so that a leader
that was deposed and does not know it changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from dataplane.config import DataPlaneConfig
from dataplane.coordinator.bridge import EventBridge
from dataplane.coordinator.deleting import Deleter
from dataplane.coordinator.dispatch import Dispatcher
from dataplane.coordinator.drains import Drains
from dataplane.coordinator.sweeping import Sweeper
from dataplane.liveness import verdicts
from dataplane.presence import present
from projections.cluster import ClusterView
from projections.projector import Projector
from streams.log import Bus, Log, LogError
from streams.topology import NODES_TTL_S

logger = logging.getLogger(__name__)
LIVENESS_S = 5.0


class Leading:
    """The loops of a leader. `run` in a task, as often as this process comes to lead."""

    def __init__(
        self,
        log: Log,
        bus: Bus,
        config: DataPlaneConfig,
        projector: Projector,
        *,
        leads: Callable[[], bool] = lambda: True,
    ) -> None:
        self._log = log
        self._bus = bus
        self._config = config
        self._projector = projector
        policy = config.policy()
        self.bridge = EventBridge(log, projector, policy, leads=leads)
        self.dispatcher = Dispatcher(log, projector, policy, config.node, leads=leads, bus=bus)
        self.deleter = Deleter(log, bus, projector, policy)
        self.drains = Drains(log, bus, projector, policy)
        self.sweeper = Sweeper(log, projector, policy, config.node)

    async def run(self) -> None:
        """Everything a leader does at once, until cancelled. One loop's end is the end of all."""
        self.dispatcher.last_progress = time.monotonic()
        # Whoever led before may have said things that these views have not seen yet.
        await self._projector.wait_for((await self._log.state()).last_sequence)
        async with asyncio.TaskGroup() as group:
            group.create_task(self.bridge.run(), name="bridge")
            group.create_task(self.dispatcher.run(), name="dispatcher")
            group.create_task(self.deleter.run(), name="deleter")
            group.create_task(self.drains.run(), name="drains")
            group.create_task(self.sweeper.run(), name="sweeper")
            group.create_task(self._sweep(), name="sweep")
            group.create_task(self._watch_nodes(), name="liveness")

    async def _sweep(self) -> None:
        """Ask what is owed where nobody else asked: limits that passed, answers that were lost.

        At once when it begins to lead: what was given to a dead leader is not given again before
        its ack wait is over.
        """
        while True:
            try:
                await self.bridge.sweep()
            except (LogError, TimeoutError) as error:
                logger.warning("sweep did not finish: %s", error)
            await asyncio.sleep(self._config.sweep_interval)

    async def _watch_nodes(self) -> None:
        """Take nodes whose heartbeats stay away out of planning, and put them back."""
        silent_since: dict[str, float] = {}
        while True:
            await asyncio.sleep(LIVENESS_S)
            try:
                beats = await present(self._bus)
                there = {key.removeprefix("agent.") for key in beats if key.startswith("agent.")}
                now = time.time()
                with self._projector.store.read() as reader:
                    nodes = ClusterView(reader).nodes()
                for node in nodes:
                    silent_since.setdefault(node.name, now)
                for name in there:
                    silent_since.pop(name, None)
                self.dispatcher.silent = {
                    name for name, since in silent_since.items() if now - since >= NODES_TTL_S
                }
                limit_s = self._config.offline_after_seconds
                for fact in verdicts(
                    nodes, there, silent_since, limit_s=limit_s, now=now, teller=self._config.node
                ):
                    await self._log.publish(fact)
            except LogError as error:
                # Nobody was heard because nobody could be: that is no node's fault.
                silent_since.clear()
                self.dispatcher.silent = frozenset()
                logger.debug("heartbeats can't be read: %s", error)
