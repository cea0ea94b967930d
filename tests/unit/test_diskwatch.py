"""How full a disk is: said when it begins to matter, and when it no longer does."""

from __future__ import annotations

from pathlib import Path

from dataplane.agent.diskwatch import DiskWatch
from dataplane.policy import Policy
from streams import events
from streams.memory import MemoryLog
from streams.values import DiskTier


class Said:
    """What a watch has said."""

    def __init__(self) -> None:
        self.log = MemoryLog()
        self.described = 0
        self.watch = DiskWatch(self.log, "gpu-1", Path(), Policy(), self._describe)

    async def _describe(self) -> None:
        self.described += 1

    async def tiers(self) -> list[tuple[DiskTier, DiskTier]]:
        """From which tier to which it went."""
        found = []
        async for batch in self.log.read(until=(await self.log.state()).last_sequence):
            for one in batch:
                assert isinstance(one.event, events.DiskTierChanged)
                found.append((one.event.before, one.event.tier))
        return found


async def test_k21_every_tier_is_said_once_with_its_figures() -> None:
    """And only when it is clearly left again; the node's description follows."""
    said = Said()
    await said.watch.saw(1_000, 500)
    assert (said.described, (await said.log.state()).last_sequence) == (0, 0)
    for free in (500, 499, 301, 299, 149, 69, 39, 75, 95, 500):
        await said.watch.saw(1_000, free)
    assert await said.tiers() == [
        (DiskTier.NORMAL, DiskTier.NO_BACKGROUND),
        (DiskTier.NO_BACKGROUND, DiskTier.CLEANUP),
        (DiskTier.CLEANUP, DiskTier.STOP_PRODUCTION),
        (DiskTier.STOP_PRODUCTION, DiskTier.CRITICAL),
        (DiskTier.CRITICAL, DiskTier.STOP_PRODUCTION),
        (DiskTier.STOP_PRODUCTION, DiskTier.CLEANUP),
        (DiskTier.CLEANUP, DiskTier.NORMAL),
    ]


async def test_free_space_that_moves_is_described_anew() -> None:
    """By more than a fiftieth of the disk, whatever the tier."""
    said = Said()
    for free in (900, 890, 881, 879, 860):
        await said.watch.saw(1_000, free)
    assert said.described == 1
