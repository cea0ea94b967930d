"""What users import, against a real cluster: publish, wait, subscribe, query, survive outages."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import dataplane
from dataplane import (
    DataPlane,
    DataPlaneConfig,
    DataType,
    HostOffline,
    NewGamesAvailable,
    SelfplayComplete,
    SyncPriority,
    blocking,
)
from streams import events
from streams.log import ConsumerState, LogUnavailable
from streams.server import EmbeddedServer
from streams.values import Role
from tests.integration.cluster import LocalCluster, until


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[LocalCluster]:
    """A coordinator, a player and a trainer, joined."""
    async with LocalCluster(tmp_path) as cluster:
        cluster.coordinator()
        cluster.agent("gpu-7", Role.SELFPLAY)
        cluster.agent("train-1", Role.TRAINING)
        await cluster.joined("coord", "gpu-7", "train-1")
        yield cluster


def client(cluster: LocalCluster, node: str = "train-1") -> DataPlane:
    """A client that can read the coordinator's views."""
    config = DataPlaneConfig(
        node=node, nats_url=cluster.server.url, state_dir=cluster.base / "coord" / "state"
    )
    return DataPlane.connect(config=config, outbox=cluster.base / "outbox")


def played(games: int = 5, config_key: str = "hex8_2p") -> SelfplayComplete:
    """A trigger of gpu-7."""
    return SelfplayComplete(config_key=config_key, source_node="gpu-7", games_count=games)


async def test_request_sync_waits_until_the_data_is_there(cluster: LocalCluster) -> None:
    """A trainer asks for games by name; the handle returns when its copy is proven."""
    cluster.play("gpu-7", 6)
    async with client(cluster, "gpu-7") as dp:
        first = await dp.publish(played())
        await (await dp.handle(first)).wait(60)
        cluster.play("gpu-7", 4)
        await until(lambda: _games_known(dp) == 10, "the catalog to know all games")
        handle = await dp.request_sync(
            data_type=DataType.GAMES,
            config_key="hex8_2p",
            target_nodes=["train-1"],
            priority=SyncPriority.HIGH,
        )
        result = await handle.wait(timeout=60)
    assert result.success
    assert result.games_synced == 10
    [outcome] = result.targets
    assert outcome.target == "train-1"


def _games_known(dp: DataPlane) -> int | None:
    entry = dp.catalog.get("games/gpu-7/hex8_2p.db")
    return entry.games if entry else None


async def test_both_clients_tell_how_far_what_they_wait_for_is(tmp_path: Path) -> None:
    """In bytes, while it moves; the blocking one in the thread that waits."""
    async with LocalCluster(
        tmp_path, default_bandwidth_limit_mbps=16, transports="http"
    ) as cluster:
        cluster.coordinator()
        cluster.agent("gpu-7", Role.SELFPLAY)
        cluster.agent("train-1", Role.TRAINING)
        await cluster.joined("coord", "gpu-7", "train-1")
        told: list[tuple[int, int]] = []
        cluster.play("gpu-7", 1, padding=4_000_000)
        async with client(cluster, "gpu-7") as dp:
            handle = await dp.handle(await dp.publish(played(1)))
            await handle.wait(60, progress_callback=lambda *said: told.append(said))
        assert_grows(told)

        def blocks() -> list[tuple[int, int, str]]:
            heard: list[tuple[int, int, str]] = []

            def hear(done: int, total: int) -> None:
                heard.append((done, total, threading.current_thread().name))

            with blocking.DataPlane.connect(
                cluster.server.url, node="gpu-7", outbox=tmp_path / "out"
            ) as dp:
                said = dp.publish(played(1, "square8_2p"))
                dp.handle(said).wait(60, progress_callback=hear)
            return [*heard, (0, 0, threading.current_thread().name)]

        cluster.play("gpu-7", 1, "square8_2p", padding=4_000_000)
        *heard, here = await asyncio.to_thread(blocks)
        assert_grows([(done, total) for done, total, _ in heard])
        assert {thread for _, _, thread in heard} == {here[2]}


def assert_grows(told: list[tuple[int, int]]) -> None:
    """It was told before its end, and at its end, of all there is."""
    assert told == sorted(told)
    (first, total), last = told[0], told[-1]
    assert 0 < first < total
    assert last == (total, total)


async def test_who_waits_no_longer_is_told_that_the_chain_goes_on(cluster: LocalCluster) -> None:
    """And where to look for it."""
    async with DataPlane.connect(cluster.server.url, node="train-1") as dp:
        nobody = SelfplayComplete(config_key="hex8_2p", source_node="gpu-9", games_count=5)
        handle = await dp.handle(await dp.publish(nobody))
        with pytest.raises(TimeoutError, match=f"no end within 0.1 s.*chain {handle.chain}"):
            await handle.wait(0.1)


async def test_request_for_data_that_nobody_has_fails_with_the_reason(
    cluster: LocalCluster,
) -> None:
    """No games of that board: the result says so, and names no success."""
    async with client(cluster) as dp:
        handle = await dp.request_sync(DataType.NPZ, "square19_4p", ["train-1"])
        result = await handle.wait(60)
    assert not result.success
    assert result.reason == "nobody holds square19_4p npz"


async def test_request_for_a_node_that_nobody_knows_names_it(cluster: LocalCluster) -> None:
    """A target that never registered is refused by name."""
    cluster.play("gpu-7", 6)
    async with client(cluster, "gpu-7") as dp:
        await (await dp.handle(await dp.publish(played()))).wait(60)
        result = await (await dp.request_sync(DataType.GAMES, "hex8_2p", ["nowhere"])).wait(60)
    assert not result.success
    assert "nowhere never registered" in result.reason


async def test_data_needed_that_nobody_has_asks_for_selfplay(cluster: LocalCluster) -> None:
    """DATA_NEEDED without a holder: SELFPLAY_NEEDED, and the chain ends as failed."""
    async with client(cluster) as dp:
        needed = dataplane.DataNeeded(
            node="train-1", config_key="hexagonal_3p", data_type=DataType.GAMES, min_samples=100
        )
        said = await dp.publish(needed)
        result = await (await dp.handle(said)).wait(60)
    assert not result.success
    [fact] = await cluster.facts(events.SelfplayNeeded)
    assert fact.event == events.SelfplayNeeded(
        config_key="hexagonal_3p", node="train-1", data_type=DataType.GAMES, min_samples=100
    )


async def test_durable_subscription_redelivers_what_was_not_acknowledged(
    cluster: LocalCluster,
) -> None:
    """An exporter dies before its ack; the next one gets the same announcement, then no more."""
    cluster.play("gpu-7", 6)
    async with client(cluster) as dp:
        await (await dp.handle(await dp.publish(played()))).wait(60)
        async with contextlib.aclosing(dp.subscribe(NewGamesAvailable, durable="exporter")) as sub:
            async for event in sub:
                assert (event.game_count, event.attempt) == (6, 1)
                await event.nak()
                break
    async with (
        client(cluster) as dp,
        contextlib.aclosing(
            dp.subscribe(NewGamesAvailable, config_key="hex8_2p", durable="exporter")
        ) as sub,
    ):
        async for event in sub:
            assert event.attempt > 1
            assert event.paths == ("games/gpu-7/hex8_2p.db",)
            await event.ack()
            break


async def test_subscription_without_durable_hears_what_comes(cluster: LocalCluster) -> None:
    """It begins now, and delivers each event as it is announced."""
    async with client(cluster) as dp:
        heard: asyncio.Queue[int] = asyncio.Queue()
        ready = asyncio.Event()

        async def listen() -> None:
            async with contextlib.aclosing(dp.subscribe(NewGamesAvailable, since="start")) as sub:
                ready.set()
                async for event in sub:
                    heard.put_nowait(event.game_count)

        listening = asyncio.create_task(listen())
        await ready.wait()
        cluster.play("gpu-7", 3)
        await dp.publish(played())
        assert await asyncio.wait_for(heard.get(), 60) == 3
        listening.cancel()


async def test_blocking_twin_works_inside_a_running_loop(cluster: LocalCluster) -> None:
    """The blocking client publishes, waits, subscribes and asks from a thread with a loop."""
    cluster.play("gpu-7", 6)
    config = DataPlaneConfig(
        node="gpu-7", nats_url=cluster.server.url, state_dir=cluster.base / "coord" / "state"
    )
    with blocking.DataPlane.connect(config=config, outbox=cluster.base / "outbox") as dp:
        result = dp.handle(dp.publish(played())).wait(timeout=60)
        assert result.success
        event = next(iter(dp.subscribe(NewGamesAvailable, durable="plain")))
        assert event.game_count == 6
        event.ack()
        assert dp.health_check().status in ("healthy", "degraded")
        assert dp.catalog.get_missing_on_node("train-1", DataType.GAMES) == []


async def test_published_event_waits_in_the_outbox_until_the_bus_is_back(
    cluster: LocalCluster,
) -> None:
    """The bus is down: the event is queued on disk, the agent sends it later, the chain ends."""
    cluster.play("gpu-7", 6)
    cluster.server.kill()
    config = DataPlaneConfig(
        node="gpu-7",
        nats_url=cluster.server.url,
        state_dir=cluster.base / "gpu-7" / "state",
    )
    async with DataPlane.connect(config=config) as dp:
        said = await dp.publish(played())
        assert said.queued
    await cluster.server.start_async()
    await cluster.assert_exactly_once(said.chain)


async def test_same_id_published_twice_is_one_chain(cluster: LocalCluster) -> None:
    """A program that runs again and says the same under the same id opens no second chain."""
    cluster.play("gpu-7", 6)
    async with client(cluster) as dp:
        first = await dp.publish(played(), id="round-17")
        again = await dp.publish(played(), id="round-17")
    assert (first.chain, first.sequence) == (again.chain, again.sequence)
    await cluster.assert_exactly_once("round-17")


async def test_offline_node_is_taken_out_of_planning_and_comes_back(
    cluster: LocalCluster,
) -> None:
    """K11: HOST_OFFLINE keeps a trainer from receiving; registering again brings it back."""
    cluster.play("gpu-7", 6)
    async with client(cluster) as dp:
        await dp.publish(HostOffline(node="train-1", reason="maintenance"))
        result = await (await dp.handle(await dp.publish(played()))).wait(60)
        assert not result.success
        assert "maintenance" in result.reason
        await dp.publish(dataplane.NodeRecovered(node="train-1"))
        result = await (await dp.handle(await dp.publish(played()))).wait(60)
        assert result.success


async def test_get_data_plane_reads_the_configuration(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process's client, module-level request_sync, and the catalog work by environment."""
    cluster.play("gpu-7", 6)
    monkeypatch.setenv("DATAPLANE_NATS_URL", cluster.server.url)
    monkeypatch.setenv("DATAPLANE_NODE", "gpu-7")
    monkeypatch.setenv("DATAPLANE_STATE_DIR", str(cluster.base / "coord" / "state"))
    monkeypatch.setattr("dataplane.api._current", None)
    plane = dataplane.get_data_plane()
    assert plane is dataplane.get_data_plane()
    said = await plane.publish(played())
    await (await plane.handle(said)).wait(60)
    assert plane.catalog.get_replication_factor("games/gpu-7/hex8_2p.db") == 2
    handle = await dataplane.request_sync(DataType.GAMES, "hex8_2p", ["train-1"])
    assert (await handle.wait(60)).bytes_transferred == 0
    await plane.close()


async def test_request_without_a_bus_is_refused_in_seconds(tmp_path: Path) -> None:
    """No server: a request raises, with the address, instead of waiting for ever."""
    config = DataPlaneConfig(nats_url="nats://127.0.0.1:1", state_dir=tmp_path)
    async with DataPlane.connect(config=config) as dp:
        with pytest.raises(LogUnavailable, match=r"127\.0\.0\.1:1"):
            await dp.request_sync(DataType.GAMES, "hex8_2p", ["train-1"])


async def test_health_is_never_called_good_while_the_bus_tells_only_a_part(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answered for the log, and then fell silent: that is told, whatever the rest is like."""
    plane = client(cluster)

    async def silent() -> dict[str, ConsumerState]:
        raise LogUnavailable("no answer within 10 s")

    monkeypatch.setattr(await plane.log(), "consumers", silent)
    verdict = await plane.health_check()
    assert not verdict.healthy and "unknown" in verdict.details["reasons"]
    assert "told only a part of how it is: no answer within 10 s" in verdict.message
    await plane.close()


async def test_who_has_no_views_is_told_by_a_coordinator_how_all_is(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    """And that nobody tells is not healthy, nor an error."""
    config = DataPlaneConfig(node="laptop", nats_url=cluster.server.url, state_dir=tmp_path / "no")
    async with DataPlane.connect(config=config) as plane:
        await until(lambda: _is_well(plane), "the cluster to be well")
        for name in list(cluster.processes):
            cluster.kill(name)
        verdict = await plane.health_check()
    assert (verdict.healthy, verdict.status) == (False, "unhealthy")
    assert "no views at" in verdict.message and "no coordinator answers" in verdict.message
    assert verdict.details["pending_syncs"] == 0


async def _is_well(plane: DataPlane) -> bool:
    return (await plane.health_check()).healthy


async def test_up_keeps_its_children_alive_and_takes_them_along(tmp_path: Path) -> None:
    """``dataplane up``: a killed coordinator is started again; SIGTERM ends the whole tree."""
    environment = {"DATAPLANE_NATS_PORT": "0", "DATAPLANE_NODE": "solo", "PATH": "/usr/bin:/bin"}
    up = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "dataplane", "up", cwd=tmp_path, env=environment, stderr=-1
    )
    url_file = tmp_path / ".dataplane" / "nats_url"
    await until(url_file.exists, "the bus to run")
    config = DataPlaneConfig(nats_url=url_file.read_text(), state_dir=tmp_path / ".dataplane")
    async with DataPlane.connect(config=config) as dp:

        async def healthy() -> bool:
            with contextlib.suppress(dataplane.StoreMissing):
                return (await dp.health_check()).healthy
            return False

        await until(healthy, "health")
        first = _children(up.pid, "coordinator")
        assert len(first) == 1
        os.kill(first[0], signal.SIGKILL)
        await until(
            lambda: set(_children(up.pid, "coordinator")) - set(first), "another coordinator"
        )
        everything = _children(up.pid, "")
        up.terminate()
        assert await up.wait() == 0
    await until(lambda: not [p for p in everything if Path(f"/proc/{p}").exists()], "all to end")


def _children(parent: int, word: str) -> list[int]:
    """Direct children whose command line holds `word`."""
    found = []
    for task in Path(f"/proc/{parent}/task").glob("*/children"):
        for pid in task.read_text().split():
            with contextlib.suppress(OSError):
                if word in Path(f"/proc/{pid}/cmdline").read_text():
                    found.append(int(pid))
    return found


async def test_up_says_that_its_port_is_taken(tmp_path: Path, own_server: EmbeddedServer) -> None:
    """A second bus on the same port: what to do about it and status 3, no hanging.

    Before that it says where it would listen and what it would write.
    """
    own_server.start()
    environment = {"DATAPLANE_NATS_PORT": str(own_server.port), "PATH": "/usr/bin:/bin"}
    up = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "dataplane", "up", cwd=tmp_path, env=environment, stderr=-1
    )
    _, said = await asyncio.wait_for(up.communicate(), 60)
    assert up.returncode == 3
    port = own_server.port
    assert f"bus: one of its own on 127.0.0.1:{port}".encode() in said
    assert f"outbox in {tmp_path}/.dataplane".encode() in said
    assert f"use it: --nats nats://127.0.0.1:{port}".encode() in said


async def test_second_up_in_one_directory_is_refused(tmp_path: Path) -> None:
    """Two process trees on one state directory would fold over each other: the second says so."""
    environment = {"DATAPLANE_NATS_PORT": "0", "DATAPLANE_NODE": "solo", "PATH": "/usr/bin:/bin"}

    async def up() -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "dataplane", "up", cwd=tmp_path, env=environment, stderr=-1
        )

    first = await up()
    await until((tmp_path / ".dataplane" / "nats_url").exists, "the bus to run")
    second = await up()
    _, said = await asyncio.wait_for(second.communicate(), 60)
    assert second.returncode == 3
    assert f"in use by process {first.pid}".encode() in said
    first.terminate()
    assert await first.wait() == 0
