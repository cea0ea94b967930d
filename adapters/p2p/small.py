"""Small entries that are wanted of one source at the same time, in one question and one answer.

What comes is handed on as it is read; nothing is believed but the sizes that were asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from adapters.errors import EntryMissing, Interrupted, TransportError, Unreachable
from adapters.files.digest import named
from adapters.http.signing import BATCH_ROUTE
from adapters.p2p.asking import Around
from adapters.p2p.batches import ABSENT, FRAME, encode_list
from adapters.p2p.peer import Peer
from adapters.transport import Request, Take
from adapters.workers import PEERS, finish
from streams.values import SMALL_BYTES

#: So much of an answer is held at a time, at least.
_HELD_BYTES = 1 << 20


async def fetch_small(
    around: Around, requests: Sequence[Request], take: Take
) -> list[TransportError | None]:
    """As `FetchesMany.fetch_many`; at most a batch, of entries that are small."""
    first = requests[0]
    if not first.source.http_url:
        return [Unreachable(f"{first.source.node} has no file server") for _ in requests]
    peer = Peer(
        first.source.node, first.source.http_url, first.connect_s, first.stall_s, around.context
    )
    failed: list[TransportError | None] = [Interrupted(f"{peer.node}: given up") for _ in requests]
    body = encode_list([request.entry.checksum for request in requests])
    url = around.signer.url(
        peer.base,
        named(hashlib.sha256(body)),
        "",
        first.target.node,
        around.clock(),
        around.url_ttl_s,
        route=BATCH_ROUTE,
    )

    def receive() -> None:
        came = 0
        try:
            peer.ask(url, method="POST", body=body)
            for came, outcome in enumerate(_received(peer, requests, take), 1):
                failed[came - 1] = outcome
        except TransportError as error:
            failed[came:] = [type(error)(str(error)) for _ in requests[came:]]
        finally:
            peer.close()

    await finish(receive, executor=PEERS, hurry=peer.abort)
    return failed


def _received(
    peer: Peer, requests: Sequence[Request], take: Take
) -> Iterator[TransportError | None]:
    """Hand on the contents of an answer, one after the other; whether each one came. Blocks."""
    answer = _Answer(peer)
    for number, request in enumerate(requests):
        (size,) = FRAME.unpack(answer.next(FRAME.size))
        if size != ABSENT and not 0 <= size <= SMALL_BYTES:
            raise Interrupted(f"{peer.node} sent a frame of {size} bytes")
        content = answer.next(max(size, 0))
        if size == request.entry.size_bytes:
            take(number, content)
            yield None
        else:
            path = request.entry.path
            yield EntryMissing(f"{peer.node} does not hold {path} with this content any more")


class _Answer:
    """An answer, read in large pieces and given away in small ones."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._held = memoryview(bytearray(_HELD_BYTES + SMALL_BYTES))
        self._from = self._to = 0

    def next(self, count: int) -> memoryview:
        """The next bytes, which are overwritten by those after them."""
        if self._to - self._from < count:
            self._read(count)
        first, self._from = self._from, self._from + count
        return self._held[first : self._from]

    def _read(self, count: int) -> None:
        left = self._to - self._from
        self._held[:left] = bytes(self._held[self._from : self._to])
        self._from, self._to = 0, left
        while self._to < count:
            self._to += self._peer.some(self._held[self._to :])
