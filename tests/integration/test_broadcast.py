"""A promoted model through real processes: spread among its targets, peer to peer."""

from __future__ import annotations

import os
from pathlib import Path

from dataplane import DataPlane
from streams import events
from streams.values import Role, Transport
from tests.integration.cluster import LocalCluster

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
