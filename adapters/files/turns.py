"""Who does something with a name while others want to: one after the other, in the order asked."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager


class Turns:
    """Turns at names. On one event loop; whoever has a turn must not wait for another one."""

    def __init__(self) -> None:
        self._locks: dict[str, asyncio.Lock] = {}
        #: How many have each lock or wait for it: it goes with the last of them.
        self._wanted: Counter[str] = Counter()

    def __len__(self) -> int:
        """At how many names somebody is, or waits to be."""
        return len(self._locks)

    @asynccontextmanager
    async def at(self, names: Iterable[str]) -> AsyncIterator[None]:
        """Wait until nobody else is at any of these names; as long as this lasts, nobody is."""
        async with AsyncExitStack() as held:
            # All take theirs in the same order: no two can wait for each other.
            for name in sorted(set(names)):
                await held.enter_async_context(self._at(name))
            yield

    @asynccontextmanager
    async def _at(self, name: str) -> AsyncIterator[None]:
        self._wanted[name] += 1
        try:
            async with self._locks.setdefault(name, asyncio.Lock()):
                yield
        finally:
            self._wanted[name] -= 1
            if not self._wanted[name]:
                del self._wanted[name], self._locks[name]
