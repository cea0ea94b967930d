"""What comes of an order that ends by what nobody thought of: an answer, and a living agent."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from adapters.files.inventory import Inventory
from adapters.transport import Progress
from dataplane.agent.attempt import Attempt, Outcome
from dataplane.agent.orders import Orders
from dataplane.agent.saying import Saying
from dataplane.agent.transfers import TransportManager
from dataplane.consumers import tasks_of
from dataplane.coordinator.granting import GrantKeeper
from dataplane.outbox import Outbox
from streams import events
from streams.codec import Recorded
from streams.memory import MemoryBus, MemoryDelivery, MemoryLog
from streams.values import Transport
from tests.conftest import eventually
from tests.spec import as_fact, decided, games_of

NODE = "train-1"


class Odd(TransportManager):
    """It is surprised by every order of transfer ``odd`` and carries out all others."""

    def __init__(self, root: Path) -> None:
        super().__init__(NODE, root, Inventory(root, NODE), {})
        self.surprises = 1000

    async def transfer(
        self,
        order: events.TransferAssigned,
        progress_callback: Progress | None = None,
        claim: str = "",
    ) -> Outcome:
        if order.transfer == "odd" and self.surprises:
            self.surprises -= 1
            raise KeyError("transfers")
        return Attempt(NODE, order).succeeded(None)


def order(transfer: str) -> events.TransferAssigned:
    """An order to fetch something."""
    return events.TransferAssigned(
        transfer=transfer,
        executor=NODE,
        source="gpu-7",
        target=NODE,
        entry=games_of("gpu-7"),
        transports=(Transport.HTTP_FETCH,),
        attempt=1,
        timeout_s=30.0,
    )


@contextlib.asynccontextmanager
async def given(
    root: Path, *transfers: str, surprises: int = 1000
) -> AsyncIterator[tuple[MemoryLog, asyncio.Task[None]]]:
    """Orders given to a node that takes them."""
    log, bus, manager = MemoryLog(), MemoryBus(), Odd(root)
    manager.surprises = surprises
    await tasks_of(NODE).provide(log)
    for number, transfer in enumerate(transfers):
        await log.publish(as_fact(decided("c", order(transfer)), number))
    saying = Saying(log, Outbox(root / "outbox"))
    grants = GrantKeeper(bus, NODE, lambda claim, mbps: None)
    task = asyncio.create_task(Orders(log, bus, NODE, manager, grants, saying).take())
    yield log, task
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await saying.close()


async def outcome(log: MemoryLog, transfer: str) -> Recorded:
    """What came of a transfer, once it was said."""
    async with aclosing(log.read()) as batches:
        async for batch in batches:
            for fact in batch:
                said = isinstance(fact.event, events.TransferSucceeded | events.TransferFailed)
                if said and fact.event.transfer == transfer:  # type: ignore[union-attr]
                    return fact
    raise AssertionError("the log ended")


async def test_p18_an_order_that_surprises_again_and_again_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After some tries, each later than the one before; the agent lives and does the others."""
    rests: list[float] = []
    nak = MemoryDelivery.nak

    async def at_once(delivery: MemoryDelivery, delay_s: float = 0.0) -> None:
        rests.append(delay_s)
        await nak(delivery, 0.0)

    monkeypatch.setattr(MemoryDelivery, "nak", at_once)
    async with given(tmp_path, "odd", "even") as (log, task):
        assert isinstance((await outcome(log, "even")).event, events.TransferSucceeded)
        failed = await outcome(log, "odd")
        assert isinstance(failed.event, events.TransferFailed)
        assert failed.event.error_class == "Unforeseen"
        assert failed.event.error == "KeyError: 'transfers'"
        assert failed.chain == "c"
        assert rests == [1.0, 2.0, 4.0]

        async def acknowledged() -> bool:
            consumer = await log.consumer(tasks_of(NODE).name)
            return consumer is not None and consumer.unacknowledged == 0

        await eventually(acknowledged)
        assert not task.done()


async def test_an_order_that_surprises_once_is_carried_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What passes is no failure."""
    monkeypatch.setattr("dataplane.agent.deliveries._REST_S", 0.001)
    async with given(tmp_path, "odd", surprises=3) as (log, _):
        assert isinstance((await outcome(log, "odd")).event, events.TransferSucceeded)
