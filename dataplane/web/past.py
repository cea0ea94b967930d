"""The cluster as it was after any fact of the log: folded again, shown, and thrown away."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from dataplane.audit.knowing import Then, known_at
from dataplane.config import DataPlaneConfig
from dataplane.overview import Overview, overview
from projections.travel import PointNotHeld
from streams.log import ReadingLog

#: Moments that are remembered: who moves the slider comes back to some.
_KEPT = 16


class NotHeld(LookupError):
    """The log does not hold the fact that was asked for."""


class Past:
    """Moments of the past. The past does not change, so a glance at each is folded once."""

    def __init__(self, log: ReadingLog, config: DataPlaneConfig) -> None:
        self._log, self._config = log, config
        self._kept: OrderedDict[int, Overview] = OrderedDict()
        # One fold of the past at a time: the present goes on meanwhile.
        self._folding = asyncio.Lock()

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
                async with known_at(self._log, sequence, self._config) as then:
                    yield then
            except PointNotHeld as error:
                raise NotHeld(str(error)) from None

    async def glance(self, sequence: int) -> Overview:
        """The overview after this fact. Raises NotHeld."""
        if sequence not in self._kept:
            async with self.known(sequence) as then:
                self._kept[sequence] = overview(
                    then.known.view,
                    now=then.known.now,
                    beats=None,
                    last_sequence=sequence,
                    policy=self._config.policy(),
                )
        self._kept.move_to_end(sequence)
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return self._kept[sequence]
