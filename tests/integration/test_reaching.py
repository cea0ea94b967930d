"""Nodes that can't reach each other, on real processes: pushed to, relayed, and found out."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from adapters.s3.bucket import S3Bucket
from adapters.s3.transport import S3Transport
from dataplane import DataPlane
from streams import events
from streams.events import Event
from streams.values import S3_NODE, DataType, Role, Transport
from tests.integration.cluster import LocalCluster, until
from tests.integration.s3_server import S3Server, new_bucket, running_s3_server
from tests.integration.test_backup import cluster_with, played

__all__ = ["running_s3_server"]

#: Nobody answers there: what a node behind a NAT says of itself, without knowing better.
BLOCKED = {"DATAPLANE_HTTP_ADVERTISE": "http://127.0.0.1:1"}


async def found_out(cluster: LocalCluster, *names: str) -> None:
    """Wait until these nodes know, and have said, that nobody reaches them."""

    async def all_known() -> bool:
        said = [fact.event for fact in await cluster.facts(events.NodeRegistered)]
        known = {
            event.description.name
            for event in said
            if isinstance(event, events.NodeRegistered)
            and event.description.endpoint.reachable is False
        }
        return known >= set(names)

    await until(all_known, f"{names} to find out that nobody reaches them")


async def results(cluster: LocalCluster, target: str) -> list[Event | None]:
    """Successful transfers to a target."""
    facts = await cluster.facts(events.TransferSucceeded)
    return [fact.event for fact in facts if getattr(fact.event, "target", "") == target]


async def test_a_holder_that_nobody_reaches_pushes(tmp_path: Path) -> None:
    """Found out, not configured; and what is pushed is never taken for the target's own (P4)."""
    async with LocalCluster(tmp_path) as cluster:
        cluster.coordinator()
        cluster.agent("gpu-7", Role.SELFPLAY, **BLOCKED)
        cluster.agent("train-1", Role.TRAINING, DATAPLANE_MANIFEST_REFRESH_INTERVAL="0.2")
        await cluster.joined("coord", "gpu-7", "train-1")
        await found_out(cluster, "gpu-7")
        await cluster.assert_exactly_once(await played(cluster, "gpu-7"))
        [arrived] = await results(cluster, "train-1")
        assert isinstance(arrived, events.TransferSucceeded)
        assert (arrived.node, arrived.source) == ("gpu-7", "gpu-7")
        tried = [(one.transport_used, one.remote) for one in arrived.results]
        assert tried == [(Transport.HTTP_FETCH, "train-1")]
        # The target forgets what it knew of its files; the log remembers who pushed what.
        cluster.kill("train-1")
        (tmp_path / "train-1" / "data" / ".dataplane" / "inventory.sqlite").unlink()
        cluster.agent("train-1", Role.TRAINING, DATAPLANE_MANIFEST_REFRESH_INTERVAL="0.2")
        await cluster.joined("train-1")
        # New games and another copy: by then the target has looked at its files many times.
        await cluster.assert_exactly_once(await played(cluster, "gpu-7", 3))
        seen = await cluster.facts(events.FilesObserved)
        assert {fact.owner for fact in seen if getattr(fact.event, "entries", ())} == {"gpu-7"}


async def test_killed_while_pushing_it_goes_on_and_says_it_once(tmp_path: Path) -> None:
    """kill -9 after the target has it and before anybody was told: nothing moves again."""
    async with LocalCluster(tmp_path) as cluster:
        cluster.coordinator()
        dies = {**BLOCKED, "DATAPLANE_KILL_AT": "agent.pushed"}
        cluster.agent("gpu-7", Role.SELFPLAY, **dies)
        cluster.agent("train-1", Role.TRAINING)
        await cluster.joined("coord", "gpu-7", "train-1")
        await found_out(cluster, "gpu-7")
        chain = await played(cluster, "gpu-7")
        await cluster.died("gpu-7")
        assert cluster.received("train-1", "gpu-7").exists()
        cluster.agent("gpu-7", Role.SELFPLAY, **BLOCKED)
        await cluster.assert_exactly_once(chain)
        [arrived] = await results(cluster, "train-1")
        assert isinstance(arrived, events.TransferSucceeded)
        assert arrived.bytes_transferred == 0


async def test_a_third_node_relays_and_keeps_nothing(tmp_path: Path) -> None:
    """Pushed to it, fetched from it; it holds no replica, also if it is killed half-way."""
    async with LocalCluster(tmp_path) as cluster:
        cluster.coordinator()
        cluster.agent("gpu-7", Role.SELFPLAY, **BLOCKED)
        cluster.agent("train-1", Role.TRAINING, **BLOCKED)
        cluster.agent("hub", Role.STORAGE, DATAPLANE_KILL_AT="agent.relaying")
        await cluster.joined("coord", "gpu-7", "train-1", "hub")
        await found_out(cluster, "gpu-7", "train-1")
        chain = await played(cluster, "gpu-7")
        await cluster.died("hub")
        cluster.agent("hub", Role.STORAGE)
        await cluster.assert_exactly_once(chain)
        [arrived] = await results(cluster, "train-1")
        assert isinstance(arrived, events.TransferSucceeded)
        assert (arrived.node, arrived.source) == ("hub", "gpu-7")
        assert list((tmp_path / "hub" / "data" / ".dataplane" / "relay").iterdir()) == []
        holders = {fact.owner for fact in await cluster.facts(events.FilesObserved)}
        assert "hub" not in holders


async def test_the_bucket_relays_where_nobody_else_can(tmp_path: Path, s3_server: S3Server) -> None:
    """Two blocked nodes and no third: through S3, and the target proves what it got."""
    bucket = new_bucket(s3_server)
    async with cluster_with(tmp_path, s3_server, bucket) as cluster:
        cluster.agent("gpu-7", Role.SELFPLAY, **BLOCKED)
        cluster.agent("train-1", Role.TRAINING, **BLOCKED)
        await cluster.joined("coord", "gpu-7", "train-1")
        await found_out(cluster, "gpu-7", "train-1")
        await cluster.assert_exactly_once(await played(cluster, "gpu-7"))
        [arrived] = await results(cluster, "train-1")
        assert isinstance(arrived, events.TransferSucceeded)
        assert {one.transport_used for one in arrived.results} == {Transport.S3}
        assert {one.remote for one in arrived.results} == {S3_NODE}
        # What went through the bucket is a copy there, and proves to be one.
        transport = S3Transport(bucket, endpoint_url=s3_server.url)
        entry = arrived.entry
        assert (await S3Bucket(transport).prove(entry.path, entry.checksum)).proven
        await transport.close()


async def test_a_source_that_dies_is_replaced_by_another_holder(tmp_path: Path) -> None:
    """The planned source answers nobody: the next attempt asks the trainer that has a copy."""
    async with LocalCluster(tmp_path, transports="http") as cluster:
        cluster.coordinator()
        cluster.agent("gpu-7", Role.SELFPLAY)
        cluster.agent("train-1", Role.TRAINING)
        await cluster.joined("coord", "gpu-7", "train-1")
        await cluster.assert_exactly_once(await played(cluster, "gpu-7"))
        cluster.kill("gpu-7")
        cluster.agent("train-2", Role.TRAINING)
        await cluster.joined("train-2")
        outbox = tmp_path / "out"
        async with DataPlane.connect(cluster.server.url, node="train-2", outbox=outbox) as plane:
            handle = await plane.request_sync(DataType.GAMES, "hex8_2p", ["train-2"])
            assert (await handle.wait(60)).success
        failures = await cluster.facts(events.TransferFailed)
        assert {getattr(fact.event, "source", "") for fact in failures} == {"gpu-7"}
        [arrived] = await results(cluster, "train-2")
        assert isinstance(arrived, events.TransferSucceeded)
        assert arrived.source == "train-1"


async def test_watchers_are_told_how_far_a_transfer_is(tmp_path: Path) -> None:
    """By the command, while it moves: how much of the whole."""
    limit = {"default_bandwidth_limit_mbps": 16, "transports": "http"}
    async with LocalCluster(tmp_path, **limit) as cluster:
        cluster.coordinator()
        cluster.agent("gpu-7", Role.SELFPLAY)
        cluster.agent("train-1", Role.TRAINING)
        await cluster.joined("coord", "gpu-7", "train-1")
        watching = await cluster.commanded("watch", "--json")
        assert watching.stdout is not None
        first = asyncio.create_task(watching.stdout.readline())
        # Whoever comes late missed what was told before: it goes on moving until he is there.
        while not first.done():
            cluster.play("gpu-7", 1, padding=2_000_000)
            await cluster.ended(await played(cluster, "gpu-7", 1))
        said = json.loads(await first)
        watching.kill()
        await watching.wait()
        assert (said["source"], said["target"]) == ("gpu-7", "train-1")
        assert 0 < said["done"] <= said["total"]


async def test_which_addresses_answer_is_found_out_and_said(tmp_path: Path) -> None:
    """A file server that others reach, and an SSH server that nobody does."""
    async with LocalCluster(tmp_path) as cluster:
        cluster.coordinator()
        nowhere = {"DATAPLANE_SSH_HOST": "127.0.0.1", "DATAPLANE_SSH_PORT": "1"}
        cluster.agent("gpu-7", Role.SELFPLAY, **nowhere)
        cluster.agent("train-1", Role.TRAINING)
        await cluster.joined("coord", "gpu-7", "train-1")

        async def said() -> bool:
            facts = [fact.event for fact in await cluster.facts(events.NodeRegistered)]
            of_it = [
                one.description.endpoint
                for one in facts
                if isinstance(one, events.NodeRegistered) and one.description.name == "gpu-7"
            ]
            return of_it[-1].ssh_reachable is False and of_it[-1].reachable is True

        await until(said, "gpu-7 to say which of its addresses answer")
