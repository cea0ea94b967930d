"""Sending an entry from this node: into the bucket, or to a node that can't fetch it itself.

What is sent is the file the inventory knows for exactly this content, never a live database. It
must never say that something has arrived before the other end has proven it.
"""

from __future__ import annotations

from pathlib import Path

from adapters.inventory import Inventory
from adapters.throttle import Throttle
from adapters.transport import EntryMissing, Progress, Refused, Request
from dataplane.attempt import Attempt, through
from dataplane.bucket import Backups
from dataplane.crashpoints import reach
from dataplane.transports import CONNECT_TIMEOUT_S
from streams import events
from streams.values import S3_NODE, Transport


class Pushing:
    """Pushes from this node. Several may run at once."""

    def __init__(
        self, node: str, inventory: Inventory, *, backups: Backups | None, stall_s: float
    ) -> None:
        self._node = node
        self._inventory = inventory
        self._backups = backups
        self._stall_s = stall_s

    async def send(
        self,
        order: events.TransferAssigned,
        attempt: Attempt,
        throttle: Throttle,
        progress: Progress,
    ) -> events.TransferSucceeded:
        """Send the entry by the first transport that can. Raises a `TransportError`."""
        file = self._inventory.locate(order.entry.checksum)
        if file is None:
            raise EntryMissing(f"{self._node} does not hold {order.entry.path} as it was planned")
        if order.target != S3_NODE:
            raise Refused(f"{self._node} can't push to {order.target}")
        await self._store(order, file, attempt, throttle, progress)
        return attempt.succeeded(order.entry.games)

    async def _store(
        self,
        order: events.TransferAssigned,
        file: Path,
        attempt: Attempt,
        throttle: Throttle,
        progress: Progress,
    ) -> None:
        """Into the bucket, object and manifest."""
        if self._backups is None:
            raise Refused(f"{self._node} has no bucket; s3_enabled is off there")

        async def push(backups: Backups) -> None:
            with attempt.measure(Transport.S3, S3_NODE, lambda: 0) as measured:
                reach("agent.pushing")
                request = self._request(order)
                measured.moved = await backups.push(request, file, throttle, progress)

        await through(order, {Transport.S3: self._backups}, push)
        reach("agent.pushed")

    def _request(self, order: events.TransferAssigned) -> Request:
        return Request(
            transfer=order.transfer,
            entry=order.entry,
            source=order.source_at,
            target=order.target_at,
            stall_s=self._stall_s,
            connect_s=CONNECT_TIMEOUT_S,
        )
