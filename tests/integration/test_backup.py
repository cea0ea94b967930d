"""The bucket as a place, on real processes and a real S3 server: stored, named last, restored."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import msgspec
import pytest

from adapters.s3.bucket import S3Bucket
from adapters.s3.layout import Manifest, manifest_of
from adapters.s3.sealing import Sealer
from adapters.s3.transport import S3Transport
from adapters.throttle import Throttle
from adapters.transport import Request
from dataplane import DataPlane, SelfplayComplete
from dataplane.proving import prove
from streams import events
from streams.values import S3_NODE, DataType, Endpoint, Role, Transport
from tests.integration.cluster import LocalCluster, until
from tests.integration.s3_server import (
    ACCESS_KEY,
    SECRET_KEY,
    S3Server,
    new_bucket,
    running_s3_server,
    with_credentials,
)
from tests.integration.terminal import Terminal
from tests.integration.test_ssh_transports import entry_of

__all__ = ["running_s3_server"]


@pytest.fixture
def bucket(s3_server: S3Server) -> str:
    """An empty bucket of the test's own."""
    return new_bucket(s3_server)


@asynccontextmanager
async def cluster_with(
    base: Path, s3_server: S3Server, bucket: str, **settings: object
) -> AsyncIterator[LocalCluster]:
    """A coordinator and the settings of the bucket; credentials come from the environment."""
    settings = {
        "s3_enabled": "true",
        "s3_bucket": bucket,
        "s3_endpoint": s3_server.url,
        "s3_region": "us-east-1",
        "config": base / "dataplane.toml",
        **settings,
    }
    (base / "dataplane.toml").write_text('[policy.s3]\nmin_games = 1\nstorage_class = ""\n')
    os.environ.update(AWS_ACCESS_KEY_ID=ACCESS_KEY, AWS_SECRET_ACCESS_KEY=SECRET_KEY)
    async with LocalCluster(base, **settings) as cluster:
        cluster.coordinator()
        yield cluster


async def played(cluster: LocalCluster, node: str, games: int = 9) -> str:
    """A node plays and says so; the chain."""
    cluster.play(node, games)
    outbox = cluster.base / "out"
    async with DataPlane.connect(cluster.server.url, node=node, outbox=outbox) as plane:
        event = SelfplayComplete(config_key="hex8_2p", source_node=node, games_count=games)
        return (await plane.publish(event)).chain


async def removed(cluster: LocalCluster) -> bool:
    """Whether some node said that a file is gone."""
    return bool(await cluster.facts(events.FilesRemoved))


def keys(s3_server: S3Server, bucket: str, prefix: str = "") -> list[str]:
    """The keys of a bucket, the server's own view."""
    listed = s3_server.client.list_objects_v2(Bucket=bucket, Prefix=prefix)
    return [one["Key"] for one in listed.get("Contents", [])]


def manifest(s3_server: S3Server, bucket: str, node: str) -> Manifest:
    """A node's manifest, read without any of our code but its shape."""
    got = s3_server.client.get_object(Bucket=bucket, Key=f"nodes/{node}/manifest.json")
    return msgspec.json.decode(got["Body"].read(), type=Manifest)


async def test_games_reach_trainer_and_bucket_and_the_chain_says_so(
    tmp_path: Path, s3_server: S3Server, bucket: str
) -> None:
    """K19: by the holder's own push, named in its manifest, one S3_BACKUP_COMPLETED."""
    async with cluster_with(tmp_path, s3_server, bucket) as cluster:
        cluster.agent("gpu-7", Role.SELFPLAY)
        cluster.agent("train-1", Role.TRAINING)
        await cluster.joined("coord", "gpu-7", "train-1")
        chain = await played(cluster, "gpu-7")
        end = await cluster.assert_exactly_once(chain)
        assert {outcome.target for outcome in end.targets} == {"train-1", S3_NODE}
        arrived = await cluster.facts(events.TransferSucceeded)
        [stored] = [f.event for f in arrived if getattr(f.event, "target", "") == S3_NODE]
        assert isinstance(stored, events.TransferSucceeded)
        assert (stored.node, stored.source) == ("gpu-7", "gpu-7")
        assert [(r.transport_used, r.remote) for r in stored.results] == [(Transport.S3, S3_NODE)]
        [backed_up] = [f.event for f in await cluster.facts(events.S3BackupCompleted)]
        assert isinstance(backed_up, events.S3BackupCompleted)
        assert backed_up.manifest_key == "nodes/gpu-7/manifest.json"
        # P8: that a file is gone from its node is no reason to take it out of the bucket.
        (tmp_path / "gpu-7" / "data" / "games" / "hex8_2p.db").unlink()
        await until(lambda: removed(cluster), "gpu-7 to say that its file is gone")
        assert "hex8_2p.db" in await cluster.command("restore", "ls", "--json")
    [named] = manifest(s3_server, bucket, "gpu-7").entries
    assert (named.entry.path, named.entry.checksum) == (stored.entry.path, stored.entry.checksum)
    assert named.key in keys(s3_server, bucket)


async def test_who_seals_says_with_which_key_and_whoever_proves_it_says_so_too(
    tmp_path: Path, s3_server: S3Server, bucket: str
) -> None:
    """Each has a key of its own: neither asks the bucket for what it can't open."""
    ids = {}
    for name in ("gpu-7", "train-1"):
        Sealer.make_key(tmp_path / f"{name}.key")
        ids[name] = Sealer.from_file(tmp_path / f"{name}.key").key_id
    async with cluster_with(tmp_path, s3_server, bucket) as cluster:
        for name, role in (("gpu-7", Role.SELFPLAY), ("train-1", Role.TRAINING)):
            file = str(tmp_path / f"{name}.key")
            cluster.agent(name, role, DATAPLANE_S3_ENCRYPTION_KEY_FILE=file)
        await cluster.joined("coord", "gpu-7", "train-1")
        await cluster.assert_exactly_once(await played(cluster, "gpu-7"))
        joined = [fact.event for fact in await cluster.facts(events.NodeRegistered)]
        said = {e.description.name: e.description.seal_key for e in joined}  # type: ignore[union-attr]
        assert said == ids
        arrived = [fact.event for fact in await cluster.facts(events.TransferSucceeded)]
        keys = {e.target: e.entry.sealed_with for e in arrived}  # type: ignore[union-attr]
        assert keys == {"train-1": "", S3_NODE: ids["gpu-7"]}
        [stored] = [e for e in arrived if e.target == S3_NODE]  # type: ignore[union-attr]
        proof = await prove(cluster.log.bus, S3_NODE, stored.entry)  # type: ignore[union-attr]
        assert (proof.proven, proof.sealed_with) == (True, ids["gpu-7"])
        assert await cluster.facts(events.TransferFailed) == []
    transport = S3Transport(bucket, endpoint_url=s3_server.url)
    [entry] = (await S3Bucket(transport).catalog()).known
    assert entry.sealed_with == ids["gpu-7"]
    await transport.close()


async def test_p10_killed_between_object_and_manifest_nothing_is_named_that_is_not_there(
    tmp_path: Path, s3_server: S3Server, bucket: str
) -> None:
    """The object is stored, no manifest is, nobody says it succeeded; then it goes on."""
    async with cluster_with(tmp_path, s3_server, bucket) as cluster:
        agent = cluster.agent("gpu-7", Role.SELFPLAY, DATAPLANE_KILL_AT="agent.stored")
        cluster.agent("train-1", Role.TRAINING)
        await cluster.joined("coord", "gpu-7", "train-1")
        chain = await played(cluster, "gpu-7")
        await cluster.died("gpu-7")
        assert agent.returncode
        assert len(keys(s3_server, bucket, "objects/")) == 1
        assert keys(s3_server, bucket, "nodes/") == []
        said = await cluster.facts(events.TransferSucceeded)
        assert S3_NODE not in {getattr(fact.event, "target", "") for fact in said}
        cluster.agent("gpu-7", Role.SELFPLAY)
        await cluster.assert_exactly_once(chain)
    [named] = manifest(s3_server, bucket, "gpu-7").entries
    assert keys(s3_server, bucket, "objects/") == [named.key]


async def test_k19_agent_that_is_told_to_end_pushes_what_the_bucket_lacks(
    tmp_path: Path, s3_server: S3Server, bucket: str
) -> None:
    """No trigger spoke of it: it is in the bucket before the process is gone, and that is said."""
    async with cluster_with(tmp_path, s3_server, bucket) as cluster:
        cluster.agent("gpu-7", Role.SELFPLAY)
        await cluster.joined("coord", "gpu-7")
        cluster.play("gpu-7", 9)
        assert cluster.stop("gpu-7") == 0
        [stopped] = [fact.event for fact in await cluster.facts(events.NodeStopped)]
        assert isinstance(stopped, events.NodeStopped)
        assert (stopped.stored, stopped.left, stopped.reason) == (1, 0, "")
        [stored] = [fact.event for fact in await cluster.facts(events.TransferSucceeded)]
        assert isinstance(stored, events.TransferSucceeded)
        assert (stored.target, stored.bytes_transferred) == (S3_NODE, stopped.stored_bytes)
        cluster.agent("gpu-7", Role.SELFPLAY)
        await cluster.joined("gpu-7")
        assert cluster.stop("gpu-7") == 0
        again = [fact.event for fact in await cluster.facts(events.NodeStopped)][-1]
        assert isinstance(again, events.NodeStopped)
        assert (again.stored, again.left) == (0, 0)
    [named] = manifest(s3_server, bucket, "gpu-7").entries
    assert (named.entry.path, named.entry.checksum) == (stored.entry.path, stored.entry.checksum)


async def test_k19_last_push_that_does_not_come_through_is_said_and_keeps_nobody(
    tmp_path: Path, s3_server: S3Server, bucket: str
) -> None:
    """The bucket is away: the process ends all the same, and says what it left and why."""
    nowhere = {
        "DATAPLANE_S3_ENDPOINT": "http://127.0.0.1:9",
        "DATAPLANE_SHUTDOWN_PUSH_SECONDS": "2",
    }
    async with cluster_with(tmp_path, s3_server, bucket) as cluster:
        cluster.agent("gpu-7", Role.SELFPLAY, **nowhere)
        await cluster.joined("coord", "gpu-7")
        cluster.play("gpu-7", 9)
        assert cluster.stop("gpu-7") == 0
        [stopped] = [fact.event for fact in await cluster.facts(events.NodeStopped)]
        assert isinstance(stopped, events.NodeStopped)
        assert (stopped.stored, stopped.left) == (0, 1)
        assert stopped.left_paths == ("games/gpu-7/hex8_2p.db",) and stopped.reason
        assert not await cluster.facts(events.TransferSucceeded)


async def test_all_comes_back_from_the_bucket_alone(
    tmp_path: Path, s3_server: S3Server, bucket: str
) -> None:
    """Log, nodes and views are gone: a new log hears what the bucket holds, and plans with it."""
    lost, new = tmp_path / "lost", tmp_path / "new"
    lost.mkdir()
    async with cluster_with(lost, s3_server, bucket) as cluster:
        cluster.agent("gpu-7", Role.SELFPLAY)
        await cluster.joined("coord", "gpu-7")
        await cluster.ended(await played(cluster, "gpu-7"))
    shutil.rmtree(lost)
    new.mkdir()
    async with cluster_with(new, s3_server, bucket) as cluster:
        said = await cluster.command("restore", "ls", "--json")
        assert [(row["path"], row["games"]) for row in json.loads(said)] == [
            ("games/gpu-7/hex8_2p.db", 9)
        ]
        await cluster.command("restore", "node", "gpu-7", "--to", str(new / "there"))
        with closing(sqlite3.connect(new / "there" / "games" / "hex8_2p.db")) as db:
            assert db.execute("SELECT count(*) FROM games").fetchone() == (9,)
        cluster.agent("train-1", Role.TRAINING)
        await cluster.joined("coord", "train-1")
        assert "1 entry" in await cluster.command("restore", "catalog")
        outbox = tmp_path / "out"
        async with DataPlane.connect(cluster.server.url, node="train-1", outbox=outbox) as plane:
            needed = events.DataNeeded(
                node="train-1", config_key="hex8_2p", data_type=DataType.GAMES
            )
            chain = (await plane.publish(needed)).chain
        end = await cluster.ended(chain)
        assert isinstance(end.event, events.DataSyncCompleted), end.event
        assert end.event.games_synced == 9
        with closing(sqlite3.connect(cluster.received("train-1", "gpu-7"))) as db:
            assert db.execute("SELECT count(*) FROM games").fetchone() == (9,)


async def test_a_manifest_that_cant_be_read_is_named_by_each_command_that_reads_it(
    tmp_path: Path, s3_server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What others name is restored all the same, and the status says that it is not all well."""
    with_credentials(monkeypatch)
    (tmp_path / "kept").write_bytes(b"kept")
    transport = S3Transport(bucket, endpoint_url=s3_server.url)
    there, entry = Endpoint(node=S3_NODE), entry_of(b"kept", "shared/x.bin")
    request = Request("t-1", entry, there, there)
    await transport.push(request, tmp_path / "kept", Throttle(), lambda *_: None)
    named = manifest_of("gpu-7", [transport.stored(entry)], time.time())
    await S3Bucket(transport).write_manifest("gpu-7", named)
    await transport.close()
    damaged = "nodes/gpu-8/manifest.json"
    s3_server.client.put_object(Bucket=bucket, Key=damaged, Body=b"no JSON")
    about = {"S3_ENABLED": "true", "S3_BUCKET": bucket, "S3_ENDPOINT": s3_server.url}
    environment = {f"DATAPLANE_{name}": said for name, said in about.items()}
    environment |= {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    async with LocalCluster(tmp_path) as cluster:
        terminal = Terminal(cluster, **environment)
        for words, done in (
            ("ls", "shared/x.bin"),
            (f"file shared/x.bin --to {tmp_path / 'to'}", "4 bytes, proven"),
            ("catalog", "knows of 1 entry"),
            (f"file shared/y.bin --to {tmp_path / 'to'}", "names shared/y.bin"),
            (f"node gpu-8 --to {tmp_path / 'to'}", "nothing is known that gpu-8 stored"),
        ):
            said = terminal.run("restore", *words.split(), status=1)
            assert done in said and damaged in said
        observed = [fact.event for fact in await cluster.facts(events.FilesObserved)]
    assert [one.entries for one in observed if isinstance(one, events.FilesObserved)] == [(entry,)]
    assert (tmp_path / "to/shared/x.bin").read_bytes() == b"kept"
