"""The overview as it was after any fact of the log: folded again, shown, and thrown away."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from dataplane.config import DataPlaneConfig
from dataplane.overview import Overview, overview
from projections.cluster import ClusterView
from projections.snapshot import Snapshots
from projections.travel import PointNotHeld, past
from streams.log import ReadingLog

#: Moments that are remembered: who moves the slider comes back to some.
_KEPT = 16


class PastGlances:
    """Glances at moments of the past. The past does not change, so each is folded once."""

    def __init__(self, log: ReadingLog, config: DataPlaneConfig) -> None:
        self._log, self._policy = log, config.policy()
        self._snapshots = Snapshots(config.snapshots_dir)
        self._kept: OrderedDict[int, Overview] = OrderedDict()
        # One fold of the past at a time: the present goes on meanwhile.
        self._folding = asyncio.Lock()

    async def at(self, sequence: int) -> Overview | None:
        """The overview after this fact; None where the log does not hold it."""
        async with self._folding:
            if sequence not in self._kept:
                fact = await self._log.get(sequence)
                glance = None if fact is None else await self._fold(sequence, fact.time)
                if glance is None:
                    return None
                self._kept[sequence] = glance
            self._kept.move_to_end(sequence)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
            return self._kept[sequence]

    async def _fold(self, sequence: int, time: float) -> Overview | None:
        try:
            async with past(self._log, sequence, self._snapshots) as there:
                return overview(
                    ClusterView(there.reader),
                    now=time,
                    beats=None,
                    last_sequence=sequence,
                    policy=self._policy,
                )
        except PointNotHeld:
            return None
