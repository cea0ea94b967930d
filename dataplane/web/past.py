"""The cluster as it was after any fact of the log: folded again, shown, and kept for a while."""

from __future__ import annotations

import asyncio
import shutil
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple

from dataplane.audit.knowing import Then, then_of
from dataplane.config import DataPlaneConfig
from dataplane.overview import Overview, overview
from projections.snapshot import Snapshots
from projections.store import Store
from projections.travel import PointNotHeld, folded
from streams.log import ReadingLog

#: Glances that are remembered: who moves the slider comes back to some.
_KEPT = 16
#: Moments whose views are kept on the disk, and what they may take there: who looks around at one
#: asks for many pages of it. One that is larger than all may be is kept for no other page.
MOMENTS_KEPT, MOMENTS_KEPT_BYTES = 4, 1_000_000_000


class NotHeld(LookupError):
    """The log does not hold the fact that was asked for."""


class _Moment(NamedTuple):
    """Views of one moment; its stack takes them from the disk again."""

    store: Store
    size_bytes: int
    stack: AsyncExitStack


class Past:
    """Moments of the past. The past does not change, so each is folded once. `close` it."""

    def __init__(self, log: ReadingLog, config: DataPlaneConfig) -> None:
        self._log, self._config = log, config
        self._root = config.state_dir / "past"
        self._glances: OrderedDict[int, Overview] = OrderedDict()
        #: The one that was looked at last stands last.
        self._moments: OrderedDict[int, _Moment] = OrderedDict()
        # One fold of the past at a time, and nothing is let go of that is read: the present goes on
        # meanwhile.
        self._folding = asyncio.Lock()
        # What a process left that was killed.
        shutil.rmtree(self._root, ignore_errors=True)

    async def time_of(self, sequence: int) -> float:
        """When a fact was said. Raises NotHeld."""
        fact = await self._log.get(sequence)
        if fact is None:
            raise NotHeld(f"the log holds no fact {sequence}")
        return fact.time

    @asynccontextmanager
    async def known(self, sequence: int) -> AsyncIterator[Then]:
        """All that was known after this fact. Raises NotHeld."""
        await self.time_of(sequence)
        async with self._folding:
            try:
                moment = await self._moment(sequence)
            except PointNotHeld as error:
                raise NotHeld(str(error)) from None
            try:
                with moment.store.read() as reader:
                    yield then_of(reader, self._log, sequence, self._config)
            finally:
                await self._let_go()

    async def glance(self, sequence: int) -> Overview:
        """The overview after this fact. Raises NotHeld."""
        if sequence not in self._glances:
            async with self.known(sequence) as then:
                self._glances[sequence] = overview(
                    then.known.view,
                    now=then.known.now,
                    beats=None,
                    last_sequence=sequence,
                    policy=self._config.policy(),
                )
        self._glances.move_to_end(sequence)
        while len(self._glances) > _KEPT:
            self._glances.popitem(last=False)
        return self._glances[sequence]

    async def close(self) -> None:
        """Take everything from the disk."""
        async with self._folding:
            await self._let_go(most=0)
        shutil.rmtree(self._root, ignore_errors=True)

    async def _moment(self, sequence: int) -> _Moment:
        if sequence not in self._moments:
            self._root.mkdir(parents=True, exist_ok=True)
            async with AsyncExitStack() as stack:
                snapshots = Snapshots(self._config.snapshots_dir)
                store = await stack.enter_async_context(
                    folded(self._log, sequence, snapshots, root=self._root)
                )
                self._moments[sequence] = _Moment(store, store.size_bytes, stack.pop_all())
        self._moments.move_to_end(sequence)
        return self._moments[sequence]

    async def _let_go(self, most: int = MOMENTS_KEPT) -> None:
        """Of the oldest, until the others are few enough and take no more than they may."""
        while len(self._moments) > most or self._size_bytes() > MOMENTS_KEPT_BYTES:
            _, oldest = self._moments.popitem(last=False)
            await oldest.stack.aclose()

    def _size_bytes(self) -> int:
        return sum(moment.size_bytes for moment in self._moments.values())
