"""What a node takes that others push to it, and what it does not."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import socket
import sqlite3
import struct
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec import structs

from adapters.errors import DiskFailed, NeverReplaced, Superseded
from adapters.files.group import Group
from adapters.files.inventory import Inventory
from adapters.files.landing import Landed, Landing
from adapters.http.receiving import Receiver
from adapters.http.signing import Signer
from adapters.http.transport import FileServer, HttpTransport
from adapters.throttle import Throttle
from adapters.transport import Request
from streams.values import DataEntry, DataType, Endpoint
from tests.held import Held

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
        self.receiver = Receiver("train-1", root, self.inventory, on_landed=self._landed)
        self.server = FileServer(lambda _: None, SIGNER, receiver=self.receiver)
        self._transport = HttpTransport(SIGNER)

    async def _landed(self, entry: DataEntry, landed: Landed) -> None:
        (known,) = await self.inventory.arrived([entry.path])
        self.told.append((entry.path, landed, known == entry))

    async def push(self, entry: DataEntry, file: Path) -> int:
        """Push a file to it."""
        there = Endpoint(node="train-1", http_url=self.server.url, data_root=str(self.root))
        request = Request("t-1", entry, Endpoint(node="gpu-7"), there)
        return await self._transport.push(request, file, Throttle(), lambda *_: None)

    async def push_many(
        self, tmp_path: Path, *sent: tuple[DataEntry, bytes], key: Signer = SIGNER, to: str = ""
    ) -> list[int | str]:
        """Push files to it at once; bytes of each that moved, or the class of its failure."""
        there = Endpoint(node=to or "train-1", http_url=self.server.url)
        source = Endpoint(node="gpu-7")
        requests = [Request(f"t-{n}", one, source, there) for n, (one, _) in enumerate(sent)]
        files = [file_of(tmp_path, data) for _, data in sent]
        outcomes = await HttpTransport(key).push_many(requests, files)
        return [one if isinstance(one, int) else type(one).__name__ for one in outcomes]

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


async def test_each_of_many_is_known_as_received_before_anybody_is_told(
    target: Target, tmp_path: Path
) -> None:
    """One that is there already is a success, moves no byte, and nobody is told of it again."""
    sent = [(entry_of(f"models/{name}.bin", name.encode()), name.encode()) for name in "abcdef"]
    assert await target.push_many(tmp_path, *sent[:2]) == [1, 1]
    assert await target.push_many(tmp_path, *sent) == [0, 0, 1, 1, 1, 1]
    assert target.told == [(entry.path, Landed(bytes=1), True) for entry, _ in sent]


async def test_p4_p5_what_may_not_replace_what_is_here_is_refused_alone(
    target: Target, tmp_path: Path
) -> None:
    """An older version, and what another node calls as this one calls a file of its own."""
    path = "games/gpu-7/hex8_2p.jsonl"
    own = target.root / path
    own.parent.mkdir(parents=True)
    own.write_bytes(b"mine")
    await target.push(entry_of("models/x.bin", b"new", 9), file_of(tmp_path, b"new"))
    failed = await target.push_many(
        tmp_path,
        (entry_of("models/x.bin", b"older", 7), b"older"),
        (structs.replace(entry_of(path, b"theirs"), data_type=DataType.GAMES), b"theirs"),
        (entry_of("models/y.bin", b"fine"), b"fine"),
    )
    assert failed == ["Superseded", "NeverReplaced", 4]
    assert (target.root / "models/x.bin").read_bytes() == b"new"
    assert own.read_bytes() == b"mine"
    assert (target.root / "models/y.bin").read_bytes() == b"fine"


async def test_p5_a_later_version_that_comes_while_one_is_looked_into_is_not_undone(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two versions of one path, sent at once by different transfers, are held apart."""
    older, newer = entry_of("models/x.bin", b"older", 7), entry_of("models/x.bin", b"new", 9)
    held = Held(monkeypatch, Landing, "_look_inside", lambda landing: landing.entry == older)
    late = asyncio.create_task(target.push(older, file_of(tmp_path, b"older")))
    await held.reached()
    await target.push(newer, file_of(tmp_path, b"new"))
    held.let_go()
    with pytest.raises(Superseded):
        await late
    assert (target.root / newer.path).read_bytes() == b"new"
    assert await target.inventory.arrived([newer.path]) == [newer]
    assert [path for path, _, _ in target.told] == [newer.path]


async def test_p5_a_later_version_that_comes_while_a_batch_does_is_not_undone(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the others of the batch appear."""
    older, other = entry_of("models/x.bin", b"older", 7), entry_of("models/y.bin", b"fine")
    newer = entry_of("models/x.bin", b"new", 9)
    held = Held(monkeypatch, Group, "put", lambda _, some: b"fine" in dict(some).values())
    late = asyncio.create_task(
        target.push_many(tmp_path, (older, b"older"), (other, b"fine")),
    )
    await held.reached()
    await target.push(newer, file_of(tmp_path, b"new"))
    held.let_go()
    assert await late == ["Superseded", 4]
    assert (target.root / newer.path).read_bytes() == b"new"
    assert (target.root / other.path).read_bytes() == b"fine"
    assert await target.inventory.arrived([newer.path]) == [newer]


async def test_p4_many_that_appear_were_expected_before(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that dies right after they got their names takes none for its own."""

    def dies(group: Group) -> None:
        commit(group)
        raise ZeroDivisionError

    commit = Group.commit
    monkeypatch.setattr(Group, "commit", dies)
    sent = [(entry_of(f"models/{name}.bin", name.encode()), name.encode()) for name in "abc"]
    assert await target.push_many(tmp_path, *sent) == ["Refused"] * 3
    assert sorted(file.name for file in (target.root / "models").iterdir()) == [
        "a.bin",
        "b.bin",
        "c.bin",
    ]
    await target.inventory.close()
    again = Inventory(target.root, "train-1")
    await again.arrived([entry.path for entry, _ in sent])
    assert not any(again.keeps_own(entry.path) for entry, _ in sent)
    await again.close()


async def test_many_are_only_taken_from_who_may_send_them_here(
    target: Target, tmp_path: Path
) -> None:
    """Neither with another key, nor what was signed for another node, nor a path twice."""
    sent = (entry_of("models/x.bin", b"x"), b"x")
    stranger = Signer(b"a key of someone else")
    assert await target.push_many(tmp_path, sent, key=stranger) == ["Refused"]
    assert await target.push_many(tmp_path, sent, to="train-2") == ["Refused"]
    assert await target.push_many(tmp_path, sent, sent) == ["Refused", "Refused"]
    assert list(target.root.glob("models/*")) == []


async def test_what_is_only_passed_on_goes_elsewhere_also_among_others(
    target: Target, tmp_path: Path
) -> None:
    """It is no data of the node's, and nobody is told of it."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    known = Inventory(elsewhere, "train-1")
    target.receiver.divert("t-1", Receiver("train-1", elsewhere, known))
    sent = [(entry_of(f"models/{name}.bin", name.encode()), name.encode()) for name in "abc"]
    assert await target.push_many(tmp_path, *sent) == [1, 1, 1]
    assert sorted(file.name for file in target.root.glob("models/*")) == ["a.bin", "c.bin"]
    assert (elsewhere / "models/b.bin").read_bytes() == b"b"
    assert [path for path, _, _ in target.told] == ["models/a.bin", "models/c.bin"]
    await known.close()


@pytest.mark.parametrize("says", [OSError(30, "Read-only file system"), sqlite3.OperationalError()])
async def test_a_disk_that_fails_before_the_first_byte_is_said_to(
    tmp_path: Path, target: Target, monkeypatch: pytest.MonkeyPatch, says: Exception
) -> None:
    """It is the disk of the target, and not that the target would not have it."""

    async def failing(path: str) -> DataEntry:
        raise says

    monkeypatch.setattr(target.inventory, "arrived", failing)
    entry = entry_of("models/hex8_2p.onnx", b"model")
    with pytest.raises(DiskFailed):
        await target.push(entry, file_of(tmp_path, b"model"))
    with pytest.raises(DiskFailed):
        await target.receiver.ready(entry)


async def test_who_breaks_off_is_no_error_of_the_server(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Connections are cut every day: no word of it at a level that somebody is woken for."""
    data = os.urandom(20 << 20)
    file, entry = file_of(tmp_path, data), entry_of("models/hex8_2p.onnx", data)
    server = FileServer(lambda _: file, SIGNER)
    await server.start()
    url = SIGNER.url(server.url, entry.checksum, entry.path, "train-1", time.time(), 60)
    try:
        with caplog.at_level(logging.INFO):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            wire = writer.get_extra_info("socket")
            # It is gone without a farewell.
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.write(f"GET {url.removeprefix(server.url)} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert await reader.readexactly(1 << 16)
            writer.transport.abort()
            async with asyncio.timeout(10):
                while not server.served.broken_off:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
    finally:
        await server.stop()
    assert [record.getMessage() for record in caplog.records] == []
