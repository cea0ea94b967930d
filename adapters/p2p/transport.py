"""The peer-to-peer transport: bytes of an entry from everyone who has them.

It makes one attempt and never decides that a content is right: blocks are checked as they come, the
whole by landing. Small entries travel in batches, larger ones block by block.
"""

from __future__ import annotations

from collections.abc import Sequence

from adapters.errors import TransportError, Unreachable
from adapters.files.landing import Landing
from adapters.http.small import Access, fetch_small
from adapters.p2p.asking import Around, Asking
from adapters.p2p.gathering import Gathering
from adapters.throttle import Throttle
from adapters.transport import Brought, Progress, Request, Take
from streams.values import SMALL_BYTES, Transport


class P2PTransport:
    """Fetches entries by digest from the file servers of other nodes."""

    name = Transport.P2P_GOSSIP

    def __init__(self, around: Around, *, small_bytes: int = SMALL_BYTES) -> None:
        self._around = around
        self._small_bytes = min(small_bytes, SMALL_BYTES)

    async def fetch(
        self, request: Request, landing: Landing, throttle: Throttle, progress: Progress
    ) -> int:
        """As `Fetches.fetch`. Asks nothing of anybody if no byte is lacking."""
        size = request.entry.size_bytes
        if landing.offset == size:
            return 0
        if not request.source.http_url:
            raise Unreachable(f"{request.source.node} has no file server")
        if size > self._small_bytes:
            asking = Asking(self._around, request, landing, throttle, progress)
            return await Gathering(asking).run()
        came: list[bytes] = []

        def take(some: Sequence[tuple[int, Brought]]) -> None:
            came.extend(bytes(data) for _, data in some)

        (failed,) = await self.fetch_many([request], take)
        if failed is not None:
            raise failed
        await landing.reset()
        await landing.write(came[0])
        await throttle.take(size)
        progress(size, size)
        return size

    async def fetch_many(
        self, requests: Sequence[Request], take: Take
    ) -> Sequence[TransportError | None]:
        """As `FetchesMany.fetch_many`."""
        around = self._around
        access = Access(around.signer, around.clock(), around.url_ttl_s, around.context)
        return await fetch_small(access, requests, take)

    async def close(self) -> None:
        """Let go of connections: none is kept."""
