"""The routing table on real processes, row by row, with a real S3 server.

One cluster: a coordinator, two GPU players, a trainer, a vault, a bucket. Each row says what is put
where, which trigger is said, and what must be where afterwards; that is read from the log, from the
disks and from the bucket's manifests, and from nothing else. Then what nobody triggers: the sweeps,
each under a coordinator of its own settings.
"""

from __future__ import annotations

import asyncio
import io
import os
import time
import zipfile
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from adapters.s3.layout import Manifest
from dataplane import DataPlane
from dataplane.budget import FLOOR_MBPS
from dataplane.coordinator.granting import GrantsTold
from dataplane.demo import gamedb
from dataplane.evidence import Span, facts_about
from dataplane.explain import Asked, explain
from dataplane.policy import Policy
from projections.cluster import ClusterView
from projections.fold import TABLES
from projections.store import StoreReader
from streams import events
from streams.events import Event
from streams.values import S3_NODE, DataType, Role, SyncPriority, Trait, Transport
from tests.integration.cluster import LocalCluster, digest, until
from tests.integration.s3_server import ACCESS_KEY, SECRET_KEY, S3Server, running_s3_server

__all__ = ["running_s3_server"]

BUCKET = "routes"
MODEL = b"weights " * 20_000
CANDIDATE = "models/candidate_hex8_2p.onnx"
CHECKPOINT = "checkpoints/hex8_2p_last.onnx"
CANONICAL = "models/canonical_hex8_2p.onnx"
TRAINING_SET = "npz/hex8_3p.npz"
#: The whole cluster's, so that two large files get in each other's way.
TOTAL_MB_S = 2.0
LARGE = 2_500_000
DEADLINE = time.time() + 600
POLICY = f"""
[policy.s3]
min_games = 10
storage_class = ""
[policy.bandwidth]
total_mb_s = {TOTAL_MB_S}
"""


class Played(NamedTuple):
    """Games of a node, in a database of its own."""

    node: str
    config_key: str
    games: int = 12

    def put(self, cluster: LocalCluster) -> None:
        file = cluster.play(self.node, self.games, self.config_key)
        for one in file.parent.glob(file.name + "*"):
            # As if it had been left alone for an hour: only then it may be deleted later.
            os.utime(one, (time.time() - 3600, time.time() - 3600))


class Put(NamedTuple):
    """A file in a node's data directory."""

    node: str
    path: str
    content: bytes

    def put(self, cluster: LocalCluster) -> None:
        file = cluster.base / self.node / "data" / self.path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(self.content)


class Row(NamedTuple):
    """One row: what is there, what is said, what must be where, and how it came."""

    rule: str
    given: tuple[Played | Put, ...]
    when: Event
    #: (target, path) of all that the chain's end names.
    then: tuple[tuple[str, str], ...]
    #: What the chain says besides its plan, its start and its end.
    says: tuple[type[Event], ...] = ()
    #: Of what is moved to nodes.
    priority: SyncPriority = SyncPriority.NORMAL
    first: Transport = Transport.P2P_GOSSIP
    #: Files that nobody speaks of: the cluster must have found them before.
    seen: tuple[str, ...] = ()


def training_set(samples: int = 1_000) -> bytes:
    """A file of arrays, as an archive that can be read."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("features.npy", b"\x93NUMPY\x01\x00" + b"\x00" * samples)
    return packed.getvalue()


def games_at(node: str, config_key: str = "hex8_2p") -> str:
    """Under which path everybody else knows a node's games."""
    return f"games/{node}/{config_key}.db"


ROWS = [
    Row(
        "self-play games to the training nodes by p2p, and into the bucket (K19)",
        (Played("gpu-7", "hex8_2p"),),
        events.SelfplayComplete(config_key="hex8_2p", source_node="gpu-7", games_count=12),
        (("train-1", games_at("gpu-7")), (S3_NODE, games_at("gpu-7"))),
        (events.S3BackupCompleted, events.NewGamesAvailable),
    ),
    Row(
        "a training run gets its data from a holder by rsync first, within its deadline",
        (Put("vault", TRAINING_SET, training_set()),),
        events.TrainingStarted(config_key="hex8_3p", node="train-1", deadline=DEADLINE),
        (("train-1", TRAINING_SET),),
        priority=SyncPriority.HIGH,
        first=Transport.RSYNC,
        seen=(TRAINING_SET,),
    ),
    Row(
        "P16: candidate and checkpoint leave the trainer, to storage and into the bucket",
        (Put("train-1", CANDIDATE, MODEL), Put("train-1", CHECKPOINT, MODEL + b"optimizer")),
        events.TrainingCompleted(
            config_key="hex8_2p", node="train-1", model_path=CANDIDATE, checkpoint_path=CHECKPOINT
        ),
        tuple(
            (target, f"{kind}/train-1/{name}")
            for target in ("vault", S3_NODE)
            for kind, name in (path.split("/") for path in (CANDIDATE, CHECKPOINT))
        ),
        (events.S3BackupCompleted,),
        priority=SyncPriority.HIGH,
    ),
    Row(
        "a promoted model to every GPU node as a broadcast, and into the bucket",
        (Put("train-1", CANONICAL, MODEL + b"promoted"),),
        events.ModelPromoted(config_key="hex8_2p", node="train-1", model_path=CANONICAL),
        (("gpu-7", CANONICAL), ("gpu-8", CANONICAL), (S3_NODE, CANONICAL)),
        (events.S3BackupCompleted, events.ModelDistributionComplete),
        priority=SyncPriority.HIGH,
    ),
    Row(
        "P17: orphans to storage and into the bucket, urgently",
        (Played("gpu-8", "square8_2p"),),
        events.OrphanGamesDetected(node="gpu-8", config_key="square8_2p", orphan_count=12),
        (("vault", games_at("gpu-8", "square8_2p")), (S3_NODE, games_at("gpu-8", "square8_2p"))),
        (events.S3BackupCompleted,),
        priority=SyncPriority.CRITICAL,
        first=Transport.RSYNC,
    ),
    Row(
        "data that is needed from a holder, and SELFPLAY_NEEDED where there is too little",
        (),
        events.DataNeeded(
            node="gpu-8", config_key="hex8_2p", data_type=DataType.GAMES, min_samples=1_000
        ),
        (("gpu-8", games_at("gpu-7")),),
        (events.SelfplayNeeded,),
        priority=SyncPriority.HIGH,
    ),
    Row(
        "what is requested, where it is requested, the bucket among others",
        (),
        events.DataSyncRequested(
            data_type=DataType.NPZ,
            config_key="hex8_3p",
            target_nodes=("gpu-8", S3_NODE, "vault"),
            priority=SyncPriority.LOW,
        ),
        (("gpu-8", TRAINING_SET), (S3_NODE, TRAINING_SET), ("vault", TRAINING_SET)),
        (events.S3BackupCompleted,),
        priority=SyncPriority.LOW,
    ),
    Row(
        "K9: a node that vanishes leaves what too few others have, and is drained",
        (Played("gpu-7", "square8_2p", 15),),
        events.NodeTerminating(node="gpu-7", reason="spot"),
        tuple((name, games_at("gpu-7", "square8_2p")) for name in ("vault", "train-1", S3_NODE)),
        (events.S3BackupCompleted, events.NodeDrained, events.NewGamesAvailable),
        priority=SyncPriority.CRITICAL,
        first=Transport.RSYNC,
    ),
]


class Scene:
    """The cluster with its bucket, and what is asked of both."""

    def __init__(self, cluster: LocalCluster, s3_server: S3Server) -> None:
        self.cluster = cluster
        self._client = s3_server.client

    async def say(self, event: Event) -> str:
        """Publish a trigger; its chain."""
        node, outbox = events.speaker_of(event) or "somebody", self.cluster.base / "out"
        url = self.cluster.server.url
        async with DataPlane.connect(url, node=node, outbox=outbox) as plane:
            return (await plane.publish(event)).chain

    async def of_chain(self, chain: str, *kinds: type[Event]) -> list[Any]:
        """What was said for a chain."""
        return [f.event for f in await self.cluster.facts(*kinds) if f.chain == chain]

    def file(self, node: str, path: str) -> Path:
        """Where a node keeps what the cluster knows under a path: its own without its name."""
        own = path.replace(f"/{node}/", "/", 1)
        return self.cluster.base / node / "data" / own

    def in_bucket(self) -> dict[str, str]:
        """Path to digest of all that the manifests name; each object must be there (P10)."""
        found = {}
        for key in self._keys("nodes/"):
            if not key.endswith("/manifest.json"):
                continue
            body = self._client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
            for one in msgspec.json.decode(body, type=Manifest).entries:
                size = self._client.head_object(Bucket=BUCKET, Key=one.key)["ContentLength"]
                assert size == one.entry.size_bytes
                found[one.entry.path] = one.entry.checksum
        return found

    def _keys(self, prefix: str) -> list[str]:
        listed = self._client.list_objects_v2(Bucket=BUCKET, Prefix=prefix)
        return [one["Key"] for one in listed.get("Contents", [])]

    async def seen(self, *paths: str) -> None:
        """Wait until the cluster knows of files that were put somewhere."""

        async def known() -> bool:
            told = await self.cluster.facts(events.FilesObserved)
            there = {e.path for f in told for e in getattr(f.event, "entries", ())}
            return set(paths) <= there

        await until(known, f"{paths} to be found")

    async def again(self, **policy: object) -> None:
        """Another coordinator in the place of the first, with other settings."""
        self.cluster.stop("coord")
        names = {name.upper(): str(value) for name, value in policy.items()}
        settings = {f"DATAPLANE_POLICY__{name}": value for name, value in names.items()}
        self.cluster.coordinator(**settings)
        await self.cluster.joined("coord")


@pytest.fixture
async def scene(tmp_path: Path, s3_server: S3Server) -> AsyncIterator[Scene]:
    """A coordinator, two GPU players, a trainer, a vault, and a bucket."""
    with suppress(s3_server.client.exceptions.BucketAlreadyOwnedByYou):
        s3_server.client.create_bucket(Bucket=BUCKET)
    (tmp_path / "dataplane.toml").write_text(POLICY)
    os.environ.update(AWS_ACCESS_KEY_ID=ACCESS_KEY, AWS_SECRET_ACCESS_KEY=SECRET_KEY)
    settings = {
        "config": tmp_path / "dataplane.toml",
        "manifest_refresh_interval": 2,
        "s3_enabled": "true",
        "s3_bucket": BUCKET,
        "s3_endpoint": s3_server.url,
        "s3_region": "us-east-1",
    }
    async with LocalCluster(tmp_path, **settings) as cluster:
        cluster.coordinator()
        await cluster.joined("coord")
        for name in ("gpu-7", "gpu-8"):
            cluster.agent(name, Role.SELFPLAY, DATAPLANE_TRAITS=Trait.GPU)
        await cluster.joined("gpu-7", "gpu-8")
        cluster.agent("train-1", Role.TRAINING)
        cluster.agent("vault", Role.STORAGE)
        await cluster.joined("train-1", "vault")
        yield Scene(cluster, s3_server)


async def test_each_row_of_the_routing_table(scene: Scene) -> None:
    """One cluster, one trigger after the other, then what nobody triggers (P1, P3, P15)."""
    for row in ROWS[:-1]:
        await walk(scene, row)
    await why_it_came(scene)
    await nodes_that_are_out_get_nothing(scene)
    await grants_divide_what_the_cluster_has(scene)
    await walk(scene, ROWS[-1])
    await sweeps_bring_what_nobody_triggered(scene)
    await full_disks_lose_what_is_proven_elsewhere(scene)
    await every_chain_ended_once(scene)


async def walk(scene: Scene, row: Row) -> None:
    """One row: its files, its trigger, its chain, its copies."""
    for one in row.given:
        one.put(scene.cluster)
    await scene.seen(*row.seen)
    chain = await scene.say(row.when)
    end = (await scene.cluster.ended(chain)).event
    assert isinstance(end, events.DataSyncCompleted), (row.rule, end)
    assert set(row.then) <= {(o.target, o.path) for o in end.targets}, row.rule
    if not isinstance(row.when, events.NodeTerminating):
        assert len(row.then) == len(end.targets), (row.rule, end.targets)
    copies_are_what_the_end_says(scene, end)
    said: set[type[Event]] = set()

    async def all_said() -> bool:
        said.update(type(event) for event in await scene.of_chain(chain))
        return said >= set(row.says)

    # NODE_DRAINED comes once all of it was read again where it went.
    await until(all_said, f"all that is owed: {row.rule}")
    routine = {type(row.when), events.FilesObserved, events.SyncPlanned, events.DataSyncStarted}
    routine |= {events.TransferAssigned, events.TransferSucceeded, events.TransferFailed}
    assert said - routine == {events.DataSyncCompleted, *row.says}, row.rule
    [planned] = await scene.of_chain(chain, events.SyncPlanned)
    to_nodes = [plan for plan in planned.plans if S3_NODE not in plan.target_nodes]
    assert to_nodes[0].priority is row.priority, row.rule
    assert to_nodes[0].transport_preference[0] is row.first, row.rule
    deadline = getattr(row.when, "deadline", None)
    orders = await scene.of_chain(chain, events.TransferAssigned)
    assert all(order.deadline == deadline for order in orders), row.rule


def copies_are_what_the_end_says(scene: Scene, end: events.DataSyncCompleted) -> None:
    """Byte for byte, on each disk and in the bucket; and games are counted in the copies."""
    in_bucket = scene.in_bucket() if any(o.target == S3_NODE for o in end.targets) else {}
    for outcome in end.targets:
        if outcome.target == S3_NODE:
            assert in_bucket[outcome.path] == outcome.checksum
            continue
        copy = scene.file(outcome.target, outcome.path)
        assert digest(copy) == outcome.checksum, copy
        if outcome.games is not None:
            assert gamedb.count_games(copy) == outcome.games


async def why_it_came(scene: Scene) -> None:
    """Asked afterwards, the log tells how a copy came, and who it never came to."""
    path, cluster = games_at("gpu-7"), scene.cluster
    history = await facts_about(cluster.log, path, Span("hex8_2p", 0))
    with StoreReader(cluster.base / "coord" / "state" / "views", TABLES).read() as reader:
        view = ClusterView(reader)
        why = explain(Asked(path, "train-1", view, history, Policy(), time.time()))
        why_not = explain(Asked(path, "nobody", view, history, Policy(), time.time()))
    text = "\n".join(sentence.text for sentence in why.sentences)
    assert why.there and "gpu-7 reported it" in text and "SELFPLAY_COMPLETE of gpu-7" in text
    assert "proven by digest" in text
    assert not why_not.there and "no node nobody ever joined" in why_not.answer


async def nodes_that_are_out_get_nothing(scene: Scene) -> None:
    """K11: HOST_OFFLINE takes a node out of planning; NODE_RECOVERED puts it back as it was."""
    wanted = events.DataSyncRequested(
        data_type=DataType.GAMES, config_key="square8_2p", target_nodes=("train-1",)
    )
    await scene.say(events.HostOffline(node="train-1", reason="ping lost"))
    refused = (await scene.cluster.ended(await scene.say(wanted))).event
    assert isinstance(refused, events.DataSyncFailed), refused
    assert "offline" in {one.rule for one in refused.refusals}
    assert not scene.file("train-1", games_at("gpu-8", "square8_2p")).exists()
    await scene.say(events.NodeRecovered(node="train-1"))
    again = msgspec.structs.replace(wanted, requester="again")
    done = (await scene.cluster.ended(await scene.say(again))).event
    assert isinstance(done, events.DataSyncCompleted), done
    copies_are_what_the_end_says(scene, done)


async def grants_divide_what_the_cluster_has(scene: Scene) -> None:
    """K14: two large files that move at once are granted half of what there is each."""
    path = "models/large_hex8_2p.onnx"
    Put("vault", path, os.urandom(LARGE)).put(scene.cluster)
    await scene.seen(path)
    told: list[dict[str, float]] = []

    async def listen() -> None:
        async with aclosing(scene.cluster.log.bus.listen("dp.grant.*")) as heard:
            async for _, body in heard:
                told.append(msgspec.json.decode(body, type=GrantsTold).mbps)

    listening = asyncio.create_task(listen())
    await asyncio.sleep(0)
    wanted = events.DataSyncRequested(
        data_type=DataType.MODELS,
        config_key="hex8_2p",
        target_nodes=("gpu-8", "train-1"),
        requester="grants",
    )
    chain = await scene.say(wanted)
    end = (await scene.cluster.ended(chain)).event
    listening.cancel()
    assert isinstance(end, events.DataSyncCompleted), end
    copies_are_what_the_end_says(scene, end)
    orders = await scene.of_chain(chain, events.TransferAssigned)
    large = {o.transfer: o.bandwidth_mbps for o in orders if o.entry.path == path}
    total = TOTAL_MB_S * 8
    assert len(large) == 2
    # Whoever comes while another has all gets the floor, until that one has been cut.
    assert sum(large.values()) <= total + FLOOR_MBPS
    assert any(rates.get(id) == total / 2 for rates in told for id in large), told


async def sweeps_bring_what_nobody_triggered(scene: Scene) -> None:
    """K8, K19: the bucket's cycle and the replication sweep, each a chain with one end."""
    backed_up, short = "models/canonical_square19_2p.onnx", "npz/square19_2p.npz"
    Put("vault", backed_up, MODEL + b"never spoken of").put(scene.cluster)
    Put("gpu-8", short, training_set(2_000)).put(scene.cluster)
    await scene.seen(backed_up, short)
    await scene.again(
        schedule__replication_s=1.0,
        schedule__s3_cycle_s=1.0,
        replication__minimum=2,
        replication__warn_after_s=1.0,
        replication__cooldown_s=0.0,
    )
    checksum = digest(scene.file("vault", backed_up))
    await until(lambda: scene.in_bucket().get(backed_up) == checksum, "the bucket's cycle")
    copies = [scene.file(name, short) for name in ("vault", "train-1", "gpu-7")]
    await until(lambda: any(copy.exists() for copy in copies), "a second copy of a training set")
    original = digest(scene.file("gpu-8", short))
    assert {digest(copy) for copy in copies if copy.exists()} == {original}


async def full_disks_lose_what_is_proven_elsewhere(scene: Scene) -> None:
    """K21, K22: what is deleted is gone from its disk, and enough others have proven theirs."""
    await scene.again(
        disk__stop_background_from=0.0,
        disk__cleanup_from=0.0,
        schedule__cleanup_s=1.0,
        replication__minimum=2,
    )
    done: list[events.DeletionDone] = []

    async def deleted() -> bool:
        facts = await scene.cluster.facts(events.DeletionDone)
        done[:] = [f.event for f in facts if getattr(f.event, "deleted", False)]  # type: ignore[misc]
        return any(one.path == games_at("gpu-7") for one in done)

    await until(deleted, "a full disk to lose something")
    grants = {
        fact.event.request: fact.event
        for fact in await scene.cluster.facts(events.DeletionGranted)
        if isinstance(fact.event, events.DeletionGranted)
    }
    for one in done:
        assert not scene.file(one.node, one.path).exists()
        proven = {proof.node for proof in grants[one.request].proofs if proof.proven}
        assert len(proven - {one.node}) >= 2
        assert not one.path.endswith(".npz") and "candidate_" not in one.path
        assert "canonical_" not in one.path


async def every_chain_ended_once(scene: Scene) -> None:
    """P1: triggers, sweeps and all."""
    ends = (events.DataSyncCompleted, events.DataSyncFailed)

    async def none_open() -> bool:
        facts = await scene.cluster.facts()
        opened = {f.chain for f in facts if isinstance(f.event, events.CHAIN_TRIGGERS)}
        return opened == {f.chain for f in facts if isinstance(f.event, ends)}

    await until(none_open, "every chain to end")
    ended = [f.chain for f in await scene.cluster.facts(*ends)]
    assert len(ended) == len(set(ended))
