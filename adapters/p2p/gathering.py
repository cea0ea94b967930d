"""One large content, gathered block by block from everyone who has some of it.

First what is on this node already, then the changed pages of an older version, then whole blocks
from the source and from all who fetch the same. It is one attempt; what came stays for the next
one, unless it can't be told what of it is right.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from adapters.errors import (
    DigestMismatch,
    EntryMissing,
    Interrupted,
    Refused,
    Stalled,
    TransportError,
    Unreachable,
)
from adapters.files.blocks import (
    LEAF_DIGEST_BYTES,
    BlockMap,
    MalformedMap,
    encoded_bytes,
    leaf_digests,
)
from adapters.files.checks import is_database
from adapters.files.scattered import Scattered
from adapters.http.peer import Peer
from adapters.http.signing import MAP_ROUTE, PAGES_ROUTE
from adapters.p2p.asking import Asking
from adapters.p2p.nearby import older_version, take_elsewhere, take_same
from adapters.p2p.pages import Old, decode_answer, encode_question, most_blocks, patched, unpacked
from adapters.p2p.swarming import Swarming
from adapters.workers import each, finish

T = TypeVar("T")

#: A delta pays while less than this share of the pages differs.
DELTA_SHARE = 0.75
#: A stretch of a file that is no database is worth a delta if so much of it is at its old place.
SAME_SHARE = 0.5
#: An older version is looked through in stretches, so many at once.
STRETCH_BYTES, AT_ONCE = 64 << 20, 2
#: A peer that is first asked for a map reads the whole file, at least this fast.
MAPPED_BYTES_PER_S = 100e6


class Gathering:
    """One attempt at one content."""

    def __init__(self, asking: Asking) -> None:
        self._asking = asking
        self._entry = asking.request.entry
        self._stop = False
        self._delta_pays = True

    async def run(self) -> int:
        """Bring what is lacking; return how many bytes came. Raises as `Fetches.fetch`."""
        landing = self._asking.landing
        scattered = await landing.scatter(landing.block_map or await self._map())
        self._offer(scattered)
        try:
            await self._take_nearby(scattered)
            if not scattered.whole:
                await Swarming(self._asking, scattered).run()
        except DigestMismatch:
            # Map or bytes are wrong, and which of them, nobody knows.
            await landing.reset()
            raise
        self._asking.tell_progress(final=True)
        return self._asking.bytes_came

    def _offer(self, scattered: Scattered) -> None:
        """Let others have what comes, until the file has landed or is given up."""
        underway, checksum = self._asking.around.underway, self._entry.checksum

        def withdraw() -> None:
            if underway.get(checksum) is scattered:
                del underway[checksum]

        underway[checksum] = scattered
        scattered.on_close = withdraw

    async def _map(self) -> BlockMap:
        """The block map: our own, or from the source, or from whoever else has it."""
        maps, request = self._asking.around.maps, self._asking.request
        size = self._entry.size_bytes
        if maps is not None:
            kept = await finish(lambda: maps.get(self._entry.checksum, size))
            if kept is not None:
                return kept
        error: TransportError | None = None
        for place in (request.source, *request.peers):
            async with self._asking.peer(place) as peer:
                peer.stall_s += size / MAPPED_BYTES_PER_S
                try:
                    read = partial(peer.read, encoded_bytes(size) + 1)
                    return BlockMap.decode(await self._asking.ask(peer, MAP_ROUTE, read), size)
                except MalformedMap as failure:
                    named = MalformedMap(f"{peer.node}, asked about {self._entry.path}: {failure}")
                    error = error or named
                except TransportError as failure:
                    error = error or failure
        raise error or Unreachable(f"there is nobody to ask for {self._entry.path}")

    async def _take_nearby(self, scattered: Scattered) -> None:
        """Take what need not travel, or only in part."""
        maps, locate = self._asking.around.maps, self._asking.around.locate
        with older_version(self._asking.landing.path) as old:
            if old is not None:
                count, step = scattered.map.count, _stretch_of(scattered.map)
                stretches = (range(at, min(at + step, count)) for at in range(0, count, step))
                # While one waits for its pages another is looked through, and the digest of the
                # whole follows behind both.
                await each(stretches, partial(self._take_older, scattered, old), AT_ONCE)
        if maps is not None and not scattered.whole:
            await self._on_disk(lambda: take_elsewhere(scattered, maps, locate, self._stopped))

    async def _take_older(self, scattered: Scattered, old: int, blocks: range) -> None:
        """Take some blocks in a row from an older version, or the pages in which they differ."""
        lacking = await self._on_disk(lambda: take_same(old, scattered, blocks, self._stopped))
        same = len(blocks) - len(lacking)
        worth = is_database(self._entry.path) or same >= SAME_SHARE * len(blocks)
        if lacking and worth and self._delta_pays:
            await self._take_pages(scattered, old, lacking)

    async def _take_pages(self, scattered: Scattered, old: int, lacking: list[int]) -> None:
        """Ask the source for the pages in which blocks differ from those of an older version.

        What does not come this way is brought block by block.
        """
        block_map = scattered.map
        at_once = most_blocks(block_map.block_bytes)
        async with self._asking.peer(self._asking.request.source) as peer:
            for at in range(0, len(lacking), at_once):
                olds = await self._on_disk(
                    partial(_olds, old, block_map, lacking[at : at + at_once])
                )
                try:
                    pages = await self._pages_of(peer, scattered, old, olds)
                except (EntryMissing, Interrupted, Refused, Stalled, Unreachable):
                    self._delta_pays = False
                    return
                leaves = sum(len(one.leaves) for one in olds) // LEAF_DIGEST_BYTES
                if self._asking.request.peers and pages > DELTA_SHARE * leaves:
                    # New data for all of them is to leave the source once.
                    self._delta_pays = False
                    return

    async def _pages_of(self, peer: Peer, scattered: Scattered, old: int, olds: list[Old]) -> int:
        """Bring the changed pages of some blocks; how many there were."""
        block_map, came, pages = scattered.map, 0, 0

        def read(count: int) -> bytes:
            nonlocal came
            data = peer.read(count)
            came += len(data)
            return data

        def take() -> None:
            nonlocal pages
            compressed = peer.answer is not None and peer.answer.getheader("Content-Encoding")
            source = unpacked(read) if compressed == "zstd" else read
            for index, new in decode_answer(source, olds, block_map):
                offset, length = block_map.span(index)
                block = bytearray(os.pread(old, length, offset).ljust(length, b"\0"))
                scattered.put(index, memoryview(patched(block, new)))
                pages += len(new)

        try:
            headers = {"Accept-Encoding": "zstd" if self._asking.around.compress else "identity"}
            body = encode_question(olds)
            await self._asking.ask(
                peer, PAGES_ROUTE, take, method="POST", headers=headers, body=body
            )
        finally:
            await self._asking.came(came)
        return pages

    async def _on_disk(self, work: Callable[[], T]) -> T:
        return await finish(work, hurry=self._hurry)

    def _hurry(self) -> None:
        self._stop = True

    def _stopped(self) -> bool:
        return self._stop


def _stretch_of(block_map: BlockMap) -> int:
    """How many blocks of an older version are looked through before the source is asked."""
    return max(1, STRETCH_BYTES // block_map.block_bytes)


def _olds(handle: int, block_map: BlockMap, indices: list[int]) -> list[Old]:
    """What stands in the place of these blocks in an older version. Blocks."""
    olds = []
    for index in indices:
        offset, length = block_map.span(index)
        olds.append(Old(index, leaf_digests(os.pread(handle, length, offset).ljust(length, b"\0"))))
    return olds
