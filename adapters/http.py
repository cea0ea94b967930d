"""The transport over HTTP: ranged, resumable, from the file server of another node.

It makes one attempt and never follows a redirect, never retries, never trusts a length that the
entry does not confirm.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import aiohttp

from adapters.landing import Landing
from adapters.server import FileServer
from adapters.signing import Signer
from adapters.throttle import Throttle
from adapters.transport import (
    EntryMissing,
    Interrupted,
    Progress,
    Refused,
    Request,
    Stalled,
    Unreachable,
)
from streams.values import Transport

__all__ = ["FileServer", "HttpTransport"]

READ_BYTES = 4 << 20
SMALLEST_READ_BYTES = 64 << 10
#: How much may lie in the reader's buffer, as seconds of the rate it is limited to.
BUFFERED_S = 0.1
URL_TTL_S = 300.0
_TELL_EVERY_S = 0.2
_ERROR_TEXT = 300


class HttpTransport:
    """Fetches entries by digest from `FileServer`s, over connections that are kept for reuse."""

    name = Transport.HTTP_FETCH

    def __init__(
        self,
        signer: Signer,
        *,
        ttl_s: float = URL_TTL_S,
        clock: Callable[[], float] = time.time,
        connections_per_host: int = 16,
    ) -> None:
        self._signer = signer
        self._ttl_s = ttl_s
        self._clock = clock
        self._connections_per_host = connections_per_host
        self._session: aiohttp.ClientSession | None = None

    async def fetch(
        self, request: Request, landing: Landing, throttle: Throttle, progress: Progress
    ) -> int:
        """As `Fetches.fetch`. Asks nothing of the source if no byte is lacking."""
        size = request.entry.size_bytes
        if landing.offset == size:
            return 0
        if not request.source.http_url:
            raise Unreachable(f"{request.source.node} has no file server")
        try:
            return await self._attempt(request, landing, throttle, progress)
        except aiohttp.InvalidURL as error:
            raise Unreachable(f"{request.source.node}: no such address") from error
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise Unreachable(f"{request.source.node}: {error}") from error
        except (aiohttp.ClientError, ConnectionError) as error:
            done = f"{landing.offset} of {size} bytes"
            raise Interrupted(f"{request.source.node} broke off at {done}: {error}") from error

    async def close(self) -> None:
        """Let go of connections."""
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()

    async def _attempt(
        self, request: Request, landing: Landing, throttle: Throttle, progress: Progress
    ) -> int:
        async with await self._ask(request, landing.offset, throttle) as response:
            if response.status == 200 and landing.offset:
                await landing.reset()
            await _accept(response, request, landing.offset)
            return await _receive(response, request, landing, throttle, progress)

    async def _ask(
        self, request: Request, offset: int, throttle: Throttle
    ) -> aiohttp.ClientResponse:
        entry = request.entry
        url = self._signer.url(
            request.source.http_url,
            entry.checksum,
            entry.path,
            request.target,
            self._clock(),
            self._ttl_s,
        )
        headers = {"Accept-Encoding": "identity"}
        if offset:
            headers |= {"Range": f"bytes={offset}-", "If-Range": f'"{entry.checksum}"'}
        try:
            async with asyncio.timeout(request.connect_s + request.stall_s):
                return await self._sessions().get(
                    url,
                    headers=headers,
                    allow_redirects=False,
                    read_bufsize=_read_bytes(throttle),
                    timeout=aiohttp.ClientTimeout(total=None, sock_connect=request.connect_s),
                )
        except aiohttp.ConnectionTimeoutError:
            raise
        except TimeoutError as error:
            raise Stalled(f"{request.source.node} gave no answer") from error

    def _sessions(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0, limit_per_host=self._connections_per_host)
            self._session = aiohttp.ClientSession(connector=connector, auto_decompress=False)
        return self._session


def _read_bytes(throttle: Throttle) -> int:
    if not throttle.bytes_per_s:
        return READ_BYTES
    fitting = int(throttle.bytes_per_s * BUFFERED_S)
    return max(SMALLEST_READ_BYTES, min(READ_BYTES, fitting))


async def _accept(response: aiohttp.ClientResponse, request: Request, offset: int) -> None:
    """Raise unless this answer brings exactly the bytes that are lacking."""
    who, entry = request.source.node, request.entry
    if response.status in (404, 410):
        raise EntryMissing(f"{who} does not hold {entry.path} with this content any more")
    if response.status not in (200, 206):
        said = await _error_text(response, request)
        raise Refused(f"{who} answered {response.status} {response.reason}: {said}")
    if response.headers.get("ETag") != f'"{entry.checksum}"':
        raise EntryMissing(f"{who} offers other content than {entry.checksum}")
    expected = f"bytes {offset}-{entry.size_bytes - 1}/{entry.size_bytes}"
    if response.status == 206 and response.headers.get("Content-Range") != expected:
        raise EntryMissing(f"{who} offers {response.headers.get('Content-Range')!r}")
    if response.content_length != entry.size_bytes - offset:
        raise EntryMissing(f"{who} has {response.content_length} bytes, not {entry.size_bytes}")


async def _error_text(response: aiohttp.ClientResponse, request: Request) -> str:
    async with asyncio.timeout(request.stall_s):
        said = await response.content.read(_ERROR_TEXT)
    return said.decode(errors="replace")


async def _receive(
    response: aiohttp.ClientResponse,
    request: Request,
    landing: Landing,
    throttle: Throttle,
    progress: Progress,
) -> int:
    came, told_at = 0, 0.0
    while data := await _read(response, request):
        await landing.write(data)
        await throttle.take(len(data))
        came += len(data)
        if (now := time.monotonic()) - told_at >= _TELL_EVERY_S:
            told_at = now
            progress(landing.offset, request.entry.size_bytes)
    if landing.offset != request.entry.size_bytes:
        raise Interrupted(f"{landing.offset} of {request.entry.size_bytes} bytes came")
    progress(landing.offset, request.entry.size_bytes)
    return came


async def _read(response: aiohttp.ClientResponse, request: Request) -> bytes:
    try:
        async with asyncio.timeout(request.stall_s):
            return await response.content.readany()
    except TimeoutError as error:
        raise Stalled(f"{request.source.node}: no byte for {request.stall_s:g} s") from error
