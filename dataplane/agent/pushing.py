"""Sending an entry from this node: into the bucket, or to a node that can't fetch it itself.

What is sent is the file the inventory knows for exactly this content, never a live database. It
must never say that something has arrived before the other end has proven it, and never let a file
appear at a target whose agent does not expect it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from msgspec.structs import replace

from adapters.errors import EntryMissing, Refused
from adapters.files.inventory import Inventory
from adapters.throttle import Throttle
from adapters.transport import Progress, Pushes, PushesMany, Request
from dataplane.agent import asking
from dataplane.agent.attempt import Attempt, through
from dataplane.agent.bucket import Backups
from dataplane.agent.company import suits
from dataplane.agent.parts import Parts
from dataplane.agent.together import SentTogether
from dataplane.agent.transports import CONNECT_TIMEOUT_S, NAMING_FILES
from dataplane.crashpoints import reach
from projections.headway import NOTHING_KEPT
from streams import events
from streams.identity import PathRules
from streams.log import Bus
from streams.values import S3_NODE, Endpoint, Transport

#: Pushes that failed and are remembered, to see how far the next one comes.
MOST_REMEMBERED = 1000


class Coming:
    """How far one push brings its file on, as its transport tells.

    What left this machine need not have been taken: what is sent again after a failure brings
    nothing on, until it is beyond what was sent before.
    """

    def __init__(
        self, reached: dict[tuple[str, str], int], push: tuple[str, str], progress: Progress
    ) -> None:
        self._reached = reached
        self._push = push
        self._progress = progress
        self._before = self._done = -1

    def __call__(self, done: int, total: int) -> None:
        if self._before < 0:
            self._before = max(done, self._reached.get(self._push, 0))
        self._done = done
        self._progress(done, total)

    @property
    def moved(self) -> int:
        """Bytes by which the file is further than it ever was."""
        return max(0, self._done - self._before)

    def __enter__(self) -> Coming:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> None:
        before = self._reached.pop(self._push, 0)
        if kind is None or kind.__name__ in NOTHING_KEPT:
            return
        self._reached[self._push] = max(before, self._done)
        while len(self._reached) > MOST_REMEMBERED:
            del self._reached[next(iter(self._reached))]


class Pushing:
    """Pushes from this node. Several may run at once."""

    def __init__(
        self,
        node: str,
        inventory: Inventory,
        transports: Mapping[Transport, Pushes],
        *,
        bus: Bus | None,
        backups: Backups | None,
        parts: Parts | None,
        rules: PathRules,
        stall_s: float,
    ) -> None:
        self._node = node
        self._inventory = inventory
        self._transports = transports
        self._bus = bus
        self._backups = backups
        self._parts = parts
        self._rules = rules
        self._stall_s = stall_s
        self._together = SentTogether()
        self._reached: dict[tuple[str, str], int] = {}

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
        if order.target == S3_NODE or order.transports == (Transport.S3,):
            await self._store(order, file, attempt, throttle, progress)
        else:

            async def push(transport: Pushes) -> None:
                await self._push(transport, order, file, attempt, throttle, progress)

            await through(order, self._transports, push)
        if order.target != S3_NODE and order.transports == (Transport.S3,):
            await self._let_fetch(order, attempt)
        reach("agent.pushed")
        return attempt.succeeded(order.entry.games)

    async def _push(
        self,
        transport: Pushes,
        order: events.TransferAssigned,
        file: Path,
        attempt: Attempt,
        throttle: Throttle,
        progress: Progress,
    ) -> None:
        """One try over one transport; what only gathers there is landed by the target's agent."""
        entry, target = order.entry, order.target
        bus = self._bus if transport.name in NAMING_FILES else None
        came = Coming(self._reached, (order.transfer, target), progress)
        with attempt.measure(transport.name, target, lambda: came.moved) as measured, came:
            if bus is not None and await asking.ready(bus, target, entry, order.transfer):
                measured.moved = 0
                return
            reach("agent.pushing")
            request = replace(
                self._request(order),
                local_path=self._rules.local(entry.path, target),
                gathers=bus is not None,
            )
            if bus is None and isinstance(transport, PushesMany) and suits(request):
                measured.moved = await self._with_others(transport, request, file, throttle)
                progress(entry.size_bytes, entry.size_bytes)
                return
            measured.moved = await transport.push(request, file, throttle, came)
            if bus is not None:
                await asking.land(bus, target, entry, order.transfer)

    async def _with_others(
        self, transport: PushesMany, request: Request, file: Path, throttle: Throttle
    ) -> int:
        """One push, together with whatever else goes to that target now; bytes that moved."""
        await throttle.take(request.entry.size_bytes)
        return await self._together.send(transport, request, file)

    async def close(self) -> None:
        """Give up what is on its way."""
        await self._together.close()

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
            came = Coming(self._reached, (order.transfer, S3_NODE), progress)
            with attempt.measure(Transport.S3, S3_NODE, lambda: came.moved) as measured, came:
                reach("agent.pushing")
                measured.moved = await backups.push(self._request(order), file, throttle, came)

        attempt.sealed_with = self._backups.transport.seal_key
        await through(order, {Transport.S3: self._backups}, push)

    async def _let_fetch(self, order: events.TransferAssigned, attempt: Attempt) -> None:
        """The bucket has it: the target, which nobody can reach, fetches it from there."""
        if self._parts is None:
            raise Refused(f"{self._node} can't ask {order.target} to fetch")
        part = attempt.part(source=S3_NODE, source_at=Endpoint(node=S3_NODE))
        attempt.joined(await self._parts.let_do(order.target, part, order))

    def _request(self, order: events.TransferAssigned) -> Request:
        return Request(
            transfer=order.transfer,
            entry=order.entry,
            source=order.source_at,
            target=order.target_at,
            stall_s=self._stall_s,
            connect_s=CONNECT_TIMEOUT_S,
        )
