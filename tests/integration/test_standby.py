"""Two coordinators, real processes: one leads, the other takes over; nothing is lost or doubled."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from dataplane.coordinator.lease import LEADER, Held
from dataplane.presence import present
from streams import events
from streams.codec import fact_id, node_fact
from streams.events import SelfplayComplete
from streams.topology import LEASE_BUCKET
from streams.values import Role
from tests.integration.cluster import LocalCluster, until

COORDINATORS = ("one", "two")


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[LocalCluster]:
    """Two coordinators, a player and a trainer."""
    async with LocalCluster(tmp_path) as cluster:
        for name in COORDINATORS:
            cluster.coordinator(name)
        cluster.agent("gpu-1", Role.SELFPLAY)
        cluster.agent("train-1", Role.TRAINING)
        await cluster.joined(*COORDINATORS, "gpu-1", "train-1")
        yield cluster


async def holder(cluster: LocalCluster) -> str:
    """Which node leads; "" if none does."""
    value = await cluster.log.bus.kv_get(LEASE_BUCKET, LEADER)
    held = msgspec.json.decode(value, type=Held) if value else Held("", 0)
    return held.holder.rpartition("-")[0]


async def leads(cluster: LocalCluster, name: str) -> None:
    """Wait until a coordinator leads."""

    async def so() -> bool:
        return await holder(cluster) == name

    await until(so, f"{name} to lead")


async def played(cluster: LocalCluster, round_: int) -> str:
    """Games are played and said; the chain."""
    cluster.play("gpu-1", 5)
    event = SelfplayComplete(config_key="hex8_2p", source_node="gpu-1", games_count=5)
    fact = node_fact(event, "gpu-1", fact_id("round", round_))
    await cluster.log.publish(fact)
    return fact.id


async def test_standby_takes_over_from_a_leader_that_is_killed_and_from_one_that_is_told_to_end(
    cluster: LocalCluster,
) -> None:
    """A chain that the dead leader had begun is completed by the other; so are later ones."""
    await until(lambda: holder(cluster), "a leader")
    first = await holder(cluster)
    second = next(name for name in COORDINATORS if name != first)
    chain = await played(cluster, 1)

    async def planned() -> bool:
        return bool(await cluster.facts(events.SyncPlanned))

    await until(planned, "a decision of the first leader")
    cluster.kill(first)
    await leads(cluster, second)
    await cluster.assert_exactly_once(chain)
    cluster.coordinator(first)
    await cluster.joined(first)
    assert await holder(cluster) == second
    assert cluster.stop(second) == 0
    # Not after a lease's time: the value says that nobody leads, or already who does.
    assert await holder(cluster) in ("", first)
    await leads(cluster, first)
    await cluster.assert_exactly_once(await played(cluster, 2))


async def test_paused_leader_that_wakes_up_changes_nothing(cluster: LocalCluster) -> None:
    """It was stopped with a chain open; the other completed it and a second one."""
    await until(lambda: holder(cluster), "a leader")
    first = await holder(cluster)
    second = next(name for name in COORDINATORS if name != first)
    chain = await played(cluster, 1)
    cluster.processes[first].send_signal(signal.SIGSTOP)
    await leads(cluster, second)
    await cluster.assert_exactly_once(chain)
    cluster.processes[first].send_signal(signal.SIGCONT)

    async def knows_it() -> bool:
        beats = await present(cluster.log.bus)
        return not beats[f"coordinator.{first}"]["leads"]

    await until(knows_it, "the old leader to know that it leads no more")
    assert await holder(cluster) == second
    await cluster.assert_exactly_once(chain)
    await cluster.assert_exactly_once(await played(cluster, 2))
    facts = await cluster.facts()
    assert len({fact.id for fact in facts}) == len(facts)
