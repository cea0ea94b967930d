"""Real transports in their chains (K12): the first is dead or cut, another brings the file."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from adapters.files.inventory import Inventory
from dataplane.agent.transfers import TransportManager
from streams import events
from streams.values import DataEntry, DataType, Endpoint, TransportResult
from tests.contract.conftest import made
from tests.contract.rigs import Rig

PATH = "models/hex8_2p.bin"
#: Pairs that do not share a server, whether the policy has them in a chain or not: what it has is
#: in `test_assigned_chains`.
CHAINS = [("http", "base64"), ("rsync", "http"), ("s3", "rsync")]


class Chain:
    """A manager on the target with real transports, each to a far end behind a proxy."""

    def __init__(self, rigs: dict[str, Rig], manager: TransportManager, base: Path) -> None:
        self.rigs = rigs
        self._manager = manager
        self._base = base

    def offer(self, size: int) -> DataEntry:
        """An entry that each far end holds."""
        data = os.urandom(size)
        entry = DataEntry(
            path=PATH,
            data_type=DataType.METADATA,
            config_key="hex8_2p",
            size_bytes=size,
            checksum=f"sha256:{hashlib.sha256(data).hexdigest()}",
        )
        file = self._base / "content"
        file.write_bytes(data)
        for rig in self.rigs.values():
            rig.hold(entry, file)
        return entry

    async def move(self, entry: DataEntry) -> events.TransferSucceeded | events.TransferFailed:
        """One assignment over the whole chain."""
        parts = [rig.far for rig in self.rigs.values()]
        source = Endpoint(
            node="gpu-7",
            http_url=next((part.http_url for part in parts if part.http_url), ""),
            ssh_host=next((part.ssh_host for part in parts if part.ssh_host), ""),
            ssh_port=next((part.ssh_port for part in parts if part.ssh_host), 22),
            ssh_user=next((part.ssh_user for part in parts if part.ssh_host), ""),
            data_root=str(self._base),
        )
        names = tuple(rig.fetches.name for rig in self.rigs.values())
        order = events.TransferAssigned(
            transfer="t-1",
            executor="train-1",
            source="gpu-7",
            target="train-1",
            source_at=source,
            target_at=Endpoint(node="train-1"),
            entry=entry,
            transports=names,
            timeout_s=60.0,
            attempt=1,
        )
        return await self._manager.transfer(order)


@asynccontextmanager
async def chain_of(
    names: tuple[str, ...],
    request: pytest.FixtureRequest,
    base: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Chain]:
    """Start what a chain needs, and stop it."""
    async with AsyncExitStack() as stack:
        rigs = {}
        for name in names:
            (base / name).mkdir()
            rig = made(name, request, base / name, monkeypatch)
            rigs[name] = await stack.enter_async_context(rig.running())
        (base / "root").mkdir()
        inventory = Inventory(base / "root", "train-1")
        stack.push_async_callback(inventory.close)

        async def content_path(node: str, checksum: str) -> str:
            return str(base / "content")

        manager = TransportManager(
            "train-1",
            base / "root",
            inventory,
            {rig.fetches.name: rig.fetches for rig in rigs.values()},
            stall_s=5.0,
            content_path=content_path,
        )
        yield Chain(rigs, manager, base)


def told(results: tuple[TransportResult, ...]) -> list[tuple[str, str]]:
    """Which transport was tried, and what it died of."""
    return [(str(result.transport_used), result.error_class) for result in results]


@pytest.mark.parametrize("names", CHAINS, ids="-".join)
async def test_k12_a_dead_first_transport_is_told_and_the_second_succeeds(
    names: tuple[str, str],
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody answers the first; the facts say so, and count no byte for it."""
    async with chain_of(names, request, tmp_path, monkeypatch) as chain:
        entry = chain.offer(300_000)
        await chain.rigs[names[0]].link.close()
        done = await chain.move(entry)
        assert isinstance(done, events.TransferSucceeded), done
        assert told(done.results) == [(names[0], "Unreachable"), (names[1], "")]
        assert [result.bytes_transferred for result in done.results] == [0, 300_000]


@pytest.mark.parametrize("names", CHAINS, ids="-".join)
async def test_k12_what_the_first_transport_brought_the_second_does_not_bring_again(
    names: tuple[str, str],
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first is cut in its middle, by bytes; together they move each byte once."""
    async with chain_of(names, request, tmp_path, monkeypatch) as chain:
        entry = chain.offer(9_000_000)
        first = chain.rigs[names[0]].link
        first.down, first.cuts = 5_000_000, True
        done = await chain.move(entry)
        assert isinstance(done, events.TransferSucceeded), done
        assert told(done.results) == [(names[0], "Interrupted"), (names[1], "")]
        assert all(result.bytes_transferred > 0 for result in done.results)
        assert done.bytes_transferred == entry.size_bytes


@pytest.mark.parametrize("name", ["http", "p2p"])
async def test_p6_a_file_arrives_over_a_link_that_never_lives_long(
    name: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attempt after attempt, each connection cut after some MB or 4 s, and late besides.

    In the suite 40 MB; ``make slow`` cuts half a gigabyte after each 8 MB.
    """
    megabytes = int(os.environ.get("DATAPLANE_CUT_MB", "40"))
    async with chain_of((name,), request, tmp_path, monkeypatch) as chain:
        entry = chain.offer(megabytes * 1_000_000)
        link = chain.rigs[name].link
        link.cut_after_bytes = 2_000_000 if megabytes < 100 else 8_000_000
        link.cut_after_s, link.latency_s = 4.0, 0.001
        moved, attempts = 0, 0
        async with asyncio.timeout(150 if megabytes < 100 else 1_500):
            while True:
                done = await chain.move(entry)
                moved, attempts = moved + done.bytes_transferred, attempts + 1
                if isinstance(done, events.TransferSucceeded):
                    break
                assert done.retryable, done
        assert link.connections >= entry.size_bytes // link.cut_after_bytes
        assert entry.size_bytes <= moved <= link.passed_down < entry.size_bytes * 1.5
        assert name == "p2p" or moved == entry.size_bytes
