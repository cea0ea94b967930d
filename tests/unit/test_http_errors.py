"""What is said where a file can't be moved over HTTP: by whom, at what, and why, and no secret."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from adapters.errors import TransportError
from adapters.files.landing import Landing
from adapters.http.signing import Signer
from adapters.http.transport import HttpTransport
from adapters.p2p.asking import Around
from adapters.p2p.transport import P2PTransport
from adapters.throttle import Throttle
from adapters.transport import Request
from streams.values import Endpoint
from tests.unit.test_receiving import entry_of

LIMIT_S = 60.0
SIGNER = Signer(b"the cluster's own key")
CONTENT = os.urandom(1 << 20)
ENTRY = entry_of("models/hex8_2p.jsonl", CONTENT)
HEAD = f'HTTP/1.1 200 OK\r\nETag: "{ENTRY.checksum}"\r\nContent-Length: {len(CONTENT)}\r\n\r\n'
#: Slow enough that a text is worth packing, and fast enough not to be waited for.
SLOW_MBPS = 100.0
#: What a server says, and whether it falls silent then or breaks off; how that is told.
WAYS: dict[str, tuple[bytes, bool, tuple[str, ...]]] = {
    "nothing": (b"", False, ("closed the connection",)),
    "silence": (b"", True, ("no answer", "takes nothing")),
    "no HTTP": (b"what?\r\n\r\n", False, ("no HTTP",)),
    "the beginning": (HEAD.encode() + b"x", False, ("closed", "early", "answered", "block map")),
    "the beginning, then nothing": (HEAD.encode() + b"x", True, ("no byte", "takes nothing")),
    "a refusal": (b"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\nno", False, ("answered 500",)),
    "a refusal, then nothing": (
        b"HTTP/1.1 500 No\r\nContent-Length: 9\r\n\r\n",
        True,
        ("answered 500", "no answer", "takes nothing"),
    ),
    "a lack": (b"HTTP/1.1 404 No\r\nContent-Length: 2\r\n\r\nno", False, ("not hold", "404")),
}


async def fetched(transport: HttpTransport | P2PTransport, request: Request, root: Path) -> None:
    """Fetch, of a text, over a link of which the grant makes much."""
    landing = await Landing.open(root, ENTRY, "t-1", ENTRY.path)
    try:
        await transport.fetch(request, landing, Throttle(SLOW_MBPS), lambda *_: None)
    finally:
        await landing.abort()
        await transport.close()


async def pushed(request: Request, root: Path) -> None:
    """Push."""
    (root / "file").write_bytes(CONTENT)
    transport = HttpTransport(SIGNER)
    try:
        await transport.push(request, root / "file", Throttle(), lambda *_: None)
    finally:
        await transport.close()


ATTEMPTS: dict[str, Callable[[Request, Path], Awaitable[None]]] = {
    "small": lambda *to: fetched(HttpTransport(SIGNER, pack=False), *to),
    "large": lambda *to: fetched(HttpTransport(SIGNER, pack=False, large_bytes=1), *to),
    "packed": lambda *to: fetched(HttpTransport(SIGNER), *to),
    "p2p": lambda *to: fetched(P2PTransport(Around(SIGNER, lambda _: None)), *to),
    "push": pushed,
}


async def told(how: str, url: str, root: Path, connect_s: float = 1.0) -> str:
    """What an attempt fails with, that must be said of every failure."""
    there = Endpoint(node="gpu-7", http_url=url)
    request = Request("t-1", ENTRY, there, there, stall_s=0.5, connect_s=connect_s)
    async with asyncio.timeout(LIMIT_S):
        with pytest.raises(TransportError) as failed:
            await ATTEMPTS[how](request, root)
    said = str(failed.value)
    assert "gpu-7" in said
    for never in ("signature", "Errno", "Error", "Exception", "Disconnected"):
        assert never not in said
    return said


@contextlib.asynccontextmanager
async def answering(says: bytes, stays: bool) -> AsyncIterator[str]:
    """A server that answers everything so."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(says)
        if stays:
            await reader.read()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()


@pytest.mark.parametrize("how", ATTEMPTS)
@pytest.mark.parametrize("way", WAYS)
async def test_who_failed_at_what_and_why_is_said(tmp_path: Path, how: str, way: str) -> None:
    """Whoever reads it in a fact or a log knows where to look."""
    says, stays, why = WAYS[way]
    async with answering(says, stays) as url:
        said = await told(how, url, tmp_path)
    assert ENTRY.path in said
    assert any(words in said for words in why), said


@pytest.mark.parametrize("how", ATTEMPTS)
async def test_where_nobody_answers_is_said(tmp_path: Path, how: str) -> None:
    """The address is what may be wrong, with what the system makes of it."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        at = f"127.0.0.1:{nobody.getsockname()[1]}"
        said = await told(how, f"http://{at}", tmp_path)
        assert said == f"gpu-7 can't be reached at {at}: connection refused"
    for address in ("127.0.0.1:99999", "[::1"):
        said = await told(how, f"http://{address}", tmp_path)
        assert said == f"gpu-7: '{address}' is no address of a server"
    async with answering(b"", True) as url:
        said = await told(how, url.replace("http:", "https:"), tmp_path, connect_s=0.5)
        assert said == f"gpu-7 can't be reached at {url.partition('//')[2]}: no answer in time"
