"""The transport to and from an S3 bucket, and the bucket's manifests.

An object's key is the digest of its content, so the same data is stored once, and an object that is
there is never written again. **Nothing here deletes an object, and nothing ever may**: that a file
is absent on a node says nothing about its backup. What is aborted are uploads that never became an
object. It makes one attempt and never retries, and shows no credentials: they come from the
standard chains, and errors are told by their code, not in the server's words.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import logging
import os
import re
import time
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Sequence,
)
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import aioboto3
import aiohttp
import msgspec
from botocore import exceptions as boto
from botocore.config import Config

from adapters import s3_layout as layout
from adapters.digest import BLOCK_BYTES, checksum_of, hex_of, named
from adapters.landing import Landed, Landing
from adapters.places import confined
from adapters.s3_layout import Manifest, ManifestEntry
from adapters.sealing import HEADER_BYTES, Opener, Sealed, Sealer
from adapters.throttle import Throttle
from adapters.transport import (
    DigestMismatch,
    EntryMissing,
    Interrupted,
    Progress,
    Refused,
    Request,
    Stalled,
    TransportError,
    Unreachable,
)
from adapters.workers import DIGESTS, finish
from streams.identity import PathRules
from streams.values import S3_NODE, DataEntry, Proof, Transport

__all__ = ["S3Bucket", "S3Transport"]

T = TypeVar("T")

PART_BYTES = 16 << 20
#: Smaller than a part: what is fetched but not yet in order is lost when an attempt ends.
RANGE_BYTES = 8 << 20
CONNECT_S = 10.0
#: Unfinished uploads that nobody went on with for this long are given up.
STALE_S = 24 * 3600.0
#: A server may think for long about putting the parts of an upload together.
COMPLETE_S = 300.0
_CONNECTIONS = 64
#: Questions about objects that are asked at once.
_ASKED_AT_ONCE = 16
_RESTORED_AT_ONCE = 4
#: How often another writer may win before the attempt ends.
_RACES = 16
_PIECE_BYTES = 256 << 10
_SMALLEST_PIECE_BYTES = 16 << 10
#: How much passes at once, as seconds of the rate it is limited to.
_PIECE_S = 0.1
_TELL_EVERY_S = 0.2

_HINTS = {
    "NoSuchBucket": "there is no such bucket; create it",
    "InvalidAccessKeyId": "the access key is not known there",
    "SignatureDoesNotMatch": "the secret key does not belong to the access key",
    "AccessDenied": "these credentials may not do this",
    "403": "these credentials may not do this, or are wrong",
    "ExpiredToken": "the credentials have expired",
    "RequestTimeTooSkewed": "this node's clock is wrong",
    "InvalidStorageClass": "this server has no such storage class; set another, or none",
}
_OVERTAKEN = {
    "PreconditionFailed",
    "ConditionalRequestConflict",
    "OperationAborted",
    "NoSuchUpload",
    "412",
}
_PASSING = {
    "SlowDown",
    "RequestTimeout",
    "InternalError",
    # What was sent got spoiled on its way, or parts of two writers met.
    "BadDigest",
    "InvalidDigest",
    "InvalidPart",
    "EntityTooSmall",
}
_MISSING = {"NoSuchKey", "404", "InvalidRange", "416"}
_UNREACHABLE = (boto.ConnectTimeoutError, boto.ProxyConnectionError, boto.SSLError)
_BROKEN_OFF = (
    aiohttp.ClientError,
    boto.HTTPClientError,
    boto.ResponseStreamingError,
    boto.IncompleteReadError,
)
#: What they tell when they tell everything holds headers, and so tokens.
_TALKATIVE = ("botocore", "aiobotocore", "boto3")
_NO_CREDENTIALS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.ProfileNotFound,
    boto.TokenRetrievalError,
)


class Overtaken(Interrupted):
    """Somebody else has written this meanwhile; look again."""


class Found(msgspec.Struct, frozen=True):
    """What the bucket says of an object."""

    etag: str
    bytes: int
    sha256: str
    #: SHA-256 of the object, in Base64, where the server knows it; of its parts if it has a ``-``.
    checksum: str

    def holds(self, stored: ManifestEntry) -> bool:
        """Whether it is the object that is meant, as far as can be told without its bytes."""
        digits = hex_of(stored.entry.checksum)
        if self.bytes != stored.stored_bytes or self.sha256 != digits:
            return False
        if not self.checksum or "-" in self.checksum or layout.sealed_with(stored.key):
            return True
        return self.checksum == _base64(bytes.fromhex(digits))


class Flow:
    """What the bytes of an attempt pass: the limit on their speed, and the watch for silence."""

    def __init__(
        self,
        size_bytes: int = 0,
        throttle: Throttle | None = None,
        progress: Progress = lambda *_: None,
        *,
        stall_s: float = 30.0,
        connect_s: float = CONNECT_S,
    ) -> None:
        self.stall_s = stall_s
        #: Bytes that went through a connection.
        self.moved = 0
        self._answer_s = stall_s + connect_s
        self._size = size_bytes
        self._throttle = throttle or Throttle()
        self._progress = progress
        self._done = 0
        self._told_at = 0.0

    @classmethod
    def of(cls, request: Request, throttle: Throttle, progress: Progress) -> Flow:
        """The flow of one attempt."""
        return cls(
            request.entry.size_bytes,
            throttle,
            progress,
            stall_s=request.stall_s,
            connect_s=request.connect_s,
        )

    @property
    def piece_bytes(self) -> int:
        """How much may pass at once."""
        rate = self._throttle.bytes_per_s
        fitting = int(rate * _PIECE_S) if rate else _PIECE_BYTES
        return max(_SMALLEST_PIECE_BYTES, min(_PIECE_BYTES, fitting))

    def answering(self, at_least_s: float = 0.0) -> asyncio.Timeout:
        """How long a question may go without an answer."""
        return asyncio.timeout(max(self._answer_s, at_least_s))

    async def take(self, nbytes: int) -> None:
        """Wait until they may pass."""
        await self._throttle.take(nbytes)

    def begin(self, nbytes: int) -> None:
        """So many were done before."""
        self._done = 0
        self.tell(nbytes)

    def tell(self, nbytes: int) -> None:
        """So many more are done."""
        self._done = min(self._done + nbytes, self._size)
        now = time.monotonic()
        if self._done == self._size or now - self._told_at >= _TELL_EVERY_S:
            self._told_at = now
            self._progress(self._done, self._size)


class Body:
    """The body of a request, given away piece by piece as the connection takes it."""

    def __init__(self, data: bytes, flow: Flow, watch: asyncio.Timeout) -> None:
        self._data = data
        self._flow = flow
        self._watch = watch

    def read(self, _size: int = -1) -> bytes:
        """Nobody calls it, but botocore takes only what can be read for a body."""
        raise NotImplementedError("a body is iterated over")

    async def __aiter__(self) -> AsyncGenerator[bytes]:
        clock = asyncio.get_running_loop().time
        for at, length in layout.spans(0, len(self._data), self._flow.piece_bytes):
            # To wait for the throttle is no silence.
            self._expect_by(None)
            await self._flow.take(length)
            self._expect_by(clock() + self._flow.stall_s)
            yield self._data[at : at + length]
            self._flow.moved += length
            self._flow.tell(length)

    def _expect_by(self, when: float | None) -> None:
        # The question may have ended, with an early answer or without one.
        with contextlib.suppress(RuntimeError):
            self._watch.reschedule(when)


class Store:
    """One bucket through one client: each question asked once, each error in our own words."""

    def __init__(
        self,
        bucket: str,
        endpoint_url: str | None,
        region: str | None,
        session: aioboto3.Session | None,
    ) -> None:
        self._bucket = bucket
        self._endpoint_url = endpoint_url
        self._region = region
        self._session = session
        self._opening = asyncio.Lock()
        self._open = contextlib.AsyncExitStack()
        self._client: Any = None

    async def close(self) -> None:
        """Let go of connections."""
        self._client = None
        await self._open.aclose()

    async def call(
        self, operation: str, watch: asyncio.Timeout, key: str = "", **arguments: Any
    ) -> Any:
        """One operation of S3, such as ``head_object``, on the bucket or on an object of it."""
        with self.errors(key):
            client = await self._connected()
            named_key = {"Key": key} if key else {}
            async with watch:
                return await getattr(client, operation)(
                    Bucket=self._bucket, **named_key, **arguments
                )

    async def listed(
        self, operation: str, field: str, flow: Flow, key: str = "", **arguments: Any
    ) -> list[Any]:
        """All that a listing names in `field`, page by page."""
        found: list[Any] = []
        named_key = {"Key": key} if key else {}
        with self.errors(key):
            client = await self._connected()
            paginator = client.get_paginator(operation)
            pages = aiter(paginator.paginate(Bucket=self._bucket, **named_key, **arguments))
            while True:
                async with flow.answering():
                    page = await anext(pages, None)
                if page is None:
                    return found
                found += page.get(field, [])

    async def head(self, key: str, flow: Flow) -> Found | None:
        """What the bucket says of an object; None if it has none there."""
        try:
            said = await self.call("head_object", flow.answering(), key, ChecksumMode="ENABLED")
        except EntryMissing:
            return None
        except Refused:
            # A HEAD has no body that could say why; this has, if it is refused too.
            await self.call("list_objects_v2", flow.answering(), Prefix=key, MaxKeys=1)
            raise
        return Found(
            etag=said["ETag"],
            bytes=said["ContentLength"],
            sha256=said.get("Metadata", {}).get("sha256", ""),
            checksum=said.get("ChecksumSHA256", ""),
        )

    @contextlib.asynccontextmanager
    async def got(
        self, key: str, flow: Flow, **arguments: Any
    ) -> AsyncIterator[tuple[Any, AsyncGenerator[bytes]]]:
        """What is said of an object or a range of it, and its bytes as they come."""
        said = await self.call("get_object", flow.answering(), key, **arguments)
        async with said["Body"]:
            yield said, self._read(said["Body"], said["ContentLength"], key, flow)

    async def send(
        self, operation: str, key: str, data: bytes, checksum: str, flow: Flow, **arguments: Any
    ) -> Any:
        """Store an object or a part, which the server proves against its `checksum`."""
        watch = flow.answering()
        return await self.call(
            operation,
            watch,
            key,
            Body=Body(data, flow, watch) if data else b"",
            ContentLength=len(data),
            ChecksumSHA256=checksum,
            **arguments,
        )

    async def _read(self, body: Any, length: int, key: str, flow: Flow) -> AsyncGenerator[bytes]:
        left = length
        while left:
            with self.errors(key):
                async with asyncio.timeout(flow.stall_s):
                    piece = await body.read(min(flow.piece_bytes, left))
            if not piece:
                raise Interrupted(f"{key}: the answer broke off {left} bytes before its end")
            left -= len(piece)
            await flow.take(len(piece))
            flow.moved += len(piece)
            yield piece

    async def _connected(self) -> Any:
        async with self._opening:
            if self._client is None:
                for name in _TALKATIVE:
                    logging.getLogger(name).setLevel(logging.INFO)
                try:
                    client = (self._session or aioboto3.Session()).client(
                        "s3",
                        endpoint_url=self._endpoint_url,
                        region_name=self._region,
                        config=_config(self._endpoint_url),
                    )
                    self._client = await self._open.enter_async_context(client)
                except ValueError:
                    # Its text would show what may stand in a URL besides a host.
                    raise Refused("the endpoint is no URL of a server") from None
            return self._client

    @contextlib.contextmanager
    def errors(self, key: str) -> Iterator[None]:
        """Turn what botocore raises into the errors of a transport, in words of our own."""
        what = f"s3://{self._bucket}/{key}"
        try:
            yield
        except boto.ClientError as error:
            raise _said(error, what) from None
        except _NO_CREDENTIALS as error:
            raise Refused(f"{what}: no credentials ({type(error).__name__})") from None
        except boto.EndpointConnectionError as error:
            connecting = isinstance(error.kwargs.get("error"), aiohttp.ClientConnectorError)
            family = Unreachable if connecting else Interrupted
            raise family(f"{what}: {type(error.kwargs.get('error')).__name__}") from None
        except _UNREACHABLE as error:
            raise Unreachable(f"{what}: {type(error).__name__}") from None
        except (TimeoutError, boto.ReadTimeoutError):
            raise Stalled(f"{what}: no byte and no answer for too long") from None
        except _BROKEN_OFF as error:
            raise Interrupted(f"{what}: {type(error).__name__}") from None
        except boto.BotoCoreError as error:
            raise Refused(f"{what}: {type(error).__name__}; check bucket and endpoint") from None


class Source:
    """A local file as the object it is to be, plain or sealed. Blocks; belongs in a thread."""

    def __init__(self, file: Path, stored: ManifestEntry, sealer: Sealer | None) -> None:
        entry = stored.entry
        self.stored = stored
        self._sealed = sealer.sealing(entry.checksum, entry.size_bytes) if sealer else None
        try:
            self._handle = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise EntryMissing(f"{entry.path}: {error.strerror}") from error
        self._state = self._look()

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._handle)

    def read(self, offset: int, length: int) -> bytes:
        """A range of the object. Raises `DigestMismatch` if the file has become shorter."""
        if self._sealed is not None:
            return self._sealed.read(self.read_plain, offset, length)
        return self.read_plain(offset, length)

    def read_plain(self, offset: int, length: int) -> bytes:
        """A range of the file."""
        data = os.pread(self._handle, length, offset)
        if len(data) != min(length, self.stored.entry.size_bytes - offset):
            raise DigestMismatch(f"{self.stored.entry.path} has other bytes than its entry")
        return data

    async def prove(self) -> None:
        """Raise `DigestMismatch` unless the file holds exactly the entry."""
        entry, sha = self.stored.entry, hashlib.sha256()
        if self._state[0] != entry.size_bytes:
            raise DigestMismatch(f"{entry.path} has {self._state[0]} bytes")
        for at, length in layout.spans(0, entry.size_bytes, BLOCK_BYTES):
            data = await finish(partial(self.read_plain, at, length))
            await finish(partial(sha.update, data), executor=DIGESTS)
        if named(sha) != entry.checksum:
            raise DigestMismatch(f"{entry.path} has the digest {named(sha)}")

    def check_unchanged(self) -> None:
        """Raise `DigestMismatch` if somebody wrote to the file since it was opened."""
        if self._look() != self._state:
            raise DigestMismatch(f"{self.stored.entry.path} changed while it was read")

    def _look(self) -> tuple[int, int]:
        seen = os.fstat(self._handle)
        return seen.st_size, seen.st_mtime_ns


class Coming:
    """A range on its way: a task gathers it, so that others may come at the same time."""

    def __init__(self, pieces: AsyncGenerator[bytes]) -> None:
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.task = asyncio.create_task(self._gather(pieces))

    async def pieces(self) -> AsyncGenerator[bytes]:
        """Its bytes in order, then what ended it."""
        while (piece := await self._queue.get()) is not None:
            yield piece
        await self.task

    async def _gather(self, pieces: AsyncGenerator[bytes]) -> None:
        try:
            async for piece in pieces:
                self._queue.put_nowait(piece)
        finally:
            self._queue.put_nowait(None)


class S3Transport:
    """Fetches entries from a bucket and pushes them to it, by digest. Lives on one event loop."""

    name = Transport.S3

    def __init__(
        self,
        bucket: str,
        *,
        endpoint_url: str | None = None,
        region: str | None = None,
        storage_class: str = "STANDARD_IA",
        part_bytes: int = PART_BYTES,
        concurrency: int = 4,
        sealer: Sealer | None = None,
        session: aioboto3.Session | None = None,
    ) -> None:
        """`storage_class` "" leaves it to the server. With a `sealer`, what is pushed is sealed."""
        if part_bytes < layout.SMALLEST_PART_BYTES:
            raise ValueError(f"a part has at least {layout.SMALLEST_PART_BYTES} bytes")
        self.store = Store(bucket, endpoint_url, region, session)
        self._storage = {"StorageClass": storage_class} if storage_class else {}
        self._part_bytes = part_bytes
        self._range_bytes = min(part_bytes, RANGE_BYTES)
        self._concurrency = concurrency
        self._sealer = sealer

    async def close(self) -> None:
        """Let go of connections."""
        await self.store.close()

    def stored(self, entry: DataEntry) -> ManifestEntry:
        """How this transport stores an entry, for a manifest. It asks nothing."""
        if self._sealer is None:
            return ManifestEntry(
                entry=entry, key=layout.object_key(entry.checksum), stored_bytes=entry.size_bytes
            )
        return ManifestEntry(
            entry=entry,
            key=layout.sealed_key(entry.checksum, self._sealer.key_id),
            stored_bytes=self._sealer.sealing(entry.checksum, entry.size_bytes).sealed_bytes,
        )

    # Down

    async def fetch(
        self, request: Request, landing: Landing, throttle: Throttle, progress: Progress
    ) -> int:
        """As `Fetches.fetch`. With a key, an object sealed with it is preferred to a plain one."""
        flow = Flow.of(request, throttle, progress)
        checksum = request.entry.checksum
        if self._sealer is not None:
            with contextlib.suppress(EntryMissing):
                key = layout.sealed_key(checksum, self._sealer.key_id)
                return await self.bring(key, landing, flow)
        return await self.bring(layout.object_key(checksum), landing, flow)

    async def bring(self, key: str, landing: Landing, flow: Flow) -> int:
        """Bring the bytes that `landing` lacks from one object; return how many moved.

        Raises as `Fetches.fetch`, and `Refused` if it is sealed with a key that is not here.
        """
        if landing.offset == landing.entry.size_bytes:
            return 0
        flow.begin(landing.offset)
        bring = self._bring_sealed if layout.sealed_with(key) else self._bring_plain
        await bring(key, landing, flow)
        return flow.moved

    async def _bring_plain(self, key: str, landing: Landing, flow: Flow) -> None:
        size = landing.entry.size_bytes
        coming = self._pieces(key, landing.entry, landing.offset, size, flow)
        async with contextlib.aclosing(coming) as pieces:
            async for piece in pieces:
                await landing.write(piece)
                flow.tell(len(piece))

    async def _bring_sealed(self, key: str, landing: Landing, flow: Flow) -> None:
        try:
            sealed = await self._sealed(key, landing.entry, flow)
            opener = Opener(sealed, landing.offset)
            coming = self._pieces(key, landing.entry, opener.starts_at, sealed.sealed_bytes, flow)
            async with contextlib.aclosing(coming) as pieces:
                async for piece in pieces:
                    plain = await finish(partial(opener.feed, piece), executor=DIGESTS)
                    await landing.write(plain)
                    flow.tell(len(plain))
            opener.finish()
        except DigestMismatch:
            await landing.reset()
            raise

    async def _sealed(self, key: str, entry: DataEntry, flow: Flow) -> Sealed:
        """How an object is opened, by what it begins with."""
        if self._sealer is None or layout.sealed_with(key) != self._sealer.key_id:
            raise Refused(f"{key}: this node has not the key {layout.sealed_with(key)}")
        coming = self._range(key, entry, 0, HEADER_BYTES, None, flow)
        header = b"".join([piece async for piece in coming])
        return self._sealer.opening(header, entry.checksum, entry.size_bytes)

    async def _pieces(
        self, key: str, entry: DataEntry, start: int, end: int, flow: Flow
    ) -> AsyncGenerator[bytes]:
        """An object from `start` to its `end`, in order; a few ranges come at the same time, and
        no more memory is used than they need.
        """
        waiting = deque(layout.spans(start, end, self._range_bytes))
        coming: deque[Coming] = deque()
        try:
            while waiting or coming:
                while waiting and len(coming) < self._concurrency:
                    coming.append(Coming(self._range(key, entry, *waiting.popleft(), end, flow)))
                async for piece in coming[0].pieces():
                    yield piece
                coming.popleft()
        finally:
            await _end([one.task for one in coming])

    async def _range(
        self, key: str, entry: DataEntry, start: int, length: int, whole: int | None, flow: Flow
    ) -> AsyncGenerator[bytes]:
        """One range. Raises `EntryMissing` if the object is not the entry's, or not so long."""
        asked = f"bytes={start}-{start + length - 1}"
        async with self.store.got(key, flow, Range=asked) as (said, pieces):
            _check(said, entry, start, length, whole)
            async for piece in pieces:
                yield piece

    # Up

    async def push(
        self, request: Request, file: Path, throttle: Throttle, progress: Progress
    ) -> int:
        """As `Pushes.push`: the target is the bucket, the final name is the object's key.

        Moves nothing if the object is there. What was cancelled is gone on with next time.
        """
        entry = request.entry
        flow = Flow.of(request, throttle, progress)
        stored = self.stored(entry)
        there = await self.store.head(stored.key, flow)
        if there is not None and there.holds(stored):
            flow.tell(entry.size_bytes)
            return 0
        source = await finish(lambda: Source(file, stored, self._sealer))
        try:
            await source.prove()
            await self._put(source, there, flow)
        finally:
            source.close()
        return flow.moved

    async def _put(self, source: Source, there: Found | None, flow: Flow) -> None:
        """Make the object appear, and see that it has."""
        # What is there under this key and is not its content may be replaced, but nothing else.
        only = {"IfNoneMatch": "*"} if there is None else {"IfMatch": there.etag}
        small = source.stored.stored_bytes <= self._part_bytes
        overtaken = None
        try:
            await (self._put_whole if small else self._put_in_parts)(source, only, flow)
        except Overtaken as error:
            # If it was by the same content, it is as good as ours.
            overtaken = error
        found = await self.store.head(source.stored.key, flow)
        if found is None or not found.holds(source.stored):
            raise overtaken or DigestMismatch(f"{source.stored.key} is not what was sent")

    async def _put_whole(self, source: Source, only: dict[str, str], flow: Flow) -> None:
        stored = source.stored
        data = await finish(lambda: source.read(0, stored.stored_bytes))
        source.check_unchanged()
        about = {"Metadata": _metadata(stored), **self._storage, **only}
        checksum = await finish(partial(_digest, data), executor=DIGESTS)
        await self.store.send("put_object", stored.key, data, checksum, flow, **about)

    async def _put_in_parts(self, source: Source, only: dict[str, str], flow: Flow) -> None:
        stored = source.stored
        size = layout.part_size(stored.stored_bytes, self._part_bytes)
        upload, there = await self._upload(stored, flow)
        parts: dict[int, dict[str, Any]] = {}

        async def put_part(part: tuple[int, tuple[int, int]]) -> None:
            number, (at, length) = part
            data = await finish(partial(source.read, at, length))
            parts[number] = await self._put_part(
                stored.key, upload, number, data, there.get(number, {}), flow
            )

        numbered = enumerate(layout.spans(0, stored.stored_bytes, size), 1)
        await _each(numbered, put_part, self._concurrency)
        source.check_unchanged()
        await self._complete(stored.key, upload, [parts[n] for n in sorted(parts)], only, flow)

    async def _upload(self, stored: ManifestEntry, flow: Flow) -> tuple[str, dict[int, Any]]:
        """The upload to go on with, and what it has of which part."""
        if upload := await self._unfinished(stored.key, flow):
            listed = await self.store.listed(
                "list_parts", "Parts", flow, stored.key, UploadId=upload
            )
            return upload, {part["PartNumber"]: part for part in listed}
        said = await self.store.call(
            "create_multipart_upload",
            flow.answering(),
            stored.key,
            Metadata=_metadata(stored),
            ChecksumAlgorithm="SHA256",
            **self._storage,
        )
        return said["UploadId"], {}

    async def _unfinished(self, key: str, flow: Flow) -> str:
        """The newest upload of this key, whoever began it: it can only be of the same content."""
        try:
            uploads = await self.store.listed("list_multipart_uploads", "Uploads", flow, Prefix=key)
        except Refused:
            # Who may not look begins anew.
            return ""
        mine = [upload for upload in uploads if upload["Key"] == key]
        return max(mine, key=lambda one: one["Initiated"])["UploadId"] if mine else ""

    async def _put_part(
        self, key: str, upload: str, number: int, data: bytes, there: dict[str, Any], flow: Flow
    ) -> dict[str, Any]:
        """Store a part unless it is there; return how it is named when all are put together."""
        digest = await finish(partial(_digest, data), executor=DIGESTS)
        if await finish(partial(_same, there, data, digest), executor=DIGESTS):
            etag = there["ETag"]
            flow.tell(len(data))
        else:
            said = await self.store.send(
                "upload_part", key, data, digest, flow, UploadId=upload, PartNumber=number
            )
            etag = said["ETag"]
        return {"PartNumber": number, "ETag": etag, "ChecksumSHA256": digest}

    async def _complete(
        self,
        key: str,
        upload: str,
        parts: list[dict[str, Any]],
        only: dict[str, str],
        flow: Flow,
    ) -> None:
        """Make an object of the parts."""
        try:
            said = await self.store.call(
                "complete_multipart_upload",
                flow.answering(COMPLETE_S),
                key,
                UploadId=upload,
                MultipartUpload={"Parts": parts},
                **only,
            )
        except Overtaken:
            with contextlib.suppress(TransportError):
                await self._abort(key, upload, flow)
            raise
        digests = b"".join(base64.b64decode(part["ChecksumSHA256"]) for part in parts)
        expected = f"{_digest(digests)}-{len(parts)}"
        if "-" in (got := said.get("ChecksumSHA256", "")) and got != expected:
            raise DigestMismatch(f"{key} was not put together from the parts that were sent")

    async def _abort(self, key: str, upload: str, flow: Flow) -> None:
        await self.store.call("abort_multipart_upload", flow.answering(), key, UploadId=upload)

    async def abort_stale(self, older_than_s: float = STALE_S) -> int:
        """Give up uploads of objects that got no part for so long; return how many.

        They are no objects and nothing can be restored from them, but they are paid for.
        """
        flow, latest = Flow(), time.time() - older_than_s
        aborted = 0
        for prefix in layout.OBJECT_PREFIXES:
            for upload in await self.store.listed(
                "list_multipart_uploads", "Uploads", flow, Prefix=prefix
            ):
                key, name = upload["Key"], upload["UploadId"]
                if upload["Initiated"].timestamp() > latest:
                    continue
                parts = await self.store.listed("list_parts", "Parts", flow, key, UploadId=name)
                if all(part["LastModified"].timestamp() <= latest for part in parts):
                    await self._abort(key, name, flow)
                    aborted += 1
        return aborted


class S3Bucket:
    """What a bucket holds as a whole: its manifests, and what can be restored from it alone.

    Manifests are written only after the objects they name, and conditionally, so that of several
    writers none loses what another wrote. No entry is ever dropped from one.
    """

    def __init__(self, transport: S3Transport, *, clock: Callable[[], float] = time.time) -> None:
        self._transport = transport
        self._store = transport.store
        self._clock = clock

    async def write_manifest(self, node: str, manifest: Manifest) -> Manifest:
        """Add to what a node's manifest names; return what it names now.

        Raises `EntryMissing`, and writes nothing, unless each object is there with its size and
        digest. What the node's manifest named before, it still names, or a newer version of it.
        """
        await _each(manifest.entries, self._check_stored, _ASKED_AT_ONCE)
        return await self._grow(node, [manifest])

    async def read_manifest(self, node: str) -> Manifest:
        """A node's manifest, or the consolidated one for "". Raises `EntryMissing` if there is
        none, `ManifestUnreadable` if it is none.
        """
        manifest, _ = await self._read(node)
        if manifest is None:
            raise EntryMissing(f"there is no {layout.manifest_key(node)}")
        return manifest

    async def nodes(self) -> list[str]:
        """The nodes that have a manifest."""
        found = await self._store.listed(
            "list_objects_v2",
            "CommonPrefixes",
            Flow(),
            Prefix=layout.NODES_PREFIX,
            Delimiter="/",
        )
        names = (layout.node_in(one["Prefix"]) for one in found)
        return sorted(name for name in names if name)

    async def consolidate(self, nodes: Sequence[str] | None = None) -> Manifest:
        """Add what the manifests of `nodes`, or of all, name to the consolidated one; return it.

        A node without a manifest is passed over, and nothing is dropped for it.
        """
        names = await self.nodes() if nodes is None else nodes
        return await self._grow("", await self._manifests(names))

    async def catalog(self) -> Manifest:
        """All that can be restored, whether it was consolidated yet or not. It writes nothing."""
        known = await self._manifests(["", *await self.nodes()])
        return layout.merged("", known, self._clock())

    async def entries(self) -> tuple[DataEntry, ...]:
        """The entries of the catalog, from the bucket alone."""
        return tuple(stored.entry for stored in (await self.catalog()).entries)

    async def restore(
        self,
        stored: ManifestEntry,
        landing: Landing,
        throttle: Throttle | None = None,
        progress: Progress = lambda *_: None,
    ) -> int:
        """Bring one entry of a manifest; as `Fetches.fetch`, the caller commits."""
        flow = Flow(stored.entry.size_bytes, throttle, progress)
        return await self._transport.bring(stored.key, landing, flow)

    async def restore_node(
        self,
        node: str,
        root: Path,
        *,
        rules: PathRules | None = None,
        throttle: Throttle | None = None,
    ) -> dict[str, Landed | TransportError]:
        """Bring all that a node's manifest names under `root`, where that node would keep it.

        Returns what became of each path: one that fails holds up no other. What is there already
        is left as it is, so that it can be called again.
        """
        known = rules or PathRules()
        became: dict[str, Landed | TransportError] = {}

        async def restore_one(stored: ManifestEntry) -> None:
            path = stored.entry.path
            try:
                local = known.local(path, node)
                became[path] = await self._restore_file(stored, root, local, known, throttle)
            except TransportError as error:
                became[path] = error

        await _each((await self.read_manifest(node)).entries, restore_one, _RESTORED_AT_ONCE)
        return became

    async def _restore_file(
        self,
        stored: ManifestEntry,
        root: Path,
        local: str,
        rules: PathRules,
        throttle: Throttle | None,
    ) -> Landed:
        if await finish(lambda: _stands(root, local, stored.entry)):
            return Landed(bytes=stored.entry.size_bytes)
        transfer = f"restore {stored.entry.path}"
        landing = await Landing.open(root, stored.entry, transfer, local, rules=rules)
        try:
            await self.restore(stored, landing, throttle)
            return await landing.commit()
        finally:
            await landing.abort()

    async def prove(self, path: str, checksum: str) -> Proof:
        """Whether a manifest names this content under this path, and the bucket holds the object.

        The digest is the object's own as the server keeps it; its bytes are not fetched.
        """

        def unproven(reason: str) -> Proof:
            return Proof(node=S3_NODE, proven=False, reason=reason)

        try:
            named = [
                stored
                for stored in (await self.catalog()).entries
                if (stored.entry.path, stored.entry.checksum) == (path, checksum)
            ]
            if not named:
                return unproven(f"no manifest names this content of {path}")
            found = await self._store.head(named[0].key, Flow())
        except TransportError as error:
            return unproven(f"{type(error).__name__}: {error}")
        if found is None:
            return unproven(f"{named[0].key} is gone")
        if not found.holds(named[0]):
            return unproven(f"{named[0].key} is another content")
        return Proof(
            node=S3_NODE, proven=True, checksum=checksum, size_bytes=named[0].entry.size_bytes
        )

    async def _check_stored(self, stored: ManifestEntry) -> None:
        found = await self._store.head(stored.key, Flow())
        if found is None or not found.holds(stored):
            raise EntryMissing(f"{stored.key} of {stored.entry.path} is not stored: not named")

    async def _manifests(self, nodes: Iterable[str]) -> list[Manifest]:
        return [found for node in nodes if (found := (await self._read(node))[0]) is not None]

    async def _read(self, node: str) -> tuple[Manifest | None, str]:
        try:
            async with self._store.got(layout.manifest_key(node), Flow()) as (said, pieces):
                data = b"".join([piece async for piece in pieces])
        except EntryMissing:
            return None, ""
        return layout.parsed(data, node), said["ETag"]

    async def _grow(self, node: str, manifests: list[Manifest]) -> Manifest:
        """Merge manifests into one that others may be writing too."""
        for _ in range(_RACES):
            known, etag = await self._read(node)
            wanted = layout.merged(node, [known, *manifests] if known else manifests, self._clock())
            if known is not None and known.entries == wanted.entries:
                return known
            only = {"IfMatch": etag} if known is not None else {"IfNoneMatch": "*"}
            key, data = layout.manifest_key(node), layout.encoded(wanted)
            with contextlib.suppress(Overtaken):
                await self._store.send("put_object", key, data, _digest(data), Flow(), **only)
                return wanted
        raise Overtaken(f"{layout.manifest_key(node)}: others wrote it {_RACES} times meanwhile")


def _config(endpoint_url: str | None) -> Config:
    return Config(
        signature_version="s3v4",
        retries={"total_max_attempts": 1},
        connect_timeout=CONNECT_S,
        # Silence is watched here, where one knows who waits for whom.
        read_timeout=None,
        max_pool_connections=_CONNECTIONS,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={
            "addressing_style": "path" if endpoint_url else "auto",
            # The SHA-256 that goes with each body is signed instead of the body.
            "payload_signing_enabled": False,
        },
    )


def _said(error: boto.ClientError, what: str) -> TransportError:
    """What a server's answer means. Its own words are not passed on: they may hold anything."""
    said = error.response.get("Error", {}).get("Code", "")
    code = said if re.fullmatch(r"[A-Za-z0-9.]{1,64}", said) else "an unknown error"
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in _OVERTAKEN:
        return Overtaken(f"{what}: {code}")
    if code in _PASSING or status >= 500 or status == 429:
        return Interrupted(f"{what}: {code}")
    if code in _MISSING:
        return EntryMissing(f"{what}: the bucket does not hold it")
    hint = _HINTS.get(code, f"status {status}")
    return Refused(f"{what}: {code}: {hint}")


def _check(said: Any, entry: DataEntry, start: int, length: int, whole: int | None) -> None:
    """Raise unless an answer is the range that was asked for, of the entry's own object."""
    if said.get("Metadata", {}).get("sha256", "") != hex_of(entry.checksum):
        raise EntryMissing(f"the object of {entry.path} says it is another content")
    offered, _, size = said.get("ContentRange", "").partition("/")
    if offered != f"bytes {start}-{start + length - 1}" or size != str(whole or size):
        raise EntryMissing(f"the object of {entry.path} has {size} bytes, not {whole}")


def _metadata(stored: ManifestEntry) -> dict[str, str]:
    about = {"sha256": hex_of(stored.entry.checksum), "size": str(stored.entry.size_bytes)}
    key_id = layout.sealed_with(stored.key)
    return about | {"sealed-with": key_id} if key_id else about


def _same(there: dict[str, Any], data: bytes, digest: str) -> bool:
    """Whether a listed part holds these bytes."""
    if there.get("Size") != len(data):
        return False
    if known := there.get("ChecksumSHA256"):
        return bool(known == digest)
    # Not every server lists SHA-256; that of the part is proven when all are put together.
    return bool(there["ETag"].strip('"') == hashlib.md5(data, usedforsecurity=False).hexdigest())


def _stands(root: Path, local: str, entry: DataEntry) -> bool:
    """Whether a file is where it belongs, with its digest."""
    path = confined(root, local)
    try:
        return path.stat().st_size == entry.size_bytes and checksum_of(path) == entry.checksum
    except OSError:
        return False


def _digest(data: bytes) -> str:
    """SHA-256 as S3 writes it."""
    return _base64(hashlib.sha256(data).digest())


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


async def _each(items: Iterable[T], work: Callable[[T], Awaitable[None]], at_once: int) -> None:
    """Work on all items, a few at a time; the first failure ends it."""
    left = iter(items)

    async def worker() -> None:
        for item in left:
            await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(worker())
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    """Cancel tasks and wait until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
