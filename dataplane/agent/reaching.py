"""Whether a node can be reached from outside: found out by letting others try, not configured."""

from __future__ import annotations

import asyncio
import random

from dataplane.agent.asking import try_address
from dataplane.presence import present
from streams.log import Bus, LogError

#: Other agents that are asked at once: any of them that gets through is proof enough.
ASKED = 5


async def reached(bus: Bus, node: str, url: str) -> bool | None:
    """Whether any of a few other agents can connect to `url`; None if none could be asked."""
    try:
        there = await present(bus)
    except LogError:
        return None
    agents = [key.removeprefix("agent.") for key in there if key.startswith("agent.")]
    others = [name for name in agents if name != node]
    asked = random.sample(others, min(ASKED, len(others)))
    answers = await asyncio.gather(*(try_address(bus, name, url) for name in asked))
    heard = [answer for answer in answers if answer is not None]
    return any(heard) if heard else None
