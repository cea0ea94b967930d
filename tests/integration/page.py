"""The page of a told story: the real server over a real bus, without processes around it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from dataplane.audit.exporting import export_log, import_log
from dataplane.config import DataPlaneConfig
from dataplane.coordinator.monitor import Monitor
from dataplane.coordinator.queries import Queries
from dataplane.web import WebServer
from projections.projector import Projector
from streams.values import Transport
from tests.conftest import empty_log, wipe
from tests.kept import archive, stored
from tests.spec import (
    Story,
    after,
    answers,
    assigned,
    games_of,
    given,
    holds,
    model,
    opens,
    played,
    player,
    result,
    said_what_is_owed,
    trainer,
    tried,
)

MB = 1_000_000


def told() -> Story:
    """Two trainers and two players; ways that failed and others that worked; one chain is open."""
    p2p, http = Transport.P2P_GOSSIP, Transport.HTTP_FETCH
    unreachable = result(p2p, "Unreachable")
    return given(
        trainer("train-1", disk_total_bytes=100 * MB, disk_free_bytes=30 * MB),
        trainer("train-2", disk_total_bytes=100 * MB, disk_free_bytes=20 * MB),
        player("gpu-1", disk_total_bytes=100 * MB, disk_free_bytes=80 * MB),
        player("gpu-2"),
        holds("gpu-2", model()),
        opens("c1", played("gpu-1", 30)),
        after(0.8),
        answers("c1", "gpu-1", games_of("gpu-1", "first", games=30)),
        said_what_is_owed,
        after(0.4),
        assigned,
        after(2.0),
        tried("train-1", result(http)),
        tried("train-2", result(p2p)),
        said_what_is_owed,
        after(60.0),
        opens("c2", played("gpu-1", 60)),
        answers("c2", "gpu-1", games_of("gpu-1", "second", games=60)),
        said_what_is_owed,
        assigned,
        tried("train-1", unreachable, result(http)),
        tried("train-2", unreachable, result(http, "Stalled")),
        after(30.0),
        assigned,
        tried("train-2", result(p2p)),
        said_what_is_owed,
        after(20.0),
        opens("c3", played("gpu-2", 90, "square8_4p")),
        answers("c3", "gpu-2", games_of("gpu-2", "third", games=90, config_key="square8_4p")),
        said_what_is_owed,
        assigned,
        tried("train-1", result(http)),
        said_what_is_owed,
    )


@asynccontextmanager
async def showing(story: Story, bus_url: str, home: Path) -> AsyncIterator[str]:
    """The address of its page."""
    kept, _ = archive(stored(story.facts))
    file = home / "story.jsonl"
    await export_log(kept, file)
    config = DataPlaneConfig.load(
        state_dir=home / "state", node="coord", nats_url=bus_url, web_port=0
    )
    async with empty_log(bus_url) as log:
        await wipe(log)
        await import_log(file, log)
        projector = Projector(log, config.views_dir)
        await projector.start(until=len(story.facts))
        queries = Queries(log, log.bus, projector, config)
        monitor = Monitor(log, log.bus, projector, queries, config)
        server = WebServer(monitor, config)
        watching = asyncio.create_task(monitor.run())
        try:
            await server.start()
            yield server.url
        finally:
            await server.stop()
            watching.cancel()
            await asyncio.wait([watching])
            await projector.close()
