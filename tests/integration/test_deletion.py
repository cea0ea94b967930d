"""Deleting a copy on real processes: proven by those who keep theirs, and killed in the middle."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dataplane import DataPlane, SelfplayComplete
from streams import events
from streams.values import Role
from tests.integration.cluster import LocalCluster, until


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[LocalCluster]:
    """A bus, nothing else yet."""
    async with LocalCluster(tmp_path) as cluster:
        yield cluster


async def copied_to_trainers(cluster: LocalCluster, **environment: str) -> Path:
    """A coordinator, and a player whose idle games are on two trainers; the player's file."""
    cluster.coordinator()
    cluster.agent("gpu-7", Role.SELFPLAY, **environment)
    for name in ("train-1", "train-2"):
        cluster.agent(name, Role.TRAINING)
    await cluster.joined("coord", "gpu-7", "train-1", "train-2")
    file = cluster.play("gpu-7", 12)
    for path in file.parent.glob(file.name + "*"):
        os.utime(path, (time.time() - 3600, time.time() - 3600))
    async with DataPlane.connect(cluster.server.url, node="gpu-7") as plane:
        event = SelfplayComplete(config_key="hex8_2p", source_node="gpu-7", games_count=12)
        await cluster.assert_exactly_once((await plane.publish(event)).chain)
    return file


async def delete(cluster: LocalCluster, path: str, node: str) -> tuple[int, str]:
    """``dataplane delete``: its exit status, and what it said."""
    command = [sys.executable, "-m", "dataplane", "--nats", cluster.server.url]
    command += ["--state-dir", str(cluster.base / "op"), "delete", path, node]
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, cwd=cluster.base, timeout=150
    )
    return done.returncode, done.stdout + done.stderr


async def test_a_proven_copy_goes_and_an_unproven_one_stays(cluster: LocalCluster) -> None:
    """P8: the source goes when two trainers have read theirs anew; the next would be one too many.

    And a copy that has rotted on the disk, looking as before, keeps the others from being deleted.
    """
    file = await copied_to_trainers(cluster)
    path = "games/gpu-7/hex8_2p.db"
    copy = cluster.received("train-1", "gpu-7")
    seen, whole = copy.stat(), copy.read_bytes()
    copy.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    os.utime(copy, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    status, said = await delete(cluster, path, "gpu-7")
    assert (status, "kept" in said) == (1, True), said
    assert file.exists()
    before = len(await cluster.facts(events.FilesObserved))
    copy.write_bytes(whole)

    async def told() -> bool:
        said = [fact.event for fact in await cluster.facts(events.FilesObserved)][before:]
        return any(event.node == "train-1" and event.entries for event in said)

    await until(told, "the mended copy to be found")
    status, said = await delete(cluster, path, "gpu-7")
    assert status == 0, said
    assert not list(file.parent.iterdir())
    [granted] = [fact.event for fact in await cluster.facts(events.DeletionGranted)]
    assert isinstance(granted, events.DeletionGranted)
    assert {proof.node for proof in granted.proofs} == {"train-1", "train-2"}
    status, said = await delete(cluster, path, "train-1")
    assert (status, "too-few-copies" in said) == (1, True), said
    assert copy.exists()


async def test_killed_between_deleting_and_saying_so_it_is_said(cluster: LocalCluster) -> None:
    """The agent dies with the file gone and nothing said; who comes back says it."""
    file = await copied_to_trainers(cluster, DATAPLANE_KILL_AT="agent.deleted")
    asked = asyncio.create_task(delete(cluster, "games/gpu-7/hex8_2p.db", "gpu-7"))
    await cluster.died("gpu-7")
    assert not file.exists()
    cluster.agent("gpu-7", Role.SELFPLAY)
    status, said = await asked
    assert status == 0, said

    async def told() -> bool:
        removed = [fact.event for fact in await cluster.facts(events.FilesRemoved)]
        return any("games/gpu-7/hex8_2p.db" in event.paths for event in removed)

    await until(told, "the file to be said gone")
