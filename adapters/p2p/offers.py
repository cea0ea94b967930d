"""What this node can give of a content, by digest: the file, what has come of it so far, its block
map, its changed pages.

It only ever opens what `locate` names or what is under way, never a path from outside. All blocks
and belongs in threads.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from adapters.files.blocks import BlockMap, block_bytes_of, map_of
from adapters.files.maps import MapStore
from adapters.files.scattered import Scattered, Underway
from adapters.p2p.gossip import Having, pieces_in
from adapters.p2p.pages import answer, decode_question

Locate = Callable[[str], Path | None]


class Opened(msgspec.Struct):
    """An open file; who has it closes `handle`."""

    handle: int
    size_bytes: int
    #: Of what is under way only parts are there.
    under_way: Scattered | None = None

    def holds(self, first: int, count: int) -> bool:
        """Whether these bytes are there."""
        if self.under_way is None:
            return True
        block = self.under_way.map.block_bytes
        start, end = first // block, -(-(first + count) // block)
        return self.under_way.holds(start, end - start)


class Offers:
    """The contents of one node."""

    def __init__(
        self, locate: Locate, maps: MapStore | None = None, underway: Underway | None = None
    ) -> None:
        self.locate = locate
        self._maps = maps
        self._underway: Underway = {} if underway is None else underway
        self._mapping = threading.Lock()

    def open(self, checksum: str) -> Opened | None:
        """The content, or what has come of it; None if there is nothing of it."""
        whole = self._open_whole(checksum)
        if whole is not None:
            return whole
        partial = self._underway.get(checksum)
        if partial is None:
            return None
        try:
            return Opened(partial.reader(), partial.map.size_bytes, partial)
        except OSError:
            # It landed, or was given up, a moment ago.
            return self._open_whole(checksum)

    def map(self, checksum: str) -> BlockMap | None:
        """The block map of a content; None if there is nothing of it."""
        opened = self.open(checksum)
        if opened is None:
            return None
        try:
            if opened.under_way is not None:
                return opened.under_way.map
            return self._map_of(checksum, opened)
        finally:
            os.close(opened.handle)

    def having(self, checksum: str) -> Having | None:
        """What there is of a content; None if there is nothing."""
        opened = self.open(checksum)
        if opened is None:
            return None
        os.close(opened.handle)
        partial = opened.under_way
        if partial is None:
            return Having(node="", url="", whole=True)
        return Having(node="", url="", pieces=pieces_in(partial.map, partial.have()))

    def pages(self, checksum: str, question: bytes, compress: bool) -> bytes | None:
        """The pages that differ from what is asked; None if there is nothing of the content.

        Raises `MalformedPages`.
        """
        opened = self.open(checksum)
        if opened is None:
            return None
        try:
            olds = decode_question(question, opened.size_bytes)
            block = block_bytes_of(opened.size_bytes)

            def read(index: int) -> bytes | None:
                count = min(block, opened.size_bytes - index * block)
                if not opened.holds(index * block, count):
                    return None
                data = os.pread(opened.handle, count, index * block)
                return data if len(data) == count else None

            return answer(olds, read, compress)
        finally:
            os.close(opened.handle)

    def _open_whole(self, checksum: str) -> Opened | None:
        path = self.locate(checksum)
        if path is None:
            return None
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        return Opened(handle, os.fstat(handle).st_size)

    def _map_of(self, checksum: str, opened: Opened) -> BlockMap:
        kept = self._maps.get(checksum, opened.size_bytes) if self._maps else None
        if kept is not None:
            return kept
        # Several ask at once: one makes it, the others find it.
        with self._mapping:
            kept = self._maps.get(checksum, opened.size_bytes) if self._maps else None
            if kept is None:
                kept = map_of(opened.handle, opened.size_bytes)
                if self._maps:
                    self._maps.put(checksum, kept)
            return kept
