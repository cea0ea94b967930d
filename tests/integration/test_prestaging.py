"""Data ahead of a training run, on real processes: expected by its history, brought, and found."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

from dataplane import DataPlane, TrainingStarted
from projections.cluster import ClusterView
from projections.fold import TABLES
from projections.store import StoreReader
from projections.trainings import EXPECTED_CHAIN
from streams import events
from streams.values import DataType, Role
from tests.integration.cluster import LocalCluster, digest, until

#: From start to start.
EVERY_S = 3.0
POLICY = """
[policy.prestage]
min_confidence = 0.4
horizon_s = 60.0
cooldown_s = 0.0
[policy.schedule]
prestage_s = 0.3
"""


async def test_a_node_that_trains_in_a_rhythm_finds_its_data_in_place(tmp_path: Path) -> None:
    """A model appears between two starts; it is brought before the next one, which it hits."""
    async with LocalCluster(tmp_path, manifest_refresh_interval=0.5) as cluster:
        (tmp_path / "coord").mkdir()
        (tmp_path / "coord" / "dataplane.toml").write_text(POLICY)
        cluster.coordinator()
        cluster.agent("vault", Role.STORAGE)
        cluster.agent("train-1", Role.TRAINING)
        await cluster.joined("coord", "vault", "train-1")
        training = asyncio.create_task(_trains(cluster))
        playing = asyncio.create_task(_makes(cluster))
        try:
            await until(lambda: _hits(cluster) > 0, "a run to find what was brought ahead of it")
        finally:
            for task in (training, playing):
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        facts = await cluster.facts()
        expected = [f for f in facts if isinstance(f.event, events.TrainingExpected)]
        assert expected and all(f.chain.startswith(EXPECTED_CHAIN) for f in expected)
        [ahead, *_] = [
            f.event
            for f in facts
            if isinstance(f.event, events.TransferSucceeded)
            and f.chain.startswith(EXPECTED_CHAIN)
            and f.event.bytes_transferred
        ]
        copy = tmp_path / "train-1" / "data" / ahead.entry.path
        assert digest(copy) == ahead.entry.checksum
        why = await cluster.command("why", ahead.entry.path, "train-1")
        assert "TRAINING_EXPECTED of train-1" in " ".join(why.split())
        assert "train-1" in await cluster.command("trainings", "--json")


async def _trains(cluster: LocalCluster) -> None:
    """Starts, evenly: what is under test is that time has passed between them."""
    url, outbox = cluster.server.url, cluster.base / "out"
    number = 0
    async with DataPlane.connect(url, node="train-1", outbox=outbox) as plane:
        while True:
            event = TrainingStarted(
                config_key="hex8_2p",
                node="train-1",
                job_id=f"job-{number}",
                data_types=(DataType.MODELS,),
            )
            await plane.publish(event)
            number += 1
            await asyncio.sleep(EVERY_S)


async def _makes(cluster: LocalCluster) -> None:
    """Another model every now and then, so that there is something to lack before each start."""
    directory = cluster.base / "vault" / "data" / "models"
    directory.mkdir(parents=True)
    for number in range(1_000):
        (directory / f"teacher_hex8_2p_{number}.onnx").write_bytes(b"weights %d" % number * 10_000)
        await asyncio.sleep(EVERY_S / 2)


def _hits(cluster: LocalCluster) -> int:
    """Bytes that a start has found in place, by the coordinator's own views."""
    views = cluster.base / "coord" / "state" / "views"
    with StoreReader(views, TABLES).read() as reader:
        return ClusterView(reader).staging(0.0).hit_bytes
