"""What the log says of one path: all that `explain` answers from besides the views."""

from __future__ import annotations

from contextlib import aclosing

from dataplane.explain import TELLS, speaks_of_path
from streams import events
from streams.codec import Recorded
from streams.log import ReadingLog
from streams.values import ALL_CONFIGS


async def facts_about(log: ReadingLog, path: str, config_key: str) -> list[Recorded]:
    """Facts that speak of one path, in order; only those of its configuration are read."""
    state = await log.state()
    found: list[Recorded] = []
    if state.last_sequence == 0:
        return found
    keys = dict.fromkeys((config_key, ALL_CONFIGS))
    subjects = [f"dp.*.*.{events.type_name(kind)}.{key}" for kind in TELLS for key in keys]
    async with aclosing(log.read(until=state.last_sequence, subjects=subjects)) as batches:
        async for batch in batches:
            found += [fact for fact in batch if fact.event and speaks_of_path(fact.event, path)]
    return found
