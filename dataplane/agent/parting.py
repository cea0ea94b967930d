"""The last push (K19): what this node holds and the bucket lacks, when its agent is told to end.

It takes no longer than it may, and what it did not manage is said as plainly as what it did. It
must never keep a process from ending, and never call stored what no manifest names.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import suppress

from adapters.errors import TransportError
from adapters.files.inventory import Inventory
from adapters.workers import each
from dataplane.agent.bucket import Backups
from dataplane.agent.observing import Observer
from dataplane.agent.transfers import TransportManager
from dataplane.config import DataPlaneConfig
from dataplane.outbox import Outbox
from dataplane.sweeps import goes_to_bucket
from projections.transfers import transfer_id
from streams import events
from streams.codec import fact_id, node_fact
from streams.identity import Ownership
from streams.log import Log, LogError
from streams.values import S3_NODE, DataEntry, Endpoint, SyncPriority, Transport, added

logger = logging.getLogger(__name__)
#: Pushed at once.
AT_ONCE = 4
#: A bus that does not answer for so long is told the next time this node starts.
SAY_S = 3.0
#: Of what was left, so many paths are named.
NAMED = 50


class Parting:
    """One agent's last push. `push` once, when nothing else of the agent runs any more."""

    def __init__(
        self,
        log: Log,
        outbox: Outbox,
        config: DataPlaneConfig,
        inventory: Inventory,
        observer: Observer,
        manager: TransportManager,
        backups: Backups,
    ) -> None:
        self._log, self._outbox, self._config = log, outbox, config
        self._inventory, self._observer = inventory, observer
        self._manager, self._backups = manager, backups
        self._began = time.time_ns()
        self._stored: list[events.TransferSucceeded] = []
        self._problem = ""

    async def push(self, limit_s: float) -> events.NodeStopped:
        """Push what is missing for so long, and say what came of it."""
        wanted: list[DataEntry] = []
        try:
            async with asyncio.timeout(limit_s):
                # What was written since anybody looked has no entry in the catalog yet.
                with suppress(LogError, OSError):
                    await self._observer.report()
                wanted = await self._wanted()
                lacking = await self._lacking(wanted)
                wanted = lacking
                await each(lacking, self._push, AT_ONCE)
        except TimeoutError:
            self._problem = self._problem or f"not done within {limit_s:g} s"
        except (TransportError, LogError, OSError) as error:
            self._problem = f"{type(error).__name__}: {error}"
        stopped = self._told(wanted)
        await self._say(stopped, "stopped")
        logger.info(
            "last push: %d entries stored, %d not%s",
            stopped.stored,
            stopped.left,
            f": {stopped.reason}" if stopped.reason else "",
        )
        return stopped

    async def _wanted(self) -> list[DataEntry]:
        """What is here, is known to the log, and belongs into the bucket; this node's own first."""
        policy = self._config.policy()
        rules = policy.paths
        told = [
            entry
            for entry in await self._inventory.told()
            if goes_to_bucket(entry, policy) and rules.ownership(entry.path) is not Ownership.MERGED
        ]
        return sorted(told, key=lambda e: (e.primary_location != self._config.node, e.path))

    async def _lacking(self, wanted: Sequence[DataEntry]) -> list[DataEntry]:
        """Those that no manifest in the bucket names. Raises a `TransportError`."""
        if not wanted:
            return []
        # What only a manifest that can't be read names is sent again: that is safe.
        catalog = await self._backups.bucket.catalog()
        named = {(entry.path, entry.checksum) for entry in catalog.known}
        return [entry for entry in wanted if (entry.path, entry.checksum) not in named]

    async def _push(self, entry: DataEntry) -> None:
        outcome = await self._manager.transfer(self._order(entry))
        if isinstance(outcome, events.TransferFailed):
            # Nobody had asked for it: said as failed, it would be taken for somebody's attempt.
            self._problem = f"{outcome.error_class}: {outcome.error}"
            return
        self._stored.append(outcome)
        await self._say(outcome, outcome.transfer)

    def _order(self, entry: DataEntry) -> events.TransferAssigned:
        """What a coordinator would have asked for."""
        return events.TransferAssigned(
            transfer=transfer_id(entry, S3_NODE),
            executor=self._config.node,
            source=self._config.node,
            target=S3_NODE,
            entry=entry,
            transports=(Transport.S3,),
            source_at=Endpoint(node=self._config.node),
            target_at=Endpoint(node=S3_NODE),
            bandwidth_mbps=self._config.default_bandwidth_limit_mbps,
            priority=SyncPriority.CRITICAL,
            attempt=1,
            timeout_s=self._config.transport_timeout_seconds,
        )

    def _told(self, wanted: Sequence[DataEntry]) -> events.NodeStopped:
        stored = {(one.entry.path, one.entry.checksum) for one in self._stored}
        left = [entry for entry in wanted if (entry.path, entry.checksum) not in stored]
        return events.NodeStopped(
            node=self._config.node,
            stored=len(stored),
            stored_bytes=added(*(one.bytes_transferred for one in self._stored)),
            left=len(left),
            left_bytes=added(*(entry.size_bytes for entry in left)),
            left_paths=tuple(entry.path for entry in left[:NAMED]),
            reason=self._problem[:1000],
        )

    async def _say(self, event: events.Event, what: str) -> None:
        """Now, or if the bus is away, when this node starts again."""
        id = fact_id("parting", self._config.node, self._began, what)
        with suppress(LogError, TimeoutError):
            async with asyncio.timeout(SAY_S):
                await self._outbox.publish(self._log, node_fact(event, self._config.node, id))
