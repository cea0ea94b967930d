"""Small entries between this node and another at the same time: one question, one landing.

What holds for one file holds for each of a group: the inventory was told of it before it appears,
and it is known as received before anybody says that it is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from adapters.errors import Interrupted
from adapters.files.arrivals import Arrivals
from adapters.files.group import Group, Wanted
from adapters.files.landing import Landed
from adapters.files.partial import disk_errors
from adapters.transport import FetchesMany, PushesMany, Request
from adapters.workers import finish
from dataplane.agent.company import Company, Waiting
from dataplane.agent.receipts import Receipts
from dataplane.crashpoints import reach
from streams.identity import PathRules

#: One that comes, with the bytes that its transfer will have moved once it is here.
_Coming = Waiting[int, Landed]
#: One that is sent, with the file that holds it.
_Going = Waiting[Path, int]


class SentTogether:
    """What is to be sent to each node by each transport. Lives on one event loop."""

    def __init__(self) -> None:
        self._company = Company[Path, int]()

    async def send(self, transport: PushesMany, request: Request, file: Path) -> int:
        """Send an entry, together with whatever else goes there. As `Pushes.push` otherwise."""
        carry = partial(self._send, transport)
        return await self._company.join(transport.name, request.target.node, carry, request, file)

    async def close(self) -> None:
        """Give up what is on its way."""
        await self._company.close()

    async def _send(self, transport: PushesMany, some: Sequence[_Going]) -> None:
        outcomes = await transport.push_many(
            [one.request for one in some], [one.given for one in some]
        )
        for one, outcome in zip(some, outcomes, strict=True):
            one.done(outcome)


class Together:
    """What is wanted of each source by each transport. Lives on one event loop."""

    def __init__(
        self, root: Path, arrivals: Arrivals, receipts: Receipts, rules: PathRules
    ) -> None:
        self._root = root
        self._arrivals = arrivals
        self._receipts = receipts
        self._rules = rules
        self._company = Company[int, Landed]()

    async def bring(self, transport: FetchesMany, request: Request, moved: int) -> Landed:
        """Bring an entry to its place, and note it in the inventory as received.

        `moved` bytes of its transfer came before. Raises a `TransportError`.
        """
        carry = partial(self._bring, transport)
        moves = moved + request.entry.size_bytes
        return await self._company.join(transport.name, request.source.node, carry, request, moves)

    async def close(self) -> None:
        """Give up what is on its way."""
        await self._company.close()

    async def _bring(self, transport: FetchesMany, some: Sequence[_Coming]) -> None:
        wanted = [Wanted(one.request.entry, one.request.local_path) for one in some]
        with disk_errors():
            group = await finish(lambda: Group(self._root, wanted, self._rules))
        try:
            if numbers := group.open:
                failed = await transport.fetch_many(
                    [some[number].request for number in numbers],
                    lambda came: group.put([(numbers[index], data) for index, data in came]),
                )
                for number, error in zip(numbers, failed, strict=True):
                    if error is not None:
                        group.fail(number, error)
            await self._land(group, some)
        finally:
            await finish(group.close)

    async def _land(self, group: Group, some: Sequence[_Coming]) -> None:

        def before(coming: Sequence[int]) -> None:
            # Before the files appear: a crash in between must not make the bytes unmoved.
            self._receipts.write({some[one].request.transfer: some[one].given for one in coming})
            reach("agent.gathered")

        await self._arrivals.land_all(group, before=before, after=partial(reach, "agent.landed"))
        for one, outcome in zip(some, group.outcomes, strict=True):
            one.done(outcome or Interrupted("it did not come"))
