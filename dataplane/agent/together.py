"""Small entries that are fetched from one source at the same time: one question, one landing.

Whoever comes while a group is on its way goes with the next one; nobody waits for company. What
holds for one file holds for each of a group: the inventory was told of it before it appears, and it
is known as received before anybody says that it is there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from adapters.errors import Interrupted, TransportError
from adapters.files.group import Group, Wanted
from adapters.files.inventory import Inventory
from adapters.files.landing import Landed
from adapters.files.partial import disk_errors
from adapters.transport import FetchesMany, Request
from adapters.workers import finish
from dataplane.agent.receipts import Receipts
from dataplane.crashpoints import reach
from streams.identity import PathRules
from streams.values import SMALL_BYTES, Transport

#: Entries of one group, and their bytes: nobody waits long for what others wanted.
MOST = 500
MOST_BYTES = 32 << 20
#: Groups from one source at once: while one is being landed, the next one comes.
AT_ONCE = 2


class Waiting(NamedTuple):
    """One entry that is to come with others."""

    request: Request
    #: Bytes that its transfer will have moved once it is here.
    moves: int
    outcome: asyncio.Future[Landed]


class Together:
    """What is wanted of each source by each transport. Lives on one event loop."""

    def __init__(
        self, root: Path, inventory: Inventory, receipts: Receipts, rules: PathRules
    ) -> None:
        self._root = root
        self._inventory = inventory
        self._receipts = receipts
        self._rules = rules
        self._waiting: dict[tuple[Transport, str], list[Waiting]] = {}
        self._running: dict[tuple[Transport, str], set[asyncio.Task[None]]] = {}

    @staticmethod
    def suits(request: Request) -> bool:
        """Whether an entry gains by coming with others."""
        return request.entry.size_bytes <= SMALL_BYTES

    async def bring(self, transport: FetchesMany, request: Request, moved: int) -> Landed:
        """Bring an entry to its place, and note it in the inventory as received.

        `moved` bytes of its transfer came before. Raises a `TransportError`.
        """
        key = (transport.name, request.source.node)
        outcome: asyncio.Future[Landed] = asyncio.get_running_loop().create_future()
        moves = moved + request.entry.size_bytes
        self._waiting.setdefault(key, []).append(Waiting(request, moves, outcome))
        running = self._running.setdefault(key, set())
        if len(running) < AT_ONCE:
            task = asyncio.create_task(self._drain(key, transport))
            running.add(task)
            task.add_done_callback(partial(_ended, running))
        return await outcome

    async def close(self) -> None:
        """Give up what is on its way."""
        tasks = [task for running in self._running.values() for task in running]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _drain(self, key: tuple[Transport, str], transport: FetchesMany) -> None:
        """One group after the other, until nobody waits."""
        # Let those come who were called at the same moment.
        await asyncio.sleep(0)
        while some := self._next(key):
            error: BaseException = Interrupted(f"{key[1]}: given up")
            try:
                await self._bring(transport, some)
            except TransportError as failure:
                error = failure
            except Exception as surprise:
                # It ends whoever waits, as if he had done all this himself.
                error = surprise
                raise
            finally:
                for one in some:
                    if not one.outcome.done():
                        one.outcome.set_exception(_alike(error))

    def _next(self, key: tuple[Transport, str]) -> list[Waiting]:
        """Who goes next; of several that want one place, only the first."""
        waiting, total = self._waiting.pop(key, []), 0
        some: dict[str, Waiting] = {}
        later = []
        for one in waiting:
            if one.outcome.done():
                continue
            total += one.request.entry.size_bytes
            if len(some) == MOST or total > MOST_BYTES or one.request.local_path in some:
                later.append(one)
            else:
                some[one.request.local_path] = one
        if later:
            self._waiting[key] = later
        return list(some.values())

    async def _bring(self, transport: FetchesMany, some: Sequence[Waiting]) -> None:
        wanted = [Wanted(one.request.entry, one.request.local_path) for one in some]
        with disk_errors():
            group = await finish(lambda: Group(self._root, wanted, self._rules))
        try:
            if numbers := group.open:
                failed = await transport.fetch_many(
                    [some[number].request for number in numbers],
                    lambda index, data: group.put(numbers[index], data),
                )
                for number, error in zip(numbers, failed, strict=True):
                    if error is not None:
                        group.fail(number, error)
            await self._land(group, some)
        finally:
            await finish(group.close)

    async def _land(self, group: Group, some: Sequence[Waiting]) -> None:
        """Said before the files appear: a crash in between must neither make them ours nor the
        bytes unmoved.
        """
        with disk_errors():
            coming = [some[number] for number in group.gathered]
            entries = {one.request.local_path: one.request.entry for one in coming}
            await self._inventory.expect_all(entries)
            self._receipts.write({one.request.transfer: one.moves for one in coming})
        reach("agent.gathered")
        await finish(group.commit)
        reach("agent.landed")
        landed = {
            one.request.local_path: one.request.entry
            for one, outcome in zip(some, group.outcomes, strict=True)
            if isinstance(outcome, Landed)
        }
        with disk_errors():
            gone = await self._inventory.all_landed(landed)
        for one, outcome in zip(some, group.outcomes, strict=True):
            if not isinstance(outcome, Landed):
                _fail(one, outcome or Interrupted("it did not come"))
            elif one.request.local_path in gone:
                _fail(one, Interrupted(f"{one.request.local_path} is gone again"))
            elif not one.outcome.done():
                one.outcome.set_result(outcome)


def _ended(running: set[asyncio.Task[None]], task: asyncio.Task[None]) -> None:
    running.discard(task)
    if not task.cancelled():
        # What it ended with, those who waited have.
        task.exception()


def _fail(one: Waiting, error: TransportError) -> None:
    if not one.outcome.done():
        one.outcome.set_exception(error)


def _alike(error: BaseException) -> BaseException:
    """An error for each who waits: one exception can't be raised in many places."""
    return type(error)(str(error)) if isinstance(error, TransportError) else error
