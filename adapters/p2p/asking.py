"""What one attempt at a content shares: whom it may ask, how, and what has come of it so far."""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

from adapters.errors import Unreachable
from adapters.files.landing import Landing
from adapters.files.maps import MapStore
from adapters.files.scattered import Underway
from adapters.http.peer import Peer
from adapters.http.signing import Signer
from adapters.p2p.gossip import Gossip
from adapters.throttle import Throttle
from adapters.transport import Progress, Request
from adapters.workers import PEERS, finish
from streams.values import Endpoint

T = TypeVar("T")
Locate = Callable[[str], Path | None]

#: A peer that is silent for so long is not waited for while there are others.
PEER_SILENT_S = 5.0
URL_TTL_S = 300.0
_TELL_PROGRESS_S = 0.2


class Around(msgspec.Struct):
    """What a node has besides the wire: its contents, maps and what is under way, and gossip."""

    signer: Signer
    #: Finds the file that holds a content.
    locate: Locate = lambda checksum: None
    #: Keeps the maps of its contents.
    maps: MapStore | None = None
    #: What is being fetched, and may be given to others already.
    underway: Underway = msgspec.field(default_factory=dict)
    #: How it is heard who has what.
    gossip: Gossip | None = None
    #: Whom to trust over TLS; None: whom this machine trusts.
    context: ssl.SSLContext | None = None
    #: Whether changed pages travel compressed.
    compress: bool = True
    clock: Callable[[], float] = time.time
    url_ttl_s: float = URL_TTL_S


class Asking:
    """One attempt. Lives on one event loop."""

    def __init__(
        self,
        around: Around,
        request: Request,
        landing: Landing,
        throttle: Throttle,
        progress: Progress,
    ) -> None:
        self.around = around
        self.request = request
        self.landing = landing
        self.throttle = throttle
        #: Bytes that came.
        self.bytes_came = 0
        self._progress = progress
        self._told_at = 0.0

    @contextlib.asynccontextmanager
    async def peer(self, place: Endpoint) -> AsyncIterator[Peer]:
        """A connection to a peer, closed at the end."""
        request = self.request
        alone = place == request.source and not request.peers
        connect_s = request.connect_s if alone else min(request.connect_s, PEER_SILENT_S)
        stall_s = request.stall_s if alone else min(request.stall_s, PEER_SILENT_S)
        peer = Peer(
            place.node,
            place.http_url,
            connect_s,
            stall_s,
            self.around.context,
            request.entry.path,
        )
        try:
            yield peer
        finally:
            await finish(peer.close, executor=PEERS)

    async def ask(
        self,
        peer: Peer,
        route: str,
        then: Callable[[], T],
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> T:
        """Ask a peer about the content and do something with its answer, in a thread."""
        if not peer.base:
            raise Unreachable(f"{peer.node} has no file server")
        entry, around, target = self.request.entry, self.around, self.request.target.node
        url = around.signer.url(
            peer.base,
            entry.checksum,
            entry.path,
            target,
            around.clock(),
            around.url_ttl_s,
            route=route,
        )

        def asked() -> T:
            peer.ask(url, method=method, headers=headers, body=body)
            return then()

        return await finish(asked, executor=PEERS, hurry=peer.abort)

    async def came(self, nbytes: int) -> None:
        """So many bytes came; wait as long as the limit wants."""
        self.bytes_came += nbytes
        self.landing.came(nbytes)
        self.tell_progress()
        await self.throttle.take(nbytes)

    def tell_progress(self, final: bool = False) -> None:
        """Tell how far it is, unless it was told just now."""
        now = time.monotonic()
        if final or now - self._told_at >= _TELL_PROGRESS_S:
            self._told_at = now
            # Blocks come in any order: what came counts before it closes a gap.
            size = self.request.entry.size_bytes
            self._progress(min(size, max(self.landing.offset, self.bytes_came)), size)
