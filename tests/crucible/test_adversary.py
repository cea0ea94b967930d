"""What the adversary does really happens: what is cut is cut, and nothing finds a way around."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from dataplane.demo.children import Layout
from dataplane.prove.adversary import Adversary
from dataplane.prove.cable import Cable
from dataplane.prove.cluster import VITAL, ProveCluster
from dataplane.prove.run import Options, _under_fire
from dataplane.prove.scene import Scene
from dataplane.prove.servers import BusServer, Routes, clustered, leader_of, names_of
from streams import events
from streams.codec import Fact, fact_id, node_fact
from streams.jetstream import JetStreamLog
from streams.log import LogError
from streams.server import ServerFailed

_PATIENCE_S = 90.0


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[tuple[Routes, dict[str, BusServer]]]:
    """Three nats-servers with cables between them."""
    routes = Routes(names_of(3))
    servers = clustered(tmp_path / "nats", tmp_path / "logs", 3, routes=routes)
    await routes.open()
    try:
        await asyncio.gather(*(server.start() for server in servers))
        yield routes, {server.name: server for server in servers}
    finally:
        await asyncio.gather(*(server.stop() for server in servers))
        await routes.close()


@pytest.mark.timeout(240)
async def test_server_that_is_cut_off_leads_no_more_until_it_is_joined(
    cluster: tuple[Routes, dict[str, BusServer]],
) -> None:
    """Who still reaches it stores nothing through it; the other two elect one of themselves."""
    routes, servers = cluster
    log = await JetStreamLog.connect([server.url for server in servers.values()], deadline_s=60.0)
    await log.ensure_topology(replicas=3)
    await log.publish(said(1))
    old = await leader_of(log)
    await log.close()
    there = await JetStreamLog.connect([servers[old].url], try_s=1.0, deadline_s=2.0)
    other = next(server for name, server in servers.items() if name != old)
    here = await JetStreamLog.connect([other.url], deadline_s=60.0)
    try:
        routes.isolate(old)
        await here.publish(said(2))
        new = await leader_of(here)
        assert new and new != old
        with pytest.raises(LogError):
            await there.publish(said(3))
        routes.join()
        async with asyncio.timeout(_PATIENCE_S):
            while not await stored(there, 3):
                pass
        assert (await here.state()).last_sequence == 3
    finally:
        await there.close()
        await here.close()


def said(number: int) -> Fact:
    """A fact."""
    return node_fact(events.NodeTerminating(node="gpu-1"), "gpu-1", fact_id("cut", number))


async def stored(log: JetStreamLog, number: int) -> bool:
    """Whether a fact can be stored now."""
    with suppress(LogError):
        await log.publish(said(number))
        return True
    return False


async def test_cable_takes_who_comes_again_to_another_server() -> None:
    """One that is paused or cut off still takes connections, and answers nobody."""
    met: list[int] = []

    async def serve(number: int) -> asyncio.Server:
        async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            met.append(number)
            writer.close()

        return await asyncio.start_server(meet, "127.0.0.1", 0)

    servers = [await serve(0), await serve(1)]
    ports = [server.sockets[0].getsockname()[1] for server in servers]
    cable = Cable(lambda: [("127.0.0.1", port) for port in ports])
    await cable.open()
    try:
        for _ in range(2):
            host, port = cable.address.split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            assert await reader.read() == b""
            writer.close()
        assert sorted(met) == [0, 1]
    finally:
        await cable.close()
        for server in servers:
            server.close()


async def test_others_reach_an_agent_through_a_cable_that_can_be_cut(tmp_path: Path) -> None:
    """As it reaches the bus and the bucket: each way is cut for itself."""
    cluster = ProveCluster(Layout(tmp_path), replicas=1, nodes=4, kills=0)
    told = await cluster._cabled("gpu-1")
    ways = {"gpu-1", "gpu-1 to the bucket", "gpu-1 from others"}
    assert cluster.cables.keys() == ways and told["nats_url"] != cluster.url

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"files")
        writer.close()

    async def answer() -> bytes:
        host, port = str(told["http_advertise"]).removeprefix("http://").split(":")
        reader, _ = await asyncio.open_connection(host, int(port))
        with suppress(ConnectionError):
            return await reader.read()
        return b""

    async with await asyncio.start_server(greet, "127.0.0.1", told["http_port"]):
        assert await answer() == b"files"
        cluster.cables["gpu-1 from others"].sever()
        assert await answer() == b""
        cluster.cables["gpu-1 from others"].join()
        assert await answer() == b"files"
    for cable in cluster.cables.values():
        await cable.close()


async def test_some_nodes_are_behind_a_nat(tmp_path: Path) -> None:
    """One that plays and one that trains: what concerns them is pushed, or relayed."""
    cluster = ProveCluster(Layout(tmp_path), replicas=1, nodes=5, kills=0)
    assert cluster.blocked == {"selfplay-2", "training-2"}
    told = await cluster._cabled("training-2")
    assert told["http_advertise"] == "http://127.0.0.1:1"
    assert cluster.cables.keys() == {"training-2", "training-2 to the bucket"}
    for cable in cluster.cables.values():
        await cable.close()


class Standing:
    """A process that lives, whatever is done to it."""

    def __init__(self, name: str) -> None:
        self.name, self.status, self.pid, self.ended = name, "running", 1, None

    async def start(self, **_: str) -> None:
        """It runs."""

    async def kill(self) -> int:
        """It runs."""
        return 1

    stop = start

    def pause(self) -> None:
        """It runs."""

    resume = pause


@pytest.fixture
def attacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[ProveCluster, Adversary]:
    """An adversary of processes that are started again at once; a chain is open."""
    cluster = ProveCluster(Layout(tmp_path), replicas=1, nodes=5, kills=0)
    names = ("nats-1", "coordinator-1", "selfplay-1", "training-1", "selfplay-1.player", "s3-1")
    monkeypatch.setattr(cluster, "targets", lambda: [Standing(name) for name in names])
    scene = Scene(open={"c": "DATA_NEEDED"}, asked={"c": "training-1"})
    adversary = Adversary(cluster, scene, None, 1, gap_s=1.0, damage=True)  # type: ignore[arg-type]

    async def at_once(target: Standing) -> None:
        pass

    monkeypatch.setattr(adversary, "_start_later", at_once)
    return cluster, adversary


async def test_each_vital_kind_is_hit_at_work_before_any_is_hit_again(
    attacked: tuple[ProveCluster, Adversary],
) -> None:
    """So that a short run proves something of each of them."""
    cluster, adversary = attacked
    for _ in VITAL:
        await adversary._kill()
    assert sorted(kill.kind for kill in cluster.kills) == sorted(VITAL)
    assert all(kill.during for kill in cluster.kills)
    for _ in range(60):
        await adversary._kill()
    others = {kill.kind: kill.during for kill in cluster.kills}
    assert others.keys() == {*VITAL, "player", "s3-server"}
    assert others["player"] == "", "what a player does nobody waits for"


async def test_only_copies_of_what_another_node_owns_are_damaged(
    attacked: tuple[ProveCluster, Adversary],
) -> None:
    """Who changes a file of its own, or a shared one, has made a new version of it."""
    cluster, adversary = attacked
    games = "training-1", "games/selfplay-1/hex8_2p.db"
    candidate = "storage-1", "models/training-1/candidate_1_hex8_2p.pth"
    spared = [
        ("training-1", "games/training-1/hex8_2p.db"),
        ("training-1", "models/canonical_hex8_2p.pth"),
        ("spot-1", "games/selfplay-1/hex8_2p.db"),
    ]
    for place in (games, candidate, *spared):
        adversary._scene.copies[place] = "sha256:0"
        file = cluster.copy(*place)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"content")
    for _ in range(10):
        await adversary._flip()
    assert {(flip.node, flip.path) for flip in adversary.flips} == {games, candidate}
    assert all(cluster.copy(*place).read_bytes() == b"content" for place in spared)
    assert all(cluster.copy(*place).read_bytes() != b"content" for place in (games, candidate))


async def test_models_are_damaged_though_there_are_many_more_games(
    attacked: tuple[ProveCluster, Adversary],
) -> None:
    """Each kind of file is as likely as the others."""
    cluster, adversary = attacked
    games = [("training-1", f"games/selfplay-1/{number}_hex8_2p.db") for number in range(60)]
    candidate = "storage-1", "models/training-1/candidate_1_hex8_2p.pth"
    for place in (*games, candidate):
        adversary._scene.copies[place] = "sha256:0"
        file = cluster.copy(*place)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"content")
    for _ in range(6):
        await adversary._flip()
    assert candidate in {(flip.node, flip.path) for flip in adversary.flips}
    assert any(deed.kind == "byte of models flipped" for deed in adversary.deeds)


class Endless:
    """Something that never ends."""

    async def run(self) -> None:
        """For ever."""
        await asyncio.Event().wait()


@pytest.mark.timeout(60)
async def test_proof_does_not_go_on_once_nobody_tends_its_processes(tmp_path: Path) -> None:
    """What ended would stay away, and the run prove nothing, or wait for ever."""

    async def fails() -> None:
        raise ServerFailed("its port is taken")

    cluster = ProveCluster(Layout(tmp_path), replicas=1, nodes=4, kills=0)
    tending = asyncio.create_task(fails())
    one: Any = Endless()
    with pytest.raises(ServerFailed):
        await _under_fire(Options(minutes=60), cluster, Scene(), one, one, [tending], quiet=True)
