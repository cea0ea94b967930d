"""How full a disk is: said when it begins to matter, and when it no longer does."""

from __future__ import annotations

from pathlib import Path

from dataplane.agent.diskwatch import DiskWatch
from dataplane.policy import Policy
from streams import events
from streams.memory import MemoryLog
from streams.values import DiskTier, NodeDescription


class Said:
    """What a watch has said, of a disk of 1,000 bytes with so many free when it joined."""

    def __init__(self, free: int) -> None:
        self.log = MemoryLog()
        self.free = self.told = free
        self.described = 0
        self.watch = DiskWatch(
            self.log, "gpu-1", Path(), Policy(), self._description, self.describe
        )

    def _description(self) -> NodeDescription:
        return NodeDescription(name="gpu-1", disk_total_bytes=1_000, disk_free_bytes=self.told)

    async def describe(self) -> None:
        """Say what the node is now, for whatever reason."""
        self.described += 1
        self.told = self.free

    async def saw(self, free: int) -> None:
        """Let it look at a disk with so much room."""
        self.free = free
        await self.watch.saw(1_000, free)

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
    said = Said(500)
    await said.saw(500)
    assert (said.described, (await said.log.state()).last_sequence) == (0, 0)
    for free in (500, 499, 301, 299, 149, 69, 39, 75, 95, 500):
        await said.saw(free)
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
    said = Said(900)
    for free in (900, 890, 881, 879, 860):
        await said.saw(free)
    assert said.described == 1


async def test_description_that_was_said_while_the_disk_was_full_for_a_moment_is_said_anew() -> (
    None
):
    """By whom is all the same: nothing would be planned for the node for ever."""
    said = Said(900)
    await said.saw(900)
    said.free = 0
    await said.describe()
    await said.saw(900)
    assert (said.told, said.described) == (900, 2)
