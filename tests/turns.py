"""Whether the event loop goes on while something is done: counted in turns, not in seconds."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def turns_during(work: Awaitable[T]) -> tuple[T, int]:
    """What comes of `work`, and how many turns others had on the loop meanwhile.

    What is done on the loop itself leaves them a handful, however long it takes.
    """
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0.002)
            turns += 1

    counting = asyncio.create_task(count())
    try:
        return await work, turns
    finally:
        counting.cancel()
