"""A node's copies in custody: proven, deleted and missed, by the real agent's code over a model.

What the model knows and no node does is how many others hold the content at the very moment at
which a copy goes.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable

from adapters.files.removal import Kept
from dataplane.agent.custody import Custody
from dataplane.deletion import copies_chain
from dataplane.policy import Policy
from streams import events
from streams.codec import Recorded, fact_id, node_fact
from streams.log import LogError
from streams.subjects import chain_filter
from streams.values import DataEntry, Proof
from tests.simulation.bus import FaultyBus, FaultyLog
from tests.simulation.disk import Disk

#: How often a node looks whether all that it said it holds is still there; and where what is taken
#: away is to be found by proofs alone.
LOOK_S, LOOK_SELDOM_S = 8.0, 60.0


class Overseer:
    """Sees all disks at once: whether enough copies remain wherever one is deleted."""

    def __init__(self, disks: dict[str, Disk], policy: Policy, messages: list[Recorded]) -> None:
        self._disks = disks
        self._least = policy.disk.min_verified_copies
        self._messages = messages
        #: When somebody took a file away without asking, by path.
        self.taken: dict[str, list[float]] = {}
        self.deleted = 0
        self.problems: list[str] = []

    def take(self, node: str, path: str, now: float) -> None:
        """A file is gone, and nobody was asked."""
        disk = self._disks[node]
        disk.own.pop(path, None)
        if (gone := disk.files.pop(path, None)) is not None:
            disk.unmissed[path] = gone
            self.taken.setdefault(path, []).append(now)

    def wiped(self, node: str) -> None:
        """A node is wiped, by the word that it is drained: others must hold what it held."""
        disk = self._disks[node]
        for path in sorted(disk.files):
            others = [one for name, one in self._disks.items() if name != node]
            if not any(path in one.files for one in others):
                self.problems.append(f"{node} was wiped, and nobody else holds {path}")
        disk.files.clear()
        disk.own.clear()

    def deletes(self, node: str, entry: DataEntry) -> None:
        """A copy goes now, by a grant: as many as the rule says must hold the content elsewhere."""
        self.deleted += 1
        chain = chain_filter(copies_chain(entry.path, entry.checksum))
        said = [one for one in self._messages if one.subject.startswith(chain.removesuffix(">"))]
        grants = [one for one in said if one.type == "DELETION_GRANTED"]
        if not grants:
            self.problems.append(f"{node} deleted {entry.path}, and nobody granted it")
            return
        if any(
            one.cause == grants[-1].id and one.type == "FILES_REMOVED" for one in self._messages
        ):
            self.problems.append(f"{node} deleted {entry.path} again, by a grant that was used")
        granted = grants[-1].event
        assert isinstance(granted, events.DeletionGranted)
        asked_at = [one.time for one in said if one.type == "DELETION_RESERVED"][-1]
        if any(when >= asked_at for when in self.taken.get(entry.path, ())):
            # Taken away when it was being proven, or had been: nobody could know.
            return
        proven = {proof.checksum for proof in granted.proofs}
        holders = [
            name for name in self._disks if name != node and self._holds(name, entry, proven)
        ]
        if len(holders) < self._least:
            self.problems.append(
                f"{node} deleted {entry.path}, and of the others only {holders} hold it"
            )

    def _holds(self, name: str, entry: DataEntry, proven: set[str]) -> bool:
        """The content that was proven, or a later version; what its producer has is the latest."""
        there = self._disks[name].files.get(entry.path)
        if there is None or there.checksum in proven:
            return there is not None
        return there.version > entry.version or entry.path in self._disks[name].own


class SimInventory:
    """As much of an inventory as `Custody` asks, over a disk of the model."""

    def __init__(self, node: str, disk: Disk, overseer: Overseer, rng: random.Random) -> None:
        self._node, self._disk, self._overseer, self._rng = node, disk, overseer, rng

    async def prove(self, path: str, checksum: str) -> Proof:
        """Read it again; that takes a while, in which the disk may change."""
        await asyncio.sleep(self._rng.uniform(0.0, 1.0))
        there = self._disk.files.get(path)
        proven = there is not None and there.checksum == checksum
        found = there.checksum if there else ""
        return Proof(node=self._node, proven=proven, checksum=found, reason="" if proven else "no")

    async def remove(self, path: str, checksum: str) -> int:
        """Delete it, if it is that."""
        await asyncio.sleep(self._rng.uniform(0.0, 1.0))
        there = self._disk.files.get(path)
        if there is None:
            return 0
        if there.checksum != checksum:
            raise Kept(f"{path} is not {checksum}")
        self._overseer.deletes(self._node, there)
        del self._disk.files[path]
        self._disk.own.pop(path, None)
        return there.size_bytes

    async def reported(self, entries: Iterable[DataEntry], removed: Iterable[str] = ()) -> None:
        """It was said that these are gone."""
        for path in removed:
            self._disk.reported.discard(path)
            self._disk.unmissed.pop(path, None)
            self._disk.said.pop(path, None)


class Keeping:
    """The part of an agent that answers for its copies, until it is cancelled."""

    def __init__(
        self,
        node: str,
        disk: Disk,
        overseer: Overseer,
        policy: Policy,
        rng: random.Random,
        clock: Callable[[], float],
        look_s: float = LOOK_S,
    ) -> None:
        self._node, self._disk, self._policy, self._clock = node, disk, policy, clock
        self._look_s = look_s
        self._inventory = SimInventory(node, disk, overseer, rng)

    async def run(self, log: FaultyLog, bus: FaultyBus) -> None:
        """Answer, and say what is missed."""
        custody = Custody(
            log,
            bus,
            self._node,
            self._inventory,  # type: ignore[arg-type]
            self._policy,
            clock=self._clock,
        )
        await custody.start()
        try:
            while True:
                await self._say_missed(log)
                await asyncio.sleep(self._look_s)
        finally:
            await custody.stop()
            await bus.die()

    async def _say_missed(self, log: FaultyLog) -> None:
        missed = self._disk.missed
        if not missed:
            return
        self._disk.looks += 1
        event = events.FilesRemoved(node=self._node, paths=tuple(missed))
        id = fact_id("missed", self._node, self._disk.looks)
        try:
            await log.publish(node_fact(event, self._node, id))
        except LogError:
            return
        await self._inventory.reported((), missed)
