"""One S3 bucket through one client: each question asked once, each error in our own words.

The only importer of aioboto3. It never retries, and nothing here deletes an object. It shows no
credentials: they come from the standard chains, and errors are told by their code, not in the
server's words.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any

import aioboto3
import aiohttp
import msgspec
from botocore import exceptions as boto
from botocore.config import Config

from adapters import s3_layout as layout
from adapters.digest import hex_of
from adapters.s3_layout import ManifestEntry
from adapters.telling import TELL_EVERY_S
from adapters.throttle import Throttle
from adapters.transport import (
    EntryMissing,
    Interrupted,
    Progress,
    Refused,
    Request,
    Stalled,
    TransportError,
    Unreachable,
)

CONNECT_S = 10.0
_CONNECTIONS = 64
_PIECE_BYTES = 256 << 10
_SMALLEST_PIECE_BYTES = 16 << 10
#: How much passes at once, as seconds of the rate it is limited to.
_PIECE_S = 0.1

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
        return self.checksum == layout.in_base64(bytes.fromhex(digits))


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
        if self._done == self._size or now - self._told_at >= TELL_EVERY_S:
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
    ) -> None:
        self._bucket = bucket
        self._endpoint_url = endpoint_url
        self._region = region
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
                    client = aioboto3.Session().client(
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
