"""The log with its faults: lost answers, outages, pauses, lost acknowledgements, odd orders."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from streams.codec import Fact
from streams.log import Guard, LogUnavailable, Receipt
from streams.memory import (
    MemoryAnswering,
    MemoryBus,
    MemoryDeliveries,
    MemoryDelivery,
    MemoryLog,
    _Store,
)


class Faults:
    """How often what goes wrong; all of it nothing once the world is left in peace."""

    def __init__(self, rng: random.Random, share: float) -> None:
        self.rng = rng
        self.share = share
        #: Until when the bus answers nobody.
        self.out_until = 0.0

    def strikes(self) -> bool:
        """Whether something goes wrong now."""
        return self.rng.random() < self.share

    def stop(self) -> None:
        """From now on all goes well."""
        self.share, self.out_until = 0.0, 0.0


class FaultyLog(MemoryLog):
    """One process's client of the log. `pause` stops the process at its next word with the bus."""

    def __init__(self, clock: Any, *, faults: Faults, store: _Store | None = None) -> None:
        super().__init__(clock, store=store)
        self.faults = faults
        self._going = asyncio.Event()
        self._going.set()

    def another(self) -> FaultyLog:  # type: ignore[override]
        """Another process's client of the same log."""
        return FaultyLog(self._store.clock, faults=self.faults, store=self._store)

    def pause(self) -> None:
        """Whatever the process does next waits, however long."""
        self._going.clear()

    def resume(self) -> None:
        """It goes on, and does not know that time has passed."""
        self._going.set()

    async def append(self, facts: Sequence[Fact], guards: Sequence[Guard] = ()) -> Receipt:
        await self._on_the_way()
        receipt = await super().append(facts, guards)
        await self._on_the_way_back()
        return receipt

    async def publish(self, fact: Fact) -> Receipt:
        await self._on_the_way()
        receipt = await super().publish(fact)
        await self._on_the_way_back()
        return receipt

    async def _store_directly(self, fact: Fact) -> None:
        """What was in the log before anything could go wrong."""
        await super().publish(fact)

    async def last(self, subjects: str) -> Any:
        await self._on_the_way()
        return await super().last(subjects)

    async def consume(self, *arguments: Any, **more: Any) -> FaultyDeliveries:  # type: ignore[override]
        deliveries = await super().consume(*arguments, **more)
        faulty = FaultyDeliveries(deliveries._consumer, self)
        self._members.append(faulty)
        return faulty

    async def _on_the_way(self) -> None:
        await self._going.wait()
        if self.faults.strikes():
            await asyncio.sleep(self.faults.rng.expovariate(2.0))
            await self._going.wait()
        self._answered()

    async def _on_the_way_back(self) -> None:
        """It is stored; whether who stored it learns of that is another matter."""
        await self._going.wait()
        if self.faults.strikes():
            raise LogUnavailable("the answer was lost")

    def _answered(self) -> None:
        if asyncio.get_running_loop().time() < self.faults.out_until or (
            self.faults.share and self.faults.rng.random() < self.faults.share / 2
        ):
            raise LogUnavailable("the bus is away")


class FaultyBus:
    """One process's questions to others, and its answers, which die with it."""

    def __init__(self, bus: MemoryBus, log: FaultyLog) -> None:
        self._bus, self._log = bus, log
        self._answering: list[asyncio.Task[bytes]] = []

    async def request(self, subject: str, body: bytes, timeout_s: float = 5.0) -> bytes:
        """The question may get lost, or the answer to what was done."""
        await self._log._on_the_way()
        try:
            async with asyncio.timeout(timeout_s):
                answer = await self._bus.request(subject, body, timeout_s)
        except TimeoutError:
            raise LogUnavailable(f"no answer from {subject}") from None
        await self._log._on_the_way_back()
        return answer

    async def answer(self, subject: str, answerer: Any, *, queue: str = "") -> MemoryAnswering:
        """Whoever asks does not do the work: it goes on if he dies, and ends with this process."""

        async def answered(subject: str, body: bytes) -> bytes:
            await self._log._going.wait()
            task = asyncio.create_task(answerer(subject, body))
            self._answering = [one for one in self._answering if not one.done()] + [task]
            try:
                return await asyncio.shield(task)
            except asyncio.CancelledError:
                if task.cancelled():
                    raise LogUnavailable("who was asked has died") from None
                task.add_done_callback(_looked_at)
                raise

        return await self._bus.answer(subject, answered, queue=queue)

    async def die(self) -> None:
        """What was being answered is left undone."""
        for task in self._answering:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*self._answering, return_exceptions=True)


def _looked_at(task: asyncio.Task[bytes]) -> None:
    if not task.cancelled():
        task.exception()


class FaultyDeliveries(MemoryDeliveries):
    """What is delivered comes in odd orders; what is acknowledged may come again."""

    def __init__(self, consumer: Any, log: FaultyLog) -> None:
        super().__init__(consumer)
        self._log = log

    def take_ready(self, limit: int) -> list[Any]:
        ready = [FaultyDelivery(one, self._log) for one in super().take_ready(limit)]
        if len(ready) > 1 and self._log.faults.strikes():
            self._log.faults.rng.shuffle(ready)
        return ready


class FaultyDelivery:
    """A delivery whose acknowledgement may be lost, and that may come twice at once."""

    def __init__(self, delivery: Any, log: FaultyLog) -> None:
        self._delivery: MemoryDelivery = delivery
        self._log = log
        self.recorded = delivery.recorded
        self.attempt = delivery.attempt

    async def ack(self) -> None:
        await self._log._going.wait()
        if not self._log.faults.strikes():
            await self._delivery.ack()

    async def nak(self, delay_s: float = 0.0) -> None:
        await self._log._going.wait()
        if not self._log.faults.strikes():
            await self._delivery.nak(delay_s)

    async def in_progress(self) -> None:
        await self._delivery.in_progress()
