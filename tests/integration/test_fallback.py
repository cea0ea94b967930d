"""Chains of transports on real processes: the first is dead, another one brings the file."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataplane import DataPlane, SelfplayComplete
from streams import events
from streams.values import Role, Transport
from tests.integration.cluster import LocalCluster
from tests.integration.ssh_server import SshServer


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[SshServer]:
    """The SSH server of the machine that all nodes of the test share."""
    server = SshServer(tmp_path / "ssh")
    server.start()
    yield server
    server.stop()


async def moved_by(base: Path, sshd: SshServer, transports: str, **source: str) -> events.Event:
    """Move one database from gpu-7 to train-1; the result of the transfer."""
    options, where = sshd.options(), sshd.endpoint(base)
    settings = {
        "transports": transports,
        "ssh_host": where.ssh_host,
        "ssh_port": where.ssh_port,
        "ssh_user": where.ssh_user,
        "ssh_known_hosts": options.known_hosts,
        "ssh_identity": options.identity,
    }
    async with LocalCluster(base / "cluster", **settings) as cluster:
        cluster.coordinator()
        cluster.agent("gpu-7", Role.SELFPLAY, **source)
        cluster.agent("train-1", Role.TRAINING)
        await cluster.joined("coord", "gpu-7", "train-1")
        cluster.play("gpu-7", 9)
        async with DataPlane.connect(cluster.server.url, node="gpu-7", outbox=base / "out") as dp:
            played = SelfplayComplete(config_key="hex8_2p", source_node="gpu-7", games_count=9)
            chain = (await dp.publish(played)).chain
        end = await cluster.assert_exactly_once(chain)
        assert end.games_synced == 9
        [arrived] = await cluster.facts(events.TransferSucceeded)
        assert arrived.event is not None
        return arrived.event


async def test_dead_first_transport_is_told_and_the_second_succeeds(
    tmp_path: Path, sshd: SshServer
) -> None:
    """Who answers where the source serves files hangs up: base64 over SSH brings the snapshot."""
    rude = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = rude.sockets[0].getsockname()[1]
    dead = {"DATAPLANE_HTTP_ADVERTISE": f"http://127.0.0.1:{port}"}
    arrived = await moved_by(tmp_path, sshd, "http,base64", **dead)
    rude.close()
    assert isinstance(arrived, events.TransferSucceeded)
    tried = [(result.transport_used, result.error_class) for result in arrived.results]
    assert tried == [(Transport.HTTP_FETCH, "Interrupted"), (Transport.BASE64_SSH, "")]
    assert arrived.bytes_transferred == arrived.entry.size_bytes


async def test_p7_rsync_moves_the_snapshot_never_the_live_database(
    tmp_path: Path, sshd: SshServer
) -> None:
    """rsync is told the immutable snapshot by the source's agent; the digest is the entry's."""
    arrived = await moved_by(tmp_path, sshd, "rsync")
    assert isinstance(arrived, events.TransferSucceeded)
    assert [result.transport_used for result in arrived.results] == [Transport.RSYNC]


@pytest.mark.parametrize("transport", [Transport.RSYNC, Transport.BASE64_SSH])
async def test_p4_what_is_pushed_over_ssh_is_landed_by_the_agent_of_the_target(
    tmp_path: Path, sshd: SshServer, transport: Transport
) -> None:
    """Nobody reaches the holder: it sends the bytes, the target's agent proves and names them."""
    arrived = await moved_by(tmp_path, sshd, transport, DATAPLANE_SSH_HOST="")
    assert isinstance(arrived, events.TransferSucceeded)
    assert (arrived.node, arrived.source, arrived.target) == ("gpu-7", "gpu-7", "train-1")
    [only] = arrived.results
    assert (only.transport_used, only.remote) == (transport, "train-1")
    assert arrived.bytes_transferred == arrived.entry.size_bytes
