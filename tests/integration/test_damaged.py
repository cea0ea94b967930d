"""One damaged file on a node is this file's problem, on real processes."""

from __future__ import annotations

from pathlib import Path

from dataplane import DataPlane, SelfplayComplete
from streams import events
from streams.values import Role
from tests.damaged import unreadable_archive
from tests.integration.cluster import LocalCluster


async def test_p18_an_agent_with_a_damaged_file_names_it_and_serves_the_others(
    tmp_path: Path,
) -> None:
    """The same process answers; the chain fails by the file's name, and its games arrive."""
    async with LocalCluster(tmp_path) as cluster:
        cluster.coordinator()
        agent = cluster.agent("gpu-7", Role.SELFPLAY)
        cluster.agent("train-1", Role.TRAINING)
        await cluster.joined("coord", "gpu-7", "train-1")
        cluster.play("gpu-7", 5)
        broken = tmp_path / "gpu-7/data/npz/hex8_2p.npz"
        broken.parent.mkdir()
        broken.write_bytes(unreadable_archive())
        async with DataPlane.connect(cluster.url, node="gpu-7", outbox=tmp_path / "out") as dp:
            event = SelfplayComplete(config_key="hex8_2p", source_node="gpu-7", games_count=5)
            chain = (await dp.publish(event)).chain
        end = (await cluster.ended(chain)).event
        assert isinstance(end, events.DataSyncFailed)
        assert "npz/hex8_2p.npz is no readable archive" in end.reason
        assert [outcome.path for outcome in end.arrived] == ["games/gpu-7/hex8_2p.db"]
        assert cluster.received("train-1", "gpu-7").exists()
        assert agent.poll() is None
