"""What comes of an order that ends by what nobody thought of: an answer, and a living agent."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path

import msgspec
import pytest
from msgspec import structs

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
    root: Path,
    *orders: str | events.TransferAssigned,
    surprises: int = 1000,
    bus: MemoryBus | None = None,
) -> AsyncIterator[tuple[MemoryLog, asyncio.Task[None]]]:
    """Orders given to a node that takes them."""
    log, bus, manager = MemoryLog(), bus or MemoryBus(), Odd(root)
    manager.surprises = surprises
    await tasks_of(NODE).provide(log)
    for number, one in enumerate(orders):
        given = order(one) if isinstance(one, str) else one
        await log.publish(as_fact(decided("c", given), number))
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


class Coordinator:
    """Says that no order is anybody's any more; remembers what it was asked."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self.asked: list[dict[str, object]] = []

    async def answer(self, subject: str, body: bytes) -> bytes:
        self.asked.append(msgspec.json.decode(body))
        return self._answer


def to_send(transfer: str) -> events.TransferAssigned:
    """An order to bring something to another node."""
    return structs.replace(order(transfer), source=NODE, target="train-2")


@pytest.mark.parametrize(
    ("answer", "late_s", "given_to", "carried_out"),
    [
        (b"[]", -1.0, to_send, False),
        # What is for this node counts whenever it comes.
        (b"[]", -1.0, order, True),
        # Nobody is replaced so soon: there is nothing to ask.
        (b"[]", 3600.0, to_send, True),
        (b'["given"]', -1.0, to_send, True),
        (b"no answer", -1.0, to_send, True),
        (None, -1.0, to_send, True),
    ],
)
async def test_who_was_replaced_does_not_send_once_more(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    answer: bytes | None,
    late_s: float,
    given_to: Callable[[str], events.TransferAssigned],
    carried_out: bool,
) -> None:
    """A node that comes back asks whether its order is still its own; who can't say yes or no
    keeps none from being carried out.
    """
    monkeypatch.setattr("dataplane.agent.orders.LATE_S", late_s)
    bus, coordinator = MemoryBus(), Coordinator(answer or b"")
    if answer is not None:
        await bus.answer("dp.query.pending", coordinator.answer)
    async with given(tmp_path, given_to("given"), order("last"), bus=bus) as (log, _):
        await outcome(log, "last")

        async def acknowledged() -> bool:
            consumer = await log.consumer(tasks_of(NODE).name)
            return consumer is not None and consumer.unacknowledged == 0

        await eventually(acknowledged)
        said = [one async for one in said_of(log)]
    assert ("given" in said) is carried_out
    wanted = {"transfers": ["given"], "executor": NODE, "sequence": 1}
    assert all(asked == wanted for asked in coordinator.asked)
    assert len(coordinator.asked) == (answer is not None and late_s < 0 and given_to is to_send)


async def said_of(log: MemoryLog) -> AsyncIterator[str]:
    """The transfers that something was said of."""
    last = await log.last("dp.node.>")
    assert last is not None
    for sequence in range(1, last.sequence + 1):
        fact = await log.get(sequence)
        if fact is not None and isinstance(fact.event, events.TransferSucceeded):
            yield fact.event.transfer
