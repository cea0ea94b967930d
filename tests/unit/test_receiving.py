"""What a node takes that others push to it, and what it does not."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec import structs

from adapters.errors import NeverReplaced, Superseded
from adapters.files.inventory import Inventory
from adapters.files.landing import Landed
from adapters.http.receiving import Receiver
from adapters.http.signing import Signer
from adapters.http.transport import FileServer, HttpTransport
from adapters.throttle import Throttle
from adapters.transport import Request
from streams.values import DataEntry, DataType, Endpoint

SIGNER = Signer(b"the cluster's own key")


def entry_of(path: str, data: bytes, version: int = 0) -> DataEntry:
    """An entry that means exactly `data`."""
    return DataEntry(
        path=path,
        data_type=DataType.MODELS,
        config_key="all",
        size_bytes=len(data),
        checksum=f"sha256:{hashlib.sha256(data).hexdigest()}",
        version=version,
    )


class Target:
    """A node that takes what is pushed to it, and remembers what it was told of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.told: list[tuple[str, Landed, bool]] = []
        self.inventory = Inventory(root, "train-1")
        receiver = Receiver("train-1", root, self.inventory, on_landed=self._landed)
        self.server = FileServer(lambda _: None, SIGNER, receiver=receiver)
        self._transport = HttpTransport(SIGNER)

    async def _landed(self, entry: DataEntry, landed: Landed) -> None:
        known = await self.inventory.arrived(entry.path)
        self.told.append((entry.path, landed, known == entry))

    async def push(self, entry: DataEntry, file: Path) -> int:
        """Push a file to it."""
        there = Endpoint(node="train-1", http_url=self.server.url, data_root=str(self.root))
        request = Request("t-1", entry, Endpoint(node="gpu-7"), there)
        return await self._transport.push(request, file, Throttle(), lambda *_: None)

    async def close(self) -> None:
        """Stop it."""
        await self._transport.close()
        await self.server.stop()
        await self.inventory.close()


@pytest.fixture
async def target(tmp_path: Path) -> AsyncIterator[Target]:
    """A node with an empty data root."""
    (tmp_path / "root").mkdir()
    target = Target(tmp_path / "root")
    await target.server.start()
    yield target
    await target.close()


def file_of(tmp_path: Path, data: bytes) -> Path:
    """A file that holds `data`."""
    file = tmp_path / hashlib.sha256(data).hexdigest()
    file.write_bytes(data)
    return file


async def test_what_lands_is_known_as_received_before_anybody_is_told(
    target: Target, tmp_path: Path
) -> None:
    """Or a scan in between would take it for the node's own; and it is not taken twice."""
    entry, file = entry_of("models/x.bin", b"model"), file_of(tmp_path, b"model")
    assert await target.push(entry, file) == 5
    assert target.told == [("models/x.bin", Landed(bytes=5), True)]
    assert await target.push(entry, file) == 0
    assert len(target.told) == 1


async def test_p5_an_older_version_is_not_taken(target: Target, tmp_path: Path) -> None:
    """It may come late, from a node that was away."""
    await target.push(entry_of("models/x.bin", b"new", 9), file_of(tmp_path, b"new"))
    with pytest.raises(Superseded):
        await target.push(entry_of("models/x.bin", b"older", 7), file_of(tmp_path, b"older"))
    assert (target.root / "models/x.bin").read_bytes() == b"new"


async def test_p4_a_file_of_the_nodes_own_is_not_replaced(target: Target, tmp_path: Path) -> None:
    """Whatever it is called elsewhere."""
    path = "games/gpu-7/hex8_2p.jsonl"
    own = target.root / path
    own.parent.mkdir(parents=True)
    own.write_bytes(b"mine")
    entry = structs.replace(entry_of(path, b"theirs"), data_type=DataType.GAMES)
    with pytest.raises(NeverReplaced):
        await target.push(entry, file_of(tmp_path, b"theirs"))
    assert own.read_bytes() == b"mine"
