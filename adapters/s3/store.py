"""One S3 bucket through one client: each question asked once, each error in our own words.

The only importer of aioboto3. It never retries, and nothing here deletes an object. It shows no
credentials: they come from the standard chains, and errors are told by their code, not in the
server's words.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import aioboto3
import aiohttp
import msgspec
from botocore.config import Config

from adapters.errors import EntryMissing, Interrupted, Refused
from adapters.files.digest import hex_of
from adapters.s3 import layout
from adapters.s3.errors import ObjectDamaged, code_in, in_our_words, meaning
from adapters.s3.flow import CONNECT_S, Body, Flow
from adapters.s3.layout import ManifestEntry
from adapters.s3.wire import EMPTY_SHA256, Wire

_CONNECTIONS = 64
_ERROR_BYTES = 4096
#: What they tell when they tell everything holds headers, and so tokens.
_TALKATIVE = ("botocore", "aiobotocore", "boto3")
#: What every server says to these, if they succeeded.
_SAYS = {
    "create_multipart_upload": "UploadId",
    "complete_multipart_upload": "ETag",
    "copy_object": "CopyObjectResult",
}


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


class Got(msgspec.Struct, frozen=True):
    """What the bucket says with the bytes of an object."""

    object: Found
    #: Which bytes of how many come, as HTTP writes it.
    content_range: str


class Store:
    """One bucket through one client: each question asked once, each error in our own words.

    Keys go in and come out without the prefix that they have in the bucket.
    """

    def __init__(
        self, bucket: str, endpoint_url: str | None, region: str | None, prefix: str = ""
    ) -> None:
        self._bucket = bucket
        self._prefix = prefix
        self._endpoint_url = endpoint_url
        #: Where the server is, in the words of errors: not what may stand in a URL besides.
        self._at = _place(endpoint_url or "")
        self._region = region
        self._opening = asyncio.Lock()
        self._open = contextlib.AsyncExitStack()
        self._client: Any = None
        self._wire: Wire | None = None

    async def close(self) -> None:
        """Let go of connections."""
        self._client = self._wire = None
        await self._open.aclose()

    def name(self, key: str = "") -> str:
        """An object, or the bucket, in the words of errors."""
        at = f" at {self._at}" if self._at else ""
        return f"s3://{self._bucket}/{layout.under(self._prefix, key)}{at}"

    async def call(
        self, operation: str, watch: asyncio.Timeout, key: str = "", **arguments: Any
    ) -> Any:
        """One operation of S3 but for bytes, such as ``create_multipart_upload``."""
        with in_our_words(self.name(key)):
            client = await self._connected()
            async with watch:
                said = await getattr(client, operation)(**self._asked(key, arguments))
            if not said.get(_SAYS.get(operation, "ResponseMetadata")):
                raise self._foreign(key)
            return said

    async def copy(self, key: str, to: str, etag: str, flow: Flow) -> None:
        """Let the server keep an object under another key, too, if it is still that of the tag.

        Raises `Overtaken` if it is not: nothing is copied.
        """
        source = {"Bucket": self._bucket, "Key": layout.under(self._prefix, key)}
        await self.call(
            "copy_object", flow.answering(), to, CopySource=source, CopySourceIfMatch=etag
        )

    async def listed(
        self, operation: str, field: str, flow: Flow, key: str = "", **arguments: Any
    ) -> list[Any]:
        """All that a listing names in `field`, page by page."""
        found: list[Any] = []
        with in_our_words(self.name(key)):
            client = await self._connected()
            paginator = client.get_paginator(operation)
            pages = aiter(paginator.paginate(**self._asked(key, arguments)))
            while True:
                async with flow.answering():
                    page = await anext(pages, None)
                if page is None:
                    return found
                if page.keys() <= {"ResponseMetadata"}:
                    raise self._foreign(key)
                found += [self._own(one) for one in page.get(field, [])]

    async def head(self, key: str, flow: Flow) -> Found | None:
        """What the bucket says of an object; None if it has none there."""
        try:
            asked = {"x-amz-checksum-mode": "ENABLED"}
            async with self._answered("HEAD", key, flow.answering(), asked) as said:
                return _found(said.headers)
        except EntryMissing:
            return None
        except Refused:
            # A HEAD has no body that could say why; this has, if it is refused too.
            await self.call("list_objects_v2", flow.answering(), Prefix=key, MaxKeys=1)
            raise

    @contextlib.asynccontextmanager
    async def got(
        self, key: str, flow: Flow, byte_range: str = ""
    ) -> AsyncIterator[tuple[Got, AsyncGenerator[bytes]]]:
        """What is said of an object or a range of it, and its bytes as they come."""
        asked = {"Range": byte_range} if byte_range else {}
        async with self._answered("GET", key, flow.answering(), asked) as said:
            length = said.content_length or 0
            about = Got(_found(said.headers), said.headers.get("Content-Range", ""))
            yield about, self._read(said.content, length, key, flow)

    async def whole(self, key: str, nbytes: int, flow: Flow) -> tuple[Found, bytes]:
        """A small object: what is said of it, and all its bytes.

        Raises `ObjectDamaged` if it has not so many bytes.
        """
        async with self._answered("GET", key, flow.answering(), {}) as said:
            if said.content_length != nbytes:
                name, length = self.name(key), said.content_length
                raise ObjectDamaged(f"{name} is damaged: it has {length} bytes, not {nbytes}")
            with in_our_words(self.name(key)):
                async with asyncio.timeout(flow.stall_s):
                    data = await said.read()
            flow.moved += len(data)
            return _found(said.headers), data

    async def send(
        self,
        key: str,
        data: bytes | memoryview,
        sha256: bytes,
        flow: Flow,
        headers: Mapping[str, str],
        query: Mapping[str, str] | None = None,
    ) -> Found:
        """Store an object or a part, which the server proves against its digest."""
        sent = {"x-amz-checksum-sha256": layout.in_base64(sha256), **headers}
        watch = flow.answering()
        body: Body | bytes = Body(data, flow, watch)
        if len(data) <= flow.piece_bytes:
            # What may pass at once goes out with the headers, in one piece.
            await flow.take(len(data))
            flow.count(len(data))
            watch, body = flow.answering(), bytes(data)
        async with self._answered(
            "PUT", key, watch, sent, query, body, sha256.hex(), len(data)
        ) as said:
            found = _found(said.headers)
            if not found.etag:
                raise self._foreign(key)
            return found

    def _foreign(self, key: str) -> Refused:
        """What answers with success says nothing that a server of S3 would say with it."""
        return Refused(f"{self.name(key)}: what answers is no server of S3; look at s3_endpoint")

    @contextlib.asynccontextmanager
    async def _answered(
        self,
        method: str,
        key: str,
        watch: asyncio.Timeout,
        headers: Mapping[str, str],
        query: Mapping[str, str] | None = None,
        body: Body | bytes = b"",
        sha256: str = EMPTY_SHA256,
        length: int = 0,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """An answer that is none of an error, until it is let go of."""
        at, what = layout.under(self._prefix, key), self.name(key)
        with in_our_words(what):
            await self._connected()
            assert self._wire is not None
            async with watch:
                said = await self._wire.ask(method, at, headers, query, body, sha256, length)
                if said.status >= 300:
                    text = (await said.content.read(_ERROR_BYTES)).decode(errors="replace")
                    said.close()
                    raise meaning(code_in(text, said.status), said.status, what)
        try:
            yield said
        finally:
            # Only a body that was read to its end leaves a connection that can be used again.
            said.release() if said.content.at_eof() else said.close()

    def _asked(self, key: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """What botocore is asked with: the bucket, and keys as they are there."""
        keys = {"Key": key} if key else {}
        keys |= {"Prefix": arguments["Prefix"]} if "Prefix" in arguments else {}
        there = {name: layout.under(self._prefix, text) for name, text in keys.items()}
        return {"Bucket": self._bucket, **arguments, **there}

    def _own(self, listed: dict[str, Any]) -> dict[str, Any]:
        """One line of a listing, its key as we call it."""
        keys: dict[str, str] = {name: listed[name] for name in ("Key", "Prefix") if name in listed}
        return listed | {name: layout.within(self._prefix, text) for name, text in keys.items()}

    async def _read(
        self, body: aiohttp.StreamReader, length: int, key: str, flow: Flow
    ) -> AsyncGenerator[bytes]:
        left = length
        while left:
            with in_our_words(self.name(key)):
                async with asyncio.timeout(flow.stall_s):
                    piece = await body.read(min(flow.piece_bytes, left))
            if not piece:
                name = self.name(key)
                raise Interrupted(f"{name}: the answer broke off {left} bytes before its end")
            left -= len(piece)
            await flow.take(len(piece))
            flow.moved += len(piece)
            yield piece

    async def _connected(self) -> Any:
        if self._wire is not None:
            return self._client
        async with self._opening:
            if self._client is None:
                for name in _TALKATIVE:
                    talkative = logging.getLogger(name)
                    talkative.setLevel(max(talkative.level, logging.INFO))
                session = aioboto3.Session()
                try:
                    if "@" in (self._endpoint_url or ""):
                        raise ValueError("a user")
                    client = session.client(
                        "s3",
                        endpoint_url=self._endpoint_url,
                        region_name=self._region,
                        config=_config(self._endpoint_url),
                    )
                    self._client = await self._open.enter_async_context(client)
                    self._client.meta.events.register("before-call.s3", _let_stay)
                    self._wire = await Wire.open(session, self._client, self._bucket, self._region)
                    self._open.push_async_callback(self._wire.close)
                except ValueError:
                    # Its text would show what may stand in a URL besides a host.
                    raise Refused(
                        f"{self.name()}: s3_endpoint must be the URL of a server, without a user"
                    ) from None
            return self._client


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


def _let_stay(context: dict[str, Any], **_: Any) -> None:
    """Keep botocore from looking for the region of a bucket that is elsewhere: where it is not
    told, it asks until its stack is full; and bytes are never sent there.
    """
    context.setdefault("s3_redirect", {})["redirected"] = True


def _place(url: str) -> str:
    """Host and port of a URL; "" if it has none."""
    with contextlib.suppress(ValueError):
        return urlsplit(url).netloc.rpartition("@")[2]
    return ""


def _found(headers: Mapping[str, str]) -> Found:
    return Found(
        etag=headers.get("ETag", ""),
        bytes=int(headers.get("Content-Length", "0")),
        sha256=headers.get("x-amz-meta-sha256", ""),
        checksum=headers.get("x-amz-checksum-sha256", ""),
    )
