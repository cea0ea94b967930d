"""A log that lost its end, as after a restored backup: seen, said, and the views folded anew."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from dataplane.config import DataPlaneConfig
from dataplane.coordinator.coordinator import Coordinator
from projections.cluster import ClusterView
from streams import events
from streams.codec import fact_id, node_fact
from streams.events import SelfplayComplete
from streams.jetstream import JetStreamLog
from streams.server import EmbeddedServer
from streams.subjects import type_filter


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
