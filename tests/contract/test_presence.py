"""Who has a name, on every bus: one process at a time, and the same one again at once."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from dataplane import presence as presence_module
from dataplane.presence import NameTaken, Presence, instance_of, present
from streams.log import Bus
from streams.memory import MemoryBus
from streams.server import EmbeddedServer
from streams.topology import NODES_BUCKET
from streams.wire import api
from tests.conftest import PATIENCE_S, empty_log, eventually


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks follow each other without a pause."""
    monkeypatch.setattr(presence_module, "_LOOK_S", 0.001)


@pytest.fixture(params=["memory", "jetstream"])
async def bus(request: pytest.FixtureRequest) -> AsyncIterator[Bus]:
    """Each bus in turn, with nobody there."""
    async with AsyncExitStack() as stack:
        if request.param == "memory":
            yield MemoryBus()
        else:
            url = request.getfixturevalue("nats_server").url
            yield (await stack.enter_async_context(empty_log(url))).bus


def agent(bus: Bus, instance: str) -> Presence:
    """An agent of one name."""
    return Presence(bus, "gpu-1", "agent", instance)


async def soon(work: asyncio.Task[None]) -> None:
    """Wait for it, with patience."""
    await asyncio.wait_for(work, PATIENCE_S)


async def test_a_second_agent_of_a_name_is_refused_once_the_first_is_heard(bus: Bus) -> None:
    """It says who has the name, and the first one goes on as if nothing had been."""
    first = agent(bus, "one")
    await first.claim()
    await first.beat({"files": 1})
    second = asyncio.create_task(agent(bus, "two").claim())
    while not second.done():
        await first.beat({"files": 2})
        await asyncio.sleep(0.001)
    with pytest.raises(NameTaken, match=r"agent\.gpu-1 is process \d+ on .+ one name"):
        await soon(second)
    assert (await present(bus))["agent.gpu-1"]["files"] == 2
    await first.beat({})


async def test_the_same_instance_takes_its_name_again_at_once(bus: Bus) -> None:
    """A killed agent that is started again waits for nothing."""
    await agent(bus, "one").claim()
    again = agent(bus, "one")
    await soon(asyncio.create_task(again.claim()))
    assert await present(bus) == {}, "it has the name and does not work yet"
    await again.beat({})
    assert "agent.gpu-1" in await present(bus)


async def test_a_bus_that_knows_nobody_yet_is_waited_for(
    nats_server: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    """An agent that is there before any coordinator begins once one has made the bucket."""
    async with empty_log(nats_server.url) as log:
        await api(log.connection, f"STREAM.DELETE.KV_{NODES_BUCKET}")
        with caplog.at_level("INFO"):
            claim = asyncio.create_task(agent(log.bus, "one").claim())
            await eventually(lambda: "the bus knows nobody" in caplog.text or claim.done())
        await log.ensure_topology()
        await soon(claim)


async def test_a_name_that_was_let_go_of_is_free_at_once(bus: Bus) -> None:
    """And who let go of it is no longer there."""
    first = agent(bus, "one")
    await first.claim()
    await first.beat({})
    await first.leave()
    assert await present(bus) == {}
    await soon(asyncio.create_task(agent(bus, "two").claim()))
    await first.leave()
    with pytest.raises(NameTaken):
        await agent(bus, "one").beat({})


async def test_a_name_that_nobody_is_heard_of_is_free_once_the_bucket_forgets(bus: Bus) -> None:
    """A machine that burned down keeps its name for as long as a heartbeat lives."""
    await agent(bus, "one").claim()
    second = asyncio.create_task(agent(bus, "two").claim())
    await asyncio.sleep(0.01)
    assert not second.done()
    await bus.kv_delete(NODES_BUCKET, "agent.gpu-1")
    await soon(second)


async def test_who_was_paused_while_another_took_its_name_ends(bus: Bus) -> None:
    """Its next heartbeat says so; the other one's stands."""
    paused, other = agent(bus, "one"), agent(bus, "two")
    await paused.claim()
    await bus.kv_delete(NODES_BUCKET, "agent.gpu-1")
    await other.claim()
    await other.beat({"files": 7})
    with pytest.raises(NameTaken):
        await paused.beat({})
    assert (await present(bus))["agent.gpu-1"]["files"] == 7


async def test_a_bus_that_forgot_everything_is_told_again(bus: Bus) -> None:
    """The bucket was removed, and made anew: the first one to beat has the name."""
    one = agent(bus, "one")
    await one.claim()
    await bus.kv_delete(NODES_BUCKET, "agent.gpu-1")
    await one.beat({"files": 3})
    assert (await present(bus))["agent.gpu-1"]["files"] == 3


def test_an_instance_is_a_directory_on_a_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same after a restart, another one for a copy, there or on another machine."""
    here = instance_of(tmp_path / "here")
    assert instance_of(tmp_path / "here") == here
    shutil.copytree(tmp_path / "here", tmp_path / "copy")
    assert instance_of(tmp_path / "copy") != here
    monkeypatch.setattr("socket.gethostname", lambda: "another")
    assert instance_of(tmp_path / "here") != here
