"""Who is given up ends at once and leaves nothing running, however long it would have waited."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import os
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from adapters.errors import Stalled
from adapters.files.landing import Landing
from adapters.http.signing import Signer
from adapters.http.transport import LARGE_BYTES, HttpTransport
from adapters.p2p.asking import Around
from adapters.p2p.transport import P2PTransport
from adapters.ssh.rsync_run import Run
from adapters.throttle import Throttle
from adapters.transport import Request
from adapters.workers import finish
from streams.values import DataEntry, DataType, Endpoint

SIGNER = Signer(b"the cluster's own key")
CONTENT = os.urandom(LARGE_BYTES)
ENTRY = DataEntry(
    path="models/hex8_2p.onnx",
    data_type=DataType.MODELS,
    config_key="hex8_2p",
    size_bytes=len(CONTENT),
    checksum=f"sha256:{hashlib.sha256(CONTENT).hexdigest()}",
)
#: How long anything here would wait by itself; and when it is plain that it does.
PATIENCE_S, LIMIT_S = 120.0, 60.0
#: The state of a connection that nobody has taken yet, as the kernel writes it.
SYN_SENT = "02"


@pytest.fixture
def nobody() -> Iterator[int]:
    """A port where no connection is taken: its queue is full."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(listening.getsockname())
        yield listening.getsockname()[1]
        for one in waiting:
            one.close()


def connecting(port: int) -> int:
    """How many connections to a port are waited for that nobody takes."""
    found = (line.split()[2:4] for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return sum(to == f"0100007F:{port:04X}" and state == SYN_SENT for to, state in found)


async def fetched(transport: HttpTransport | P2PTransport, url: str, root: Path) -> None:
    """Fetch from there."""
    landing = await Landing.open(root, ENTRY, "t-1", ENTRY.path)
    try:
        await transport.fetch(request_to(url), landing, Throttle(), lambda *_: None)
    finally:
        await landing.abort()
        await transport.close()


async def pushed(url: str, root: Path) -> None:
    """Push to there."""
    (root / "file").write_bytes(CONTENT)
    transport = HttpTransport(SIGNER)
    try:
        await transport.push(request_to(url), root / "file", Throttle(), lambda *_: None)
    finally:
        await transport.close()


def request_to(url: str) -> Request:
    """An attempt that would be patient."""
    there = Endpoint(node="gpu-7", http_url=url)
    return Request("t-1", ENTRY, there, there, stall_s=PATIENCE_S, connect_s=PATIENCE_S)


ATTEMPTS: dict[str, Callable[[str, Path], Awaitable[None]]] = {
    "http": lambda url, root: fetched(HttpTransport(SIGNER), url, root),
    "p2p": lambda url, root: fetched(P2PTransport(Around(SIGNER, lambda _: None)), url, root),
    "push": pushed,
}


async def given_up(attempt: Awaitable[None], waits: Callable[[], bool]) -> None:
    """Give up an attempt once it waits, and see that it does so no longer."""
    attempting = asyncio.ensure_future(attempt)
    async with asyncio.timeout(LIMIT_S):
        while not waits():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    assert not attempting.done()
    attempting.cancel()
    await asyncio.wait([attempting], timeout=LIMIT_S)
    assert attempting.cancelled()


@pytest.mark.parametrize("how", ATTEMPTS)
async def test_who_waits_for_a_connection_is_given_up_at_once(
    tmp_path: Path, nobody: int, how: str
) -> None:
    """An agent that is told to end does not wait for a machine that is gone."""
    others = connecting(nobody)
    attempt = ATTEMPTS[how](f"http://127.0.0.1:{nobody}", tmp_path)
    await given_up(attempt, lambda: connecting(nobody) > others)


@pytest.mark.parametrize("how", ATTEMPTS)
async def test_who_waits_for_an_answer_is_given_up_at_once(tmp_path: Path, how: str) -> None:
    """Nor for one that hears and says nothing: of a push that may be an hour."""

    asked = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    await given_up(ATTEMPTS[how](url, tmp_path), asked.is_set)
    server.close()


async def test_a_source_that_always_says_to_go_on_is_not_waited_for(tmp_path: Path) -> None:
    """Words without an answer end as silence does."""

    async def going_on(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not writer.is_closing():
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            await asyncio.sleep(0.01)

    server = await asyncio.start_server(going_on, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    there = Endpoint(node="gpu-7", http_url=url)
    request = Request("t-1", ENTRY, there, there, stall_s=0.3, connect_s=0.3)
    landing = await Landing.open(tmp_path, ENTRY, "t-1", ENTRY.path)
    transport = HttpTransport(SIGNER)
    async with asyncio.timeout(LIMIT_S):
        with pytest.raises(Stalled):
            await transport.fetch(request, landing, Throttle(), lambda *_: None)
    await landing.abort()
    await transport.close()
    server.close()


async def test_rsync_has_ended_however_often_it_is_given_up() -> None:
    """What it would write after that would mix with what the next attempt writes."""
    run = await Run.begin(["sh", "-c", "trap '' TERM; echo began; sleep 60"], b"")
    stopping = asyncio.ensure_future(run.stop())
    for _ in range(3):
        await asyncio.sleep(0.05)
        stopping.cancel()
    await asyncio.wait([stopping])
    assert run.ended.done()


class Threads(ThreadPoolExecutor):
    """It remembers what was given to it."""

    def __init__(self) -> None:
        super().__init__(max_workers=1)
        self.given: list[Future[Any]] = []

    def submit(self, *work: Any, **more: Any) -> Future[Any]:
        self.given.append(super().submit(*work, **more))
        return self.given[-1]


async def test_what_ended_badly_as_it_was_given_up_is_not_complained_of() -> None:
    """Nobody is left to ask what came of it, and that is nothing to log."""
    complaints: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, said: complaints.append(said))
    hurried, told = threading.Event(), threading.Event()

    def fails() -> None:
        hurried.wait()
        raise OSError("gone")

    with Threads() as threads:
        asked = asyncio.ensure_future(finish(fails, executor=threads, hurry=hurried.set))
        while not threads.given:  # noqa: ASYNC110
            await asyncio.sleep(0)
        # Who waits for it has asked to be told before.
        threads.given[0].add_done_callback(lambda _: told.set())
        asked.cancel()
        await asyncio.sleep(0)
        # It ends in the same turn of the loop in which it is given up a second time.
        told.wait()
        asked.cancel()
        await asyncio.wait([asked])
    threads.given.clear()
    del asked
    gc.collect()
    await asyncio.sleep(0)
    assert complaints == []
