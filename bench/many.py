"""One chain of many small files over real processes: what somebody waits for who sends them.

All that a chain owes is in it: observed and digested at the source, planned, assigned, moved,
landed durably, each said as a fact of its own, and announced.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from pathlib import Path

import msgspec

from bench.cluster import Cluster
from streams import events
from streams.codec import node_fact

CONFIG_KEY = "hex8_2p"


class Found(msgspec.Struct, frozen=True):
    """Seconds by the log's clock."""

    #: From the trigger to the announcement.
    whole_s: float
    #: From the first assignment to the last result.
    moving_s: float


def run(place: Path, count: int, size_bytes: int, seed: int) -> Found:
    """Let a player hold so many files, say so, and wait until a trainer has them all."""
    return asyncio.run(_run(place, count, size_bytes, seed))


async def _run(place: Path, count: int, size_bytes: int, seed: int) -> Found:
    async with Cluster(place, 1, 1) as cluster:
        node = cluster.players[0]
        directory, numbers = cluster.data(node) / "games", random.Random(seed)
        directory.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            # One line each: nothing is counted wrong by a line that is not whole.
            line = numbers.randbytes(size_bytes // 2).hex()[: size_bytes - 1]
            (directory / f"{CONFIG_KEY}_{number:05}.jsonl").write_text(line + "\n")
        chain = uuid.uuid4().hex
        event = events.SelfplayComplete(config_key=CONFIG_KEY, source_node=node, games_count=count)
        receipt = await cluster.log.publish(node_fact(event, node, chain))
        end = await cluster.announced(chain)
        trigger = await cluster.log.get(receipt.sequence)
        moving = [
            fact.time
            async for batch in cluster.log.read(until=end.sequence)
            for fact in batch
            if isinstance(fact.event, events.TransferAssigned | events.TransferSucceeded)
        ]
    assert trigger is not None and len(moving) >= 2 * count
    return Found(end.time - trigger.time, moving[-1] - moving[0])
