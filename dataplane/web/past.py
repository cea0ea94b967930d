"""The overview as it was after any fact of the log: folded again, shown, and thrown away."""

from __future__ import annotations

import tempfile
from collections import OrderedDict
from pathlib import Path

from dataplane.overview import Overview, overview
from projections.cluster import ClusterView
from projections.projector import Projector
from streams.log import Log

#: Moments that are remembered: who moves the slider comes back to some.
_KEPT = 16


class PastGlances:
    """Glances at moments of the past. The past does not change, so each is folded once."""

    def __init__(self, log: Log, copies_wanted: int) -> None:
        self._log, self._copies_wanted = log, copies_wanted
        self._kept: OrderedDict[int, Overview] = OrderedDict()

    async def at(self, sequence: int) -> Overview | None:
        """The overview after this fact; None where the log does not hold it."""
        if sequence in self._kept:
            self._kept.move_to_end(sequence)
            return self._kept[sequence]
        fact = await self._log.get(sequence)
        if fact is None:
            return None
        self._kept[sequence] = glance = await self._fold(sequence, fact.time)
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return glance

    async def _fold(self, sequence: int, time: float) -> Overview:
        with tempfile.TemporaryDirectory(prefix="dataplane-past-") as directory:
            projector = Projector(self._log, Path(directory))
            await projector.start(until=sequence)
            try:
                with projector.store.read() as reader:
                    return overview(
                        ClusterView(reader),
                        now=time,
                        beats=None,
                        last_sequence=sequence,
                        copies_wanted=self._copies_wanted,
                    )
            finally:
                await projector.close()
