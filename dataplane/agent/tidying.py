"""Sweeps up what the data plane itself has left on this node's disks.

A partial file is worth what its transfer saves by going on from it. Whether the transfer is still
to be done is in the views of a coordinator: where none answers, only age counts.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from pathlib import Path

import msgspec

from adapters.files.leftovers import (
    idle_transfers,
    own_directories,
    sweep_partials,
    sweep_quarantine,
)
from streams.foreign import Unreadable, from_json
from streams.log import Bus, LogError

logger = logging.getLogger(__name__)

#: How often what is left is looked at.
TIDY_S = 60.0
#: How often it is looked for disks that were mounted within the data directory.
_DISKS_S = 3600.0
_SUBJECT = "dp.query.pending"
_ANSWER_S = 10.0
#: Asked about at once; each has an id of 32 letters.
_MOST_ASKED = 500


class Tidying:
    """One node's leftovers. `run` in a task."""

    def __init__(self, bus: Bus, data_dir: Path, full_from: float) -> None:
        """A disk is full from this used share of it on."""
        self._bus = bus
        self._data_dir = data_dir
        self._full_from = full_from
        self._directories: list[Path] = []
        self._disks_at = float("-inf")
        #: What could not be swept up the last time.
        self._stuck: dict[Path, OSError] = {}

    async def run(self) -> None:
        """Sweep, for ever."""
        while True:
            if removed := await self.tidy():
                names = ", ".join(path.name for path in removed[:3])
                logger.info("%d files of no more use were removed: %s", len(removed), names)
            await asyncio.sleep(TIDY_S)

    async def tidy(self) -> list[Path]:
        """Sweep once; what was removed. What can't be swept keeps nothing else, and is warned of
        once, until it could be.
        """
        removed: list[Path] = []
        stuck: dict[Path, OSError] = {}
        for own in await self._own_directories(stuck):
            try:
                await self._tidy(own, removed, stuck)
            except OSError as error:
                stuck[own] = error
        for path in stuck.keys() - self._stuck.keys():
            logger.warning("%s can't be swept up, and stays: %s", path, stuck[path])
        self._stuck = stuck
        return removed

    async def _own_directories(self, stuck: dict[Path, OSError]) -> list[Path]:
        if time.monotonic() >= self._disks_at + _DISKS_S:
            try:
                self._directories = await asyncio.to_thread(own_directories, self._data_dir)
                self._disks_at = time.monotonic()
            except OSError as error:
                stuck[self._data_dir] = error
        return self._directories

    async def _tidy(self, own: Path, removed: list[Path], stuck: dict[Path, OSError]) -> None:
        """Sweep one own directory. Raises `OSError` where all of it is stuck."""
        tell = stuck.__setitem__
        idle = await asyncio.to_thread(idle_transfers, own, stuck=tell)
        ended = await self._ended(idle)
        removed += await asyncio.to_thread(sweep_partials, own, ended, stuck=tell)
        removed += await asyncio.to_thread(sweep_quarantine, own, self._full_from, stuck=tell)

    async def _ended(self, transfers: set[str]) -> set[str]:
        """Those that a coordinator knows nothing of, or knows to be done; none if none answers."""
        if not transfers:
            return set()
        # Others the next time, so that each has its turn.
        asked = set(random.sample(sorted(transfers), min(len(transfers), _MOST_ASKED)))
        question = msgspec.json.encode({"transfers": sorted(asked)})
        try:
            answer = await self._bus.request(_SUBJECT, question, _ANSWER_S)
            return asked - set(from_json(answer, list[str]))
        except (LogError, Unreadable) as error:
            logger.debug("no coordinator says which transfers are over: %s", error)
            return set()
