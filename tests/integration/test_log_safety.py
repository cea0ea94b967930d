"""What can happen to the log itself: its end is lost, its disk full, its store rots, clocks jump.

Each is seen and said, nothing is passed over in silence, and there is a way back.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from adapters.blobs import DirectoryBlobs
from dataplane.audit.archive import bring_back, extend
from dataplane.clocks import ClockWatch
from dataplane.config import DataPlaneConfig
from dataplane.coordinator import coordinator as coordinator_module
from dataplane.coordinator.coordinator import Coordinator
from projections.cluster import ClusterView
from projections.fold import view_digests
from projections.projector import Projector
from streams import events
from streams.codec import fact_id, node_fact
from streams.events import SelfplayComplete
from streams.jetstream import JetStreamLog
from streams.log import LogError, LogFull, NoLongerHeld
from streams.server import EmbeddedServer
from streams.subjects import type_filter
from streams.topology import NODES_BUCKET, log_stream
from streams.wire import api
from tests.conftest import eventually


@asynccontextmanager
async def connected(server: EmbeddedServer) -> AsyncIterator[JetStreamLog]:
    """A client of the log."""
    log = await JetStreamLog.connect(server.url, name="boss")
    await log.ensure_topology()
    yield log
    await log.close()


async def say(log: JetStreamLog, *numbers: int) -> None:
    """Triggers, told apart by a number."""
    for number in numbers:
        event = SelfplayComplete(config_key="hex8_2p", source_node="gpu-1", games_count=number)
        await log.publish(node_fact(event, "gpu-1", fact_id("said", number)))


async def test_log_that_was_rolled_back_is_said_and_the_views_are_folded_anew(
    own_server: EmbeddedServer, tmp_path: Path
) -> None:
    """As a fact, once, and as a problem of health; and the views know what the log knows now."""
    config = DataPlaneConfig.from_values(
        {"node": "boss", "state_dir": tmp_path / "state", "web_enabled": False}
    )
    backup = tmp_path / "backup"
    own_server.start()
    async with connected(own_server) as log:
        await say(log, 1, 2, 3)
    own_server.stop()
    shutil.copytree(own_server.store_dir, backup)
    own_server.start()
    async with connected(own_server) as log:
        await say(log, 4, 5, 6)
        before = Coordinator(log, log.bus, config)
        await before.start()
        assert before.projector.checkpoint.sequence == 6
        assert (await before.health()).status == "healthy"
        await before.stop()
    own_server.stop()
    shutil.rmtree(own_server.store_dir)
    shutil.copytree(backup, own_server.store_dir)
    own_server.start()
    async with connected(own_server) as log:
        await say(log, 7)
        after = Coordinator(log, log.bus, config)
        await after.start()
        with after.projector.store.read() as reader:
            assert len(list(ClusterView(reader).open_chains())) == 4
        assert any("rolled back" in problem for problem in (await after.health()).problems)
        await after.stop()
        said = await log.last(type_filter(events.LogRolledBack))
        assert said is not None and isinstance(said.event, events.LogRolledBack)
        assert (said.event.node, said.event.views_at, said.event.log_at) == ("boss", 6, 4)
        end = (await log.state()).last_sequence
        again = Coordinator(log, log.bus, config)
        await again.start()
        await again.stop()
        assert (await log.state()).last_sequence == end


# Full


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 200 MB: less than that the bus reserves for what it keeps besides the log."""
    assert os.geteuid() == 0, "mounting a small disk needs root"
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200m", "none", path], check=True)
    yield path
    subprocess.run(["umount", "-l", path], check=True)


def large(number: int) -> Any:
    """A trigger of some 100 kB."""
    event = SelfplayComplete(
        config_key="hex8_2p", source_node="gpu-1", games_count=number, engine="e" * 100_000
    )
    return node_fact(event, "gpu-1", fact_id("large", number))


async def test_full_disk_of_the_log_loses_and_doubles_nothing(small_disk: Path) -> None:
    """Appends fail, and what was acknowledged is there once there is room and it was restarted."""
    ballast = small_disk / "ballast"
    server = EmbeddedServer(small_disk / "nats", log_file=small_disk.parent / "nats.log")
    server.start()
    said = []
    try:
        log = await JetStreamLog.connect(server.url, name="boss", deadline_s=3.0)
        await log.ensure_topology()
        free = shutil.disk_usage(small_disk).free
        ballast.write_bytes(bytes(free - 5_000_000))
        with pytest.raises(LogError):
            for number in itertools.count():
                await log.publish(large(number))
                said.append(large(number).id)
        await log.close()
        assert len(said) > 10
        ballast.unlink()
        server.stop()
        server.start()
        async with connected(server) as log:
            again = large(len(said))
            await log.publish(again)
            end = (await log.state()).last_sequence
            there = [fact.id async for batch in log.read(until=end) for fact in batch]
        assert there == [*said, again.id]
    finally:
        server.stop()


async def test_a_bus_that_stores_no_heartbeat_is_found_out_by_its_own_clock(
    own_server: EmbeddedServer,
) -> None:
    """On a full disk the last ones stay for ever, and would be taken for news."""
    own_server.start()
    async with connected(own_server) as log:
        assert (await log.standing()).quiet_s == 0.0
        await log.bus.kv_put(NODES_BUCKET, "agent.gpu-1", b"{}")

        async def quiet() -> bool:
            return (await log.standing()).quiet_s > 0.5

        await eventually(quiet)
        await log.bus.kv_put(NODES_BUCKET, "agent.gpu-1", b"{}")
        assert (await log.standing()).quiet_s < 0.5


async def test_log_that_is_full_by_its_limit_goes_on_once_that_is_raised(
    own_server: EmbeddedServer,
) -> None:
    """While the server runs, by an update of the stream."""
    own_server.start()
    log = await JetStreamLog.connect(own_server.url, name="boss", deadline_s=5.0)
    await log.ensure_topology(max_bytes=300_000)
    with pytest.raises(LogFull):
        for number in itertools.count():
            await log.publish(large(number))
    await api(log.connection, "STREAM.UPDATE.DATAPLANE", log_stream(max_bytes=3_000_000))
    end = (await log.publish(large(number))).sequence
    assert end == number + 1
    await log.close()


# Rotten


def rot(server: EmbeddedServer) -> None:
    """Some bytes in the middle of the log's only block are not what was written."""
    (block,) = server.store_dir.rglob("DATAPLANE/msgs/*.blk")
    data = bytearray(block.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 8] = bytes(byte ^ 0x55 for byte in data[middle : middle + 8])
    block.write_bytes(data)


async def digests_of(log: JetStreamLog, root: Path) -> dict[str, str]:
    """Of the views, folded anew."""
    projector = Projector(log, root)
    try:
        await projector.start()
        with projector.store.read() as reader:
            return view_digests(reader)
    finally:
        await projector.close()


async def test_log_that_rots_is_not_folded_over_and_comes_back_from_its_archive(
    own_server: EmbeddedServer, tmp_path: Path
) -> None:
    """Who folds it ends with the place of the gap; restored, it has the same views as before."""
    blobs = DirectoryBlobs(tmp_path / "archive")
    own_server.start()
    async with connected(own_server) as log:
        await say(log, *range(200))
        await extend(blobs, log)
        before = await digests_of(log, tmp_path / "before")
    own_server.stop()
    rot(own_server)
    own_server.start()
    async with connected(own_server) as log:
        with pytest.raises(NoLongerHeld, match="what lies between is there no more"):
            await digests_of(log, tmp_path / "rotten")
    own_server.stop()
    shutil.rmtree(own_server.store_dir)
    own_server.store_dir.mkdir()
    own_server.start()
    log = await JetStreamLog.connect(own_server.url, name="boss")
    await bring_back(blobs, log)
    assert await digests_of(log, tmp_path / "after") == before
    await log.close()


async def test_log_that_rots_and_whose_server_is_killed_has_lost_its_end_and_that_is_said(
    own_server: EmbeddedServer, tmp_path: Path
) -> None:
    """The server cuts it off where it can't be read; whoever has seen more says so."""
    config = DataPlaneConfig.from_values(
        {"node": "boss", "state_dir": tmp_path / "state", "web_enabled": False}
    )
    own_server.start()
    async with connected(own_server) as log:
        await say(log, *range(200))
        before = Coordinator(log, log.bus, config)
        await before.start()
        await before.stop()
        own_server.kill()
    rot(own_server)
    own_server.start()
    async with connected(own_server) as log:
        end = (await log.state()).last_sequence
        assert 0 < end < 200
        after = Coordinator(log, log.bus, config)
        await after.start()
        assert any("rolled back" in problem for problem in (await after.health()).problems)
        await after.stop()
        said = await log.last(type_filter(events.LogRolledBack))
        assert said is not None and isinstance(said.event, events.LogRolledBack)
        assert (said.event.views_at, said.event.log_at) == (200, end)


# Clocks


class JumpingTime:
    """The time as a module has it; the wall clock can be put forward and back."""

    ahead_s = 0.0
    monotonic = staticmethod(time.monotonic)

    def time(self) -> float:
        """Seconds since 1970, as this machine has them now."""
        return time.time() + self.ahead_s


class SeenClockWatch(ClockWatch):
    """Counts how often it looked."""

    looks = 0

    def look(self, wall: float, steady: float) -> str:
        SeenClockWatch.looks += 1
        return super().look(wall, steady)


@pytest.mark.parametrize(("jump_s", "way"), [(3600.0, "ahead"), (-3600.0, "back")])
async def test_clock_that_jumps_is_said_and_ends_nothing(
    own_server: EmbeddedServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    jump_s: float,
    way: str,
) -> None:
    """As a problem of health; what is decided goes by the times in the log."""
    clock = JumpingTime()
    monkeypatch.setattr(coordinator_module, "time", clock)
    monkeypatch.setattr(SeenClockWatch, "looks", 0)
    monkeypatch.setattr(coordinator_module, "ClockWatch", SeenClockWatch)
    monkeypatch.setattr(coordinator_module, "WATCH_S", 0.05)
    config = DataPlaneConfig.from_values(
        {"node": "boss", "state_dir": tmp_path / "state", "web_enabled": False}
    )
    own_server.start()
    async with connected(own_server) as log:
        coordinator = Coordinator(log, log.bus, config)
        await coordinator.start()
        running = asyncio.create_task(coordinator.run())
        await eventually(lambda: coordinator.lease.held)
        await eventually(lambda: SeenClockWatch.looks > 0)
        clock.ahead_s = jump_s

        async def named() -> bool:
            said = f"clock jumped 3600 s {way}"
            return any(said in problem for problem in (await coordinator.health()).problems)

        await eventually(named)
        await say(log, 1)
        await eventually(lambda: coordinator.leading.bridge.handled > 0)
        assert not running.done()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await coordinator.stop()
