"""Small entries that are fetched at the same time from one source travel together.

Whoever comes while a batch is on its way goes with the next one; nobody waits for company.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator, Sequence

from adapters.files.digest import named
from adapters.http.signing import BATCH_ROUTE
from adapters.p2p.asking import Around
from adapters.p2p.batches import ABSENT, BATCH_BYTES, FRAME, MOST_FRAMES, SMALL_BYTES, encode_list
from adapters.p2p.peer import Peer
from adapters.transport import EntryMissing, Interrupted, Request, TransportError
from adapters.workers import PEERS, finish

#: Batches on their way from one source at once.
AT_ONCE = 2
#: So many contents are handed on at a time.
_HAND_ON_BYTES = 1 << 20

Waiting = tuple[Request, "asyncio.Future[bytearray]"]


class SmallEntries:
    """What is wanted of each source. Lives on one event loop."""

    def __init__(self, around: Around) -> None:
        self._around = around
        self._waiting: dict[tuple[str, str], list[Waiting]] = {}
        self._running: dict[tuple[str, str], set[asyncio.Task[None]]] = {}

    async def fetch(self, request: Request) -> bytearray:
        """The content of a small entry: as many bytes as it has, unproven.

        Raises `EntryMissing` and all that ends a batch.
        """
        key = (request.source.http_url, request.target.node)
        future: asyncio.Future[bytearray] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, []).append((request, future))
        running = self._running.setdefault(key, set())
        if len(running) < AT_ONCE:
            task = asyncio.create_task(self._drain(key))
            running.add(task)
            task.add_done_callback(running.discard)
        return await future

    async def close(self) -> None:
        """Give up what is on its way."""
        tasks = [task for running in self._running.values() for task in running]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _drain(self, key: tuple[str, str]) -> None:
        """One batch after the other, until nobody waits."""
        # Let those come who were called at the same moment.
        await asyncio.sleep(0)
        peer: Peer | None = None
        try:
            while batch := self._next(key):
                first = batch[0][0]
                peer = peer or Peer(
                    first.source.node,
                    first.source.http_url,
                    first.connect_s,
                    first.stall_s,
                    self._around.context,
                )
                await self._bring(peer, batch)
        finally:
            if peer is not None:
                peer.close()

    def _next(self, key: tuple[str, str]) -> list[Waiting]:
        waiting, total = self._waiting.get(key, []), 0
        batch: list[Waiting] = []
        while waiting and len(batch) < MOST_FRAMES:
            total += waiting[0][0].entry.size_bytes
            if batch and total > BATCH_BYTES:
                break
            batch.append(waiting.pop(0))
        return batch

    async def _bring(self, peer: Peer, batch: Sequence[Waiting]) -> None:
        """Ask for a batch and hand on what comes; what does not come has the error."""
        error: TransportError = Interrupted(f"{peer.node}: given up")
        try:
            parts = self._ask(peer, [request for request, _ in batch])
            while contents := await finish(
                lambda: next(parts, None), executor=PEERS, hurry=peer.abort
            ):
                for index, data in contents:
                    _hand_on(batch[index], data)
        except TransportError as failure:
            error = failure
        finally:
            for _, future in batch:
                if not future.done():
                    future.set_exception(type(error)(str(error)))

    def _ask(
        self, peer: Peer, requests: Sequence[Request]
    ) -> Iterator[list[tuple[int, bytearray | None]]]:
        body = encode_list([request.entry.checksum for request in requests])
        url = self._around.signer.url(
            peer.base,
            named(hashlib.sha256(body)),
            "",
            requests[0].target.node,
            self._around.clock(),
            self._around.url_ttl_s,
            route=BATCH_ROUTE,
        )
        peer.ask(url, method="POST", body=body)
        yield from received(peer, [request.entry.size_bytes for request in requests])


def received(peer: Peer, sizes: Sequence[int]) -> Iterator[list[tuple[int, bytearray | None]]]:
    """The contents of an answered batch by number, some at a time; None for what is not there, or
    not of this size. Blocks.
    """
    some: list[tuple[int, bytearray | None]] = []
    total = 0
    for index, expected in enumerate(sizes):
        (size,) = FRAME.unpack(_exactly(peer, FRAME.size))
        if size != ABSENT and not 0 <= size <= SMALL_BYTES:
            raise Interrupted(f"{peer.node} sent a frame of {size} bytes")
        data = None if size == ABSENT else _exactly(peer, size)
        some.append((index, data if data is not None and size == expected else None))
        total += max(size, 0)
        if total >= _HAND_ON_BYTES:
            yield some
            some, total = [], 0
    if some:
        yield some


def _exactly(peer: Peer, count: int) -> bytearray:
    data = bytearray(count)
    peer.fill(memoryview(data))
    return data


def _hand_on(waiting: Waiting, data: bytearray | None) -> None:
    request, future = waiting
    if future.done():
        return
    if data is None:
        who, path = request.source.node, request.entry.path
        future.set_exception(EntryMissing(f"{who} does not hold {path} with this content any more"))
    else:
        future.set_result(data)
