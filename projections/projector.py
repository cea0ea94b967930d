"""The log into the store: the one loop that writes the views.

It reads from its own checkpoint, never from a consumer's, and proves before it goes on that the
log is still the one the views were folded from. What it finds wanting it rebuilds beside, and
switches in one step; readers keep the old views until then.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from typing import TypeVar

from msgspec.structs import replace

from projections.fold import TABLES, WANTED_VERSIONS, Checkpoint, checkpoint, fold
from projections.snapshot import Snapshots
from projections.store import (
    Store,
    StoreCorrupt,
    StoreDirectory,
    StoreError,
    StoreMissing,
    Writer,
)
from streams.codec import Recorded
from streams.log import LogState, NoLongerHeld, ReadingLog

logger = logging.getLogger(__name__)
REBUILD_BATCH = 5_000
#: Damage may end whoever meets it by a signal: so many in a row that ended so soon after they had
#: opened the views met some.
MOST_ENDED, SOON_S = 3, 60.0
T = TypeVar("T")


class Projector:
    """Keeps the views under `root` up with `log`. `start`, then `run` in a task, then `close`."""

    def __init__(self, log: ReadingLog, root: Path, snapshots: Snapshots | None = None) -> None:
        self._log = log
        self._snapshots = snapshots
        self._copying: asyncio.Task[None] | None = None
        self._directory = StoreDirectory(root)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="projector")
        self._advanced = asyncio.Condition()
        self._store: Store | None = None
        self._created = ""
        #: When the views count as sound, by the monotonic clock.
        self._sound_at = math.inf
        self.checkpoint = Checkpoint()
        #: Batches committed: progress, for health.
        self.batches = 0
        #: What was wrong with the views at the start, and where they were: "" if nothing was.
        self.rolled_back = ""
        self.rolled_back_from = 0
        #: Called on the event loop after each commit, with what is in the views now.
        self.on_commit: list[Callable[[Sequence[Recorded]], None]] = []

    @property
    def store(self) -> Store:
        """The current views. Raises RuntimeError before `start`."""
        if self._store is None:
            raise RuntimeError("the projector has not started")
        return self._store

    async def start(self, until: int | None = None) -> None:
        """Open the views, or rebuild them where they do not belong to this log and version.

        A rebuild goes up to the log's end as it is now, or up to `until`.
        """
        state = await self._log.state()
        if until is not None:
            state = replace(state, last_sequence=until)
        self._created = state.created
        store = await self._in_writer(self._open_current)
        if store is not None:
            with store.read() as reader:
                self.checkpoint = checkpoint(reader)
            problem = await self._problem(self.checkpoint, state)
            if problem:
                logger.warning("views are rebuilt: %s", problem)
                if "rolled back" in problem:
                    self.rolled_back, self.rolled_back_from = problem, self.checkpoint.sequence
                await self._in_writer(store.close)
                store = None
        self._store = store or await self._rebuild(state)
        self._sound_at = time.monotonic() + SOON_S
        async with self._advanced:
            self._advanced.notify_all()

    def _open_current(self) -> Store | None:
        path = self._directory.current()
        if path is None or not path.is_dir():
            return None
        if self._directory.opened() >= MOST_ENDED:
            logger.warning(
                "views are rebuilt: %d processes in a row ended within %.0f s of opening them",
                MOST_ENDED,
                SOON_S,
            )
            return None
        try:
            store = Store.open(path, TABLES)
        except StoreCorrupt as error:
            logger.warning("views are rebuilt: %s", error)
            return None
        return store

    async def _problem(self, have: Checkpoint, state: LogState) -> str:
        """Why these views can't be gone on from; "" if they can."""
        if have.versions != WANTED_VERSIONS:
            return f"they are of version {have.versions}, this code writes {WANTED_VERSIONS}"
        if have.sequence == 0:
            return ""
        if have.created != state.created:
            return "they were folded from another log"
        if have.sequence < state.first_sequence - 1:
            return f"they are at {have.sequence}, the log begins at {state.first_sequence}"
        if have.sequence > state.last_sequence:
            return f"they are at {have.sequence}, the log was rolled back to {state.last_sequence}"
        recorded = await self._log.get(have.sequence)
        if recorded is None or recorded.id != have.event_id:
            return f"the log holds another event at {have.sequence}: it was rolled back"
        return ""

    async def _rebuild(self, state: LogState) -> Store:
        """Fold the log into a new generation, from a snapshot on if there is one, then switch."""
        path = self._directory.next()
        if self._snapshots is not None:
            await self._snapshots.forget_others(self._log)
            await self._snapshots.bring(self._log, state.last_sequence, path)
        building = await self._in_writer(lambda: Store.open(path, TABLES, durable=False))
        with building.read() as reader:
            self.checkpoint = checkpoint(reader)
        await self.catch_up(building, state.last_sequence)
        await self._in_writer(building.sync)
        await self._in_writer(building.close)
        self._directory.switch(path)
        self._directory.remove_others()
        self._directory.sound()
        return await self._in_writer(lambda: Store.open(path, TABLES))

    async def catch_up(self, store: Store, until: int) -> None:
        """Fold from the checkpoint on up to `until` in large batches."""
        if until <= self.checkpoint.sequence:
            return
        first = (await self._log.state()).first_sequence
        if self.checkpoint.sequence + 1 < first:
            raise NoLongerHeld(
                f"views that are at {self.checkpoint.sequence} can't be folded on: the log begins "
                f"at {first}, and no archive of it is configured here or can be read"
            )
        reading = self._log.read(after=self.checkpoint.sequence, until=until)
        async with aclosing(reading), aclosing(regroup(reading, REBUILD_BATCH)) as batches:
            async for batch in batches:
                self.checkpoint = await self._fold(store, batch)
                await self._copy_between(store)
        if self._copying is not None:
            # Whoever closes the store must not take it from under the copy.
            await self._copying

    async def run(self) -> None:
        """Fold what comes, for ever. Ends by cancellation or by an error that ends the process."""
        async with aclosing(self._log.read(after=self.checkpoint.sequence)) as batches:
            async for batch in batches:
                self.checkpoint = await self._fold(self.store, batch)
                self.batches += 1
                for tell in self.on_commit:
                    tell(batch)
                async with self._advanced:
                    self._advanced.notify_all()
                self._copy_if_due()

    async def _copy_between(self, store: Store) -> None:
        """Take a snapshot of what a rebuild has folded, while it folds on; none is left out."""
        snapshots = self._snapshots
        if snapshots is None or not snapshots.due(self.checkpoint.sequence):
            return
        if self._copying is not None:
            await self._copying
        self._copying = asyncio.create_task(self._copy(store, snapshots), name="snapshot")

    def _copy_if_due(self) -> None:
        """Take a snapshot beside the folding; one at a time."""
        snapshots, busy = self._snapshots, self._copying
        if snapshots is None or (busy is not None and not busy.done()):
            return
        if snapshots.due(self.checkpoint.sequence):
            self._copying = asyncio.create_task(self._copy(self.store, snapshots), name="snapshot")

    @staticmethod
    async def _copy(store: Store, snapshots: Snapshots) -> None:
        try:
            await asyncio.to_thread(snapshots.take, store)
        except (OSError, StoreError) as error:
            logger.warning("no snapshot of the views could be taken: %s", error)

    async def wait_for(self, sequence: int, timeout_s: float = 30.0) -> None:
        """Wait until the views have seen `sequence`. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s), self._advanced:
            await self._advanced.wait_for(lambda: self.checkpoint.sequence >= sequence)

    async def lag(self) -> int:
        """How many facts of the log the views have not seen yet."""
        return (await self._log.state()).last_sequence - self.checkpoint.sequence

    def check_in_place(self) -> None:
        """Raises StoreMissing where the views were removed, or others put in their place: what is
        folded on nobody can read.
        """
        if not self.store.in_place:
            raise StoreMissing(
                f"the views were removed from {self.store.path} while they were in use, or others "
                "put in their place: they are folded anew when this process is started again"
            )
        if time.monotonic() >= self._sound_at:
            self._directory.sound()
            self._sound_at = math.inf

    async def close(self) -> None:
        """Let go of the store; `run` must have ended."""
        if self._copying is not None:
            await self._copying
        if self._store is not None:
            await self._in_writer(self._store.close)
            if not self._store.damaged:
                self._directory.sound()
            else:
                # Whoever opens them next need not meet it first.
                while self._directory.opened() < MOST_ENDED:
                    pass
            self._store = None
        self._writer.shutdown()

    async def _fold(self, store: Store, batch: list[Recorded]) -> Checkpoint:
        expected = self.checkpoint.sequence

        def work(tx: Writer) -> Checkpoint:
            at = checkpoint(tx).sequence
            if at != expected:
                # Facts would be passed over as if they had been folded.
                raise StoreCorrupt(
                    f"the views in {store.path} were folded up to {expected}, and are at {at} now: "
                    "somebody else has changed them"
                )
            return fold(tx, batch, self._created)

        return await self._in_writer(lambda: store.write(work))

    async def _in_writer(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._writer, work)


async def regroup(
    batches: AsyncIterator[list[Recorded]], size: int
) -> AsyncGenerator[list[Recorded], None]:
    """The same facts in larger batches."""
    group: list[Recorded] = []
    async for batch in batches:
        group += batch
        if len(group) >= size:
            yield group
            group = []
    if group:
        yield group
