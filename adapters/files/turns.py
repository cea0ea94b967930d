"""Who does something with a name while others want to: one after the other, in the order asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager


class Turns:
    """Turns at names. On one event loop; whoever has a turn must not wait for another one."""

    def __init__(self) -> None:
        self._locks: dict[str, asyncio.Lock] = {}
        #: How many have each lock or wait for it: it goes with the last of them.
        self._wanted: dict[str, int] = {}

    def __len__(self) -> int:
        """At how many names somebody is, or waits to be."""
        return len(self._locks)

    @asynccontextmanager
    async def at(self, names: Iterable[str]) -> AsyncIterator[None]:
        """Wait until nobody else is at any of these names; as long as this lasts, nobody is."""
        held: list[str] = []
        try:
            # All take theirs in the same order: no two can wait for each other.
            for name in sorted(set(names)):
                await self._take(name)
                held.append(name)
            yield
        finally:
            for name in held:
                self._locks[name].release()
                self._let_go(name)

    async def _take(self, name: str) -> None:
        lock = self._locks.get(name)
        if lock is None:
            lock = self._locks[name] = asyncio.Lock()
        self._wanted[name] = self._wanted.get(name, 0) + 1
        try:
            await lock.acquire()
        except BaseException:
            self._let_go(name)
            raise

    def _let_go(self, name: str) -> None:
        self._wanted[name] -= 1
        if not self._wanted[name]:
            del self._wanted[name], self._locks[name]
