"""The coordinator: projector, bridge, dispatcher and sweep over one log.

It holds no state that a kill could lose: all it knows is folded, all it decides is in the log.
"""

from __future__ import annotations

import asyncio
import logging
import time

from dataplane.bridge import EventBridge
from dataplane.config import DataPlaneConfig
from dataplane.deleting import Deleter
from dataplane.dispatch import Dispatcher
from dataplane.health import CoordinatorHealth, coordinator_health
from dataplane.liveness import verdicts
from dataplane.monitor import Monitor
from dataplane.presence import Presence, present
from dataplane.queries import Queries
from dataplane.web import WebServer
from projections.cluster import ClusterView
from projections.projector import Projector
from streams.log import Answering, Bus, Log, LogError

logger = logging.getLogger(__name__)
HEARTBEAT_S = 5.0
READERS_S = 60.0
LIVENESS_S = 5.0


class Coordinator:
    """Decides for the cluster. `start`, then `run` in a task until cancelled, then `stop`."""

    def __init__(self, log: Log, bus: Bus, config: DataPlaneConfig) -> None:
        self._log = log
        self._bus = bus
        self._config = config
        self._presence = Presence(bus, config.node, "coordinator")
        policy = config.policy()
        self.projector = Projector(log, config.views_dir)
        self.bridge = EventBridge(log, self.projector, policy)
        self.dispatcher = Dispatcher(log, self.projector, policy, config.node)
        self.deleter = Deleter(log, bus, self.projector, policy)
        self.queries = Queries(log, bus, self.projector, config)
        self._service: Answering | None = None
        self.monitor = Monitor(log, bus, self.projector, self.queries, config)
        self.web = WebServer(self.monitor, config) if config.web_enabled else None

    async def start(self) -> None:
        """Bring the views up to the log, then answer questions from them."""
        await self.projector.start()
        self._service = await self._bus.serve(self.queries.service())
        if self.web is not None:
            await self.web.start()

    async def run(self) -> None:
        """Everything a coordinator does at once, for ever. One loop's end is the end of all."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.projector.run(), name="projector")
            group.create_task(self.bridge.run(), name="bridge")
            group.create_task(self.dispatcher.run(), name="dispatcher")
            group.create_task(self._sweep(), name="sweep")
            group.create_task(self.deleter.run(), name="deleter")
            group.create_task(self._beat(), name="heartbeat")
            group.create_task(self._clear_readers(), name="readers")
            group.create_task(self._watch_nodes(), name="liveness")
            group.create_task(self.monitor.run(), name="monitor")

    async def stop(self) -> None:
        """Let go of the views."""
        if self.web is not None:
            await self.web.stop()
        if self._service is not None:
            await self._service.close()
        await self.projector.close()

    async def health(self) -> CoordinatorHealth:
        """How this coordinator does, by progress."""
        state = await self._log.state()
        with self.projector.store.read() as reader:
            view = ClusterView(reader)
            return coordinator_health(
                view,
                last_sequence=state.last_sequence,
                now=time.time(),
                stalled_s=self._stalled_s(),
            )

    def _stalled_s(self) -> float:
        """How long the dispatcher's loop has stood still; it turns every second when it lives."""
        return time.monotonic() - self.dispatcher.last_progress

    async def _sweep(self) -> None:
        """Ask what is owed where nobody else asked: limits that passed, answers that were lost."""
        while True:
            await asyncio.sleep(self._config.sweep_interval)
            try:
                await self.bridge.sweep()
            except (LogError, TimeoutError) as error:
                logger.warning("sweep did not finish: %s", error)

    async def _beat(self) -> None:
        while True:
            try:
                health = await self.health()
                await self._presence.beat(
                    {
                        "status": health.status,
                        "message": health.message,
                        "lag": health.lag,
                        "web_url": self.web.url if self.web else "",
                    }
                )
            except LogError as error:
                logger.debug("heartbeat not heard: %s", error)
            await asyncio.sleep(HEARTBEAT_S)

    async def _watch_nodes(self) -> None:
        """Take nodes whose heartbeats stay away out of planning, and put them back."""
        silent_since: dict[str, float] = {}
        while True:
            await asyncio.sleep(LIVENESS_S)
            try:
                beats = await present(self._bus)
                there = {key.removeprefix("agent.") for key in beats if key.startswith("agent.")}
                now = time.time()
                with self.projector.store.read() as reader:
                    nodes = ClusterView(reader).nodes()
                for node in nodes:
                    silent_since.setdefault(node.name, now)
                for name in there:
                    silent_since.pop(name, None)
                limit_s = self._config.offline_after_seconds
                for fact in verdicts(
                    nodes, there, silent_since, limit_s=limit_s, now=now, teller=self._config.node
                ):
                    await self._log.publish(fact)
            except LogError as error:
                # Nobody was heard because nobody could be: that is no node's fault.
                silent_since.clear()
                logger.debug("heartbeats can't be read: %s", error)

    async def _clear_readers(self) -> None:
        """Readers that were killed pin pages of the views until they are cleared."""
        while True:
            await asyncio.sleep(READERS_S)
            self.projector.store.clear_stale_readers()
