"""The coordinator: the views, and while it leads, all that decides.

Any number may run on one log. One leads; the others keep their views warm and take over within
seconds. It holds no state that a kill could lose: all it knows is folded, all it decides is in the
log.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import msgspec

from dataplane.audit.archiving import ArchiveKeeper
from dataplane.clocks import NAMED_S, ClockWatch
from dataplane.config import DataPlaneConfig
from dataplane.coordinator.bridge import DURABLE
from dataplane.coordinator.leading import Leading
from dataplane.coordinator.lease import Lease, LeaseLost, holder_of
from dataplane.coordinator.monitor import Monitor
from dataplane.coordinator.provisioning import Provisioner
from dataplane.coordinator.queries import Queries
from dataplane.health import CoordinatorHealth, coordinator_health
from dataplane.presence import Presence
from dataplane.proving import answer_proofs
from dataplane.pulse import stands_still
from dataplane.restoring import open_bucket
from dataplane.standstill import STANDSTILL_S, Progress, Standstill
from dataplane.web import WebServer
from projections.cluster import ClusterView
from projections.projector import Projector
from projections.snapshot import Snapshots
from streams import events
from streams.codec import fact_id, node_fact
from streams.log import Answering, Bus, Log, LogError, ReadingLog
from streams.values import S3_NODE

logger = logging.getLogger(__name__)
HEARTBEAT_S = 5.0
READERS_S = 60.0
WATCH_S = 5.0
#: Of what is wrong a heartbeat says so much, and each so long.
_MOST_SAID, _SAID = 5, 500


class Coordinator:
    """Decides for the cluster. `start`, then `run` in a task until cancelled, then `stop`."""

    def __init__(
        self, log: Log, bus: Bus, config: DataPlaneConfig, keeper: ArchiveKeeper | None = None
    ) -> None:
        """With a `keeper` it keeps the log's archive, and reads there what the log has no more."""
        self._log = log
        self._keeper = keeper
        whole: ReadingLog = keeper.log if keeper else log
        self._bus = bus
        self._config = config
        self._policy = config.policy()
        self._presence = Presence(bus, config.node, "coordinator")
        self.lease = Lease(bus, holder_of(config.views_dir, config.node))
        self.projector = Projector(whole, config.views_dir, snapshots_of(config))
        self.leading = Leading(log, bus, config, self.projector, leads=lambda: self.lease.held)
        self.queries = Queries(log, bus, self.projector, config, whole=whole)
        self.provisioner = Provisioner(log, bus, self.projector, config)
        self._answering: list[Answering] = []
        self._bucket = AsyncExitStack()
        self._clock_problem = ""
        self._began = time.monotonic()
        #: Set when it begins or ceases to lead: that is told at once, not with the next heartbeat.
        self._news = asyncio.Event()
        self.monitor = Monitor(
            log,
            bus,
            self.projector,
            self.queries,
            config,
            leads=lambda: self.lease.held,
            whole=whole,
        )
        self.web = WebServer(self.monitor, config) if config.web_enabled else None

    async def start(self) -> None:
        """Bring the views up to the log, then answer questions from them."""
        await self.projector.start()
        await self._say_if_rolled_back()
        self._answering.append(await self._bus.serve(self.queries.service()))
        if self._config.s3_enabled:
            await self._answer_for_bucket()
        if self.web is not None:
            await self.web.start()

    async def run(self) -> None:
        """Everything a coordinator does at once, for ever. One loop's end is the end of all."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.projector.run(), name="projector")
            group.create_task(self._lead(), name="lead")
            group.create_task(self._beat(), name="heartbeat")
            group.create_task(self._clear_readers(), name="readers")
            group.create_task(self._watch_progress(), name="progress")
            group.create_task(self._watch_servers(), name="servers")
            group.create_task(self.monitor.run(), name="monitor")
            group.create_task(self.provisioner.run(), name="provisioner")
            if self._keeper is not None:
                archiving = self._keeper.run(self.projector, leads=lambda: self.lease.held)
                group.create_task(archiving, name="archive")

    async def part(self) -> None:
        """A coordinator has nothing that only it holds."""

    async def stop(self) -> None:
        """Let go of the lease, so that another leads at once, and of the views."""
        await self.lease.release()
        if self.web is not None:
            await self.web.stop()
        for answering in self._answering:
            await answering.close()
        await self._bucket.aclose()
        await self.projector.close()
        if self._keeper is not None:
            await self._keeper.close()

    async def _answer_for_bucket(self) -> None:
        """Prove what the bucket holds: deletions stand on that, so no node's word is taken for it.

        A proof reads no content and needs no key to it.
        """
        keyless = msgspec.structs.replace(self._config, s3_encryption_key_file=Path())
        bucket = await self._bucket.enter_async_context(open_bucket(keyless))
        self._answering.append(await answer_proofs(self._bus, S3_NODE, bucket.prove, shared=True))

    async def _say_if_rolled_back(self) -> None:
        """The log lost its end since these views were folded: that must not pass in silence."""
        if not self.projector.rolled_back:
            return
        state = await self._log.state()
        event = events.LogRolledBack(
            node=self._config.node,
            views_at=self.projector.rolled_back_from,
            log_at=state.last_sequence,
            reason=self.projector.rolled_back,
        )
        id = fact_id("rolled-back", state.created, event.node, event.views_at, event.log_at)
        await self._log.publish(node_fact(event, event.node, id))

    def _troubles(self) -> tuple[str, ...]:
        """What else this process knows to be wrong and no view tells."""
        dispatcher, sweeps = self.leading.dispatcher, self.leading.sweeper.state
        said = [self._set_back(), self._log.room.full, dispatcher.problem, sweeps.problem]
        said.append(self._clock_problem)
        found = (
            *self.leading.deleter.troubles.described(),
            *self.leading.drains.troubles.described(),
        )
        return (*found, *filter(None, said))

    def _set_back(self) -> str:
        """That the log has lost its end, for a while after it was seen; else ""."""
        back = self.projector.rolled_back
        if not back or time.monotonic() - self._began > NAMED_S:
            return ""
        return f"views were folded anew: {back}; what was said to the log since then is lost"

    def _undecided(self) -> tuple[str, ...]:
        """Chains and transfers that are in trouble, a sentence each."""
        found = (self.leading.bridge.troubles, self.leading.dispatcher.suspects.troubles)
        return tuple(text for troubles in found for text in troubles.described())

    async def _lead(self) -> None:
        """Wait to lead, lead until the lease is lost, and wait again."""
        while True:
            await self.lease.acquire()
            logger.info("leads, in term %d", self.lease.term)
            self._news.set()
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self.leading.run(), name="leading")
                    group.create_task(self.lease.keep(), name="lease")
            except* LeaseLost as lost:
                logger.warning("%s", lost.exceptions[0])
            self._news.set()

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
                policy=self._policy,
                troubles=(*self._undecided(), *self._troubles()),
            )

    def _stalled_s(self) -> float:
        """How long the dispatcher's loop has stood still; it turns every second when it leads."""
        if not self.lease.held:
            return 0.0
        return time.monotonic() - self.leading.dispatcher.last_progress

    async def _beat(self) -> None:
        while True:
            self._news.clear()
            try:
                health = await self.health()
                await self._presence.beat(
                    {
                        "status": health.status,
                        "message": health.message,
                        "lag": health.lag,
                        "web_url": self.web.url if self.web else "",
                        "leads": self.lease.held,
                        "term": self.lease.term,
                        "set_back": len(self.leading.bridge.troubles)
                        + len(self.leading.dispatcher.suspects.troubles),
                        "undecided": [text[:_SAID] for text in self._undecided()[:1]],
                        "troubles": [text[:_SAID] for text in self._troubles()[:_MOST_SAID]],
                        "sweeps": msgspec.to_builtins(self.leading.sweeper.state),
                        "archive": msgspec.to_builtins(self._keeper.state) if self._keeper else {},
                    }
                )
            except LogError as error:
                logger.debug("heartbeat not heard: %s", error)
            with suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_S):
                    await self._news.wait()

    async def _watch_progress(self) -> None:
        """End this process if a loop of it stands still, or nobody else can see its views any more.

        Whoever supervises starts it again.
        """
        standstill, clocks = Standstill(STANDSTILL_S), ClockWatch()
        while True:
            await asyncio.sleep(WATCH_S)
            self._clock_problem = clocks.look(time.time(), time.monotonic())
            self.projector.check_in_place()
            try:
                problem = standstill.judge(await self._progress(), time.monotonic())
            except LogError as error:
                # Without a bus nobody makes progress, and starting anew mends nothing.
                standstill.forget()
                logger.debug("progress can't be judged: %s", error)
                continue
            if problem:
                raise stands_still(problem)

    async def _watch_servers(self) -> None:
        """Know on how many servers the log stands, for whoever asks how it does."""
        while True:
            self.queries.standing = await self._log.standing()
            await asyncio.sleep(WATCH_S)

    async def _progress(self) -> tuple[Progress, ...]:
        loops = [Progress("projector", await self.projector.lag(), self.projector.batches)]
        if self.lease.held:
            consumer = await self._log.consumer(DURABLE)
            waiting = consumer.waiting + consumer.unacknowledged if consumer else 0
            loops.append(Progress("bridge", waiting, self.leading.bridge.turns))
            loops.append(Progress("dispatcher", 1, self.leading.dispatcher.turns))
        return tuple(loops)

    async def _clear_readers(self) -> None:
        """Readers that were killed pin pages of the views until they are cleared."""
        while True:
            await asyncio.sleep(READERS_S)
            self.projector.store.clear_stale_readers()


def snapshots_of(config: DataPlaneConfig) -> Snapshots | None:
    """Where the copies of this machine's views are kept; None if it keeps none."""
    if not config.snapshot_every_events:
        return None
    return Snapshots(
        config.snapshots_dir,
        every=config.snapshot_every_events,
        budget_bytes=config.snapshot_budget_mb * 1_000_000,
    )
