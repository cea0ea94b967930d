"""What a file server holds for whoever asked and does not listen: nothing for long."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import time
from pathlib import Path

import pytest

from adapters.http import tls
from adapters.http.batches import encode_list
from adapters.http.signing import BATCH_ROUTE, ENTRY_ROUTE, Signer
from adapters.http.transport import FileServer
from streams.values import SMALL_BYTES
from tests.integration.certificates import Authority

LIMIT_S = 60.0
SIGNER = Signer(b"the cluster's own key")
#: Far more than lies between two ends of a connection.
LARGE_BYTES = 32 << 20
WANTED = encode_list(["sha256:" + f"{number:064x}" for number in range(900)])


def question(server: FileServer, how: str) -> bytes:
    """A question whose answer is large."""
    body = WANTED if how == "batch" else b""
    verb, route = ("POST", BATCH_ROUTE) if body else ("GET", ENTRY_ROUTE)
    checksum = f"sha256:{hashlib.sha256(body).hexdigest()}"
    url = SIGNER.url(server.url, checksum, "x", "train-1", time.time(), 60, route=route)
    lines = [f"{verb} {url.removeprefix(server.url)} HTTP/1.1", "Host: x"]
    lines += [f"Content-Length: {len(body)}"] if body else []
    lines += ["Accept-Encoding: zstd"] if how == "packed" else []
    return "\r\n".join([*lines, "", ""]).encode() + body


def held(server: FileServer, file: Path) -> tuple[int, int]:
    """How many connections a server has, and how many handles of a file."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    ends = [line.split()[1] for line in lines if line.split()[3] == "01"]
    handles = [handle for handle in Path("/proc/self/fd").iterdir() if leads_to(handle, file)]
    return ends.count(f"0100007F:{server.port:04X}"), len(handles)


def leads_to(handle: Path, file: Path) -> bool:
    """Whether a handle of this process is one of the file."""
    try:
        return handle.readlink() == file
    except OSError:
        return False


@pytest.mark.parametrize("how", ["plain", "packed", "batch", "over TLS"])
async def test_who_reads_no_more_is_broken_off(
    tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its machine goes on saying that it is there, and would for ever."""
    file = tmp_path / "file"
    file.write_bytes(os.urandom(SMALL_BYTES if how == "batch" else LARGE_BYTES))
    serving = trusting = None
    if how == "over TLS":
        authority = Authority(tmp_path)
        serving, trusting = tls.serving(*authority.issue("node")), authority.trusting()
    server = FileServer(lambda _: file, SIGNER, context=serving, stall_s=1.0)
    await server.start()
    with caplog.at_level(logging.INFO):
        _, asking = await asyncio.open_connection("127.0.0.1", server.port, ssl=trusting)
        asking.write(question(server, how))
        async with asyncio.timeout(LIMIT_S):
            while not server.served.requests:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            while held(server, file) != (0, 0) or not server.served.broken_off:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert server.served.broken_off == 1
        asking.transport.abort()
        await server.stop()
    assert [record.getMessage() for record in caplog.records] == []
