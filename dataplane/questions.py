"""Asks one of several who answer the same questions, without waiting for one that stands still.

The bus picks who gets a question, also of those that are paused or hang: it knows of that a minute
later. It must only be used for what changes nothing: more than one may be asked.
"""

from __future__ import annotations

import asyncio

from streams.log import Bus

#: Who has not answered for so long is asked beside another one.
PATIENCE_S = 1.5
#: Of two, of which one stands still, four times the same one is picked rarely.
MOST_ASKED = 5


async def ask_any(bus: Bus, subject: str, body: bytes, timeout_s: float) -> bytes:
    """The first answer. Raises what the first refusal says, and LogUnavailable if nobody answers
    in time.
    """
    asking: set[asyncio.Task[bytes]] = set()
    until = asyncio.get_running_loop().time() + timeout_s
    try:
        for asked in range(1, MOST_ASKED + 1):
            left_s = max(0.0, until - asyncio.get_running_loop().time())
            asking.add(asyncio.create_task(bus.request(subject, body, left_s)))
            last = asked == MOST_ASKED or left_s <= PATIENCE_S
            done, _ = await asyncio.wait(
                asking,
                timeout=None if last else PATIENCE_S,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if done:
                break
        return done.pop().result()
    finally:
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
