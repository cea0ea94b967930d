"""A server that is cut off from the others, and goes on answering: nobody takes it for the log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dataplane.prove.servers import BusServer, Routes, clustered, leader_of, names_of
from streams.codec import STREAM, fact_id, node_fact
from streams.events import SelfplayComplete
from streams.jetstream import JetStreamLog
from streams.log import LogUnavailable
from streams.wire import api
from tests.integration.cluster import until

#: The others choose a leader within this, on a busy machine too.
PATIENCE_S = 90.0


@pytest.fixture
async def routes(tmp_path: Path) -> AsyncIterator[Routes]:
    """What the servers reach each other by."""
    routes = Routes(names_of(3))
    await routes.open()
    yield routes
    await routes.close()


@pytest.fixture
async def servers(tmp_path: Path, routes: Routes) -> AsyncIterator[list[BusServer]]:
    """Three servers; one alone would wait for the others."""
    servers = clustered(tmp_path / "nats", tmp_path / "logs", routes=routes)
    await asyncio.gather(*(server.start() for server in servers))
    yield servers
    await asyncio.gather(*(server.kill() for server in servers))


async def append(log: JetStreamLog, number: int) -> int:
    """One more fact; its sequence."""
    event = SelfplayComplete(config_key="hex8_2p", source_node="gpu-1", games_count=5)
    done = await log.publish(node_fact(event, "gpu-1", fact_id("round", number)))
    return done.sequence


async def test_old_end_of_a_server_that_is_cut_off_is_not_the_logs(
    servers: list[BusServer], routes: Routes
) -> None:
    """It leads until it notices; what the others write meanwhile was not rolled back."""
    logs = {
        server.name: await JetStreamLog.connect(server.url, name=server.name, deadline_s=5.0)
        for server in servers
    }
    first, *_ = logs.values()
    await first.ensure_topology(replicas=3)
    before = [await append(first, number) for number in range(5)][-1]
    cut = await leader_of(first)
    there, elsewhere = logs[cut], next(log for name, log in logs.items() if name != cut)

    routes.isolate(cut)
    written: list[int] = []

    async def written_on() -> bool:
        try:
            written.append(await append(elsewhere, 5))
        except LogUnavailable:
            return False
        return True

    await until(written_on, "the others to have a leader", PATIENCE_S)
    assert written[-1] > before
    said = await api(there.connection, f"STREAM.INFO.{STREAM}")
    assert said["state"]["last_seq"] == before, "it answers, and knows nothing of it"
    with pytest.raises(LogUnavailable, match="hears too few of the others"):
        await there.state()
    assert (await elsewhere.standing()).behind == (cut,)

    routes.join()

    async def caught_up() -> bool:
        try:
            return (await there.state()).last_sequence == written[-1]
        except LogUnavailable:
            return False

    await until(caught_up, "the log to be whole again", PATIENCE_S)
    for log in logs.values():
        await log.close()
