"""What every transport that fetches must do, whatever carries its bytes.

Each is run between a source and a target through a link that can be cut, stopped and slowed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest

from adapters.http import FileServer, HttpTransport
from adapters.landing import Landed, Landing
from adapters.places import OWN_DIRECTORY
from adapters.signing import Signer
from adapters.throttle import Throttle
from adapters.transport import (
    DigestMismatch,
    DiskFull,
    EntryMissing,
    Fetches,
    Interrupted,
    PathEscapes,
    Refused,
    Request,
    Stalled,
    Unreachable,
)
from streams.values import DataEntry, DataType, Endpoint

PATIENCE_S = 60.0
PATH = "data/gpu-7/x.bin"


class Link:
    """A TCP relay in front of a source: passes everything, until it is told otherwise."""

    def __init__(self, host: str, port: int) -> None:
        self._source = (host, port)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0
        #: Bytes that may still pass from the source; None is no limit.
        self.allowance: int | None = None
        #: Whether the connection ends, or only falls silent, when the allowance is used up.
        self.cuts = False
        self.passed = 0
        self.connections = 0
        self.silent = asyncio.Event()

    async def open(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Refuse all connections from now on, and end those there are."""
        if self._server is not None:
            self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        there, back = await asyncio.open_connection(*self._source)
        self._writers |= {writer, back}
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pass(reader, back))
                both.create_task(self._pass_back(there, writer))
        except* ConnectionError:
            pass
        for one in (writer, back):
            self._writers.discard(one)
            one.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError

    async def _pass_back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            if self.allowance is not None:
                data, self.allowance = data[: self.allowance], self.allowance - len(data)
            writer.write(data)
            self.passed += len(data)
            await writer.drain()
            if self.allowance is not None and self.allowance <= 0:
                self.allowance = 0
                self.silent.set()
                if self.cuts:
                    raise ConnectionResetError
                await asyncio.Event().wait()
        raise ConnectionResetError


class Rig(Protocol):
    """A transport, and a source it can fetch from through a link."""

    transport: Fetches
    source: Endpoint
    link: Link

    def hold(self, entry: DataEntry, path: Path) -> None:
        """Let the source offer a file as an entry's content."""

    def refuse(self) -> None:
        """Let the source no longer trust the target."""


class HttpRig:
    """`HttpTransport` and `FileServer`, with entries above some size counting as large."""

    def __init__(self, large_bytes: int) -> None:
        self._large_bytes = large_bytes
        self._held: dict[str, Path] = {}
        self._server = FileServer(self._held.get, Signer(b"the cluster's own key"))
        self.transport: Fetches = HttpTransport(
            Signer(b"the cluster's own key"), large_bytes=large_bytes
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[HttpRig]:
        """Start everything, and stop it."""
        await self._server.start()
        self.link = Link(self._server.host, self._server.port)
        await self.link.open()
        self.source = Endpoint(node="gpu-7", http_url=f"http://127.0.0.1:{self.link.port}")
        yield self
        await self.transport.close()
        await self.link.close()
        await self._server.stop()

    def hold(self, entry: DataEntry, path: Path) -> None:
        """As `Rig.hold`."""
        self._held[entry.checksum] = path

    def refuse(self) -> None:
        """As `Rig.refuse`."""
        self.transport = HttpTransport(
            Signer(b"a key of someone else"), large_bytes=self._large_bytes
        )


RIGS: dict[str, Callable[[], HttpRig]] = {
    "http over kept connections": lambda: HttpRig(1 << 60),
    "http over a socket each": lambda: HttpRig(0),
}


@pytest.fixture(params=RIGS)
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    """Each transport in turn."""
    async with RIGS[request.param]().running() as running:
        yield running


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The target's data root."""
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def entry_of(data: bytes, path: str = PATH) -> DataEntry:
    """An entry that means exactly `data`."""
    return DataEntry(
        path=path,
        data_type=DataType.METADATA,
        config_key="all",
        size_bytes=len(data),
        checksum=f"sha256:{hashlib.sha256(data).hexdigest()}",
    )


def offered(rig: Rig, tmp_path: Path, data: bytes, path: str = PATH) -> DataEntry:
    """An entry whose content the source offers."""
    entry = entry_of(data, path)
    (tmp_path / "source").mkdir(exist_ok=True)
    file = tmp_path / "source" / entry.checksum.removeprefix("sha256:")
    file.write_bytes(data)
    rig.hold(entry, file)
    return entry


async def fetch(
    rig: Rig,
    landing: Landing,
    entry: DataEntry,
    *,
    stall_s: float = 30.0,
    throttle: Throttle | None = None,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> int:
    """One attempt."""
    request = Request(
        "t-1", entry, rig.source, Endpoint(node="trainer"), stall_s=stall_s, connect_s=5.0
    )
    async with asyncio.timeout(PATIENCE_S):
        return await rig.transport.fetch(request, landing, throttle or Throttle(), progress)


async def bring(rig: Rig, root: Path, entry: DataEntry, local: str = PATH) -> tuple[int, Landed]:
    """Fetch and commit: bytes that moved, and what landed."""
    landing = await Landing.open(root, entry, "t-1", local)
    try:
        came = await fetch(rig, landing, entry)
        return came, await landing.commit()
    finally:
        await landing.abort()


def files_in(root: Path) -> dict[str, bytes]:
    """All files under final names."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and OWN_DIRECTORY not in path.parts
    }


@pytest.mark.parametrize("size", [0, 1, 70_000, 5_000_000, 20_000_000])
async def test_an_entry_arrives_byte_for_byte(
    rig: Rig, tmp_path: Path, root: Path, size: int
) -> None:
    """Empty, tiny and large; and as many bytes are reported as moved."""
    data = os.urandom(size)
    entry = offered(rig, tmp_path, data)
    assert await bring(rig, root, entry) == (size, Landed(bytes=size))
    assert files_in(root) == {PATH: data}


@pytest.mark.parametrize("path", ["棋譜/gpu-7/ゲーム 1.bin", "a?b=c&d#e%2f/ü.bin", "n" * 255])
async def test_names_in_any_script_arrive(rig: Rig, tmp_path: Path, root: Path, path: str) -> None:
    """Neither the transport nor the landing takes a name for anything but a name."""
    entry = offered(rig, tmp_path, b"content", path)
    await bring(rig, root, entry, path)
    assert files_in(root) == {path: b"content"}


async def test_many_fetches_run_at_once(rig: Rig, tmp_path: Path, root: Path) -> None:
    """Each into its own landing, and none gets another's bytes."""
    contents = {f"data/{number}.bin": os.urandom(50_000 + number) for number in range(40)}
    entries = [offered(rig, tmp_path, data, path) for path, data in contents.items()]
    await asyncio.gather(*(bring(rig, root, entry, entry.path) for entry in entries))
    assert files_in(root) == contents


async def test_p6_a_broken_fetch_goes_on_where_it_was(rig: Rig, tmp_path: Path, root: Path) -> None:
    """The first attempt ends as interrupted, and the second brings only what is lacking."""
    data = os.urandom(12_000_000)
    entry = offered(rig, tmp_path, data)
    rig.link.allowance, rig.link.cuts = 7_000_000, True
    landing = await Landing.open(root, entry, "t-1", PATH)
    with pytest.raises(Interrupted):
        await fetch(rig, landing, entry)
    await landing.abort()
    assert files_in(root) == {}
    kept = landing.offset
    assert 0 < kept < 7_000_000
    rig.link.allowance = None
    came, landed = await bring(rig, root, entry)
    assert (came, landed.bytes) == (len(data) - kept, len(data))
    assert files_in(root) == {PATH: data}


async def test_p15_bytes_are_those_that_moved(rig: Rig, tmp_path: Path, root: Path) -> None:
    """Nothing moves if all is there already; progress never runs ahead of what is there."""
    data = os.urandom(6_000_000)
    entry = offered(rig, tmp_path, data)
    landing = await Landing.open(root, entry, "t-1", PATH)
    told: list[tuple[int, int]] = []
    came = await fetch(rig, landing, entry, progress=lambda *said: told.append(said))
    assert came == len(data) <= rig.link.passed < len(data) + 10_000
    assert told[-1] == (len(data), len(data))
    assert all(done <= total == len(data) for done, total in told)
    assert await fetch(rig, landing, entry) == 0
    await landing.commit()


async def test_wrong_content_never_lands(rig: Rig, tmp_path: Path, root: Path) -> None:
    """A source that gives other bytes of the right number is found out in the end."""
    entry = offered(rig, tmp_path, b"right" * 1000)
    (tmp_path / "wrong").write_bytes(b"wrong" * 1000)
    rig.hold(entry, tmp_path / "wrong")
    with pytest.raises(DigestMismatch):
        await bring(rig, root, entry)
    assert files_in(root) == {}
    again = await Landing.open(root, entry, "t-1", PATH)
    assert again.offset == 0
    await again.abort()


@pytest.mark.parametrize("size", [10, 30])
async def test_content_of_another_size_is_not_even_begun(
    rig: Rig, tmp_path: Path, root: Path, size: int
) -> None:
    """Size and digest are asked before the bytes."""
    entry = offered(rig, tmp_path, b"x" * 20)
    (tmp_path / "wrong").write_bytes(b"x" * size)
    rig.hold(entry, tmp_path / "wrong")
    landing = await Landing.open(root, entry, "t-1", PATH)
    with pytest.raises((EntryMissing, DigestMismatch)):
        await fetch(rig, landing, entry)
    assert landing.offset == 0
    await landing.abort()


async def test_a_source_that_changes_while_it_is_fetched_is_found_out(
    rig: Rig, tmp_path: Path, root: Path
) -> None:
    """Half of one version and half of another never land, and the next attempt begins anew."""
    old, new = os.urandom(12_000_000), os.urandom(12_000_000)
    entry = offered(rig, tmp_path, old)
    rig.link.allowance, rig.link.cuts = 4_000_000, True
    landing = await Landing.open(root, entry, "t-1", PATH)
    with pytest.raises(Interrupted):
        await fetch(rig, landing, entry)
    await landing.abort()
    file = tmp_path / "source" / entry.checksum.removeprefix("sha256:")
    file.write_bytes(new)
    rig.link.allowance = None
    with pytest.raises(DigestMismatch):
        await bring(rig, root, entry)
    assert files_in(root) == {}
    file.write_bytes(old)
    assert await bring(rig, root, entry) == (len(old), Landed(bytes=len(old)))


async def test_what_the_source_does_not_hold_is_missing(rig: Rig, root: Path) -> None:
    """Another source may have it; another transport to this one would not help."""
    entry = entry_of(b"nobody has this")
    with pytest.raises(EntryMissing) as caught:
        await bring(rig, root, entry)
    assert not caught.value.try_next_transport


async def test_a_source_that_does_not_trust_us_refuses(
    rig: Rig, tmp_path: Path, root: Path
) -> None:
    """That is not the same as being away, or as not having it."""
    entry = offered(rig, tmp_path, b"x")
    rig.refuse()
    with pytest.raises(Refused):
        await bring(rig, root, entry)
    await rig.transport.close()


async def test_a_source_that_is_away_is_unreachable(rig: Rig, tmp_path: Path, root: Path) -> None:
    """Nobody listens there."""
    entry = offered(rig, tmp_path, b"x")
    await rig.link.close()
    with pytest.raises(Unreachable):
        await bring(rig, root, entry)


@pytest.mark.parametrize("passes", [0, 3_000_000])
async def test_silence_ends_an_attempt_as_stalled(
    rig: Rig, tmp_path: Path, root: Path, passes: int
) -> None:
    """Before the first byte or after many; and what came is kept."""
    data = os.urandom(9_000_000)
    entry = offered(rig, tmp_path, data)
    rig.link.allowance = passes
    landing = await Landing.open(root, entry, "t-1", PATH)
    with pytest.raises(Stalled):
        await fetch(rig, landing, entry, stall_s=0.3)
    await landing.abort()
    assert (landing.offset > 0) == (passes > 0)
    rig.link.allowance = None
    came, _ = await bring(rig, root, entry)
    assert came == len(data) - landing.offset
    assert files_in(root) == {PATH: data}


async def test_a_slow_link_is_not_a_stalled_one(rig: Rig, tmp_path: Path, root: Path) -> None:
    """Waiting for the throttle is our own doing, and takes longer than a stall here."""
    data = os.urandom(400_000)
    entry = offered(rig, tmp_path, data)
    landing = await Landing.open(root, entry, "t-1", PATH)
    throttle, loop = Throttle(3.2), asyncio.get_running_loop()
    began = loop.time()
    assert await fetch(rig, landing, entry, stall_s=0.2, throttle=throttle) == len(data)
    assert loop.time() - began > 0.7
    await landing.commit()


async def test_a_raised_limit_is_felt_by_a_fetch_under_way(
    rig: Rig, tmp_path: Path, root: Path
) -> None:
    """A fetch that would take an hour ends soon after its limit is lifted."""
    data = os.urandom(4_000_000)
    entry = offered(rig, tmp_path, data)
    landing = await Landing.open(root, entry, "t-1", PATH)
    throttle = Throttle(0.01)
    fetching = asyncio.create_task(fetch(rig, landing, entry, throttle=throttle))
    await until(lambda: landing.offset > 0)
    assert not fetching.done()
    throttle.set_rate(0)
    assert await fetching == len(data)
    await landing.commit()


async def test_a_cancelled_fetch_leaves_only_its_bytes(
    rig: Rig, tmp_path: Path, root: Path
) -> None:
    """No file, no connection; and the next attempt goes on from there."""
    data = os.urandom(12_000_000)
    entry = offered(rig, tmp_path, data)
    rig.link.allowance = 6_000_000
    landing = await Landing.open(root, entry, "t-1", PATH)
    fetching = asyncio.create_task(fetch(rig, landing, entry))
    await until(lambda: landing.offset > 0 and rig.link.silent.is_set())
    fetching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    await landing.abort()
    assert files_in(root) == {}
    rig.link.allowance = None
    came, _ = await bring(rig, root, entry)
    assert came == len(data) - landing.offset < len(data)
    assert files_in(root) == {PATH: data}


@pytest.mark.parametrize("large_bytes", [0, 1 << 60])
async def test_p6_a_source_that_gives_no_ranges_is_fetched_from_the_beginning(
    root: Path, large_bytes: int
) -> None:
    """Over HTTP the whole may come where the rest was asked for; it is not put behind what is
    there."""
    data = os.urandom(500_000)
    entry = entry_of(data)
    head = f'HTTP/1.1 200 OK\r\nContent-Length: {len(data)}\r\nETag: "{entry.checksum}"\r\n\r\n'

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head.encode() + data)
        await writer.drain()

    landing = await Landing.open(root, entry, "t-1", PATH)
    await landing.write(data[:200_000])
    transport = HttpTransport(Signer(b"the cluster's own key"), large_bytes=large_bytes)
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        source = Endpoint(node="gpu-7", http_url=url)
        request = Request("t-1", entry, source, Endpoint(node="trainer"))
        came = await transport.fetch(request, landing, Throttle(), lambda *_: None)
    await transport.close()
    assert came == len(data)
    assert await landing.commit() == Landed(bytes=len(data))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A data root on a disk of 2 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(path)], check=True)
    yield path
    subprocess.run(["umount", str(path)], check=True)


async def test_a_full_disk_is_said_before_a_byte_moves(
    rig: Rig, tmp_path: Path, small_disk: Path
) -> None:
    """An entry that does not fit with its reserve is not begun."""
    entry = offered(rig, tmp_path, os.urandom(2_000_000))
    with pytest.raises(DiskFull):
        await bring(rig, small_disk, entry)
    assert rig.link.connections == 0


async def test_a_disk_that_fills_up_on_the_way_is_no_fault_of_the_source(
    rig: Rig, tmp_path: Path, small_disk: Path
) -> None:
    """The attempt ends as DiskFull, not as interrupted."""
    entry = offered(rig, tmp_path, os.urandom(1_500_000))
    landing = await Landing.open(small_disk, entry, "t-1", PATH)
    (small_disk / "other").write_bytes(bytes(1_000_000))
    with pytest.raises(DiskFull):
        await fetch(rig, landing, entry)
        await landing.commit()
    await landing.abort()
    assert files_in(small_disk).keys() == {"other"}


async def test_p19_an_escaping_path_is_refused_before_a_byte_moves(
    rig: Rig, tmp_path: Path, root: Path
) -> None:
    """Whatever a source offers."""
    entry = offered(rig, tmp_path, b"x", "../../etc/x")
    with pytest.raises(PathEscapes):
        await bring(rig, root, entry, entry.path)
    assert rig.link.connections == 0


async def test_p12_memory_does_not_grow_with_the_file(rig: Rig, tmp_path: Path, root: Path) -> None:
    """A sparse file of 256 MiB passes through a few blocks of memory."""
    size = 256 << 20
    file = tmp_path / "sparse"
    file.touch()
    os.truncate(file, size)
    sha = hashlib.sha256(bytes(1 << 20) * 256).hexdigest()
    entry = DataEntry(
        path=PATH,
        data_type=DataType.METADATA,
        config_key="all",
        size_bytes=size,
        checksum=f"sha256:{sha}",
    )
    rig.hold(entry, file)
    before = memory("VmRSS")
    forget_peak()
    assert await bring(rig, root, entry) == (size, Landed(bytes=size))
    assert memory("VmHWM") - before < 64 << 20


def memory(what: str) -> int:
    """A line of this process's memory, in bytes."""
    (found,) = re.findall(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found) * 1024


def forget_peak() -> None:
    """Let the peak of this process's memory begin at what it is now."""
    Path("/proc/self/clear_refs").write_text("5")


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
