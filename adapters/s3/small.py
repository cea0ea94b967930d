"""Many small objects at once: each asked for by itself, handed on as they come.

What one of them fails with keeps no other from coming. It decides nothing and retries nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from adapters.errors import TransportError
from adapters.transport import Brought, Request, Take
from adapters.workers import cancelled, each, finish, turn
from streams.values import DataEntry

#: Objects that are asked for at once: more would only wait for each other.
AT_ONCE = 32


class Sink:
    """A small content in memory, gathered as a `Landing` gathers it."""

    def __init__(self, entry: DataEntry) -> None:
        self.entry = entry
        self.data = bytearray()

    @property
    def offset(self) -> int:
        """How many bytes there are."""
        return len(self.data)

    async def write(self, data: bytes) -> None:
        """Append the next bytes."""
        self.data += data

    async def reset(self) -> None:
        """Forget all bytes."""
        self.data.clear()


async def fetch_small(
    requests: Sequence[Request], bring: Callable[[Request], Awaitable[bytes]], take: Take
) -> list[TransportError | None]:
    """As `FetchesMany.fetch_many`; `bring` brings the whole content of one."""
    failed: list[TransportError | None] = [None] * len(requests)
    came: asyncio.Queue[tuple[int, Brought]] = asyncio.Queue()

    async def one(numbered: tuple[int, Request]) -> None:
        number, request = numbered
        try:
            came.put_nowait((number, await bring(request)))
        except TransportError as error:
            failed[number] = error

    handing_on = asyncio.create_task(_hand_on(came, take))
    try:
        await each(enumerate(requests), one, AT_ONCE)
        await came.join()
    finally:
        await cancelled([handing_on])
    return failed


async def _hand_on(came: asyncio.Queue[tuple[int, Brought]], take: Take) -> None:
    """Hand on what has come, in a thread, while more comes."""
    while True:
        some = [await came.get()]
        while not came.empty():
            some.append(came.get_nowait())
        await finish(partial(_hand, take, some))
        for _ in some:
            came.task_done()


def _hand(take: Take, some: list[tuple[int, Brought]]) -> None:
    with turn():
        take(some)
