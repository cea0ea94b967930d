"""Copies of the views at points of the log, so that what was known then is near at hand.

A snapshot is a store, compressed, and beside it the checkpoint it was taken at; it is used only
where the log still holds that event. It can be deleted at any time: everything in it comes back
from the log.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec
import zstandard

from projections.fold import TABLES, WANTED_VERSIONS, Checkpoint, checkpoint
from projections.store import Store
from streams.log import LogState, ReadingLog

#: The newest ones are never thinned out.
KEEP_NEWEST = 3
_NAME_DIGITS = 20
_DATA, _PACKED, _POINT = "data.mdb", "data.mdb.zst", "checkpoint.json"
#: The quickest: a store is a third of its size by it, and better ones take longer than folding.
_LEVEL = 1
_PIECE = 1 << 20


class Snapshots:
    """The snapshots under one directory, each named by its sequence."""

    def __init__(self, root: Path, *, every: int = 0, budget_bytes: int = 0) -> None:
        """One is due `every` so many events; all but the newest are thinned out to the budget."""
        self._root = root
        self._every = every
        self._budget_bytes = budget_bytes
        self._known: list[int] | None = None

    def due(self, sequence: int) -> bool:
        """Whether views that are at `sequence` are to be copied."""
        if self._known is None:
            self._known = self.sequences()
        behind = [have for have in self._known if have <= sequence]
        return self._every > 0 and sequence - max(behind, default=0) >= self._every

    def sequences(self) -> list[int]:
        """Where there are snapshots, oldest first."""
        names = (path.name for path in self._root.glob("[0-9]*"))
        return sorted(int(n) for n in names if n.isdigit() and len(n) == _NAME_DIGITS)

    def path(self, sequence: int) -> Path:
        """The directory of a snapshot."""
        return self._root / f"{sequence:0{_NAME_DIGITS}d}"

    def take(self, store: Store) -> int:
        """Copy a store as it is, whole or not at all; its sequence. Blocks for the disk.

        Raises OSError and StoreError; then there is no new snapshot.
        """
        building = self._root / f".building-{os.getpid()}"
        shutil.rmtree(building, ignore_errors=True)
        try:
            store.copy(building)
            point = _checkpoint_in(building)
            _pack(building)
            (building / _POINT).write_bytes(msgspec.json.encode(point))
            sequence = point.sequence
            final = self.path(sequence)
            if not final.exists():
                building.rename(final)
        finally:
            shutil.rmtree(building, ignore_errors=True)
        self._thin_out()
        self._known = None
        return sequence

    async def forget_others(self, log: ReadingLog) -> None:
        """Delete what can't be used for this log as this code folds it."""
        state = await log.state()
        for sequence in self.sequences():
            if sequence > state.last_sequence or not await self._is_of(log, state, sequence):
                shutil.rmtree(self.path(sequence), ignore_errors=True)
        self._known = None

    async def bring(self, log: ReadingLog, until: int, directory: Path) -> int:
        """Put the newest sound snapshot of this log at or before a sequence into a directory.

        Its sequence; 0 if there is none, and then nothing is put there.
        """
        state = await log.state()
        for sequence in reversed(self.sequences()):
            if (
                sequence <= until
                and await self._is_of(log, state, sequence)
                and await asyncio.to_thread(_unpack, self.path(sequence), directory)
            ):
                return sequence
        return 0

    async def _is_of(self, log: ReadingLog, state: LogState, sequence: int) -> bool:
        try:
            said = (self.path(sequence) / _POINT).read_bytes()
            point = msgspec.json.decode(said, type=Checkpoint)
        except (OSError, msgspec.DecodeError):
            return False
        if point.versions != WANTED_VERSIONS or point.created not in (state.created, state.origin):
            return False
        recorded = await log.get(point.sequence)
        return recorded is not None and recorded.id == point.event_id

    def _thin_out(self) -> None:
        sizes = {s: _size(self.path(s)) for s in self.sequences()}
        for sequence in superfluous(sizes, self._budget_bytes):
            shutil.rmtree(self.path(sequence), ignore_errors=True)


def superfluous(sizes: dict[int, int], budget_bytes: int) -> Sequence[int]:
    """Which snapshots go: those whose loss leaves the smallest gap, until the budget is kept.

    `sizes` are bytes by sequence. The newest `KEEP_NEWEST` stay, however large they are.
    """
    left, gone = sorted(sizes), []
    while sum(sizes[s] for s in left) > budget_bytes and len(left) > KEEP_NEWEST:
        candidates = range(len(left) - KEEP_NEWEST)
        at = min(candidates, key=lambda i: (left[i + 1] - (left[i - 1] if i else 0), i))
        gone.append(left.pop(at))
    return gone


def _pack(directory: Path) -> None:
    """Put the compressed store in the place of the store, on the disk before it counts."""
    packer = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
    plain = directory / _DATA
    with plain.open("rb") as source, (directory / _PACKED).open("wb") as target:
        packer.copy_stream(source, target, plain.stat().st_size, _PIECE, _PIECE)
        target.flush()
        os.fsync(target.fileno())
    for file in directory.iterdir():
        if file.name != _PACKED:
            file.unlink()


def _unpack(snapshot: Path, directory: Path) -> bool:
    """Whether the store could be unpacked into a directory; if not, nothing is left there."""
    target = directory / _DATA
    try:
        with (snapshot / _PACKED).open("rb") as source, target.open("wb") as plain:
            zstandard.ZstdDecompressor().copy_stream(source, plain, _PIECE, _PIECE)
    except (OSError, zstandard.ZstdError):
        target.unlink(missing_ok=True)
        return False
    return True


def _checkpoint_in(path: Path) -> Checkpoint:
    store = Store.open(path, TABLES, writable=False)
    try:
        with store.read() as reader:
            return checkpoint(reader)
    finally:
        store.close()


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.glob("*") if file.is_file())
