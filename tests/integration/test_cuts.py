"""Links that never live long, between real agents: whatever brings a file on, it arrives."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from projections.headway import MOST_TIMES
from streams import events
from streams.values import Role, Transport
from tests.faults import Proxy
from tests.integration.cluster import LocalCluster
from tests.integration.ssh_server import SshServer
from tests.integration.test_backup import played
from tests.integration.test_reaching import BLOCKED, found_out

SIZE = 20_000_000
#: Each connection dies after so much, which is a real share of the file.
CUT_BYTES = 2_500_000


#: Each attempt is a connection of its own, and a busy machine takes its time for each.
PATIENCE_S = 200.0
pytestmark = pytest.mark.timeout(400)


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[SshServer]:
    """The SSH server of the machine that all nodes of the test share."""
    server = SshServer(tmp_path / "ssh")
    server.start()
    yield server
    server.stop()


def free_port() -> int:
    """A port that nobody listens on yet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def behind(link: Proxy, port: int) -> dict[str, str]:
    """A node's file server, that others reach by the link alone."""
    return {"DATAPLANE_HTTP_PORT": str(port), "DATAPLANE_HTTP_ADVERTISE": link.url}


async def begun(cluster: LocalCluster, *hubs: str) -> None:
    """All are there."""
    cluster.coordinator()
    await cluster.joined("coord", "gpu-7", "train-1", *hubs)


async def arrives(
    cluster: LocalCluster, *hubs: str, size: int = SIZE, retries: int = 3, times: float = 1.5
) -> list[events.TransferFailed]:
    """A large database of gpu-7 reaches train-1, byte for byte; the attempts that it took besides.

    There are many more than the retries, and each brought something. All that was moved is no more
    than so many times the file: what a cut finds in the buffers of both machines is sent again.
    """
    cluster.play("gpu-7", 3, padding=size)
    await cluster.assert_exactly_once(await played(cluster, "gpu-7", 3), PATIENCE_S)
    failed = [fact.event for fact in await cluster.facts(events.TransferFailed)]
    assert len(failed) > 2 * retries
    cuts = [one for one in failed if isinstance(one, events.TransferFailed)]
    assert {one.error_class for one in cuts} <= {"Interrupted", "Stalled"}, cuts
    [done] = [fact.event for fact in await cluster.facts(events.TransferSucceeded)]
    assert isinstance(done, events.TransferSucceeded)
    moved = sum(one.bytes_transferred for one in (*cuts, done))
    assert moved <= times * done.entry.size_bytes
    return cuts


def settings(**more: object) -> dict[str, object]:
    """All defaults but that nobody waits for long between two attempts."""
    return {"policy__retries__backoff_base_s": 0.05, **more}


async def test_a_node_behind_a_nat_pushes_through_a_link_that_is_cut_again_and_again(
    tmp_path: Path,
) -> None:
    """One connection an attempt; each goes on from where the last one ended."""
    port = free_port()
    link = Proxy(port)
    link.cut_after_bytes = CUT_BYTES
    await link.open()
    async with LocalCluster(tmp_path / "cluster", **settings(transports="http")) as cluster:
        cluster.agent("gpu-7", Role.SELFPLAY, **BLOCKED)
        cluster.agent("train-1", Role.TRAINING, **behind(link, port))
        await begun(cluster)
        await found_out(cluster, "gpu-7")
        cuts = await arrives(cluster)
        assert {one.node for one in cuts} == {"gpu-7"}
    await link.close()


@pytest.mark.parametrize("transport", [Transport.RSYNC, Transport.BASE64_SSH])
async def test_what_is_pushed_over_ssh_arrives_too(
    tmp_path: Path, sshd: SshServer, transport: Transport
) -> None:
    """By what each tells of its way, and what gathers at the target."""
    link = Proxy(sshd.port)
    link.cut_after_bytes = CUT_BYTES
    await link.open()
    options, where = sshd.options(), sshd.endpoint(tmp_path, link.port)
    ssh = {
        "transports": transport,
        "ssh_host": where.ssh_host,
        "ssh_port": where.ssh_port,
        "ssh_user": where.ssh_user,
        "ssh_known_hosts": options.known_hosts,
        "ssh_identity": options.identity,
    }
    async with LocalCluster(tmp_path / "cluster", **settings(**ssh, max_retries=1)) as cluster:
        cluster.agent("gpu-7", Role.SELFPLAY, DATAPLANE_SSH_HOST="")
        cluster.agent("train-1", Role.TRAINING)
        await begun(cluster)
        cuts = await arrives(cluster, size=SIZE // 2, retries=1, times=MOST_TIMES)
        assert {one.node for one in cuts} == {"gpu-7"}
    await link.close()


async def test_what_is_fetched_or_relayed_arrives_too(tmp_path: Path) -> None:
    """Two blocked nodes and a hub whose connections die young, both ways."""
    port = free_port()
    link = Proxy(port)
    link.cut_after_bytes = CUT_BYTES
    await link.open()
    async with LocalCluster(tmp_path / "cluster", **settings(transports="http")) as cluster:
        cluster.agent("gpu-7", Role.SELFPLAY, **BLOCKED)
        cluster.agent("train-1", Role.TRAINING, **BLOCKED)
        cluster.agent("hub", Role.STORAGE, **behind(link, port))
        await begun(cluster, "hub")
        await found_out(cluster, "gpu-7", "train-1")
        cuts = await arrives(cluster, "hub", times=MOST_TIMES)
        assert {one.node for one in cuts} == {"hub"}
    await link.close()


async def test_relay_goes_on_though_the_hub_still_listens_to_a_link_that_fell_silent(
    tmp_path: Path,
) -> None:
    """The sender has given up and comes again, long before the hub would."""
    port = free_port()
    link = Proxy(port)
    await link.open()
    async with LocalCluster(tmp_path / "cluster", **settings(transports="http")) as cluster:
        cluster.agent("gpu-7", Role.SELFPLAY, **BLOCKED, DATAPLANE_STALL_TIMEOUT_SECONDS="3")
        cluster.agent("train-1", Role.TRAINING, **BLOCKED)
        patient = {"DATAPLANE_STALL_TIMEOUT_SECONDS": "600"}
        cluster.agent("hub", Role.STORAGE, **behind(link, port), **patient)
        await begun(cluster, "hub")
        await found_out(cluster, "gpu-7", "train-1")
        link.up = CUT_BYTES
        cluster.play("gpu-7", 3, padding=SIZE)
        chain = await played(cluster, "gpu-7", 3)
        await asyncio.wait_for(link.used_up.wait(), PATIENCE_S)
        # Whoever comes now gets through; the hub is never told that the old connection is dead.
        link.up = None
        await cluster.assert_exactly_once(chain, PATIENCE_S)
        failed = [fact.event for fact in await cluster.facts(events.TransferFailed)]
        assert [one.error_class for one in failed] == ["Stalled"]  # type: ignore[attr-defined]
    await link.close()
