"""Each row of the routing table on real processes: what a trigger moves, and what is said of it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from dataplane import DataPlane
from dataplane.demo import gamedb
from dataplane.evidence import facts_about
from dataplane.explain import Asked, explain
from dataplane.policy import Policy
from projections.cluster import ClusterView
from projections.fold import TABLES
from projections.store import StoreReader
from streams import events
from streams.events import Event
from streams.values import DataType, Role, SyncPriority, Trait, Transport
from tests.integration.cluster import LocalCluster, digest, until

MODEL = b"weights " * 20_000
GAMES = "games/gpu-7/hex8_2p.db"


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[LocalCluster]:
    """A coordinator, two GPU players, a trainer and a vault."""
    async with LocalCluster(tmp_path) as cluster:
        cluster.coordinator()
        for name in ("gpu-7", "gpu-8"):
            cluster.agent(name, Role.SELFPLAY, DATAPLANE_TRAITS=Trait.GPU)
        cluster.agent("train-1", Role.TRAINING)
        cluster.agent("vault", Role.STORAGE)
        await cluster.joined("coord", "gpu-7", "gpu-8", "train-1", "vault")
        yield cluster


async def say(cluster: LocalCluster, event: Event) -> tuple[str, events.DataSyncCompleted]:
    """Publish a trigger and wait for its chain to complete; the chain and its end."""
    node = events.speaker_of(event) or "somebody"
    async with DataPlane.connect(cluster.server.url, node=node, outbox=cluster.base / "out") as dp:
        chain = (await dp.publish(event)).chain
    end = (await cluster.ended(chain)).event
    assert isinstance(end, events.DataSyncCompleted), end
    return chain, end


async def said(cluster: LocalCluster, chain: str, kind: type[Event]) -> list[Event]:
    """What was said of a kind for a chain."""
    return [f.event for f in await cluster.facts(kind) if f.chain == chain and f.event]


def put(cluster: LocalCluster, node: str, path: str, content: bytes) -> Path:
    """A file in a node's data directory."""
    file = cluster.base / node / "data" / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


def same(cluster: LocalCluster, path: str, *places: tuple[str, str]) -> None:
    """The file of a node is byte for byte on others."""
    for node, there in places:
        copy = cluster.base / node / "data" / there
        assert digest(copy) == digest(cluster.base / path), copy


async def test_each_row_of_the_routing_table(cluster: LocalCluster) -> None:
    """One cluster, one trigger after the other, each with its files and its facts."""
    await models_leave_the_trainer_and_reach_every_gpu_node(cluster)
    await games_reach_storage_and_training(cluster)
    await node_that_vanishes_is_drained_first(cluster)


async def games_reach_storage_and_training(cluster: LocalCluster) -> None:
    """ORPHAN_GAMES_DETECTED, TRAINING_STARTED, DATA_NEEDED; and `why` tells how they came."""
    cluster.play("gpu-7", 12)
    orphans = events.OrphanGamesDetected(node="gpu-7", config_key="hex8_2p", orphan_count=12)
    chain, end = await say(cluster, orphans)
    assert [outcome.target for outcome in end.targets] == ["vault"]
    arrived(cluster, end, 12)
    [planned] = await said(cluster, chain, events.SyncPlanned)
    assert isinstance(planned, events.SyncPlanned)
    assert planned.plans[0].priority is SyncPriority.CRITICAL

    deadline = time.time() + 120
    started = events.TrainingStarted(config_key="hex8_2p", node="train-1", deadline=deadline)
    chain, end = await say(cluster, started)
    assert [outcome.target for outcome in end.targets] == ["train-1"]
    arrived(cluster, end, 12)
    orders = [f.event for f in await cluster.facts(events.TransferAssigned) if f.chain == chain]
    assert [getattr(order, "deadline", None) for order in orders] == [deadline]
    [planned] = await said(cluster, chain, events.SyncPlanned)
    assert isinstance(planned, events.SyncPlanned)
    assert planned.plans[0].transport_preference[0] is Transport.RSYNC

    needed = events.DataNeeded(
        node="gpu-8", config_key="hex8_2p", data_type=DataType.GAMES, min_samples=1_000
    )
    chain, end = await say(cluster, needed)
    assert [outcome.target for outcome in end.targets] == ["gpu-8"]
    arrived(cluster, end, 12)
    [lacking] = await said(cluster, chain, events.SelfplayNeeded)
    assert lacking == events.SelfplayNeeded(
        node="gpu-8", config_key="hex8_2p", data_type=DataType.GAMES, min_samples=1_000
    )

    history = await facts_about(cluster.log, GAMES, "hex8_2p")
    with StoreReader(cluster.base / "coord" / "state" / "views", TABLES).read() as reader:
        view = ClusterView(reader)
        why = explain(Asked(GAMES, "train-1", view, history, Policy(), time.time()))
        why_not = explain(Asked(GAMES, "nobody", view, history, Policy(), time.time()))
    text = "\n".join(sentence.text for sentence in why.sentences)
    assert why.there and "gpu-7 reported it" in text and "TRAINING_STARTED of train-1" in text
    assert "proven by digest" in text
    assert not why_not.there and "no node nobody ever joined" in why_not.answer


def arrived(
    cluster: LocalCluster, end: events.DataSyncCompleted, games: int, path: str = GAMES
) -> None:
    """The copies of a database are what the end says, and all its games are in them."""
    for outcome in end.targets:
        if outcome.path == path:
            copy = cluster.base / outcome.target / "data" / path
            assert digest(copy) == outcome.checksum
            assert gamedb.count_games(copy) == games


async def models_leave_the_trainer_and_reach_every_gpu_node(cluster: LocalCluster) -> None:
    """TRAINING_COMPLETED, MODEL_PROMOTED with MODEL_DISTRIBUTION_COMPLETE."""
    put(cluster, "train-1", "models/candidate_hex8_2p.onnx", MODEL)
    put(cluster, "train-1", "checkpoints/hex8_2p_last.onnx", MODEL + b"optimizer")
    completed = events.TrainingCompleted(
        config_key="hex8_2p",
        node="train-1",
        model_path="models/candidate_hex8_2p.onnx",
        checkpoint_path="checkpoints/hex8_2p_last.onnx",
    )
    _, end = await say(cluster, completed)
    assert {(outcome.target, outcome.path) for outcome in end.targets} == {
        ("vault", "models/train-1/candidate_hex8_2p.onnx"),
        ("vault", "checkpoints/train-1/hex8_2p_last.onnx"),
    }
    candidate = "train-1/data/models/candidate_hex8_2p.onnx"
    same(cluster, candidate, ("vault", "models/train-1/candidate_hex8_2p.onnx"))

    path = "models/canonical_hex8_2p.onnx"
    put(cluster, "train-1", path, MODEL + b"promoted")
    promoted = events.ModelPromoted(config_key="hex8_2p", node="train-1", model_path=path)
    chain, _ = await say(cluster, promoted)
    same(cluster, f"train-1/data/{path}", ("gpu-7", path), ("gpu-8", path))
    [complete] = await said(cluster, chain, events.ModelDistributionComplete)
    assert isinstance(complete, events.ModelDistributionComplete)
    assert complete.targets == ("gpu-7", "gpu-8")
    assert complete.checksum == digest(cluster.base / "gpu-7" / "data" / path)


async def node_that_vanishes_is_drained_first(cluster: LocalCluster) -> None:
    """NODE_TERMINATING: what too few others have leaves, and NODE_DRAINED says that it has."""
    cluster.play("gpu-7", 15, "square8_2p")
    chain, end = await say(cluster, events.NodeTerminating(node="gpu-7", reason="spot"))
    games = "games/gpu-7/square8_2p.db"
    there = {(outcome.target, outcome.path) for outcome in end.targets}
    assert {("vault", games), ("train-1", games)} <= there
    arrived(cluster, end, 15, games)
    # Said once all of it was read again where it went.
    await until(partial(said, cluster, chain, events.NodeDrained), "the node to be drained")
    [drained] = await said(cluster, chain, events.NodeDrained)
    assert isinstance(drained, events.NodeDrained)
    assert (drained.node, drained.entries) == ("gpu-7", len({path for _, path in there}))
    [planned] = await said(cluster, chain, events.SyncPlanned)
    assert isinstance(planned, events.SyncPlanned)
    [short] = [one for one in planned.refusals if games in one.reason]
    assert (short.rule, short.blocking) == ("fewer-than-minimum", False)
    assert "2 of 3 lasting copies" in short.reason
