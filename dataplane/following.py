"""How far a chain is, while it moves: in bytes, over all that it planned.

It is put together from what executors tell whoever listens. That is no fact, and some of it may be
missed: nothing may be decided by it.
"""

from __future__ import annotations

from contextlib import aclosing

from adapters.telling import InAll
from adapters.transport import Progress
from dataplane.agent.progress import ProgressMessage
from projections.transfers import transfer_id
from streams import events
from streams.codec import Recorded
from streams.foreign import Unreadable, from_json
from streams.log import Bus
from streams.subjects import PROGRESS_SUBJECTS


class Following:
    """One chain's progress, told as (bytes done, bytes in all), none of which ever shrinks."""

    def __init__(self, progress: Progress) -> None:
        self._all = InAll(progress)

    def see(self, recorded: Recorded) -> None:
        """Take in a fact of the chain: what it plans, or that all of it is there."""
        event = recorded.event
        if isinstance(event, events.SyncPlanned):
            for plan in event.plans:
                for entry in plan.entries:
                    for target in plan.target_nodes:
                        self._all.expect(transfer_id(entry, target), entry.size_bytes)
        elif isinstance(event, events.DataSyncCompleted):
            self._all.done()

    async def hear(self, bus: Bus) -> None:
        """Listen to those who move something, for ever."""
        async with aclosing(bus.listen(PROGRESS_SUBJECTS)) as messages:
            async for _, body in messages:
                try:
                    said = from_json(body, ProgressMessage)
                except Unreadable:
                    continue
                self._all.tell(said.transfer, said.done)
