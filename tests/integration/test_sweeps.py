"""Sweeps on real processes: a copy that is lost is made anew, and orphans find their way."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dataplane import DataPlane, SelfplayComplete
from streams import events
from streams.values import Role, SweepKind
from tests.integration.cluster import LocalCluster, digest, until

HASTY = """
[policy.replication]
minimum = 2
warn_after_s = 1.0
cooldown_s = 0.0
[policy.schedule]
replication_s = 1.0
orphans_s = 1.0
"""


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[LocalCluster]:
    """A bus, and a coordinator that sweeps every second."""
    async with LocalCluster(tmp_path, manifest_refresh_interval=2) as cluster:
        (tmp_path / "coord").mkdir()
        (tmp_path / "coord" / "dataplane.toml").write_text(HASTY)
        cluster.coordinator()
        cluster.agent("gpu-7", Role.SELFPLAY)
        yield cluster


async def test_a_lost_copy_is_made_anew_by_a_chain_with_one_end(cluster: LocalCluster) -> None:
    """K8: the trainer's copy is deleted behind everybody's back; a store gets one instead."""
    cluster.agent("train-1", Role.TRAINING)
    await cluster.joined("coord", "gpu-7", "train-1")
    cluster.play("gpu-7", 12)
    async with DataPlane.connect(cluster.server.url, node="gpu-7") as plane:
        event = SelfplayComplete(config_key="hex8_2p", source_node="gpu-7", games_count=12)
        await cluster.assert_exactly_once((await plane.publish(event)).chain)
    cluster.agent("store-1", Role.STORAGE)
    await cluster.joined("store-1")
    copy = cluster.received("train-1", "gpu-7")
    checksum = digest(copy)
    cluster.stop("train-1")
    copy.unlink()
    cluster.agent("train-1", Role.TRAINING)
    again = [cluster.received(name, "gpu-7") for name in ("store-1", "train-1")]
    await until(lambda: any(file.exists() for file in again), "another copy")
    assert checksum in [digest(file) for file in again if file.exists()]

    async def ended() -> bool:
        dues = await cluster.facts(events.SweepDue)
        ends = await cluster.facts(events.DataSyncCompleted)
        return {due.chain for due in dues} <= {end.chain for end in ends}

    await until(ended, "every sweep to end")
    dues = await cluster.facts(events.SweepDue)
    assert all(isinstance(d.event, events.SweepDue) for d in dues)
    kinds = {d.event.kind for d in dues if isinstance(d.event, events.SweepDue)}
    assert kinds == {SweepKind.REPLICATION}
    ends = await cluster.facts(events.DataSyncCompleted, events.DataSyncFailed)
    swept = [end.chain for end in ends if end.chain.startswith("sweep-")]
    assert len(swept) == len(set(swept)), "each has one end"


async def test_p17_games_that_nobody_spoke_of_come_to_safety(cluster: LocalCluster) -> None:
    """Orphans: played, never announced, found by the sweep and brought to storage."""
    cluster.agent("store-1", Role.STORAGE)
    await cluster.joined("coord", "gpu-7", "store-1")
    cluster.play("gpu-7", 12)
    await until(lambda: cluster.received("store-1", "gpu-7").exists(), "the orphans' copy")

    async def said() -> bool:
        return bool(await cluster.facts(events.OrphanGamesDetected))

    await until(said, "ORPHAN_GAMES_DETECTED")
