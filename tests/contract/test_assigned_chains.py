"""The policy's own chains (K12), as the planner and admission assign them, over real servers."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from adapters.files.inventory import Inventory
from adapters.http.transport import HttpTransport
from adapters.ssh.base64_ssh import Base64Transport
from adapters.ssh.connections import SshOptions
from adapters.ssh.rsync import RsyncTransport
from adapters.transport import Fetches
from dataplane.agent.transfers import TransportManager
from streams import events
from streams.events import Event
from streams.values import DataEntry, DataType, NodeDescription, Role, Trait, Transport
from tests.contract.conftest import made
from tests.contract.rigs import Rig
from tests.contract.test_chain_of_transports import told
from tests.spec import answers, assigned, given, holds, opens, policy_of, said_what_is_owed

P2P, HTTP = Transport.P2P_GOSSIP, Transport.HTTP_FETCH
RSYNC, BASE64 = Transport.RSYNC, Transport.BASE64_SSH
FILES, SSH = "p2p", "rsync"
GAMES, MODEL = "games/gpu-7/hex8_2p.jsonl", "models/canonical_hex8_2p.pth"
PLAYED = events.SelfplayComplete(config_key="hex8_2p", source_node="gpu-7", games_count=500)
#: What is said, of which file and by what kind of node: the chain it is to go by.
CASES: dict[str, tuple[Event, str, int, tuple[Trait, ...], tuple[Transport, ...]]] = {
    "small": (PLAYED, GAMES, 600_000, (), (P2P, HTTP, BASE64)),
    "large": (PLAYED, GAMES, 9_000_000, (), (RSYNC, HTTP, BASE64)),
    "broadcast": (
        events.ModelPromoted(config_key="hex8_2p", node="gpu-7", model_path=MODEL),
        MODEL,
        9_000_000,
        (),
        (P2P, RSYNC, HTTP, BASE64),
    ),
    "ephemeral": (PLAYED, GAMES, 600_000, (Trait.EPHEMERAL,), (RSYNC, BASE64)),
}


class Assigned:
    """A node with a file server and an SSH server, and all that fetches from it."""

    def __init__(
        self,
        rigs: dict[str, Rig],
        fetches: dict[Transport, Fetches],
        options: SshOptions,
        base: Path,
        inventory: Inventory,
    ) -> None:
        self.rigs = rigs
        #: What the manager has, until it is asked to move something.
        self.fetches = fetches
        self.options = options
        self._base = base
        self._inventory = inventory

    def order(self, case: str) -> events.TransferAssigned:
        """What planner and admission make of a trigger; the content is there to be fetched."""
        trigger, path, size, traits, _ = CASES[case]
        lines = b"".join(
            json.dumps({"game": os.urandom(500).hex()}).encode() + b"\n"
            for _ in range(size // 1_000)
        )
        data = b"\x80" + os.urandom(size) if path == MODEL else lines
        entry = DataEntry(
            path=path,
            data_type=DataType.MODELS if path == MODEL else DataType.GAMES,
            config_key="hex8_2p",
            size_bytes=len(data),
            checksum=f"sha256:{hashlib.sha256(data).hexdigest()}",
        )
        file = self._base / "content"
        file.write_bytes(data)
        for rig in self.rigs.values():
            rig.hold(entry, file)
        files, ssh = self.rigs[FILES].far, self.rigs[SSH].far
        place = replace(ssh, http_url=files.http_url)
        story = given(
            _joins("gpu-7", Role.SELFPLAY, traits=traits, endpoint=place),
            _joins("train-1", Role.TRAINING, traits=(Trait.GPU,)),
            # For this a file of more than 1 MB is large.
            policy=policy_of(transports={"large_file_mb": 1}, quality={"min_games": 0}),
        )
        story.tell(holds("gpu-7", entry), opens("c1", trigger))
        story.tell(answers("c1", "gpu-7", entry), said_what_is_owed, assigned)
        orders = (fact.event for fact in story.facts)
        [order] = (one for one in orders if isinstance(one, events.TransferAssigned))
        return order

    async def move(self, order: events.TransferAssigned) -> events.TransferSucceeded:
        """Carry it out; it must succeed."""

        async def content_path(node: str, checksum: str) -> str:
            return str(self._base / "content")

        manager = TransportManager(
            "train-1",
            self._base / "root",
            self._inventory,
            self.fetches,
            stall_s=5.0,
            content_path=content_path,
        )
        done = await manager.transfer(order)
        assert isinstance(done, events.TransferSucceeded), done
        return done


def _joins(name: str, role: Role, **more: Any) -> events.NodeRegistered:
    big = {"disk_total_bytes": 10**12, "disk_free_bytes": 9 * 10**11}
    described = NodeDescription(name=name, roles=(role,), **{**big, **more})
    return events.NodeRegistered(description=described)


@pytest.fixture
async def rigged(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Assigned]:
    """Both servers, all four transports."""
    async with AsyncExitStack() as stack:
        rigs: dict[str, Rig] = {}
        for name in (FILES, SSH):
            (tmp_path / name).mkdir()
            rig = made(name, request, tmp_path / name, monkeypatch)
            rigs[name] = await stack.enter_async_context(rig.running())
        (tmp_path / "root").mkdir()
        inventory = Inventory(tmp_path / "root", "train-1")
        stack.push_async_callback(inventory.close)
        options = request.getfixturevalue("ssh_server").options()
        base64 = Base64Transport(options)
        stack.push_async_callback(base64.close)
        http = rigs[FILES].pushes
        assert isinstance(http, HttpTransport)
        fetches: dict[Transport, Fetches] = {
            P2P: rigs[FILES].fetches,
            HTTP: http,
            RSYNC: rigs[SSH].fetches,
            BASE64: base64,
        }
        yield Assigned(rigs, fetches, options, tmp_path, inventory)


def server_of(transport: Transport) -> str:
    """Whom a transport asks."""
    return FILES if transport in (P2P, HTTP) else SSH


@pytest.mark.parametrize("case", ["small", "large", "broadcast"])
async def test_k12_where_the_server_of_the_first_is_dead_the_first_of_the_other_succeeds(
    rigged: Assigned, case: str
) -> None:
    """All of the chain that go there are told as unreachable, in its order, without a byte."""
    order = rigged.order(case)
    assert order.transports == CASES[case][-1]
    dead = server_of(order.transports[0])
    await rigged.rigs[dead].link.close()
    done = await rigged.move(order)
    other = next(one for one in order.transports if server_of(one) != dead)
    before = order.transports[: order.transports.index(other)]
    assert told(done.results) == [*((str(one), "Unreachable") for one in before), (str(other), "")]
    # What shrinks may come packed.
    moved = done.results[-1].bytes_transferred
    assert 0 < moved == done.bytes_transferred <= order.entry.size_bytes


async def test_k12_without_rsync_an_ephemeral_node_is_read_by_its_shell_alone(
    rigged: Assigned,
) -> None:
    """The two go to one server: where only the program is lacking, base64 brings the file."""
    order = rigged.order("ephemeral")
    rigged.fetches[RSYNC] = RsyncTransport(rigged.options, rsync="/nowhere/rsync")
    done = await rigged.move(order)
    assert told(done.results) == [("rsync", "Refused"), ("base64", "")]
    assert done.bytes_transferred == order.entry.size_bytes


@pytest.mark.parametrize("case", ["large", "broadcast"])
async def test_k12_what_comes_before_the_cut_is_not_brought_again(
    rigged: Assigned, case: str
) -> None:
    """The server of the first is cut in the middle of the file, for good."""
    order = rigged.order(case)
    link = rigged.rigs[server_of(order.transports[0])].link
    link.down, link.cuts = 5_000_000, True
    done = await rigged.move(order)
    first, last = done.results[0], done.results[-1]
    assert server_of(first.transport_used) != server_of(last.transport_used)
    assert first.bytes_transferred > 0 and last.bytes_transferred > 0
    # By http it may come packed, and by neither is a block or two brought again.
    size = order.entry.size_bytes
    assert last.bytes_transferred <= (size - first.bytes_transferred) * 1.1
    assert done.bytes_transferred < size * 1.3
