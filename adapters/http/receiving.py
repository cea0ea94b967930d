"""Takes entries that other nodes PUT here: through a landing, never past it.

It must never give a name to bytes it has not digested, nor take an entry for another node. What it
has landed is known to the inventory as received before anybody is told.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
from aiohttp import ClientConnectionError, hdrs, web

from adapters import errors
from adapters.errors import Interrupted, Refused, Stalled, TransportError
from adapters.files.arrivals import Arrivals, Knows
from adapters.files.landing import Landed, Landing, partial_name
from adapters.workers import settled
from streams.foreign import from_json
from streams.identity import PathRules
from streams.values import DataEntry

#: What the sender says of the entry: its JSON in base64, for names in any script.
ENTRY_HEADER = "X-Dataplane-Entry"
TRANSFER_HEADER = "X-Dataplane-Transfer"
#: Which error an answer means, by its class.
ERROR_HEADER = "X-Dataplane-Error"
#: How many bytes are there already.
OFFSET_HEADER = "Upload-Offset"
_RANGE = re.compile(r"bytes (?:(\d{1,18})-(\d{1,18})|\*)/(\d{1,18})", re.ASCII)
_STATUS = {"DiskFull": 507, "DigestMismatch": 422, "CheckFailed": 422, "PathEscapes": 403}

#: Told what has landed, once it is known as received: entry and what was read from the file.
OnLanded = Callable[[DataEntry, Landed], Awaitable[None]]


class Receiver:
    """Lands what is pushed to one node. Lives on one event loop."""

    def __init__(
        self,
        node: str,
        root: Path,
        inventory: Knows,
        *,
        rules: PathRules | None = None,
        on_landed: OnLanded | None = None,
        stall_s: float = 30.0,
    ) -> None:
        self.node = node
        self.root = root
        self.rules = rules or PathRules()
        self.arrivals = Arrivals(node, inventory, self.rules)
        self._on_landed = on_landed
        self.stall_s = stall_s
        self._under_way: dict[str, asyncio.Task[object]] = {}
        self._diverted: dict[str, Receiver] = {}

    def divert(self, transfer: str, receiver: Receiver | None) -> None:
        """What comes for a transfer goes to another receiver from now on; with None, here again."""
        if receiver is None:
            self._diverted.pop(transfer, None)
        else:
            self._diverted[transfer] = receiver

    async def close(self) -> None:
        """End what still comes; what there is of it stays."""
        for task in list(self._under_way.values()):
            task.cancel()
            await settled(task)

    async def ready(self, entry: DataEntry) -> bool:
        """As `Arrivals.ready`."""
        return await self.arrivals.ready(entry)

    def of(self, transfer: str) -> Receiver:
        """Who takes what comes for a transfer."""
        return self._diverted.get(transfer, self)

    async def land(self, entry: DataEntry, transfer: str) -> Landed:
        """Land what another transport has gathered for a transfer; as `Landing.commit`."""
        local = self.arrivals.local(entry)
        async with self._alone(partial_name(transfer, entry)):
            landing = await Landing.open(self.root, entry, transfer, local, rules=self.rules)
            try:
                return await self._land(landing)
            finally:
                await landing.abort()

    async def answer(self, request: web.Request, checksum: str) -> web.Response:
        """Take a body, or say how much of it is there already. The URL was proven before."""
        try:
            entry, transfer = _said(request, checksum)
            if (other := self.of(transfer)) is not self:
                return await other.answer(request, checksum)
            async with self._alone(partial_name(transfer, entry)):
                return await self._take(request, entry, transfer)
        except TransportError as error:
            return refusal(error)

    async def _take(self, request: web.Request, entry: DataEntry, transfer: str) -> web.Response:
        if await self.arrivals.there(entry) is not None:
            return web.Response(status=201, text="it is here already")
        local = self.arrivals.local(entry)
        landing = await Landing.open(self.root, entry, transfer, local, rules=self.rules)
        try:
            first = _first(request.headers.get(hdrs.CONTENT_RANGE, ""), entry)
            if first is None and landing.offset < entry.size_bytes:
                return web.Response(status=204, headers={OFFSET_HEADER: str(landing.offset)})
            if first is not None:
                await self._receive(request, landing, first)
            landed = await self._land(landing)
        finally:
            await landing.abort()
        return web.json_response(msgspec.to_builtins(landed), status=201)

    async def _receive(self, request: web.Request, landing: Landing, first: int) -> None:
        if first == 0 and landing.offset:
            await landing.reset()
        if first != landing.offset:
            raise Interrupted(f"{landing.offset} bytes are here, the rest was sent from {first}")
        try:
            while True:
                async with asyncio.timeout(self.stall_s):
                    data = await request.content.readany()
                if not data:
                    return
                await landing.write(data)
        except TimeoutError:
            raise Stalled(f"no byte came for {self.stall_s:g} s") from None
        except (ClientConnectionError, ConnectionError, web.RequestPayloadError) as error:
            raise Interrupted(f"the sender broke off: {error}") from error

    async def _land(self, landing: Landing) -> Landed:
        landed = await self.arrivals.land(landing)
        await self.tell(landing.entry, landed)
        return landed

    async def tell(self, entry: DataEntry, landed: Landed) -> None:
        """Say what has landed, once it is known as received."""
        if self._on_landed is not None:
            await self._on_landed(entry, landed)

    @contextlib.asynccontextmanager
    async def _alone(self, name: str) -> AsyncIterator[None]:
        """End what still takes the same entry: its sender has given it up and comes again."""
        while (elder := self._under_way.get(name)) is not None:
            elder.cancel()
            await settled(elder)
        task = asyncio.current_task()
        assert task is not None
        self._under_way[name] = task
        try:
            yield
        finally:
            del self._under_way[name]


def described(entry: DataEntry, transfer: str) -> dict[str, str]:
    """The headers that say which entry a body is of."""
    said = base64.b64encode(msgspec.json.encode(entry)).decode()
    return {ENTRY_HEADER: said, TRANSFER_HEADER: transfer}


def refusal(error: TransportError) -> web.Response:
    """The answer that an error is."""
    kind = type(error).__name__
    return web.Response(
        status=_STATUS.get(kind, 409), text=str(error), headers={ERROR_HEADER: kind}
    )


def error_of(name: str, text: str) -> TransportError:
    """The error that an answer names; `Refused` if it names none."""
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, TransportError):
        return kind(text)
    return Refused(text)


def _said(request: web.Request, checksum: str) -> tuple[DataEntry, str]:
    """The entry and the transfer; only the digest and the path are proven by the signature."""
    try:
        said = base64.b64decode(request.headers.get(ENTRY_HEADER, ""), validate=True)
        entry = from_json(said, DataEntry)
    except ValueError as error:
        raise Refused(f"{ENTRY_HEADER} is no entry: {error}") from error
    if entry.checksum != checksum or entry.path != request.query.get("path"):
        raise Refused("the entry is not the one that the URL was signed for")
    return entry, request.headers.get(TRANSFER_HEADER, "")


def _first(content_range: str, entry: DataEntry) -> int | None:
    """The first byte that is sent; None if none is, and only a question is asked."""
    found = _RANGE.fullmatch(content_range)
    if found is None or int(found[3]) != entry.size_bytes:
        raise Refused(f"{content_range!r} is no range of {entry.size_bytes} bytes")
    if found[1] is None:
        return None
    if int(found[2]) != entry.size_bytes - 1:
        raise Refused("what is sent is always all that is lacking")
    return int(found[1])
