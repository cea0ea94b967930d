"""Steps of deploy/README.md as they stand there, on real servers with keys."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from pathlib import Path

import pytest

from dataplane.keys import KeyStore
from dataplane.prove.servers import BusServer, clustered
from streams.codec import fact_id, node_fact
from streams.connection import Connection
from streams.events import DataSyncCompleted, DataSyncFailed, SelfplayComplete
from streams.log import LogError
from streams.permissions import BusRole
from streams.server import EmbeddedServer
from streams.values import Role
from streams.wire import api
from tests.integration.cluster import LocalCluster, until
from tests.integration.terminal import Terminal
from tests.integration.test_answers import pretend_other_version
from tests.integration.test_permissions import client, locked


@pytest.fixture
def keys(tmp_path: Path) -> KeyStore:
    """Two coordinators, a player and a trainer."""
    store = KeyStore(tmp_path / "keys")
    store.init("coordinator")
    for name in ("coord", "coord-2"):
        store.add(name, BusRole.COORDINATOR)
    for name in ("gpu-7", "train-1"):
        store.add(name, BusRole.NODE)
    return store


async def played(cluster: LocalCluster, keys: KeyStore, number: int) -> str:
    """The player plays and says so; the chain, once it has ended as it should."""
    cluster.play("gpu-7", 5)
    said = SelfplayComplete(config_key="hex8_2p", source_node="gpu-7", games_count=5)
    chain = fact_id("played", number)
    async with client(cluster, keys, "gpu-7") as log:
        await log.publish(node_fact(said, "gpu-7", chain))
    await cluster.assert_exactly_once(chain)
    return chain


def terminal(cluster: LocalCluster, keys: KeyStore, name: str = "coordinator") -> Terminal:
    """The command with a key."""
    return Terminal(cluster, name, keys.seed_file(name), DATAPLANE_REPLICAS="3")


def three(base: Path, keys: KeyStore) -> list[BusServer]:
    """Three empty servers that replicate, with the same keys and a secret of their own."""
    (base / "logs").mkdir()
    return clustered(base / "three", base / "logs", keys=keys)


@pytest.mark.timeout(600)
async def test_one_server_becomes_three_and_nodes_coordinators_and_servers_come_and_go(
    tmp_path: Path, keys: KeyStore
) -> None:
    """Grow by the archive, add a node, replace a coordinator, upgrade its views, replace a server.

    No chain is lost, and the bus bears the loss of one more server afterwards.

    A server that kept its streams alone does not bring them into a cluster: it is asked for none.
    """
    place = str(tmp_path / "archive")
    async with LocalCluster(tmp_path, bus=locked(tmp_path), seeds=keys.directory) as alone:
        alone.coordinator("coord")
        alone.agent("gpu-7", Role.SELFPLAY)
        alone.agent("train-1", Role.TRAINING)
        await alone.joined("coord", "gpu-7", "train-1")
        chains = [await played(alone, keys, 1)]
        for name in ("gpu-7", "train-1", "coord"):
            alone.stop(name)
        terminal(alone, keys).run("archive", "run", "--at", place)

    servers = three(tmp_path, keys)
    await asyncio.gather(*(server.start() for server in servers))
    grown = LocalCluster(tmp_path, servers=servers, seeds=keys.directory, replicas=3)
    try:
        commands = terminal(grown, keys)
        commands.run("archive", "restore", "--at", place)
        async with grown as cluster:
            info = await api(cluster.log.connection, "STREAM.INFO.DATAPLANE")
            assert info["config"]["num_replicas"] == 3
            cluster.coordinator("coord")
            cluster.agent("gpu-7", Role.SELFPLAY)
            cluster.agent("train-1", Role.TRAINING)
            await cluster.joined("coord", "gpu-7", "train-1")
            chains.append(await played(cluster, keys, 2))
            await _a_node_is_added(cluster, keys, servers)
            chains.append(await played(cluster, keys, 3))
            assert cluster.received("train-2", "gpu-7").exists()
            await _a_coordinator_is_replaced(cluster)
            chains.append(await played(cluster, keys, 4))
            await _views_of_another_version_are_folded_anew(cluster, keys)
            chains.append(await played(cluster, keys, 5))
            await _a_server_is_replaced(cluster, servers)
            chains.append(await _a_server_leaves_by_lame_duck(cluster, keys))
            chains.append(await played(cluster, keys, 7))
            ends = await cluster.facts(DataSyncCompleted, DataSyncFailed)
            assert [end.chain for end in ends if end.chain in chains] == chains
    finally:
        await asyncio.gather(*(server.kill() for server in servers))


async def _a_node_is_added(cluster: LocalCluster, keys: KeyStore, servers: list[BusServer]) -> None:
    """A key, a reload of every server, an agent: it is planned for."""
    keys.add("train-2", BusRole.NODE)
    for server in servers:
        os.kill(server.pid, signal.SIGHUP)
    cluster.agent("train-2", Role.TRAINING)

    async def joined() -> bool:
        if cluster.processes["train-2"].poll() is not None:
            # It came before the server had read its key; a supervisor starts it again.
            cluster.agent("train-2", Role.TRAINING)
        return bool("train-2" in terminal(cluster, keys).run("nodes"))

    await until(joined, "train-2 to join")
    await cluster.joined("train-2")


async def _a_coordinator_is_replaced(cluster: LocalCluster) -> None:
    """Another one, with a key and a directory of its own; nothing is saved from the first."""
    cluster.kill("coord")
    cluster.coordinator("coord-2")
    await cluster.joined("coord-2")


async def _views_of_another_version_are_folded_anew(cluster: LocalCluster, keys: KeyStore) -> None:
    """As after an upgrade: the coordinator folds the log before it leads, to the same views."""
    cluster.stop("coord-2")
    pretend_other_version(cluster.base / "coord" / "state" / "views")
    cluster.coordinator("coord")
    await cluster.joined("coord")
    assert terminal(cluster, keys).json("verify")["same"]


async def _a_server_is_replaced(cluster: LocalCluster, servers: list[BusServer]) -> None:
    """One lost its disk; the new one has another name, and the lost one counts no more."""
    await servers[1].kill()
    servers.append(await _in_the_place_of(servers[1], cluster.base))
    await _is_a_server_no_more(servers[0], "nats-2", cluster.base)
    await _replicated_on(cluster, {"nats-1", "nats-3", "nats-4"})


async def _a_server_leaves_by_lame_duck(cluster: LocalCluster, keys: KeyStore) -> str:
    """With a chain under way, which is returned; two of those there are now go on."""
    leaving = cluster.servers[2]
    os.kill(leaving.pid, signal.SIGUSR2)
    chain = await played(cluster, keys, 6)
    await until(lambda: leaving.ended, "the lame duck to end")
    return chain


async def _in_the_place_of(lost: BusServer, base: Path) -> BusServer:
    """A new server, nats-4, at the address of one whose disk is gone."""
    there, here = base / "three" / lost.name, base / "three" / "nats-4"
    shutil.copytree(there, here, symlinks=True, ignore=shutil.ignore_patterns("nats-data"))
    shutil.rmtree(there)
    config = here / "nats.conf"
    config.write_text(config.read_text().replace(lost.name, "nats-4"))
    port = int(lost.url.rpartition(":")[2])
    log_file = base / "logs" / "nats-4.log"
    server = BusServer("nats-4", EmbeddedServer(here, port=port, config=config, log_file=log_file))
    await server.start()
    return server


async def _is_a_server_no_more(asked: BusServer, gone: str, base: Path) -> None:
    """What ``nats server cluster peer-remove`` does, as a user of the system account."""
    with (base / "three" / asked.name / "nats.conf").open("a") as conf:
        conf.write("accounts: { $SYS: { users: [ { user: sys, password: secret } ] } }\n")
    os.kill(asked.pid, signal.SIGHUP)

    async def removed() -> bool:
        with contextlib.suppress(LogError):
            system = await Connection.connect(asked.url, user="sys", password="secret")
            try:
                return bool((await api(system, "SERVER.REMOVE", {"peer": gone}))["success"])
            finally:
                await system.close()
        return False

    await until(removed, f"{gone} to be removed")


async def _replicated_on(cluster: LocalCluster, names: set[str]) -> None:
    """Wait until every stream is on these servers, and health says that any of them may go."""
    streams = (await api(cluster.log.connection, "STREAM.NAMES"))["streams"]

    async def so() -> bool:
        with contextlib.suppress(LogError):
            for stream in streams:
                where = (await api(cluster.log.connection, f"STREAM.INFO.{stream}"))["cluster"]
                others = {one["name"] for one in where.get("replicas") or []}
                if others | {where.get("leader")} != names:
                    return False
            standing = await cluster.log.standing()
            return standing.replicas == len(names) and not standing.short
        return False

    await until(so, f"replicas on {names}")
