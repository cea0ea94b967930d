"""A coordinator and an agent, made as in production, end by themselves where a loop is blocked."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dataplane.agent import agent as agent_module
from dataplane.agent.agent import Agent
from dataplane.agent.observing import Observer
from dataplane.agent.orders import Orders
from dataplane.agent.transfers import TransportManager
from dataplane.config import DataPlaneConfig
from dataplane.consumers import tasks_of, triggers_of
from dataplane.coordinator import coordinator as coordinator_module
from dataplane.coordinator.bridge import EventBridge
from dataplane.coordinator.coordinator import Coordinator
from dataplane.coordinator.dispatch import Dispatcher
from dataplane.presence import make_signing_key
from dataplane.standstill import StandsStill
from projections.projector import Projector
from streams import events
from streams.jetstream import JetStreamLog
from streams.values import Transport
from tests.conftest import eventually
from tests.spec import as_fact, decided, games_of, opens, played

NODE = "gpu-1"
#: Of a busy machine, whose loops all get their turn within it.
LIMIT_S = 1.5


@pytest.fixture
def log(jetstream_log: JetStreamLog) -> JetStreamLog:
    """A real one, with nothing in it."""
    return jetstream_log


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who stands still is found out soon."""
    for module in (agent_module, coordinator_module):
        monkeypatch.setattr(module, "WATCH_S", 0.05)
        monkeypatch.setattr(module, "STANDSTILL_S", LIMIT_S)


async def hang(*_: object, **__: object) -> None:
    """What a blocked loop does."""
    await asyncio.Event().wait()


async def end_of(part: Coordinator | Agent) -> str:
    """Why a part ended by itself."""
    async with asyncio.timeout(60):
        with pytest.raises(BaseExceptionGroup) as ended:
            await part.run()
    error: BaseException = ended.value
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, StandsStill), error
    return str(error)


@contextlib.asynccontextmanager
async def coordinating(home: Path, log: JetStreamLog) -> AsyncIterator[Coordinator]:
    """A coordinator that has started."""
    config = DataPlaneConfig.from_values(
        {"node": "boss", "state_dir": str(home), "web_enabled": False}
    )
    coordinator = Coordinator(log, log.bus, config)
    await coordinator.start()
    yield coordinator
    await coordinator.stop()


@contextlib.asynccontextmanager
async def serving(home: Path, log: JetStreamLog) -> AsyncIterator[Agent]:
    """An agent that has started."""
    config = DataPlaneConfig.from_values(
        {"node": NODE, "state_dir": str(home / "state"), "data_dir": str(home / "data")}
    )
    for durable in (triggers_of(NODE), tasks_of(NODE)):
        await durable.provide(log)
    await make_signing_key(log.bus)
    agent = Agent(log, log.bus, config)
    await agent.start()
    yield agent
    await agent.stop()


def order(timeout_s: float) -> events.TransferAssigned:
    """An order to fetch something."""
    return events.TransferAssigned(
        transfer="t-1",
        executor=NODE,
        source="gpu-7",
        target=NODE,
        entry=games_of("gpu-7"),
        transports=(Transport.HTTP_FETCH,),
        attempt=1,
        timeout_s=timeout_s,
    )


@pytest.mark.parametrize(
    ("owner", "method", "loop"),
    [
        (Projector, "run", "projector"),
        (EventBridge, "_handle", "bridge"),
        (Dispatcher, "run", "dispatcher"),
    ],
)
async def test_p18_a_coordinator_of_which_a_loop_is_blocked_ends(
    tmp_path: Path,
    log: JetStreamLog,
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    method: str,
    loop: str,
) -> None:
    """Each of its loops, while all others turn and the process lives."""
    async with coordinating(tmp_path, log) as coordinator:
        monkeypatch.setattr(owner, method, hang)
        await log.publish(as_fact(opens("a", played(NODE)), 0))
        assert (await end_of(coordinator)).startswith(f"the {loop} has done nothing")


async def test_p18_an_agent_that_answers_nothing_ends(
    tmp_path: Path, log: JetStreamLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trigger waits for it, as behind a disk that hangs."""
    async with serving(tmp_path, log) as agent:
        monkeypatch.setattr(Observer, "_answer", hang)
        await log.publish(as_fact(opens("a", played(NODE)), 0))
        assert (await end_of(agent)).startswith("the answering of triggers has done nothing")


async def test_p18_an_agent_that_takes_no_orders_ends(
    tmp_path: Path, log: JetStreamLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They wait for it in the log."""
    async with serving(tmp_path, log) as agent:
        monkeypatch.setattr(Orders, "take", hang)
        await log.publish(as_fact(decided("c", order(30.0)), 0))
        assert (await end_of(agent)).startswith("the taking of orders has done nothing")


async def test_p18_an_agent_with_a_transfer_that_never_ends_ends(
    tmp_path: Path, log: JetStreamLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time is over, nothing of it comes any more, and it does not end: a thread hangs."""
    async with serving(tmp_path, log) as agent:
        monkeypatch.setattr(TransportManager, "transfer", hang)
        await log.publish(as_fact(decided("c", order(0.01)), 0))
        assert (await end_of(agent)).startswith("the transfer t-1 has done nothing")


async def test_an_agent_that_waits_or_works_is_left_alone(
    tmp_path: Path, log: JetStreamLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing waits for it; or its transfer has time; or something of it still comes."""
    monkeypatch.setattr(agent_module, "STANDSTILL_S", 0.3)
    looks = 0
    progress = Orders.progress

    async def counted(orders: Orders) -> list[object]:
        nonlocal looks
        looks += 1
        for work in orders._working:
            work(looks, 1_000)
        return [*await progress(orders)]

    monkeypatch.setattr(Orders, "progress", counted)
    async with serving(tmp_path, log) as agent:
        monkeypatch.setattr(TransportManager, "transfer", hang)
        running = asyncio.create_task(agent.run())
        await log.publish(as_fact(decided("c", order(0.01)), 0))
        await eventually(lambda: looks > 20 or running.done())
        assert not running.done()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
