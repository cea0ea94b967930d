"""Copies of the views at points of the log, so that what was known then is near at hand.

A snapshot is a store with its own checkpoint; it is used only where the log still holds the event
that it was taken at. It can be deleted at any time: everything in it comes back from the log.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from projections.fold import TABLES, WANTED_VERSIONS, Checkpoint, checkpoint
from projections.store import Store, StoreError
from streams.log import LogState, ReadingLog

#: The newest ones are never thinned out.
KEEP_NEWEST = 3
_NAME_DIGITS = 20


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
            with (building / "data.mdb").open("rb") as file:
                os.fsync(file.fileno())
            sequence = _checkpoint_in(building).sequence
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

    async def nearest(self, log: ReadingLog, until: int) -> Path | None:
        """The newest sound snapshot of this log at or before a sequence; None if there is none."""
        state = await log.state()
        for sequence in reversed(self.sequences()):
            if sequence <= until and await self._is_of(log, state, sequence):
                return self.path(sequence)
        return None

    async def _is_of(self, log: ReadingLog, state: LogState, sequence: int) -> bool:
        try:
            point = _checkpoint_in(self.path(sequence))
        except StoreError:
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


def _checkpoint_in(path: Path) -> Checkpoint:
    store = Store.open(path, TABLES, writable=False)
    try:
        with store.read() as reader:
            return checkpoint(reader)
    finally:
        store.close()


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.glob("*") if file.is_file())
