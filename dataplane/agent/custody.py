"""What a node does with its replicas when it is asked: it proves them, and deletes one.

It deletes only by a young grant that still is the last word on the entry's copies, and says
FILES_REMOVED before it answers. Proofs and deletions exclude each other, so that no copy is proven
that is about to go.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from adapters.files.inventory import Inventory
from adapters.files.removal import Kept
from adapters.workers import cancelled
from dataplane.coordinator.deleting import (
    DeletionAnswer,
    DeletionOrder,
    answer_deletions,
    still_granted,
)
from dataplane.crashpoints import reach
from dataplane.deletion import copies_chain, protected
from dataplane.policy import Policy
from dataplane.proving import Untold, answer_proofs, answer_untold
from streams import events
from streams.codec import fact_id, node_fact
from streams.log import Answering, Bus, Log, LogError
from streams.subjects import chain_filter
from streams.values import Proof

logger = logging.getLogger(__name__)
#: Of what a node could not read so much is told to who asks.
_PROBLEMS, _PROBLEM_CHARACTERS = 20, 300
#: Grants are young: of older ones nobody asks again.
_MOST_REMOVALS = 1_000


@dataclass
class _Removal:
    """What was done by a grant."""

    freed_bytes: int
    #: Of this removal alone; 0 if nothing was there to be removed.
    number: int
    said: bool = False


class Custody:
    """One node's replicas. `start`, then `stop`."""

    def __init__(
        self,
        log: Log,
        bus: Bus,
        node: str,
        inventory: Inventory,
        policy: Policy,
        *,
        clock: Callable[[], float] = time.time,
        look_again: Callable[[str], Awaitable[object]] | None = None,
    ) -> None:
        """`look_again` is told the path of what is not what it should be."""
        self._log = log
        self._bus = bus
        self._node = node
        self._inventory = inventory
        self._policy = policy
        self._clock = clock
        self._one_at_a_time = asyncio.Lock()
        self._answering: list[Answering] = []
        self._look_again = look_again
        self._looking: dict[str, asyncio.Task[None]] = {}
        #: What was done by each grant lately.
        self._removals: dict[str, _Removal] = {}

    async def start(self) -> None:
        """Answer what is asked of this node's replicas."""
        self._answering = [
            await answer_proofs(self._bus, self._node, self.prove),
            await answer_deletions(self._bus, self._node, self.delete),
            await answer_untold(self._bus, self._node, self.untold),
        ]

    async def stop(self) -> None:
        """Answer no more."""
        for answering in self._answering:
            await answering.close()
        await cancelled(self._looking.values())

    async def prove(self, path: str, checksum: str) -> Proof:
        """Read a replica again; see `Inventory.prove`. What has rotted is said besides.

        What is about to be deleted here is not proven, however sound it is.
        """
        async with self._one_at_a_time:
            if why := await self._is_to_go(path, checksum):
                return Proof(node=self._node, proven=False, reason=why)
            proof = await self._inventory.prove(path, checksum)
        if proof.checksum and not proof.proven and path not in self._looking:
            task = asyncio.create_task(self._say_what_is_wrong(path))
            self._looking[path] = task
        return proof

    async def untold(self) -> Untold:
        """What this node has not told of its files as they are now. Nothing is said by that."""
        scan = await self._inventory.scan()
        problems = tuple(text[:_PROBLEM_CHARACTERS] for text in (*scan.problems, *scan.waiting))
        return Untold(len(scan.changed) + len(scan.removed), problems[:_PROBLEMS])

    async def _is_to_go(self, path: str, checksum: str) -> str:
        """Why this node's copy can't be counted on; "" if no deletion of it is under way."""
        try:
            last = await self._log.last(chain_filter(copies_chain(path, checksum)))
        except LogError as error:
            return f"whether it is to be deleted here can't be known: {error}"
        said = last.event if last is not None else None
        if not isinstance(said, events.DeletionReserved | events.DeletionGranted):
            return ""
        return "it is about to be deleted here" if said.node == self._node else ""

    async def _say_what_is_wrong(self, path: str) -> None:
        try:
            if self._look_again is not None:
                await self._look_again(path)
        finally:
            self._looking.pop(path, None)

    async def delete(self, order: DeletionOrder) -> DeletionAnswer:
        """Delete a replica if it may be; asked again, it answers that it is gone."""
        keep = protected(order.path, self._policy)
        if keep is not None:
            return DeletionAnswer(False, reason=keep.reason)
        async with self._one_at_a_time:
            if not await still_granted(self._log, order, self._clock()):
                reason = "the grant is no longer the last word on it, or too old"
                return DeletionAnswer(False, reason=reason)
            # Two may have asked by one grant: as soon as the first one has heard that the copy is
            # gone it may come again, and then it stays.
            removal = self._removals.get(order.grant)
            try:
                removal = removal or await self._remove(order)
            except Kept as kept:
                return DeletionAnswer(False, reason=str(kept))
            if not removal.said:
                await self._say_removed(order, removal)
        return DeletionAnswer(True, freed_bytes=removal.freed_bytes)

    async def _remove(self, order: DeletionOrder) -> _Removal:
        freed = await self._inventory.remove(order.path, order.checksum)
        reach("agent.deleted")
        removal = _Removal(freed, int(self._clock() * 1e9) if freed else 0)
        self._removals[order.grant] = removal
        if len(self._removals) > _MOST_REMOVALS:
            del self._removals[next(iter(self._removals))]
        return removal

    async def _say_removed(self, order: DeletionOrder, removal: _Removal) -> None:
        # Each removal is a fact of its own: after a restart nobody knows here what a grant was used
        # for, and whoever grants may ask again without having heard of that.
        event = events.FilesRemoved(node=self._node, paths=(order.path,))
        id = fact_id("deleted", self._node, order.grant, removal.number)
        await self._log.publish(node_fact(event, self._node, id, cause=order.grant))
        await self._inventory.reported((), [order.path])
        removal.said = True
