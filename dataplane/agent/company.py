"""Small entries that travel between the same two nodes at the same time: they go as groups.

Whoever comes while a group is on its way goes with the next one; nobody waits for company.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Generic, TypeVar

from adapters.errors import Interrupted, TransportError
from adapters.transport import Request
from streams.values import SMALL_BYTES, Transport

#: Entries of one group, and their bytes: nobody waits long for what others wanted.
MOST = 500
MOST_BYTES = 32 << 20
#: Where a group begins with a connection of its own, that costs as much as hundreds of files.
MOST_OF = {Transport.RSYNC: 2000}
#: Groups between two nodes at once: while one is being landed, the next one comes.
AT_ONCE = 2

G = TypeVar("G")
R = TypeVar("R")


class Waiting(Generic[G, R]):
    """One entry that is to go with others, and what comes of it."""

    def __init__(self, request: Request, given: G, outcome: asyncio.Future[R]) -> None:
        self.request = request
        #: What whoever carries it out needs besides.
        self.given = given
        self.outcome = outcome

    def done(self, outcome: R | TransportError) -> None:
        """Say what came of it, if nobody has yet and somebody still listens."""
        if self.outcome.done():
            return
        if isinstance(outcome, TransportError):
            self.outcome.set_exception(outcome)
        else:
            self.outcome.set_result(outcome)


#: Carries out a group; those it says nothing of failed as it did.
Carry = Callable[[Sequence[Waiting[G, R]]], Awaitable[None]]


class Company(Generic[G, R]):
    """Who waits to go with whom, by transport and the node at the other end.

    Lives on one event loop.
    """

    def __init__(self) -> None:
        self._waiting: dict[tuple[Transport, str], list[Waiting[G, R]]] = {}
        self._running: dict[tuple[Transport, str], set[asyncio.Task[None]]] = {}

    async def join(
        self,
        transport: Transport,
        remote: str,
        carry: Carry[G, R],
        request: Request,
        given: G,
    ) -> R:
        """Go with whoever goes there too; what came of it. Raises a `TransportError`."""
        key = (transport, remote)
        outcome: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, []).append(Waiting(request, given, outcome))
        running = self._running.setdefault(key, set())
        if len(running) < AT_ONCE:
            task = asyncio.create_task(self._drain(key, carry))
            running.add(task)
            task.add_done_callback(partial(_ended, running))
        return await outcome

    async def close(self) -> None:
        """Give up what is on its way."""
        tasks = [task for running in self._running.values() for task in running]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _drain(self, key: tuple[Transport, str], carry: Carry[G, R]) -> None:
        """One group after the other, until nobody waits."""
        # Let those come who were called at the same moment.
        await asyncio.sleep(0)
        while some := self._next(key, MOST_OF.get(key[0], MOST)):
            error: BaseException = Interrupted(f"{key[1]}: given up")
            try:
                await carry(some)
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

    def _next(self, key: tuple[Transport, str], most: int) -> list[Waiting[G, R]]:
        """Who goes next; of several that want one place, only the first."""
        waiting, total = self._waiting.pop(key, []), 0
        some: dict[str, Waiting[G, R]] = {}
        later = []
        for one in waiting:
            if one.outcome.done():
                continue
            total += one.request.entry.size_bytes
            place = one.request.local_path or one.request.entry.path
            if len(some) == most or total > MOST_BYTES or place in some:
                later.append(one)
            else:
                some[place] = one
        if later:
            self._waiting[key] = later
        return list(some.values())


def suits(request: Request) -> bool:
    """Whether an entry gains by going with others."""
    return request.entry.size_bytes <= SMALL_BYTES


def _ended(running: set[asyncio.Task[None]], task: asyncio.Task[None]) -> None:
    running.discard(task)
    if not task.cancelled():
        # What it ended with, those who waited have.
        task.exception()


def _alike(error: BaseException) -> BaseException:
    """An error for each who waits: one exception can't be raised in many places."""
    return type(error)(str(error)) if isinstance(error, TransportError) else error
