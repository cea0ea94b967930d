"""Agents as state machines: a disk that outlives the process, answers, orders and what goes wrong.

They speak the real agents' words in the real order: what is said is said before it is
acknowledged, and what was done before is not done again.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable

from msgspec.structs import replace

from streams import events
from streams.codec import Recorded, fact_id, node_fact
from streams.events import FILE_TRIGGERS, Event, type_name
from streams.log import Delivery, LogError
from streams.subjects import Place
from streams.values import (
    DataEntry,
    DataType,
    Endpoint,
    NodeDescription,
    Role,
    Trait,
    Transport,
    TransportResult,
)
from tests.simulation.bus import FaultyBus, FaultyLog
from tests.simulation.custody import Keeping
from tests.simulation.disk import Disk

ACK_WAIT_S = 6.0


class Node:
    """One node of the cluster, its disk, and the agent that runs on it now and then."""

    def __init__(
        self,
        name: str,
        role: Role,
        disks: dict[str, Disk],
        rng: random.Random,
        keeping: Keeping | None = None,
    ) -> None:
        self._keeping = keeping
        self.name = name
        self.role = role
        self.disk = disks[name]
        self._disks = disks
        self._rng = rng

    def description(self, *, full: bool = False) -> NodeDescription:
        """The node in its own words; with a disk that is to be cleaned up if `full`."""
        traits = (Trait.EXTERNAL_STORAGE,) if self.role is Role.STORAGE else (Trait.GPU,)
        return NodeDescription(
            name=self.name,
            roles=(self.role,),
            traits=traits,
            endpoint=Endpoint(node=self.name, http_url=f"http://{self.name}:1"),
            disk_total_bytes=10**12,
            disk_free_bytes=10**11 if full else 9 * 10**11,
        )

    def write(self, path: str, data_type: DataType, config_key: str, content: str) -> None:
        """Write a file of the node's own, as a player or trainer does."""
        checksum = "sha256:" + hashlib.sha256(content.encode()).hexdigest()
        games = self.disk.played[path] = self.disk.played.get(path, 0) + 20
        entry = DataEntry(
            path=path,
            data_type=data_type,
            config_key=config_key,
            size_bytes=1_000 + games,
            checksum=checksum,
            games=games if data_type is DataType.GAMES else None,
        )
        self.disk.own[path] = self.disk.files[path] = entry

    async def run(self, log: FaultyLog, bus: FaultyBus | None = None) -> None:
        """The agent, until it is cancelled, which is how it dies."""
        subjects = [f"dp.{Place.NODE}.{self.name}.{type_name(cls)}.>" for cls in FILE_TRIGGERS]
        async with asyncio.TaskGroup() as group:
            group.create_task(self._serve(log, f"observe_{self.name}", subjects, self._answer))
            orders = [f"dp.{Place.TASK}.{self.name}.>"]
            group.create_task(self._serve(log, f"task_{self.name}", orders, self._obey))
            if self._keeping is not None and bus is not None:
                group.create_task(self._keeping.run(log, bus))

    async def _serve(
        self, log: FaultyLog, durable: str, subjects: list[str], act: Callable[..., object]
    ) -> None:
        deliveries = await log.consume(durable, subjects, ack_wait_s=ACK_WAIT_S, max_pending=64)
        try:
            async for delivery in deliveries:
                try:
                    await act(log, delivery)  # type: ignore[misc]
                except LogError:
                    # Left to redelivery, as the real agent does.
                    continue
        finally:
            await deliveries.close()

    async def _answer(self, log: FaultyLog, delivery: Delivery) -> None:
        trigger = delivery.recorded
        await self._work()
        whole = isinstance(trigger.event, events.NodeTerminating)
        changed = tuple(
            entry
            for path, entry in sorted(self.disk.own.items())
            if (whole or entry.config_key == trigger.config_key)
            and self.disk.said.get(path) != entry.checksum
        )
        content = fact_id(*((entry.path, entry.checksum) for entry in changed))
        observed = events.FilesObserved(node=self.name, entries=changed)
        id = fact_id("observed", self.name, trigger.id, content, 0)
        fact = node_fact(observed, self.name, id, chain=trigger.chain, cause=trigger.id)
        receipt = await log.publish(fact)
        for entry in changed:
            if self.disk.own.get(entry.path) == entry:
                # Told from what comes by where it was said, as by the real agent.
                told = replace(entry, version=receipt.sequence)
                self.disk.own[entry.path] = self.disk.files[entry.path] = told
        self.disk.said |= {entry.path: entry.checksum for entry in changed}
        self.disk.reported |= {entry.path for entry in changed}
        await delivery.ack()

    async def _obey(self, log: FaultyLog, delivery: Delivery) -> None:
        order = delivery.recorded
        if isinstance(order.event, events.TransferAssigned):
            result = await self._transfer(order.event)
            await self._say(log, result, order)
            if isinstance(result, events.TransferSucceeded):
                # What was taken away meanwhile the real agent finds when it reconciles.
                self._disks[result.target].reported.add(result.entry.path)
        await delivery.ack()

    async def _transfer(self, order: events.TransferAssigned) -> Event:
        # Whoever fails to fetch is sent it: then the source's agent does the work.
        entry, disk = order.entry, self._disks[order.target]
        there = disk.files.get(entry.path)
        if there is not None and there.checksum == entry.checksum:
            return self._succeeded(order, there, 0)
        known = there or disk.unmissed.get(entry.path)
        if known is not None and self._is_later(disk, known, entry):
            return self._later(order, disk, known)
        await self._work()
        source = self._disks[order.source].files.get(entry.path)
        if source is None or source.checksum != entry.checksum:
            # The real source keeps a snapshot for an hour; the model forgets at once.
            return self._failed(order, "EntryMissing")
        if self._rng.random() < 0.1:
            # Some bytes have come then, a few or most, and are kept.
            return self._failed(order, "Interrupted", moved=self._rng.choice((0, 1, 100, 900)))
        there = disk.files.get(entry.path) or disk.unmissed.get(entry.path)
        if there is not None and self._is_later(disk, there, entry):
            return self._later(order, disk, there)
        disk.files[entry.path] = entry
        disk.unmissed.pop(entry.path, None)
        # As the inventory has it: what has landed is missed if it goes, whether it was said or not.
        disk.reported.add(entry.path)
        await self._work()
        return self._succeeded(order, entry, entry.size_bytes)

    @staticmethod
    def _is_later(disk: Disk, there: DataEntry, entry: DataEntry) -> bool:
        """Whether what is there must not be replaced: it is a later version, or not said yet."""
        unsaid = disk.own.get(there.path) == there and not there.version
        return unsaid or there.version > entry.version

    def _later(self, order: events.TransferAssigned, disk: Disk, there: DataEntry) -> Event:
        if there.version:
            return self._failed(order, "Superseded", retryable=False)
        return self._failed(order, "Overtaken")

    async def _work(self) -> None:
        """Time passes while bytes move; the process may die in it."""
        await asyncio.sleep(self._rng.uniform(0.0, 2.0))

    def _succeeded(self, order: events.TransferAssigned, entry: DataEntry, moved: int) -> Event:
        return events.TransferSucceeded(
            transfer=order.transfer,
            node=self.name,
            source=order.source,
            target=order.target,
            entry=replace(order.entry, games=entry.games),
            attempt=order.attempt,
            bytes_transferred=moved,
            games=entry.games,
        )

    def _failed(
        self,
        order: events.TransferAssigned,
        kind: str,
        *,
        retryable: bool = True,
        moved: int = 0,
    ) -> Event:
        tried = TransportResult(
            success=False,
            transport_used=Transport.HTTP_FETCH,
            bytes_transferred=moved,
            duration_seconds=1.0,
            error_class=kind,
        )
        return events.TransferFailed(
            transfer=order.transfer,
            node=self.name,
            source=order.source,
            target=order.target,
            entry=order.entry,
            attempt=order.attempt,
            error=kind,
            error_class=kind,
            results=(tried,),
            bytes_transferred=moved,
            retryable=retryable,
        )

    async def _say(self, log: FaultyLog, event: Event, order: Recorded) -> None:
        id = fact_id(order.id, type_name(event))
        await log.publish(node_fact(event, self.name, id, chain=order.chain, cause=order.id))
