"""Passing an entry on between two nodes that can't reach each other, through this one.

The holder pushes it here, into a place of its own that is no data of this node, and the target
fetches it from here. It must never be taken for a replica, and goes once the target has it.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from msgspec.structs import replace

from adapters.files.digest import checksum_of
from adapters.http.receiving import Receiver
from adapters.workers import finish
from dataplane.agent import asking
from dataplane.agent.attempt import Attempt
from dataplane.crashpoints import reach
from streams import events
from streams.identity import Ownership, PathRules
from streams.log import Bus
from streams.values import DataEntry, Endpoint, Transport

#: What a killed relay left behind is kept for so long, to go on from.
KEPT_S = 24 * 3600.0
_AS_THEY_ARE = PathRules(globs=(("**", Ownership.SHARED),))


class Relaying:
    """Relays through this node. `here` is how others reach it."""

    def __init__(self, node: str, root: Path, bus: Bus, receiver: Receiver) -> None:
        self._node = node
        self._root = root / ".dataplane" / "relay"
        self._bus = bus
        self._receiver = receiver
        self._held: dict[str, Path] = {}

    def locate(self, checksum: str) -> Path | None:
        """A file that is being passed on with exactly this content."""
        return self._held.get(checksum)

    async def pass_on(
        self, order: events.TransferAssigned, attempt: Attempt, here: Endpoint
    ) -> events.TransferSucceeded:
        """Get an entry from its holder and let its target fetch it. Raises a `TransportError`."""
        entry, place = order.entry, self._root / order.transfer
        file = place / entry.path
        await finish(lambda: self._root.mkdir(parents=True, exist_ok=True))
        by_http = (Transport.HTTP_FETCH,)
        scratch = Receiver(self._node, place, _Nothing(), rules=_AS_THEY_ARE)
        await finish(lambda: place.mkdir(exist_ok=True))
        if not await finish(lambda: _holds(file, entry)):
            self._receiver.divert(order.transfer, scratch)
            try:
                part = replace(order, target=self._node, target_at=here, transports=by_http)
                attempt.joined(await asking.do_part(self._bus, order.source, part))
            finally:
                self._receiver.divert(order.transfer, None)
        reach("agent.relaying")
        self._held[entry.checksum] = file
        try:
            part = replace(order, source=self._node, source_at=here, transports=by_http, peers=())
            attempt.joined(await asking.do_part(self._bus, order.target, part))
        finally:
            self._held.pop(entry.checksum, None)
        await finish(lambda: shutil.rmtree(place, ignore_errors=True))
        return attempt.succeeded(entry.games)

    def sweep(self) -> None:
        """Remove what nobody has gone on with for long. Blocks."""
        oldest = time.time() - KEPT_S
        for place in self._root.glob("*"):
            if place.stat().st_mtime < oldest:
                shutil.rmtree(place, ignore_errors=True)


class _Nothing:
    """What is passed on is nobody's: nothing is known of it, nothing is remembered."""

    async def arrived(self, path: str) -> DataEntry | None:
        return None

    async def keeps_own(self, path: str) -> bool:
        return False

    async def expect(self, entry: DataEntry, local: str) -> None:
        """It comes, and goes again."""

    async def landed(self, entry: DataEntry, local: str) -> None:
        """It has come, and goes again."""


def _holds(file: Path, entry: DataEntry) -> bool:
    try:
        return file.stat().st_size == entry.size_bytes and checksum_of(file) == entry.checksum
    except OSError:
        return False
