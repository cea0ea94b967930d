"""The views as they were at a point of the log, and what changed between two points.

A view of the past is folded like any other and then thrown away: nothing here changes the live
views, a snapshot or the log.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from projections.fold import ALL_VIEWS, TABLES, Checkpoint, checkpoint, fold
from projections.projector import REBUILD_BATCH, regroup
from projections.snapshot import Snapshots
from projections.store import Reader, Store, Writer
from streams.codec import Recorded
from streams.log import LogState, ReadingLog


class PointNotHeld(ValueError):
    """The log does not hold the point of time or the sequence that was asked for."""


class Difference(msgspec.Struct, frozen=True):
    """A row that two stores do not have alike; a row that is missing is None."""

    view: str
    table: str
    key: str
    left: Any
    right: Any


async def sequence_at(log: ReadingLog, moment: float) -> int:
    """The last sequence at or before a moment, seconds since 1970; 0 if all came later."""
    state = await log.state()
    low, high = state.first_sequence - 1, state.last_sequence
    while low < high:
        middle = (low + high + 1) // 2
        recorded = await log.get(middle)
        if recorded is None:
            raise PointNotHeld(f"the log does not hold its own sequence {middle}")
        low, high = (middle, high) if recorded.time <= moment else (low, middle - 1)
    return low


class Past:
    """The views at one point, which can be moved on. Use `past`."""

    def __init__(self, log: ReadingLog, state: LogState, writer: Writer) -> None:
        self._log, self._state = log, state
        #: A reading of the views as they are now folded.
        self.reader: Reader = writer
        self._writer = writer

    @property
    def checkpoint(self) -> Checkpoint:
        """The point they are at."""
        return checkpoint(self._writer)

    async def go_on(self, until: int) -> None:
        """Fold up to `until`, a sequence the log holds; points before are not gone back to."""
        async with aclosing(_tail(self._log, self._state, self.checkpoint, until)) as batches:
            async for batch in batches:
                fold(self._writer, batch, self._state.created)
                self._writer.flush()


@asynccontextmanager
async def past(
    log: ReadingLog, until: int, snapshots: Snapshots | None = None
) -> AsyncIterator[Past]:
    """The views as folded up to the sequence `until`, from the nearest snapshot or from nothing.

    Raises PointNotHeld.
    """
    async with folded(log, until, snapshots) as store:
        with store.trial() as writer:
            there = Past(log, await log.state(), writer)
            await there.go_on(until)
            yield there


@asynccontextmanager
async def folded(
    log: ReadingLog, until: int, snapshots: Snapshots | None = None, *, root: Path | None = None
) -> AsyncIterator[Store]:
    """The same as a store that many may read, in a directory of its own that goes with it.

    Below `root`, or where the system keeps such. Raises PointNotHeld.
    """
    state = await log.state()
    with tempfile.TemporaryDirectory(prefix="dataplane-past-", dir=root) as directory:
        if snapshots is not None:
            await snapshots.bring(log, until, Path(directory))
        store = Store.open(Path(directory), TABLES, durable=False)
        try:
            with store.read() as reader:
                done = checkpoint(reader)
            await _fill(store, log, state, done, until)
            yield store
        finally:
            store.close()


async def _fill(
    store: Store, log: ReadingLog, state: LogState, done: Checkpoint, until: int
) -> None:
    """Fold into a store of our own, in memory that does not grow; in a thread: it takes long."""
    async with aclosing(_tail(log, state, done, until)) as batches:
        async for batch in batches:
            work = partial(fold, batch=batch, created=state.created)
            await asyncio.to_thread(store.write, work)


async def _tail(
    log: ReadingLog, state: LogState, done: Checkpoint, until: int
) -> AsyncGenerator[list[Recorded], None]:
    """The facts between a checkpoint and `until`, in large batches. Raises PointNotHeld."""
    if until > state.last_sequence:
        raise PointNotHeld(f"the log ends at {state.last_sequence}, before {until}")
    if until <= done.sequence:
        return
    if done.sequence + 1 < state.first_sequence:
        raise PointNotHeld(
            f"the log begins at {state.first_sequence}: views can't be folded from it alone; "
            "read it from the archive"
        )
    reading = log.read(after=done.sequence, until=until)
    async with aclosing(reading), aclosing(regroup(reading, REBUILD_BATCH)) as batches:
        async for batch in batches:
            yield batch


def rows(reader: Reader, views: tuple[str, ...]) -> dict[tuple[str, str, bytes], bytes]:
    """Every row of these views: (view, table, key) to its bytes."""
    return {
        (view.name, table, key): value
        for view in ALL_VIEWS
        if view.name in views
        for table in view.tables
        for key, value in reader.scan(table)
    }


def differences(left: Reader, right: Reader) -> Iterator[Difference]:
    """The rows that two stores do not have alike, table by table in order of keys."""
    for view in ALL_VIEWS:
        for table in view.tables:
            for key, ours, theirs in _merged(left.scan(table), right.scan(table)):
                if ours != theirs:
                    yield Difference(
                        view.name, table, legible_key(key), legible(ours), legible(theirs)
                    )


def _merged(
    left: Iterator[tuple[bytes, bytes]], right: Iterator[tuple[bytes, bytes]]
) -> Iterator[tuple[bytes, bytes | None, bytes | None]]:
    """Both scans side by side, each key once."""
    one, other = next(left, None), next(right, None)
    while one is not None or other is not None:
        if other is None or (one is not None and one[0] < other[0]):
            assert one is not None
            yield one[0], one[1], None
            one = next(left, None)
        elif one is None or other[0] < one[0]:
            yield other[0], None, other[1]
            other = next(right, None)
        else:
            yield one[0], one[1], other[1]
            one, other = next(left, None), next(right, None)


def legible(value: bytes | None) -> Any:
    """A row for people and JSON: its fields in order, or its bytes in hexadecimal digits."""
    if value is None:
        return None
    try:
        return msgspec.to_builtins(msgspec.msgpack.decode(value))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return value.hex()


def legible_key(key: bytes) -> str:
    """A key as text where it is some, else in hexadecimal digits."""
    text = key.rstrip(b"\x00").decode("ascii", "replace").replace("\x00", "/")
    return text if text.isprintable() and "\ufffd" not in text else key.hex()
