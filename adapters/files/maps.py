"""The block maps this node has, by content, in a small store that may be deleted at any time.

A map is kept once it is proven: made from a file of our own, or landed with its content. The
oldest go when there are too many.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from adapters.files.blocks import BlockMap, MalformedMap, encoded_bytes
from adapters.files.digest import hex_of
from adapters.files.places import OWN_DIRECTORY

MOST_BYTES = 128 << 20
#: Whether there are too many is looked at when so large a share of the most was added.
_LOOKED_AT_SHARE = 1 / 16


class MapStore:
    """Maps of one data root, a file each. All methods block and may be called from any thread."""

    def __init__(self, root: Path, *, most_bytes: int = MOST_BYTES) -> None:
        self._directory = root / OWN_DIRECTORY / "maps"
        self._most_bytes = most_bytes
        #: Kept since it was last looked at; at first nobody knows.
        self._added_bytes = most_bytes

    def get(self, checksum: str, size_bytes: int) -> BlockMap | None:
        """The map of a content; None if there is none here that is sound."""
        path = self._path(checksum)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        try:
            found = BlockMap.decode(data, size_bytes)
        except MalformedMap:
            path.unlink(missing_ok=True)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return found

    def put(self, checksum: str, block_map: BlockMap) -> None:
        """Keep a map, if the disk takes it: it can be made again."""
        path = self._path(checksum)
        fresh = path.with_name(f"{uuid.uuid4().hex}.tmp")
        with contextlib.suppress(OSError):
            self._directory.mkdir(parents=True, exist_ok=True)
            try:
                fresh.write_bytes(block_map.encode())
                fresh.replace(path)
            finally:
                fresh.unlink(missing_ok=True)
            self._added_bytes += encoded_bytes(block_map.size_bytes)
            if self._added_bytes >= self._most_bytes * _LOOKED_AT_SHARE:
                self._added_bytes = 0
                self._sweep()

    def newest(self, most: int) -> Iterator[tuple[str, BlockMap]]:
        """Contents and their maps, those first that were used last."""
        for _, _, path in reversed(self._by_age()[-most:]):
            with contextlib.suppress(OSError, MalformedMap):
                yield f"sha256:{path.name}", BlockMap.parse(path.read_bytes())

    def _sweep(self) -> None:
        kept = self._by_age()
        total = sum(size for _, size, _ in kept)
        for _, size, path in kept:
            if total <= self._most_bytes:
                break
            path.unlink(missing_ok=True)
            total -= size

    def _by_age(self) -> list[tuple[float, int, Path]]:
        """Time of last use and size of each map, the oldest first."""
        found = []
        with contextlib.suppress(OSError):
            for path in self._directory.glob("?" * 64):
                with contextlib.suppress(OSError):
                    seen = path.stat()
                    found.append((seen.st_mtime, seen.st_size, path))
        return sorted(found)

    def _path(self, checksum: str) -> Path:
        return self._directory / hex_of(checksum)
