"""Serves what this node holds, by digest, over HTTP, and lets a receiver take what is sent.

Ranges, signed URLs, `sendfile`; and for those that fetch from many, block maps, what is there of a
content, its changed pages, and batches.

It must never list anything, follow a path from a URL, or say whether it holds a content to somebody
who may not fetch it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from adapters.files.digest import named
from adapters.files.maps import MapStore
from adapters.files.scattered import Underway
from adapters.http.arriving import answer_batch
from adapters.http.batches import MalformedBatch, decode_list, frames
from adapters.http.packed import PACKED, pack
from adapters.http.receiving import Receiver
from adapters.http.signing import (
    BATCH_ROUTE,
    ENTRY_ROUTE,
    HAVE_ROUTE,
    MAP_ROUTE,
    PAGES_ROUTE,
    BadSignature,
    Signer,
)
from adapters.p2p.offers import Offers, Opened
from adapters.p2p.pages import MalformedPages
from adapters.workers import PEERS, finish

T = TypeVar("T")

_RANGE = re.compile(r"bytes=(?!-$)(\d{0,18})-(\d{0,18})", re.ASCII)
#: Who takes no byte for so long is broken off: longer than others wait for a byte, for with a low
#: grant what one has taken may lie for long before there is room for more.
STALL_S = 120.0
#: Wait for transfers under way when the server is stopped.
_GRACE_S = 2.0
#: Of a body that is received.
_READ_BYTES = 1 << 20
_DIGEST = "{digest:[0-9a-f]{64}}"
_BINARY = "application/octet-stream"


class Served(msgspec.Struct):
    """What a file server did since it started."""

    requests: int = 0
    bytes_sent: int = 0
    refused: int = 0
    missing: int = 0
    broken_off: int = 0


class FileServer:
    """An HTTP server over `locate`, which finds the file that holds exactly a digest's content.

    `maps` keeps the block maps it makes; `underway` are the files of which parts are here.
    """

    def __init__(
        self,
        locate: Callable[[str], Path | None],
        signer: Signer,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        clock: Callable[[], float] = time.time,
        receiver: Receiver | None = None,
        context: ssl.SSLContext | None = None,
        maps: MapStore | None = None,
        underway: Underway | None = None,
        stall_s: float = STALL_S,
    ) -> None:
        """`receiver` takes what is pushed; without it nothing is. `context`: serve over TLS.

        Who takes none of an answer's bytes for `stall_s` seconds is broken off.
        """
        self.host = host
        #: The port it listens on; real once `start` has returned.
        self.port = port
        self.served = Served()
        self._offers = Offers(locate, maps, underway)
        self._signer = signer
        self._clock = clock
        self._receiver = receiver
        self._context = context
        self._stall_s = stall_s
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """The base of this server's URLs, as seen from its own machine."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self._context else 'http'}://{host}:{self.port}"

    async def start(self) -> None:
        """Listen. Raises `OSError` if the address is taken."""
        application = web.Application(middlewares=[self._until_gone])
        router = application.router
        router.add_get(ENTRY_ROUTE + _DIGEST, self._answer)
        router.add_get(MAP_ROUTE + _DIGEST, self._answer_map)
        router.add_get(HAVE_ROUTE + _DIGEST, self._answer_having)
        router.add_post(PAGES_ROUTE + _DIGEST, self._answer_pages)
        router.add_post(BATCH_ROUTE + _DIGEST, self._answer_batch)
        if self._receiver is not None:
            router.add_put(ENTRY_ROUTE + _DIGEST, self._receive)
            router.add_put(BATCH_ROUTE + _DIGEST, self._receive_batch)
        self._runner = web.AppRunner(
            application, access_log=None, shutdown_timeout=_GRACE_S, read_bufsize=_READ_BYTES
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.host, self.port, ssl_context=self._context)
        await site.start()
        listening: list[socket.socket] = site._server.sockets  # type: ignore[union-attr]
        self.port = int(listening[0].getsockname()[1])
        for one in listening:
            _break_off_after(self._stall_s, one)

    async def stop(self) -> None:
        """Stop listening and let go of all connections. Harmless when done twice."""
        if self._runner is not None:
            runner, self._runner = self._runner, None
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        checksum, refusal = self._trusted(request)
        if refusal is not None:
            return refusal
        opened = await finish(lambda: self._offers.open(checksum))
        if opened is None:
            return self._missing()
        try:
            return await self._send(request, opened, f'"{checksum}"')
        finally:
            os.close(opened.handle)

    async def _answer_map(self, request: web.Request) -> web.StreamResponse:
        checksum, refusal = self._trusted(request)
        if refusal is not None:
            return refusal
        found = await self._found(lambda: self._offers.map(checksum))
        return self._missing() if found is None else self._whole(found.encode())

    async def _answer_having(self, request: web.Request) -> web.StreamResponse:
        checksum, refusal = self._trusted(request)
        if refusal is not None:
            return refusal
        found = await self._found(lambda: self._offers.having(checksum))
        return self._missing() if found is None else self._whole(found.encode())

    async def _answer_pages(self, request: web.Request) -> web.StreamResponse:
        checksum, refusal = self._trusted(request)
        if refusal is not None:
            return refusal
        question = await request.read()
        compress = PACKED in request.headers.get(hdrs.ACCEPT_ENCODING, "")
        try:
            found = await self._found(lambda: self._offers.pages(checksum, question, compress))
        except MalformedPages as error:
            return web.Response(status=400, text=str(error))
        if found is None:
            return self._missing()
        return self._whole(found, {hdrs.CONTENT_ENCODING: PACKED} if compress else {})

    async def _answer_batch(self, request: web.Request) -> web.StreamResponse:
        checksum, refusal = self._trusted(request)
        if refusal is not None:
            return refusal
        body = await request.read()
        if named(hashlib.sha256(body)) != checksum:
            self.served.refused += 1
            return web.Response(status=403, text="the URL was signed for another list")
        try:
            parts = frames(decode_list(body), self._offers.locate)
        except MalformedBatch as error:
            return web.Response(status=400, text=str(error))
        response = web.StreamResponse()
        response.content_type = _BINARY
        await response.prepare(request)
        while part := await finish(lambda: next(parts, b"")):
            await response.write(part)
            self.served.bytes_sent += len(part)
        # Who has the last frame may be gone before hearing that there are no more.
        with contextlib.suppress(ConnectionError):
            await response.write_eof()
        return response

    def _trusted(
        self, request: web.Request, verb: str = "GET", only_to: str = ""
    ) -> tuple[str, web.Response | None]:
        """The content that a question is about, and why it is not answered, if it is not.

        `only_to`: the node that it must have been signed for.
        """
        self.served.requests += 1
        checksum = "sha256:" + request.match_info["digest"]
        try:
            target = self._signer.verify(checksum, request.query, self._clock(), verb)
        except BadSignature as error:
            self.served.refused += 1
            return checksum, web.Response(status=403, text=str(error))
        if only_to and target != only_to:
            self.served.refused += 1
            return checksum, web.Response(status=403, text=f"this is {only_to}, not {target}")
        return checksum, None

    async def _receive(self, request: web.Request) -> web.StreamResponse:
        assert self._receiver is not None
        checksum, refusal = self._trusted(request, "PUT", self._receiver.node)
        return refusal or await self._receiver.answer(request, checksum)

    async def _receive_batch(self, request: web.Request) -> web.StreamResponse:
        assert self._receiver is not None
        checksum, refusal = self._trusted(request, "PUT", self._receiver.node)
        return refusal or await answer_batch(self._receiver, request, checksum)

    def _missing(self) -> web.Response:
        self.served.missing += 1
        return web.Response(status=404, text="this content is not here (any more)")

    def _whole(self, body: bytes, headers: dict[str, str] | None = None) -> web.Response:
        self.served.bytes_sent += len(body)
        return web.Response(body=body, content_type=_BINARY, headers=headers)

    async def _found(self, find: Callable[[], T | None]) -> T | None:
        """What is found of a content; None also where its file goes away meanwhile."""
        try:
            # A large file's map takes long, and those who wait for it must not keep disks from us.
            return await finish(find, executor=PEERS)
        except OSError:
            return None

    async def _send(self, request: web.Request, opened: Opened, etag: str) -> web.StreamResponse:
        size = opened.size_bytes
        headers = {hdrs.ETAG: etag, hdrs.ACCEPT_RANGES: "bytes"}
        asked = _RANGE.fullmatch(request.headers.get(hdrs.RANGE, "").strip())
        if request.headers.get(hdrs.IF_RANGE, etag) != etag:
            asked = None
        first, count = _span(asked, size)
        if count < 0:
            headers[hdrs.CONTENT_RANGE] = f"bytes */{size}"
            return web.Response(status=416, headers=headers)
        if not opened.holds(first, count):
            return self._missing()
        response = web.StreamResponse(status=206 if asked else 200, headers=headers)
        if asked:
            response.headers[hdrs.CONTENT_RANGE] = f"bytes {first}-{first + count - 1}/{size}"
        response.content_type = _BINARY
        packed = PACKED in request.headers.get(hdrs.ACCEPT_ENCODING, "")
        if packed:
            response.headers[hdrs.CONTENT_ENCODING] = PACKED
        else:
            response.content_length = count
        await response.prepare(request)
        if count and request.method != hdrs.METH_HEAD:
            if packed:
                await self._send_packed(response, opened.handle, first, count)
            else:
                await self._send_bytes(request, opened.handle, first, count)
        await response.write_eof()
        return response

    async def _send_packed(
        self, response: web.StreamResponse, handle: int, first: int, count: int
    ) -> None:
        pieces = pack(handle, first, count)
        while (piece := await finish(lambda: next(pieces, None), executor=PEERS)) is not None:
            if piece:
                await response.write(piece)
                self.served.bytes_sent += len(piece)

    async def _send_bytes(self, request: web.Request, handle: int, first: int, count: int) -> None:
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the other side is gone")
        try:
            with os.fdopen(handle, "rb", 0, closefd=False) as file:
                sent = await asyncio.get_running_loop().sendfile(transport, file, first, count)
            self.served.bytes_sent += sent
            if sent < count:
                # The length was said already, so only breaking off is honest.
                raise ConnectionAbortedError("the file has become shorter")
        except AttributeError as error:
            # So asyncio says that a connection with TLS was lost meanwhile.
            raise ConnectionResetError("the other side is gone") from error
        except (OSError, asyncio.CancelledError):
            # It may not know yet that it is broken.
            transport.abort()
            raise

    @web.middleware
    async def _until_gone(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """That whoever asked is gone is no error of ours: long connections are cut every day."""
        try:
            return await handler(request)
        except (ConnectionError, TimeoutError, web.RequestPayloadError):
            if request.transport is not None and not request.transport.is_closing():
                raise
            self.served.broken_off += 1
            # It goes nowhere.
            return web.Response(status=400)


def _break_off_after(stall_s: float, listening: socket.socket) -> None:
    """Break off who takes no byte for so long, of all whom this socket lets in.

    The kernel does so also while the other side says that it is there and has no room. Where there
    is no such kernel, nobody is broken off.
    """
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(stall_s * 1000))


def _span(asked: re.Match[str] | None, size: int) -> tuple[int, int]:
    """First byte and count of what a ``Range`` header asks for; a count below 0 if there is none.

    What is no single range of bytes counts as no range at all, as RFC 9110 wants it.
    """
    if asked is None:
        return 0, size
    first, last = asked.groups()
    if not first:
        count = min(int(last), size)
        return size - count, count or -1
    start, end = int(first), min(int(last) if last else size - 1, size - 1)
    return start, end - start + 1 if start <= end else -1
