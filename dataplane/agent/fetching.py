"""Bringing an entry to this node: through a chain of transports, into one landing.

It must never land on a file of the node's own, and never let a file appear that the inventory was
not told of before.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path

from adapters.files.arrivals import Arrivals
from adapters.files.inventory import Inventory
from adapters.files.landing import Landed, Landing
from adapters.files.partial import disk_errors
from adapters.throttle import Throttle
from adapters.transport import Fetches, FetchesMany, Progress, Request
from dataplane.agent.attempt import Attempt, through
from dataplane.agent.company import suits
from dataplane.agent.receipts import Receipts
from dataplane.agent.together import Together
from dataplane.agent.transports import CONNECT_TIMEOUT_S, NAMING_FILES
from dataplane.crashpoints import reach
from streams import events
from streams.identity import PathRules
from streams.values import Transport


class Fetching:
    """Fetches to this node. Several may run at once, each into its own landing."""

    def __init__(
        self,
        node: str,
        root: Path,
        inventory: Inventory,
        transports: Mapping[Transport, Fetches],
        *,
        rules: PathRules,
        stall_s: float,
        receipts: Path,
        content_path: Callable[[str, str], Awaitable[str]] | None,
    ) -> None:
        self._root = root
        self._arrivals = Arrivals(node, inventory, rules)
        self._transports = transports
        self._rules = rules
        self._stall_s = stall_s
        self._content_path = content_path
        self._receipts = Receipts(receipts)
        self._together = Together(root, self._arrivals, self._receipts, rules)

    async def bring(
        self,
        order: events.TransferAssigned,
        attempt: Attempt,
        throttle: Throttle,
        progress: Progress,
    ) -> events.TransferSucceeded:
        """Bring the entry here by the first transport that can, and prove it.

        What is here already is a success without a byte. Raises a `TransportError`.
        """
        with disk_errors():
            there = await self._arrivals.there(order.entry)
        if there is not None:
            return attempt.succeeded(there.games, self._receipts.read(order.transfer))

        async def fetch(transport: Fetches) -> Landed:
            return await self._fetch(transport, order, attempt, throttle, progress)

        landed = await through(order, self._transports, fetch)
        return attempt.succeeded(landed.games)

    def said(self, transfer: str) -> None:
        """The result of a transfer is in the log: what was kept in case of a crash can go."""
        self._receipts.remove(transfer)

    async def _named(self, transport: Transport, order: events.TransferAssigned) -> str:
        """The source's own file with the content, for transports that must name one."""
        if transport not in NAMING_FILES or self._content_path is None:
            return ""
        return await self._content_path(order.source, order.entry.checksum)

    async def _fetch(
        self,
        transport: Fetches,
        order: events.TransferAssigned,
        attempt: Attempt,
        throttle: Throttle,
        progress: Progress,
    ) -> Landed:
        """One try over one transport, from where the last one stopped; recorded as a result."""
        entry, local = order.entry, self._arrivals.local(order.entry)
        request = Request(
            transfer=order.transfer,
            entry=entry,
            source=order.source_at,
            target=order.target_at,
            peers=order.peers,
            local_path=local,
            content_path=await self._named(transport.name, order),
            stall_s=self._stall_s,
            connect_s=CONNECT_TIMEOUT_S,
        )
        if isinstance(transport, FetchesMany) and suits(request):
            return await self._with_others(transport, request, attempt, throttle, progress)
        landing = await Landing.open(self._root, entry, order.transfer, local, rules=self._rules)
        try:
            with attempt.measure(
                transport.name, order.source, lambda: landing.received
            ) as measured:
                reach("agent.fetching")
                measured.moved = await transport.fetch(request, landing, throttle, progress)
                moved = attempt.moved + measured.moved
                return await self._arrivals.land(
                    landing,
                    # Before the file appears: a crash in between must not make the bytes unmoved.
                    before=lambda: self._receipts.write({order.transfer: moved}),
                    after=partial(reach, "agent.landed"),
                )
        finally:
            await landing.abort()

    async def _with_others(
        self,
        transport: FetchesMany,
        request: Request,
        attempt: Attempt,
        throttle: Throttle,
        progress: Progress,
    ) -> Landed:
        """As `_fetch`, together with whatever else is wanted of this source now."""
        size = request.entry.size_bytes
        with attempt.measure(transport.name, request.source.node, lambda: 0) as measured:
            reach("agent.fetching")
            await throttle.take(size)
            landed = await self._together.bring(transport, request, attempt.moved)
            measured.moved = size
        progress(size, size)
        return landed

    async def close(self) -> None:
        """Give up what is on its way."""
        await self._together.close()
