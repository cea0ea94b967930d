"""Says NODE_DRAINED of a node that is to go, once all it holds was read again elsewhere, just now.

It begins where the chain that emptied the node has completed, and is tried ever later as long as
something is not proven: another copy may be made meanwhile, and the node may still produce. It
keeps nothing that a kill could lose, and never says of a node what it knows from the catalog alone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress

from dataplane.coordinator.trouble import Troubles
from dataplane.logs import about_chain
from dataplane.planner import Known
from dataplane.policy import Policy
from dataplane.safety import Holding, holding, not_safe
from projections.chains import ChainRow
from projections.cluster import ClusterView
from projections.projector import Projector
from streams import events
from streams.codec import fact_about
from streams.log import Bus, DuplicateFact, Guard, Log, LogError, SequenceConflict
from streams.subjects import about_filter
from streams.values import DataEntry, added

logger = logging.getLogger(__name__)
TICK_S = 1.0
#: Other places that must prove each content: with the node, one copy less remains.
COPIES = 1
#: So often it is tried to say it, each time after all that was said of the node meanwhile.
_TURNS = 5


class NotProven(Exception):
    """Something on a node is not safe elsewhere; the text names it."""


class Drains:
    """Confirms drains. Several may run on one log: the guards let only one say it."""

    def __init__(
        self,
        log: Log,
        bus: Bus,
        projector: Projector,
        policy: Policy,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._log = log
        self._bus = bus
        self._projector = projector
        self._policy = policy
        self._clock = clock
        self._changed = asyncio.Event()
        self._driving: dict[str, asyncio.Task[None]] = {}
        #: By chain, what could not be confirmed yet.
        self.troubles = Troubles("the drain of chain {} could not be confirmed")
        projector.on_commit.append(lambda _: self._changed.set())

    @property
    def busy(self) -> bool:
        """Whether some node is being confirmed now."""
        return any(not task.done() for task in self._driving.values())

    async def run(self) -> None:
        """Confirm what is drained, for ever."""
        async with asyncio.TaskGroup() as group:
            while True:
                self._changed.clear()
                self._start(group)
                with suppress(TimeoutError):
                    async with asyncio.timeout(TICK_S):
                        await self._changed.wait()

    def _start(self, group: asyncio.TaskGroup) -> None:
        now = self._clock()
        with self._projector.store.read() as reader:
            view = ClusterView(reader)
            # One that stays after all needs no proof, and one that is there after a day stays.
            rows = [row for row in view.drains() if _is_leaving(view, row.node, now)]
        self._driving = {id: task for id, task in self._driving.items() if not task.done()}
        self.troubles.only({row.id for row in rows})
        for row in rows:
            if row.id not in self._driving and not self.troubles.must_wait(row.id, now):
                self._driving[row.id] = group.create_task(self._confirm(row), name=row.id)

    async def _confirm(self, row: ChainRow) -> None:
        """Have everything on the node proven elsewhere, and say so if it is."""
        with about_chain(row.id, row.trigger_id):
            await self._confirmed(row)

    async def _confirmed(self, row: ChainRow) -> None:
        try:
            held = await self._proven(row.node)
            await self._say(row, held)
        except (NotProven, LogError, TimeoutError) as error:
            trouble = self.troubles.failed(row.id, error, self._clock())
            if trouble.tries == 1:
                logger.warning("%s is not drained yet: %s", row.node, error)

    async def _proven(self, node: str) -> list[DataEntry]:
        """What a node holds, all of which was just proven elsewhere. Raises NotProven."""

        async def read() -> Holding:
            # Another coordinator may have granted a deletion that is not folded here yet.
            await self._projector.wait_for((await self._log.state()).last_sequence)
            with self._projector.store.read() as reader:
                view = ClusterView(reader)
                return holding(Known(self._policy, view, self._clock()), view, node)

        found, left = await not_safe(self._bus, read, COPIES)
        if left:
            reason = f"{len(left)} of {len(found.held)} files: {left[0].path}: {left[0].why}"
            raise NotProven(reason[:1000])
        return found.held

    async def _say(self, row: ChainRow, held: list[DataEntry]) -> None:
        """Say it, unless anything was said of the node, or to it, that speaks against it."""
        for _ in range(_TURNS):
            last = await self._log.last(about_filter(row.node))
            sequence = last.sequence if last else 0
            await self._projector.wait_for(sequence)
            event = self._drained(row, held)
            if event is None:
                return
            # All that could change the answer stands under the node's name, as this does.
            guard = Guard(about_filter(row.node), sequence)
            fact = fact_about(event, row.node, row.id, row.trigger_id)
            with suppress(SequenceConflict, DuplicateFact):
                receipt = await self._log.append([fact], [guard])
                await self._projector.wait_for(receipt.sequence)
                return
        raise NotProven(f"{row.node} never fell silent for as long as it takes to say it")

    def _drained(self, row: ChainRow, held: list[DataEntry]) -> events.NodeDrained | None:
        """What may be said now; None if nothing is owed any more. Raises NotProven."""
        with self._projector.store.read() as reader:
            view = ClusterView(reader)
            found = holding(Known(self._policy, view, self._clock()), view, row.node).held
            if {(one.path, one.checksum) for one in found} - {
                (one.path, one.checksum) for one in held
            }:
                raise NotProven(f"{row.node} has got something new meanwhile")
            if row.id not in {one.id for one in view.drains()}:
                return None
        return events.NodeDrained(
            node=row.node,
            entries=len(held),
            size_bytes=added(*(entry.size_bytes for entry in held)),
        )


def _is_leaving(view: ClusterView, name: str, now: float) -> bool:
    node = view.node(name)
    return node is not None and node.is_leaving(now)
