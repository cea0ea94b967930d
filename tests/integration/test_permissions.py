"""Locked doors: a chain on a bus with permissions, and each forbidden thing tried and refused."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dataplane.agent.progress import ProgressMessage
from dataplane.config import ConfigError
from dataplane.coordinator.granting import GrantsTold
from dataplane.keys import KeyStore
from streams.codec import fact_id, node_fact
from streams.events import SelfplayComplete, TransferSucceeded
from streams.jetstream import JetStreamLog
from streams.log import LogError, PermissionDenied
from streams.permissions import BusRole
from streams.server import default_config
from streams.values import S3_NODE, Proof, Role
from streams.wire import Message, api
from tests.integration.cluster import LocalCluster, until
from tests.integration.s3_server import (
    S3Server,
    new_bucket,
    running_s3_server,
    with_credentials,
)
from tests.integration.terminal import Terminal
from tests.integration.test_reaching import BLOCKED, found_out

__all__ = ["running_s3_server"]


@pytest.fixture
def keys(tmp_path: Path) -> KeyStore:
    """A coordinator, three nodes of which one has been revoked already, an observer."""
    store = KeyStore(tmp_path / "keys")
    store.init("coordinator")
    store.add("coord", BusRole.COORDINATOR)
    for name in ("gpu-7", "train-1", "hub", "spot-3"):
        store.add(name, BusRole.NODE, ("exporter",) if name == "train-1" else ())
    store.add("grafana", BusRole.OBSERVER)
    return store


@pytest.fixture
async def cluster(tmp_path: Path, keys: KeyStore) -> AsyncIterator[LocalCluster]:
    """A bus that lets in only who has a key, and a chain that has ended on it."""
    async with LocalCluster(tmp_path, bus=locked(tmp_path), seeds=keys.directory) as cluster:
        cluster.coordinator("coord")
        cluster.agent("gpu-7", Role.SELFPLAY)
        cluster.agent("train-1", Role.TRAINING)
        await cluster.joined("coord", "gpu-7", "train-1")
        cluster.play("gpu-7", 5)
        async with client(cluster, keys, "gpu-7") as log:
            played = SelfplayComplete(config_key="hex8_2p", source_node="gpu-7", games_count=5)
            await log.publish(node_fact(played, "gpu-7", fact_id("played")))
        yield cluster


def locked(base: Path) -> Path:
    """The configuration of a bus that lets in only who has a key."""
    conf = base / "nats.conf"
    conf.write_text(f'{default_config().read_text()}\ninclude "keys/users.conf"\n')
    return conf


@asynccontextmanager
async def client(cluster: LocalCluster, keys: KeyStore, name: str) -> AsyncIterator[JetStreamLog]:
    """Somebody with a key of the store."""
    log = await JetStreamLog.connect(
        cluster.url.split(","), name=name, nkey_seed_file=keys.seed_file(name), deadline_s=10.0
    )
    try:
        yield log
    finally:
        await log.close()


async def test_every_way_of_moving_and_looking_needs_no_more_than_its_key_allows(
    tmp_path: Path, keys: KeyStore, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Push, relay, bucket, deletion, drain, archive, what-if: done, and nothing was refused.

    The agents come before the coordinator: what it makes for them they wait for, and try nothing.
    """
    with_credentials(monkeypatch)
    name = new_bucket(s3_server)
    bucket = {"s3_bucket": name, "s3_endpoint": s3_server.url, "s3_region": "us-east-1"}
    settings = {**bucket, "s3_enabled": "true", "policy__s3__min_games": "1"}
    async with LocalCluster(tmp_path, bus=locked(tmp_path), seeds=keys.directory, **settings) as c:
        c.agent("gpu-7", Role.SELFPLAY, **BLOCKED)
        c.agent("train-1", Role.TRAINING, **BLOCKED)
        c.agent("hub", Role.STORAGE)
        c.coordinator("coord")
        await c.joined("coord", "gpu-7", "train-1", "hub")
        await found_out(c, "gpu-7", "train-1")
        idle = (time.time() - 3600, time.time() - 3600)
        for config_key in ("hex8_2p", "square8_2p"):
            os.utime(c.play("gpu-7", 5, config_key), idle)
        async with client(c, keys, "gpu-7") as log:
            played = SelfplayComplete(config_key="hex8_2p", source_node="gpu-7", games_count=5)
            await log.publish(node_fact(played, "gpu-7", fact_id("played")))
        await c.assert_exactly_once(fact_id("played"))

        pushed = "games/gpu-7/square8_2p.db"

        def run(name: str, *words: str, looks: bool = False) -> str:
            return Terminal(c, name, keys.seed_file(name)).run(*words, status=None if looks else 0)

        await until(lambda: "gpu-7" in run("grafana", "where", pushed, looks=True), pushed)
        run("train-1", "sync", "square8_2p", "hub", "--wait", "60")
        moved = [fact.event for fact in await c.facts(TransferSucceeded)]
        by = {(one.node == one.source, one.target) for one in moved if one}  # type: ignore[attr-defined]
        assert {(True, "hub"), (True, S3_NODE)} <= by
        assert (False, "train-1") in by
        run("coordinator", "sync", "hex8_2p", "hub", "--wait", "60")
        assert "deleted" in run("coordinator", "delete", "games/gpu-7/hex8_2p.db", "hub")
        assert "killed now? yes" in run("coordinator", "drain", "gpu-7", "--wait")
        assert "new messages" in run("grafana", "archive", "run", "--at", str(tmp_path / "kept"))
        assert "decisions" in run("grafana", "whatif", "--policy", str(other_rules(tmp_path)))
        for words in (("replay",), ("verify",), ("status",), ("top", "--once"), ("advisories",)):
            run("grafana", *words)
        _nobody_tried_what_it_may_not(c)


async def test_who_moves_the_bytes_of_a_relay_is_told_what_its_executor_is_granted(
    tmp_path: Path, keys: KeyStore
) -> None:
    """On both legs, through the hub, with no more than its key allows."""
    async with LocalCluster(
        tmp_path, bus=locked(tmp_path), seeds=keys.directory, default_bandwidth_limit_mbps=8
    ) as cluster:
        cluster.coordinator("coord")
        cluster.agent("gpu-7", Role.SELFPLAY, **BLOCKED)
        cluster.agent("train-1", Role.TRAINING, **BLOCKED)
        cluster.agent("hub", Role.STORAGE)
        await cluster.joined("coord", "gpu-7", "train-1", "hub")
        await found_out(cluster, "gpu-7", "train-1")
        cluster.play("gpu-7", 1, padding=4_000_000)
        async with client(cluster, keys, "coordinator") as log:
            heard = log.bus.listen("dp.progress.>")
            moving = asyncio.create_task(anext(heard))
            played = SelfplayComplete(config_key="hex8_2p", source_node="gpu-7", games_count=1)
            await log.publish(node_fact(played, "gpu-7", fact_id("played")))
            for leg in (("gpu-7", "hub"), ("hub", "train-1")):
                said = msgspec.json.decode((await moving)[1], type=ProgressMessage)
                while (said.source, said.target) != leg:
                    said = msgspec.json.decode((await anext(heard))[1], type=ProgressMessage)
                moving = asyncio.create_task(anext(heard))
                told = msgspec.json.encode(GrantsTold({said.transfer: 16.0}))
                kept = await log.bus.request("dp.grant.hub", told, 30.0)
                assert msgspec.json.decode(kept) == [said.transfer], leg
            moving.cancel()
        await cluster.assert_exactly_once(fact_id("played"))
        _nobody_tried_what_it_may_not(cluster)


def other_rules(base: Path) -> Path:
    """A configuration under which games need fewer copies."""
    file = base / "new.toml"
    file.write_text("[policy.placement.rules.selfplay]\ncopies = 1\n")
    return file


async def test_a_chain_ends_on_a_locked_bus_and_what_is_forbidden_is_refused(
    cluster: LocalCluster, keys: KeyStore
) -> None:
    """Nodes, observers and coordinators do their work; nothing else, and they hear why not."""
    await cluster.assert_exactly_once(fact_id("played"))
    _nobody_tried_what_it_may_not(cluster)
    async with client(cluster, keys, "gpu-7") as node:
        await _node_may_read(node)
        await _each_is_refused(node, FORBIDDEN_TO_A_NODE)
        await _may_not_answer(node, "dp.rpc.s3.prove", "dp.rpc.train-1.prove", "dp.query.health")
        await _hears_nothing(node, ">", "_INBOX_train-1.>", "dp.rpc.train-1.>", "$KV.>")
    async with client(cluster, keys, "train-1") as trainer:
        await _own_durable(trainer)
    async with client(cluster, keys, "grafana") as observer:
        await until(lambda: _is_well(observer), "an observer to hear that all is well")
        await _node_may_read(observer)
        await _each_is_refused(observer, FORBIDDEN_TO_AN_OBSERVER)
        await _may_not_answer(observer, "dp.rpc.s3.prove", "dp.rpc.gpu-7.prove")
    async with client(cluster, keys, "coord") as coordinator:
        await _each_is_refused(coordinator, FORBIDDEN_TO_ALL)
    await _nobody_was_hurt(cluster)
    await _revoked(cluster, keys)


def _nobody_tried_what_it_may_not(cluster: LocalCluster) -> None:
    """Coordinator, agents and commands need nothing that their keys do not allow."""
    lines = cluster.server.log_file.read_text(errors="replace").splitlines()
    assert [line for line in lines if "Violation" in line] == []


async def _is_well(log: JetStreamLog) -> bool:
    answer = await log.bus.request("dp.query.health", b"", 30.0)
    return bool(msgspec.json.decode(answer)["status"] == "healthy")


async def _node_may_read(log: JetStreamLog) -> None:
    """Its chain's end, through a reader of its own name."""
    end = (await log.state()).last_sequence
    types = [fact.type async for batch in log.read(until=end) for fact in batch]
    assert "DATA_SYNC_COMPLETED" in types


async def _own_durable(log: JetStreamLog) -> None:
    """The durable subscription that its key names, and no other."""
    subjects = ["dp.chain.*.NEW_GAMES_AVAILABLE.>"]
    deliveries = await log.consume("exporter", subjects, ack_wait_s=30, max_pending=8)
    assert (await anext(aiter(deliveries))).recorded.type == "NEW_GAMES_AVAILABLE"
    await deliveries.close()


def consumer(name: str, action: str = "create") -> bytes:
    """A request to make, or change, a consumer."""
    config = {"name": name, "durable_name": name, "ack_policy": "explicit"}
    return msgspec.json.encode({"stream_name": "DATAPLANE", "config": config, "action": action})


API = "$JS.API"
FORBIDDEN_TO_ALL: list[tuple[str, bytes]] = [
    (f"{API}.STREAM.DELETE.DATAPLANE", b""),
    (f"{API}.STREAM.UPDATE.DATAPLANE", b'{"name":"DATAPLANE"}'),
    (f"{API}.STREAM.MSG.DELETE.DATAPLANE", b'{"seq":1}'),
]
#: Nobody but coordinators may decide, give orders, touch consumers or speak for others.
_OTHERS: list[tuple[str, bytes]] = [
    ("dp.node.train-1.FILES_OBSERVED.hex8_2p", b'{"node":"train-1"}'),
    ("dp.node.train-1.NODE_TERMINATING.all", b'{"node":"train-1"}'),
    ("dp.chain.c1.DATA_SYNC_COMPLETED.hex8_2p", b"{}"),
    ("dp.chain.c1.SYNC_PLANNED.hex8_2p", b"{}"),
    ("dp.task.train-1.TRANSFER_ASSIGNED.hex8_2p", b"{}"),
    ("dp.task.gpu-7.TRANSFER_ASSIGNED.hex8_2p", b"{}"),
    ("dp.grant.train-1", b"{}"),
    ("dp.rpc.train-1.delete", b"{}"),
    ("dp.rpc.gpu-7.delete", b"{}"),
    ("$KV.DP_NODES.agent.train-1", b"{}"),
    ("$KV.DP_NODES.coordinator.coord", b"{}"),
    ("$KV.DP_KEYS.http_signing", b"mine"),
    (f"{API}.CONSUMER.MSG.NEXT.DATAPLANE.task_train-1", b"1"),
    (f"{API}.CONSUMER.MSG.NEXT.DATAPLANE.observe_train-1", b"1"),
    (f"{API}.CONSUMER.MSG.NEXT.DATAPLANE.bridge", b"1"),
    (f"{API}.CONSUMER.MSG.NEXT.DATAPLANE.exporter", b"1"),
    (f"{API}.CONSUMER.CREATE.DATAPLANE.task_train-1", consumer("task_train-1", "update")),
    (f"{API}.CONSUMER.CREATE.DATAPLANE.task_gpu-7", consumer("task_gpu-7", "update")),
    (f"{API}.CONSUMER.CREATE.DATAPLANE.bridge.dp.node.>", consumer("bridge", "update")),
    (f"{API}.CONSUMER.CREATE.DATAPLANE.mine", consumer("mine")),
    (f"{API}.CONSUMER.CREATE.DATAPLANE.read_train-1_0", consumer("read_train-1_0")),
    (f"{API}.CONSUMER.DURABLE.CREATE.DATAPLANE.mine", consumer("mine")),
    (f"{API}.CONSUMER.DELETE.DATAPLANE.bridge", b""),
    (f"{API}.CONSUMER.DELETE.DATAPLANE.task_gpu-7", b""),
    (f"{API}.CONSUMER.PAUSE.DATAPLANE.task_train-1", b"{}"),
    ("$JS.ACK.DATAPLANE.bridge.1.1.1.1.0", b"+ACK"),
    ("$JS.ACK.DATAPLANE.task_train-1.1.1.1.1.0", b"+ACK"),
    (f"{API}.STREAM.CREATE.MINE", b'{"name":"MINE","subjects":["mine"]}'),
    (f"{API}.STREAM.PURGE.DATAPLANE", b""),
    (f"{API}.STREAM.DELETE.KV_DP_NODES", b""),
    (f"{API}.STREAM.PURGE.KV_DP_KEYS", b""),
    (f"{API}.STREAM.SNAPSHOT.DATAPLANE", b"{}"),
    ("_INBOX_train-1.1.1", b"a false answer"),
]
FORBIDDEN_TO_A_NODE = [*FORBIDDEN_TO_ALL, *_OTHERS]
FORBIDDEN_TO_AN_OBSERVER = [
    *FORBIDDEN_TO_A_NODE,
    ("dp.node.grafana.SELFPLAY_COMPLETE.hex8_2p", b'{"games_count":1}'),
    ("dp.node.gpu-7.SELFPLAY_COMPLETE.hex8_2p", b'{"games_count":1}'),
    ("dp.progress.t1", b"{}"),
    ("dp.rpc.gpu-7.locate", b"sha256:00"),
    (f"{API}.STREAM.MSG.GET.KV_DP_KEYS", b'{"last_by_subj":"$KV.DP_KEYS.http_signing"}'),
    (f"{API}.CONSUMER.MSG.NEXT.DATAPLANE.task_gpu-7", b"1"),
]


async def _each_is_refused(log: JetStreamLog, forbidden: list[tuple[str, bytes]]) -> None:
    """The server's own words reach who tried it."""
    for subject, body in forbidden:
        with pytest.raises(PermissionDenied) as refused:
            await log.connection.ask(Message(subject, body), timeout_s=30.0)
        assert "permissions violation" in str(refused.value).lower(), subject


async def _hears_nothing(log: JetStreamLog, *subjects: str) -> None:
    """What it may not hear, it is told that it may not."""
    for subject in subjects:
        with pytest.raises(PermissionDenied):
            await anext(log.bus.listen(subject))


async def _may_not_answer(log: JetStreamLog, *subjects: str) -> None:
    """Nobody says for others what they hold: not alone, and not as one of those who are asked."""

    async def answer(subject: str, body: bytes) -> bytes:
        return msgspec.json.encode(Proof(node=S3_NODE, proven=True))

    for subject in subjects:
        for queue in ("", "provers", "q"):
            with pytest.raises(PermissionDenied, match="permissions violation"):
                await log.bus.answer(subject, answer, queue=queue)


async def _nobody_was_hurt(cluster: LocalCluster) -> None:
    """After all that was tried: the same consumers, the same log, and the next chain ends."""
    names = (await api(cluster.log.connection, "CONSUMER.NAMES.DATAPLANE"))["consumers"]
    durables = {name for name in names if not name.startswith("read_")}
    assert durables >= {"bridge", "exporter", "task_gpu-7", "observe_gpu-7", "task_train-1"}
    assert "mine" not in durables
    assert not [fact for fact in await cluster.facts() if fact.owner == "grafana"]


async def _revoked(cluster: LocalCluster, keys: KeyStore) -> None:
    """A key that was taken away is refused from the reload on, also for who is connected."""
    # On its own machine the node keeps its key whatever is deleted here.
    kept = keys.seed_file("spot-3").rename(keys.directory / "kept.seed")
    spot = await JetStreamLog.connect(cluster.server.url, name="spot-3", nkey_seed_file=kept)
    try:
        await spot.state()
        keys.revoke("spot-3")
        assert cluster.server.pid is not None
        os.kill(cluster.server.pid, signal.SIGHUP)

        async def refused() -> bool:
            try:
                await spot.connection.ask(Message(f"{API}.INFO"), timeout_s=1.0)
            except PermissionDenied:
                return True
            except LogError:
                return False
            return False

        await until(refused, "the revoked key to be refused")
    finally:
        await spot.close()
    with pytest.raises(PermissionDenied, match="does not let these credentials in"):
        await JetStreamLog.connect(cluster.server.url, name="spot-3", nkey_seed_file=kept)
    async with client(cluster, keys, "gpu-7") as node:
        assert (await node.state()).last_sequence > 0


async def test_a_refresh_gives_the_keys_there_are_what_this_version_needs(
    tmp_path: Path, keys: KeyStore
) -> None:
    """On a bus that an older version locked: refused before, allowed after, with the same key."""
    kept = keys.include.read_text()
    keys.include.write_text(re.sub(r'"[^"]*CONSUMER\.LIST[^"]*", ', "", kept))
    async with LocalCluster(tmp_path, bus=locked(tmp_path), seeds=keys.directory) as cluster:
        async with client(cluster, keys, "grafana") as observer:
            with pytest.raises(PermissionDenied):
                await api(observer.connection, "CONSUMER.LIST.DATAPLANE")
        await cluster.command("keys", "refresh", "--dir", str(keys.directory))
        assert cluster.server.pid is not None
        os.kill(cluster.server.pid, signal.SIGHUP)

        async def allowed() -> bool:
            # The reload throws out who is connected, and who is about to be.
            with contextlib.suppress(LogError):
                async with client(cluster, keys, "grafana") as observer:
                    return bool(await api(observer.connection, "CONSUMER.LIST.DATAPLANE"))
            return False

        await until(allowed, "the same key to be allowed more")


def test_no_node_has_the_name_of_the_bucket(keys: KeyStore) -> None:
    """Its key would answer for what the bucket holds."""
    for role in (BusRole.NODE, BusRole.OBSERVER):
        with pytest.raises(ConfigError, match="what the bucket is called"):
            keys.add(S3_NODE, role)
    assert S3_NODE not in {user.name for user in keys.users()}


def test_keys_on_disk_are_for_their_owner_and_no_list_has_them(keys: KeyStore) -> None:
    """0600, in a directory of 0700; users.conf and users.json name public keys only."""
    assert keys.directory.stat().st_mode & 0o777 == 0o700
    seeds: list[Any] = [file.read_text().strip() for file in keys.directory.glob("*.seed")]
    assert len(seeds) == 7
    for file in keys.directory.iterdir():
        if file.suffix == ".seed" or file == keys.routes_include:
            assert file.stat().st_mode & 0o777 == 0o600
        else:
            assert not any(seed in file.read_text() for seed in seeds)
