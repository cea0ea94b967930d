"""Three nats-servers that replicate to each other: any one of them may go, and no chain fails."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dataplane.prove.servers import BusServer, clustered
from streams import events
from streams.codec import STREAM, fact_id, node_fact
from streams.events import SelfplayComplete
from streams.values import Role
from streams.wire import api
from tests.integration.cluster import LocalCluster, until


@pytest.fixture
async def servers(tmp_path: Path) -> AsyncIterator[list[BusServer]]:
    """Three servers; one alone would wait for the others."""
    servers = clustered(tmp_path / "nats", tmp_path / "logs")
    await asyncio.gather(*(server.start() for server in servers))
    yield servers
    await asyncio.gather(*(server.kill() for server in servers))


@pytest.fixture
async def cluster(tmp_path: Path, servers: list[BusServer]) -> AsyncIterator[LocalCluster]:
    """A coordinator, a player and two trainers on three servers."""
    async with LocalCluster(tmp_path, servers=servers, replicas=3) as cluster:
        cluster.coordinator()
        cluster.agent("gpu-1", Role.SELFPLAY)
        for name in ("train-1", "train-2"):
            cluster.agent(name, Role.TRAINING)
        await cluster.joined("coord", "gpu-1", "train-1", "train-2")
        yield cluster


async def played(cluster: LocalCluster, number: int) -> str:
    """Games are played and said; the chain."""
    cluster.play("gpu-1", 5)
    event = SelfplayComplete(config_key="hex8_2p", source_node="gpu-1", games_count=5)
    fact = node_fact(event, "gpu-1", fact_id("round", number))
    await cluster.log.publish(fact)
    return fact.id


async def leader_of_the_log(cluster: LocalCluster) -> BusServer:
    """The server that leads the log's stream."""
    info = await api(cluster.log.connection, f"STREAM.INFO.{STREAM}")
    name = info["cluster"]["leader"]
    return next(server for server in cluster.servers if server.name == name)


async def in_step(cluster: LocalCluster) -> None:
    """Wait until every replica of the log and its consumers is up to date."""

    async def so() -> bool:
        standing = await cluster.log.standing()
        return standing.replicas == 3 and not standing.short

    await until(so, "three replicas of the log and of its consumers to be in step")


async def one_is_missed(cluster: LocalCluster, server: BusServer) -> None:
    """Wait until whoever asks is told which server is away, and that no other may go."""

    async def so() -> bool:
        said = json.loads(await cluster.command("status", "--json", status=None))
        servers = said["details"]["servers"]
        assert servers is not None, (
            "whoever reached the bus knows something of it, or says that not"
        )
        missed = servers["behind"] == [server.name] and {STREAM, "bridge"} <= set(servers["short"])
        away = f"on 2 of 3 servers ({server.name} behind or away)"
        return bool(missed and said["status"] == "degraded" and away in said["message"])

    await until(so, f"{server.name} to be missed")


async def test_no_chain_fails_while_every_server_is_restarted_and_the_leader_is_killed(
    cluster: LocalCluster,
) -> None:
    """A rolling restart by SIGTERM with a chain under way each time; then kill -9 of the leader."""
    await in_step(cluster)
    chains = []
    for number, server in enumerate(cluster.servers):
        chains.append(await played(cluster, number))
        await server.stop()
        await server.start()
        await cluster.assert_exactly_once(chains[-1])
        await in_step(cluster)
    leader = await leader_of_the_log(cluster)
    chains.append(await played(cluster, 10))
    await leader.kill()
    await cluster.assert_exactly_once(chains[-1])
    await one_is_missed(cluster, leader)
    await leader.start()
    await in_step(cluster)
    chains.append(await played(cluster, 11))
    await cluster.assert_exactly_once(chains[-1])
    facts = await cluster.facts()
    assert len({fact.id for fact in facts}) == len(facts)
    assert not [fact for fact in facts if isinstance(fact.event, events.DataSyncFailed)]
    ended = {f.chain for f in facts if isinstance(f.event, events.DataSyncCompleted)}
    assert ended == set(chains)
