"""A promoted model through real processes: spread among its targets, peer to peer."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from adapters.p2p.gossip import Having
from dataplane import DataPlane
from dataplane.keys import KeyStore
from streams import events
from streams.codec import chain_of_trigger, fact_id, node_fact
from streams.permissions import BusRole
from streams.values import Role, Transport
from tests.faults import HOST, Proxy
from tests.integration.cluster import LocalCluster
from tests.integration.test_permissions import locked

PATH = "models/canonical_hex8_2p.pth"


async def test_promoted_model_is_spread_among_its_targets(tmp_path: Path) -> None:
    """Three GPU nodes get it byte for byte, each peer to peer, and told of each other."""
    data = b"\x80" + os.urandom(12_000_000)
    async with LocalCluster(tmp_path, default_bandwidth_limit_mbps=100) as cluster:
        model = tmp_path / "train-1" / "data" / PATH
        model.parent.mkdir(parents=True)
        model.write_bytes(data)
        cluster.coordinator()
        cluster.agent("train-1", Role.TRAINING)
        targets = ["gpu-1", "gpu-2", "gpu-3"]
        for name in targets:
            cluster.agent(name, Role.SELFPLAY, DATAPLANE_TRAITS="gpu")
        await cluster.joined("coord", "train-1", *targets)
        async with DataPlane.connect(cluster.server.url, node="train-1") as dp:
            promoted = events.ModelPromoted(config_key="hex8_2p", node="train-1", model_path=PATH)
            chain = (await dp.publish(promoted)).chain
        end = (await cluster.ended(chain)).event
        assert isinstance(end, events.DataSyncCompleted), end
        assert {outcome.target for outcome in end.targets} == set(targets)
        orders = [fact.event for fact in await cluster.facts(events.TransferAssigned)]
        done = [fact.event for fact in await cluster.facts(events.TransferSucceeded)]
    for name in targets:
        assert (tmp_path / name / "data" / PATH).read_bytes() == data
    assert {one.results[-1].transport_used for one in done} == {Transport.P2P_GOSSIP}
    known = {one.target: {peer.node for peer in one.peers} for one in orders}
    assert set.union(*known.values()) == set(targets)


@pytest.mark.parametrize("keys", [False, True], ids=["open bus", "under keys"])
async def test_a_promoted_model_leaves_its_source_about_once(tmp_path: Path, keys: bool) -> None:
    """Counted at the source's own door; its targets tell each other over the bus what they have."""
    data = b"\x80" + os.urandom(16_000_000)
    settings: dict[str, Any] = {"default_bandwidth_limit_mbps": 24, "transports": "p2p"}
    targets = ["gpu-1", "gpu-2", "gpu-3"]
    if keys:
        store = KeyStore(tmp_path / "keys")
        store.init("coordinator")
        store.add("coord", BusRole.COORDINATOR)
        for name in ("train-1", *targets):
            store.add(name, BusRole.NODE)
        settings |= {"bus": locked(tmp_path), "seeds": store.directory}
    door = Proxy(port := free_port())
    await door.open()
    async with LocalCluster(tmp_path, **settings) as cluster:
        model = tmp_path / "train-1" / "data" / PATH
        model.parent.mkdir(parents=True)
        model.write_bytes(data)
        cluster.coordinator("coord")
        at = {"DATAPLANE_HTTP_PORT": str(port), "DATAPLANE_HTTP_ADVERTISE": door.url}
        cluster.agent("train-1", Role.TRAINING, **at)
        for name in targets:
            cluster.agent(name, Role.SELFPLAY, DATAPLANE_TRAITS="gpu")
        await cluster.joined("coord", "train-1", *targets)
        told: set[str] = set()
        hearing = asyncio.create_task(everything_told(cluster, told))
        promoted = events.ModelPromoted(config_key="hex8_2p", node="train-1", model_path=PATH)
        await cluster.log.publish(node_fact(promoted, "train-1", fact_id("promoted")))
        end = (await cluster.ended(chain_of_trigger(fact_id("promoted")))).event
        hearing.cancel()
    await door.close()
    assert isinstance(end, events.DataSyncCompleted), end
    for name in targets:
        assert (tmp_path / name / "data" / PATH).read_bytes() == data
    assert len(data) <= door.passed_down < 1.5 * len(data)
    assert told >= set(targets)


async def everything_told(cluster: LocalCluster, told: set[str]) -> None:
    """Hear for ever who tells what he has of a content."""
    async for _, body in cluster.log.bus.listen("dp.have.>"):
        said = Having.decode(body)
        assert said is not None
        told.add(said.node)


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
