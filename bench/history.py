"""A log as a cluster writes it: self-play chains to two trainers, decided by the real coordinator.

What nodes say is made up; every decision is the bridge's and the dispatcher's, and lies in the log
in the batches they make.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from pathlib import Path

from dataplane.coordinator.bridge import EventBridge
from dataplane.coordinator.dispatch import Dispatcher
from dataplane.policy import Bandwidth, Policy
from projections.cluster import ClusterView
from projections.projector import Projector
from projections.transfers import TransferRow
from streams import events
from streams.codec import Fact, fact_id, node_fact
from streams.log import Log
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

PLAYERS, TRAINERS = 20, 2
CONFIG_KEYS = tuple(f"{board}_{players}p" for board in BOARDS for players in (2, 3, 4))
#: Chains that are under way at once: one for each file of each player.
AT_ONCE = PLAYERS * len(CONFIG_KEYS)
#: Trigger, answer, plan, start, two assignments, two results, end, announcement.
FACTS_A_CHAIN = 10
#: Nothing waits: what is measured later is the fold, not admission.
_POLICY = Policy(bandwidth=Bandwidth(max_per_node=10_000, max_total=10_000, sync_mbps=0.0))


class History:
    """Writes chains into an empty log, `AT_ONCE` at a time. Use `write`."""

    def __init__(self, log: Log, projector: Projector, seed: int) -> None:
        self._log, self._projector, self._seed = log, projector, seed
        self._bridge = EventBridge(log, projector, _POLICY)
        self._dispatcher = Dispatcher(log, projector, _POLICY, "coordinator")

    @classmethod
    async def write(cls, log: Log, facts: int, views: Path, seed: int) -> int:
        """Write at least so many facts; how many there are."""
        projector = Projector(log, views)
        await projector.start()
        following = asyncio.create_task(projector.run())
        history = cls(log, projector, seed)
        try:
            await history._join()
            number = 0
            while (last := (await log.state()).last_sequence) < facts:
                chains = min(AT_ONCE, -(-(facts - last) // FACTS_A_CHAIN))
                await history._play(number, chains)
                number += 1
            return last
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            await projector.close()

    async def _join(self) -> None:
        nodes = [(f"selfplay-{n}", Role.SELFPLAY) for n in range(PLAYERS)]
        nodes += [(f"training-{n}", Role.TRAINING) for n in range(TRAINERS)]
        for name, role in nodes:
            endpoint = Endpoint(node=name, http_url=f"http://{name}:8770", data_root="/data")
            description = NodeDescription(
                name=name, roles=(role,), endpoint=endpoint, disk_free_bytes=10**12
            )
            await self._log.publish(
                node_fact(events.NodeRegistered(description=description), name, f"joined-{name}")
            )

    async def _play(self, number: int, chains: int) -> None:
        """One round: so many players' files, each with new games, to all trainers."""
        triggers = list(self._triggers(number, chains))
        await self._say([*triggers, *map(self._answer, triggers)])
        waiting = {trigger.id: trigger.id for trigger in triggers}
        await self._decide(waiting)
        await self._say([self._arrival(row) for row in await self._assigned()])
        await self._decide(waiting)

    def _triggers(self, number: int, chains: int) -> Iterator[Fact]:
        for place in range(chains):
            player, config = divmod(place, len(CONFIG_KEYS))
            event = events.SelfplayComplete(
                config_key=CONFIG_KEYS[config],
                source_node=f"selfplay-{player}",
                games_count=500 + number,
                path=f"games/{CONFIG_KEYS[config]}.db",
                duration_seconds=1200.5,
                engine="gumbel",
            )
            id = fact_id(self._seed, "played", number, place)
            yield node_fact(event, event.source_node, id)

    def _answer(self, trigger: Fact) -> Fact:
        event = trigger.event
        assert isinstance(event, events.SelfplayComplete)
        digest = hashlib.sha256(trigger.id.encode()).hexdigest()
        entry = DataEntry(
            path=f"games/{event.source_node}/{event.config_key}.db",
            data_type=DataType.GAMES,
            config_key=event.config_key,
            size_bytes=10_485_760 + event.games_count,
            checksum=f"sha256:{digest}",
            mtime=1.76e9 + event.games_count,
            games=event.games_count,
        )
        observed = events.FilesObserved(node=event.source_node, entries=(entry,))
        id = fact_id("observed", trigger.id)
        return node_fact(observed, event.source_node, id, chain=trigger.id, cause=trigger.id)

    def _arrival(self, row: TransferRow) -> Fact:
        moved = TransportResult(
            success=True,
            transport_used=Transport.HTTP_FETCH,
            bytes_transferred=row.entry.size_bytes,
            duration_seconds=0.125,
        )
        event = events.TransferSucceeded(
            transfer=row.id,
            node=row.target,
            source=row.source,
            target=row.target,
            entry=row.entry,
            attempt=row.attempt,
            results=(moved,),
            bytes_transferred=row.entry.size_bytes,
            duration_seconds=0.25,
            games=row.entry.games,
        )
        id = fact_id("arrived", row.id)
        return node_fact(event, row.target, id, chain=row.chains[0], cause=id)

    async def _say(self, facts: list[Fact]) -> None:
        receipt = await self._log.append(facts)
        await self._projector.wait_for(receipt.sequence)

    async def _decide(self, chains: dict[str, str]) -> None:
        await self._bridge.drive(chains)
        await self._projector.wait_for((await self._log.state()).last_sequence)

    async def _assigned(self) -> list[TransferRow]:
        """Everything that waits, once the dispatcher has handed it out."""
        while True:
            await self._dispatcher.dispatch()
            with self._projector.store.read() as reader:
                view = ClusterView(reader)
                if next(iter(view.pending()), None) is None:
                    return view.in_flight()
