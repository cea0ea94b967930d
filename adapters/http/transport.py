"""The transport over HTTP: ranged and resumable, from and to the file server of another node.

It makes one attempt and never follows a redirect, never retries, never trusts a length that the
entry does not confirm. Small entries that are wanted together come in one answer, others over
connections that are kept; a large one has a socket and a thread of its own, which costs one
connection and saves the event loop every byte.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, TypeVar

import aiohttp

from adapters.errors import EntryMissing, Interrupted, Refused, Stalled, TransportError, Unreachable
from adapters.files.landing import Landing
from adapters.files.sent import opened
from adapters.http.answers import Answer, check, refusal
from adapters.http.download import Download, Line
from adapters.http.errors import broken_off, unreached
from adapters.http.packed import PACKED, PACKED_BELOW_BYTES_S, Unpacking, shrinks
from adapters.http.peer import Peer, Unserved
from adapters.http.receiving import ERROR_HEADER, OFFSET_HEADER, described, error_of
from adapters.http.server import FileServer
from adapters.http.signing import Signer
from adapters.http.small import Access, fetch_small, push_small
from adapters.http.upload import Answered, Upload
from adapters.telling import Telling
from adapters.throttle import Throttle
from adapters.transport import Progress, Request, Take
from adapters.workers import SOCKETS, each, finish
from streams.values import SMALL_BYTES, DataEntry, Transport

__all__ = ["FileServer", "HttpTransport"]

C = TypeVar("C", Download, Upload)
T = TypeVar("T")

#: From here on an entry is worth a connection of its own.
LARGE_BYTES = 8 << 20
READ_BYTES = 4 << 20
SMALLEST_READ_BYTES = 64 << 10
#: How much is read at once, as seconds of the rate it is limited to.
READ_S = 0.1
URL_TTL_S = 300.0
#: A target that digests and syncs slower than this is taken for stalled.
SLOWEST_DIGEST_BYTES_S = 20e6
_ERROR_TEXT = 300
_UNREACHED = (
    aiohttp.InvalidURL,
    aiohttp.ClientConnectorError,
    aiohttp.ClientConnectorCertificateError,
    aiohttp.ConnectionTimeoutError,
)


class HttpTransport:
    """Fetches entries by digest from `FileServer`s."""

    name = Transport.HTTP_FETCH

    def __init__(
        self,
        signer: Signer,
        *,
        ttl_s: float = URL_TTL_S,
        clock: Callable[[], float] = time.time,
        connections_per_host: int = 16,
        large_bytes: int = LARGE_BYTES,
        pack: bool = True,
        context: ssl.SSLContext | None = None,
    ) -> None:
        """`context`: whom to trust over TLS; None trusts whom this machine trusts.

        With `pack`, contents that shrink are asked for packed where the grant makes a link slow.
        """
        self._signer = signer
        self._ttl_s = ttl_s
        self._clock = clock
        self._connections_per_host = connections_per_host
        self._large_bytes = large_bytes
        self._pack = pack
        self._context = context or ssl.create_default_context()
        self._session: aiohttp.ClientSession | None = None

    async def fetch(
        self, request: Request, landing: Landing, throttle: Throttle, progress: Progress
    ) -> int:
        """As `Fetches.fetch`. Asks nothing of the source if no byte is lacking."""
        lacking = request.entry.size_bytes - landing.offset
        if not lacking:
            return 0
        if not request.source.http_url:
            raise Unreachable(f"{request.source.node} has no file server")
        telling = Telling(progress, request.entry.size_bytes)
        if self._packs(request.entry, lacking, throttle):
            return await self._fetch_packed(request, landing, throttle, telling)
        if lacking >= self._large_bytes:
            return await self._fetch_large(request, landing, throttle, telling)
        try:
            return await self._fetch_small(request, landing, throttle, telling)
        except _UNREACHED as error:
            raise unreached(request.source.node, request.source.http_url, error) from error
        except (aiohttp.ClientError, ConnectionError) as error:
            raise broken_off(request.source.node, request.entry.path, error) from error

    async def fetch_many(
        self, requests: Sequence[Request], take: Take
    ) -> Sequence[TransportError | None]:
        """As `FetchesMany.fetch_many`."""
        return await fetch_small(self._access(), requests, take)

    async def push_many(
        self, requests: Sequence[Request], files: Sequence[Path]
    ) -> Sequence[int | TransportError]:
        """As `PushesMany.push_many`."""
        outcomes = list(await push_small(self._access(), requests, files))

        async def push(number: int) -> None:
            try:
                outcomes[number] = await self.push(
                    requests[number], files[number], Throttle(), lambda done, total: None
                )
            except TransportError as error:
                outcomes[number] = error

        # A target of an older version takes one after the other.
        alone = [number for number, one in enumerate(outcomes) if isinstance(one, Unserved)]
        await each(alone, push, self._connections_per_host)
        return outcomes

    def _access(self) -> Access:
        return Access(self._signer, self._clock(), self._ttl_s, self._context)

    async def push(
        self, request: Request, file: Path, throttle: Throttle, progress: Progress
    ) -> int:
        """As `Pushes.push`. What came is kept at the target, bound to transfer and digest."""
        size = request.entry.size_bytes
        if not request.target.http_url:
            raise Unreachable(f"{request.target.node} has no file server")
        source = await finish(lambda: opened(file, size))
        try:
            there = await self._put(request, f"bytes */{size}", 0)
            if there.status != 204:
                _judge(there, request)
                return 0
            offset = _offset(there.headers.get(OFFSET_HEADER, "0"), request)
            range_ = f"bytes {offset}-{size - 1}/{size}"
            with Telling(progress, size) as telling:
                telling.tell(offset)
                answer = await self._put(request, range_, size - offset, source, throttle, telling)
            _judge(answer, request)
            return size - offset
        finally:
            await finish(source.close)

    async def _put(
        self,
        request: Request,
        content_range: str,
        length: int,
        source: BinaryIO | None = None,
        throttle: Throttle | None = None,
        telling: Telling | None = None,
    ) -> Answered:
        """Ask with an empty body, or send the last `length` bytes of `source`."""
        entry, target = request.entry, request.target
        url = self._signer.url(
            target.http_url,
            entry.checksum,
            entry.path,
            target.node,
            self._clock(),
            self._ttl_s,
            "PUT",
        )
        headers = described(entry, request.transfer)
        headers |= {"Content-Range": content_range, "Content-Length": str(length)}
        upload = await _begun(
            request,
            target.node,
            lambda line: Upload(url, headers, request, self._context, line),
        )
        patience_s = request.connect_s + request.stall_s + entry.size_bytes / SLOWEST_DIGEST_BYTES_S
        try:
            if source is not None and throttle is not None and telling is not None:
                await _sent(upload, source, entry, length, throttle, telling)
            return await finish(
                lambda: upload.answer(patience_s), executor=SOCKETS, hurry=upload.abort
            )
        finally:
            upload.close()

    async def close(self) -> None:
        """Let go of connections."""
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()

    def _packs(self, entry: DataEntry, lacking: int, throttle: Throttle) -> bool:
        """Whether bytes are dearer than packing them."""
        slow = 0 < throttle.bytes_per_s <= PACKED_BELOW_BYTES_S
        return self._pack and slow and lacking > SMALL_BYTES and shrinks(entry.path)

    async def _fetch_packed(
        self, request: Request, landing: Landing, throttle: Throttle, telling: Telling
    ) -> int:
        """Bring what is lacking, packed if the source packs; how many bytes that were."""
        entry, source = request.entry, request.source
        url, headers = self._question(request, landing.offset)
        headers["Accept-Encoding"] = PACKED
        peer = Peer(
            source.node,
            source.http_url,
            request.connect_s,
            request.stall_s,
            self._context,
            entry.path,
        )

        async def blocking(work: Callable[[], T]) -> T:
            return await finish(work, executor=SOCKETS, hurry=peer.abort)

        try:
            said = await blocking(lambda: peer.ask(url, headers=headers))
            if said.status == 200 and landing.offset:
                await landing.reset()
            lacking = entry.size_bytes - landing.offset
            packed = said.getheader("Content-Encoding") == PACKED
            answer = Answer(
                status=said.status,
                reason=said.reason,
                etag=said.getheader("ETag"),
                content_range=said.getheader("Content-Range"),
                length=lacking if packed else said.length,
            )
            check(answer, request, landing.offset)
            body, moved = Unpacking(peer, packed=packed), 0
            while lacking := entry.size_bytes - landing.offset:
                most = min(lacking, throttle.paced(SMALLEST_READ_BYTES, READ_BYTES, READ_S))
                data, came = await blocking(lambda most=most: body.next(most))  # type: ignore[misc]
                await landing.write(data)
                await throttle.take(came)
                moved += came
                telling.tell(landing.offset)
            return moved
        finally:
            await finish(peer.close)

    async def _fetch_large(
        self, request: Request, landing: Landing, throttle: Throttle, telling: Telling
    ) -> int:
        url, headers = self._question(request, landing.offset)
        download = await _begun(
            request,
            request.source.node,
            lambda line: Download(url, headers, request, self._context, line),
        )
        try:
            answer = Answer(
                status=download.status,
                reason=download.reason,
                etag=download.etag,
                content_range=download.content_range,
                length=download.length,
            )
            if answer.status not in (200, 206):
                said = await finish(
                    lambda: download.text(_ERROR_TEXT), executor=SOCKETS, hurry=download.abort
                )
                raise refusal(answer, request, said)
            if answer.status == 200 and landing.offset:
                await landing.reset()
            check(answer, request, landing.offset)
            came = 0
            while landing.offset < request.entry.size_bytes:
                count = await landing.fill(
                    download.into, throttle.paced(SMALLEST_READ_BYTES, READ_BYTES, READ_S)
                )
                await throttle.take(count)
                came += count
                telling.tell(landing.offset)
            return came
        finally:
            download.close()

    async def _fetch_small(
        self, request: Request, landing: Landing, throttle: Throttle, telling: Telling
    ) -> int:
        async with await self._ask(request, landing.offset, throttle) as response:
            answer = Answer(
                status=response.status,
                reason=response.reason or "",
                etag=response.headers.get("ETag"),
                content_range=response.headers.get("Content-Range"),
                length=response.content_length,
            )
            if answer.status not in (200, 206):
                said = b""
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(request.stall_s):
                        said = await response.content.read(_ERROR_TEXT)
                raise refusal(answer, request, said.decode(errors="replace"))
            if answer.status == 200 and landing.offset:
                await landing.reset()
            check(answer, request, landing.offset)
            came = 0
            while data := await _read(response, request):
                await landing.write(data)
                await throttle.take(len(data))
                came += len(data)
                telling.tell(landing.offset)
            return came

    async def _ask(
        self, request: Request, offset: int, throttle: Throttle
    ) -> aiohttp.ClientResponse:
        url, headers = self._question(request, offset)
        try:
            async with asyncio.timeout(request.connect_s + request.stall_s):
                return await self._sessions().get(
                    url,
                    headers=headers,
                    allow_redirects=False,
                    read_bufsize=throttle.paced(SMALLEST_READ_BYTES, READ_BYTES, READ_S),
                    timeout=aiohttp.ClientTimeout(total=None, sock_connect=request.connect_s),
                )
        except aiohttp.ConnectionTimeoutError:
            raise
        except TimeoutError as error:
            who, what = request.source.node, request.entry.path
            raise Stalled(f"{who} gave no answer about {what}") from error

    def _question(self, request: Request, offset: int) -> tuple[str, dict[str, str]]:
        entry = request.entry
        url = self._signer.url(
            request.source.http_url,
            entry.checksum,
            entry.path,
            request.target.node,
            self._clock(),
            self._ttl_s,
        )
        headers = {"Accept-Encoding": "identity"}
        if offset:
            headers |= {"Range": f"bytes={offset}-", "If-Range": f'"{entry.checksum}"'}
        return url, headers

    def _sessions(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(
                limit=0, limit_per_host=self._connections_per_host, ssl=self._context
            )
            self._session = aiohttp.ClientSession(connector=connector, auto_decompress=False)
        return self._session


async def _begun(request: Request, who: str, begin: Callable[[Line], C]) -> C:
    """What `begin` makes of a connection to `who`, in a thread; nothing of it is left open if this
    is cancelled.

    Raises `Stalled` if it takes longer than connecting and being silent may.
    """
    made, line = list[C](), Line()
    try:
        async with asyncio.timeout(request.connect_s + request.stall_s):
            await finish(lambda: made.append(begin(line)), executor=SOCKETS, hurry=line.give_up)
    except BaseException as error:
        for connection in made:
            connection.close()
        if isinstance(error, TimeoutError):
            raise Stalled(f"{who} gave no answer about {request.entry.path}") from error
        raise
    return made[0]


async def _sent(
    upload: Upload,
    source: BinaryIO,
    entry: DataEntry,
    length: int,
    throttle: Throttle,
    telling: Telling,
) -> None:
    """Send the last `length` bytes. What the target says before it has all is its answer."""
    size = entry.size_bytes
    offset = size - length
    while offset < size:
        most = min(throttle.paced(SMALLEST_READ_BYTES, READ_BYTES, READ_S), size - offset)
        await throttle.take(most)
        try:
            count = await finish(
                lambda at=offset, most=most: upload.send(source, at, most),  # type: ignore[misc]
                executor=SOCKETS,
                hurry=upload.abort,
            )
        except Interrupted:
            # It may have said why, and then stopped listening.
            return
        if not count:
            raise EntryMissing(f"the file of {entry.path}, which is sent, has become shorter")
        offset += count
        telling.tell(offset)


def _judge(answer: Answered, request: Request) -> None:
    """Raise unless the target says that it has landed."""
    if answer.status == 201:
        return
    said = f"{request.target.node}: {answer.text[:_ERROR_TEXT]}"
    if ERROR_HEADER in answer.headers:
        raise error_of(answer.headers[ERROR_HEADER], said)
    who, what = request.target.node, request.entry.path
    raise Refused(f"{who} answered {answer.status} about {what}: {answer.text[:_ERROR_TEXT]}")


async def _read(response: aiohttp.ClientResponse, request: Request) -> bytes:
    try:
        async with asyncio.timeout(request.stall_s):
            return await response.content.readany()
    except TimeoutError as error:
        who, what = request.source.node, request.entry.path
        raise Stalled(f"{who}: no byte of {what} for {request.stall_s:g} s") from error


def _offset(said: str, request: Request) -> int:
    """How much of a file the target says it has."""
    size, who = request.entry.size_bytes, request.target.node
    if not re.fullmatch("[0-9]{1,18}", said) or int(said) > size:
        raise Interrupted(
            f"{who} says that it has {said[:20]!r} of the {size} bytes of {request.entry.path}"
        )
    return int(said)
