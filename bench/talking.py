"""Agents that say all that agents say, each over a connection and consumers of its own, in one
process; only bytes they don't move: a transfer takes them a moment, and has then succeeded.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from dataplane.agent.agent import HEARTBEAT_S
from dataplane.consumers import Durable, tasks_of, triggers_of
from dataplane.presence import Presence
from streams import events
from streams.codec import Fact, Recorded, fact_id, node_fact
from streams.jetstream import JetStreamLog
from streams.log import Log, LogError
from streams.values import (
    BOARDS,
    DataEntry,
    DataType,
    Endpoint,
    NodeDescription,
    Role,
    Transport,
    TransportResult,
)

CONFIG_KEYS = tuple(f"{board}_{players}p" for board in BOARDS for players in (2, 3, 4))
#: After the last trigger, for the chains that are still open.
SETTLE_S = 10.0
#: How long a transfer takes, seconds: from, to.
_MOVING_S = (0.01, 0.1)
_DISK_BYTES = 10**12


class Talked(msgspec.Struct):
    """What all agents together did."""

    triggers: int = 0
    #: Triggers that were later than they should by this many seconds, at most.
    late_s: float = 0.0
    transfers: int = 0


class Agent:
    """One node that plays or trains, as far as the log can tell."""

    def __init__(self, log: JetStreamLog, node: str, role: Role, seed: int, talked: Talked) -> None:
        self._log: Log = log
        self._presence = Presence(log.bus, node, "agent")
        self._node, self._role = node, role
        self._random = random.Random(f"{seed}{node}")
        self._talked = talked

    async def join(self) -> None:
        """Say that it is there."""
        endpoint = Endpoint(
            node=self._node, http_url=f"http://{self._node}:8770", data_root="/data"
        )
        description = NodeDescription(
            name=self._node,
            roles=(self._role,),
            endpoint=endpoint,
            disk_total_bytes=_DISK_BYTES,
            disk_free_bytes=_DISK_BYTES // 2,
        )
        registered = events.NodeRegistered(description=description)
        await self._log.publish(node_fact(registered, self._node, f"joined-{self._node}"))
        await self._beat_once()

    async def run(self) -> None:
        """Answer triggers, carry out transfers and beat, for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._serve(triggers_of(self._node), self._answer))
            group.create_task(self._serve(tasks_of(self._node), self._obey))
            group.create_task(self._beat())

    async def trigger(self, number: int, config_key: str) -> None:
        """Say that new games were played."""
        event = events.SelfplayComplete(
            config_key=config_key,
            source_node=self._node,
            games_count=500 + number,
            path=f"games/{config_key}.db",
        )
        id = fact_id(self._node, "played", number, config_key)
        await self._log.publish(node_fact(event, self._node, id))
        self._talked.triggers += 1

    async def _serve(
        self, durable: Durable, work: Callable[[Recorded], Coroutine[Any, Any, None]]
    ) -> None:
        deliveries = await durable.open(self._log)

        async def deal_with(delivery: Any) -> None:
            # Not acknowledged, it comes again.
            try:
                await work(delivery.recorded)
            except LogError:
                return
            await delivery.ack()

        try:
            async with asyncio.TaskGroup() as group:
                async for delivery in deliveries:
                    group.create_task(deal_with(delivery))
        finally:
            await deliveries.close()

    async def _answer(self, trigger: Recorded) -> None:
        event = trigger.event
        if not isinstance(event, events.SelfplayComplete):
            return
        digest = hashlib.sha256(trigger.id.encode()).hexdigest()
        entry = DataEntry(
            path=f"games/{self._node}/{event.config_key}.db",
            data_type=DataType.GAMES,
            config_key=event.config_key,
            size_bytes=10_485_760 + event.games_count,
            checksum=f"sha256:{digest}",
            mtime=trigger.time,
            games=event.games_count,
        )
        observed = events.FilesObserved(node=self._node, entries=(entry,))
        id = fact_id("observed", trigger.id)
        await self._log.publish(
            node_fact(observed, self._node, id, chain=trigger.id, cause=trigger.id)
        )

    async def _obey(self, order: Recorded) -> None:
        if isinstance(order.event, events.TransferAssigned):
            took = self._random.uniform(*_MOVING_S)
            await asyncio.sleep(took)
            await self._log.publish(self._arrived(order, order.event, took))
            self._talked.transfers += 1

    def _arrived(self, order: Recorded, task: events.TransferAssigned, took: float) -> Fact:
        moved = TransportResult(
            success=True,
            transport_used=Transport.HTTP_FETCH,
            bytes_transferred=task.entry.size_bytes,
            duration_seconds=took,
        )
        event = events.TransferSucceeded(
            transfer=task.transfer,
            node=self._node,
            source=task.source,
            target=task.target,
            entry=task.entry,
            attempt=task.attempt,
            results=(moved,),
            bytes_transferred=task.entry.size_bytes,
            duration_seconds=took,
            games=task.entry.games,
        )
        id = fact_id(order.id, "arrived")
        return node_fact(event, self._node, id, chain=order.chain, cause=order.id)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            await self._beat_once()

    async def _beat_once(self) -> None:
        await self._presence.beat(
            {"roles": [self._role], "disk_free_bytes": _DISK_BYTES // 2, "files": len(CONFIG_KEYS)}
        )


def talk(
    url: str, players: int, trainers: int, chains_per_s: float, seconds: float, seed: int
) -> Talked:
    """Run so many agents and open so many chains a second, whatever becomes of the earlier ones."""
    return asyncio.run(_talk(url, players, trainers, chains_per_s, seconds, seed))


async def _talk(
    url: str, players: int, trainers: int, chains_per_s: float, seconds: float, seed: int
) -> Talked:
    talked = Talked()
    names = {f"selfplay-{n}": Role.SELFPLAY for n in range(players)}
    names |= {f"training-{n}": Role.TRAINING for n in range(trainers)}
    logs = [await JetStreamLog.connect(url, name=name) for name in names]
    agents = [
        Agent(log, name, role, seed, talked)
        for log, (name, role) in zip(logs, names.items(), strict=True)
    ]
    for agent in agents:
        await agent.join()
    try:
        # What ends an agent ends them all.
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(agent.run()) for agent in agents]
            await _play(agents[:players], chains_per_s, seconds, talked)
            for task in running:
                task.cancel()
    finally:
        for log in logs:
            await log.close()
    return talked


async def _play(players: list[Agent], chains_per_s: float, seconds: float, talked: Talked) -> None:
    """Triggers at their times, one player after the other; then a moment for what is under way."""
    started, sent = time.monotonic(), set[asyncio.Task[None]]()
    for number in range(round(chains_per_s * seconds)):
        due = started + number / chains_per_s
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        talked.late_s = max(talked.late_s, time.monotonic() - due)
        config_key = CONFIG_KEYS[number // len(players) % len(CONFIG_KEYS)]
        task = asyncio.create_task(players[number % len(players)].trigger(number, config_key))
        sent.add(task)
        task.add_done_callback(sent.discard)
    await asyncio.gather(*sent)
    await asyncio.sleep(SETTLE_S)
