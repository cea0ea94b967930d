"""Passing an entry on between two nodes that can't reach each other, through this one.

The holder pushes it here, into a place of its own that is no data of this node, and the target
fetches it from here. It must never be taken for a replica, and goes once the target has it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from adapters.files.digest import checksum_of
from adapters.files.partial import disk_errors
from adapters.http.receiving import Receiver
from adapters.workers import finish
from dataplane.agent.attempt import Attempt
from dataplane.agent.parts import Parts
from dataplane.crashpoints import reach
from streams import events
from streams.identity import Ownership, PathRules
from streams.values import DataEntry, Endpoint, Transport

#: What a killed or failed relay left behind is kept for so long, to go on from.
KEPT_S = 24 * 3600.0
SWEEP_S = 3600.0
_AS_THEY_ARE = PathRules(globs=(("**", Ownership.SHARED),))


class Relaying:
    """Relays through this node. `here` is how others reach it."""

    def __init__(self, node: str, root: Path, parts: Parts, receiver: Receiver) -> None:
        self._node = node
        self._root = root / ".dataplane" / "relay"
        self._parts = parts
        self._receiver = receiver
        #: By transfer, for one content may be passed on to several at once: what it is and where.
        self._held: dict[str, tuple[str, Path]] = {}
        self._under_way: set[str] = set()

    def locate(self, checksum: str) -> Path | None:
        """A file that is being passed on with exactly this content."""
        held = list(self._held.values())
        return next((file for content, file in held if content == checksum), None)

    async def pass_on(
        self, order: events.TransferAssigned, attempt: Attempt, here: Endpoint
    ) -> events.TransferSucceeded:
        """Get an entry from its holder and let its target fetch it. Raises a `TransportError`."""
        self._under_way.add(order.transfer)
        try:
            return await self._pass_on(order, attempt, here)
        finally:
            self._under_way.discard(order.transfer)

    async def _pass_on(
        self, order: events.TransferAssigned, attempt: Attempt, here: Endpoint
    ) -> events.TransferSucceeded:
        entry, place = order.entry, self._root / order.transfer
        file = place / entry.path
        by_http = (Transport.HTTP_FETCH,)
        scratch = Receiver(self._node, place, _Nothing(), rules=_AS_THEY_ARE)
        with disk_errors():
            await finish(lambda: _begin(place))
        if not await finish(lambda: _holds(file, entry)):
            self._receiver.divert(order.transfer, scratch)
            try:
                part = attempt.part(target=self._node, target_at=here, transports=by_http)
                attempt.joined(await self._parts.let_do(order.source, part, order))
            finally:
                self._receiver.divert(order.transfer, None)
                # A sender that fell silent may not have been missed yet: who comes next goes on.
                await scratch.close()
        reach("agent.relaying")
        self._held[order.transfer] = entry.checksum, file
        try:
            part = attempt.part(source=self._node, source_at=here, transports=by_http, peers=())
            attempt.joined(await self._parts.let_do(order.target, part, order))
        finally:
            self._held.pop(order.transfer, None)
        await finish(lambda: shutil.rmtree(place, ignore_errors=True))
        return attempt.succeeded(entry.games)

    async def run(self) -> None:
        """Remove what nobody has gone on with for long, for ever."""
        while True:
            await finish(self.sweep)
            await asyncio.sleep(SWEEP_S)

    def sweep(self) -> None:
        """Remove what nobody has gone on with for long. Blocks."""
        oldest = time.time() - KEPT_S
        for place in self._root.glob("*"):
            with contextlib.suppress(OSError):
                if place.name not in self._under_way and place.stat().st_mtime < oldest:
                    shutil.rmtree(place)


class _Nothing:
    """What is passed on is nobody's: nothing is known of it, nothing is remembered."""

    def alone(self, local_paths: Iterable[str]) -> contextlib.AbstractAsyncContextManager[None]:
        return contextlib.nullcontext()

    async def arrived(self, paths: Sequence[str]) -> list[DataEntry | None]:
        return [None for _ in paths]

    def keeps_own(self, path: str) -> bool:
        return False

    def written_at(self, path: str) -> float | None:
        return None

    async def expect(self, entries: Mapping[str, DataEntry]) -> None:
        """They come, and go again."""

    async def landed(self, entries: Mapping[str, DataEntry]) -> set[str]:
        """They have come, and go again."""
        return set()


def _begin(place: Path) -> None:
    """Make the place of a relay, or say of the one that is there that it is gone on with."""
    place.mkdir(parents=True, exist_ok=True)
    os.utime(place)


def _holds(file: Path, entry: DataEntry) -> bool:
    try:
        return file.stat().st_size == entry.size_bytes and checksum_of(file) == entry.checksum
    except OSError:
        return False
