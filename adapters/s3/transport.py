"""The transport to and from an S3 bucket.

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
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from adapters.errors import DigestMismatch, EntryMissing, Overtaken, Refused, TransportError
from adapters.files.digest import hex_of
from adapters.files.landing import Landing
from adapters.memory import room
from adapters.s3 import layout
from adapters.s3.errors import ObjectDamaged
from adapters.s3.flow import Flow
from adapters.s3.layout import ManifestEntry
from adapters.s3.sealing import HEADER_BYTES, Opener, SealBroken, Sealed, Sealer
from adapters.s3.small import Sink, fetch_small
from adapters.s3.source import Source, whole
from adapters.s3.store import Found, Got, Store
from adapters.throttle import Throttle
from adapters.transport import Progress, Request, Take
from adapters.workers import DIGESTS, cancelled, each, finish
from streams.values import DataEntry, Transport

PART_BYTES = 16 << 20
#: Memory for the parts of one object that are sent at once; one part goes, however large.
PARTS_BYTES = 64 << 20
#: Smaller than a part: what is fetched but not yet in order is lost when an attempt ends.
RANGE_BYTES = 8 << 20
#: Whether a smaller object is there is only asked once it turns out that one is.
ASKED_FROM_BYTES = 64 << 10
#: Unfinished uploads that nobody went on with for this long are given up.
STALE_S = 24 * 3600.0
#: A server may think for long about putting the parts of an upload together.
COMPLETE_S = 300.0

T = TypeVar("T")
#: Makes an object appear, on the given condition only.
Put = Callable[[dict[str, str], Flow], Awaitable[None]]


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
        prefix: str = "",
        storage_class: str = "STANDARD_IA",
        part_bytes: int = PART_BYTES,
        concurrency: int = 4,
        sealer: Sealer | None = None,
    ) -> None:
        """`storage_class` "" leaves it to the server. With a `sealer`, what is pushed is sealed."""
        if part_bytes < layout.SMALLEST_PART_BYTES:
            raise ValueError(f"a part has at least {layout.SMALLEST_PART_BYTES} bytes")
        self.store = Store(bucket, endpoint_url, region, prefix)
        self._storage = {"StorageClass": storage_class} if storage_class else {}
        self._part_bytes = part_bytes
        self._range_bytes = min(part_bytes, RANGE_BYTES)
        self._concurrency = concurrency
        self._sealer = sealer

    @property
    def seal_key(self) -> str:
        """Id of the key that seals what is pushed; "" if it is stored as it is."""
        return self._sealer.key_id if self._sealer is not None else ""

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
        return await self._from_either(
            request.entry,
            lambda key: self.bring(key, landing, flow),
            lambda key: self.bring(key, landing, flow),
        )

    async def fetch_many(
        self, requests: Sequence[Request], take: Take
    ) -> Sequence[TransportError | None]:
        """As `FetchesMany.fetch_many`."""
        return await fetch_small(requests, self._whole, take)

    async def _whole(self, request: Request) -> bytes:
        """All of a small entry, unproven."""
        entry, flow = request.entry, Flow.of(request, Throttle(), lambda *_: None)

        async def opened(key: str) -> bytes:
            sink = Sink(entry)
            await self.bring(key, sink, flow)
            return bytes(sink.data)

        async def as_it_is(key: str) -> bytes:
            found, data = await self.store.whole(key, entry.size_bytes, flow)
            if found.sha256 != hex_of(entry.checksum):
                name = self.store.name(key)
                raise ObjectDamaged(f"{name} of {entry.path} says it is another content")
            return data

        return await self._from_either(entry, opened, as_it_is)

    async def _from_either(
        self,
        entry: DataEntry,
        sealed: Callable[[str], Awaitable[T]],
        plain: Callable[[str], Awaitable[T]],
    ) -> T:
        """What came of the object that is sealed with the key that is here, or of the plain one.

        Where neither is it, the error is of the one that is there and damaged.
        """
        damaged: ObjectDamaged | None = None
        if self._sealer is not None:
            try:
                return await sealed(layout.sealed_key(entry.checksum, self._sealer.key_id))
            except ObjectDamaged as error:
                damaged = error
            except EntryMissing:
                # It was stored before there was a key.
                pass
        try:
            return await plain(layout.object_key(entry.checksum))
        except EntryMissing as error:
            raise damaged or error from None

    async def bring(self, key: str, landing: Landing | Sink, flow: Flow) -> int:
        """Bring the bytes that `landing` lacks from one object; return how many moved.

        Raises as `Fetches.fetch`, and `Refused` if it is sealed with a key that is not here.
        """
        if landing.offset == landing.entry.size_bytes:
            return 0
        flow.begin(landing.offset)
        bring = self._bring_sealed if layout.sealed_with(key) else self._bring_plain
        await bring(key, landing, flow)
        return flow.moved

    async def _bring_plain(self, key: str, landing: Landing | Sink, flow: Flow) -> None:
        size = landing.entry.size_bytes
        coming = self._pieces(key, landing.entry, landing.offset, size, flow)
        async with contextlib.aclosing(coming) as pieces:
            async for piece in pieces:
                await landing.write(piece)
                flow.tell(len(piece))

    async def _bring_sealed(self, key: str, landing: Landing | Sink, flow: Flow) -> None:
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
        except SealBroken as error:
            await landing.reset()
            raise SealBroken(f"{self.store.name(key)} of {landing.entry.path}: {error}") from error
        except DigestMismatch:
            await landing.reset()
            raise

    async def _sealed(self, key: str, entry: DataEntry, flow: Flow) -> Sealed:
        """How an object is opened, by what it begins with."""
        if self._sealer is None or layout.sealed_with(key) != self._sealer.key_id:
            name, lacking = self.store.name(key), layout.sealed_with(key)
            raise Refused(
                f"{name} of {entry.path}: this node has not the key {lacking}; set "
                "s3_encryption_key_file to it"
            )
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
            await cancelled(one.task for one in coming)

    async def _range(
        self, key: str, entry: DataEntry, start: int, length: int, whole: int | None, flow: Flow
    ) -> AsyncGenerator[bytes]:
        """One range. Raises `ObjectDamaged` if the object is not the entry's, or not so long."""
        asked = f"bytes={start}-{start + length - 1}"
        async with self.store.got(key, flow, asked) as (said, pieces):
            _check(self.store.name(key), said, entry, start, length, whole)
            async for piece in pieces:
                yield piece

    # Up

    async def push(
        self, request: Request, file: Path, throttle: Throttle, progress: Progress
    ) -> int:
        """As `Pushes.push`: the target is the bucket, the final name is the object's key.

        Moves nothing if the object is there. What was cancelled is gone on with next time.
        """
        with Flow.of(request, throttle, progress) as flow:
            return await self._push(request.entry, file, flow)

    async def _push(self, entry: DataEntry, file: Path, flow: Flow) -> int:
        stored = self.stored(entry)
        there = None
        # A small one takes as long to be asked about as to be sent, if it is not there.
        if stored.stored_bytes > ASKED_FROM_BYTES:
            there = await self.store.head(stored.key, flow)
        if there is not None and there.holds(stored):
            flow.tell(entry.size_bytes)
            return 0
        if stored.stored_bytes <= self._part_bytes:
            data, sha256 = await finish(lambda: whole(file, stored, self._sealer))
            await self._put(stored, partial(self._put_whole, stored, data, sha256), there, flow)
            return flow.moved
        source = await finish(lambda: Source(file, stored, self._sealer))
        try:
            await self._put(stored, partial(self._put_in_parts, source), there, flow)
        finally:
            source.close()
        return flow.moved

    async def _put(self, stored: ManifestEntry, put: Put, there: Found | None, flow: Flow) -> None:
        """Make the object appear, and see that it has."""
        # What is there under this key and is not its content may be replaced, but nothing else.
        only = {"If-None-Match": "*"} if there is None else {"If-Match": there.etag}
        overtaken = None
        try:
            await put(only, flow)
        except Overtaken as error:
            # If it was by the same content, it is as good as ours.
            overtaken = error
        if stored.stored_bytes <= self._part_bytes and overtaken is None:
            # The server has proven what it took against its digest.
            return
        found = await self.store.head(stored.key, flow)
        if found is not None and found.holds(stored):
            return
        if found is not None and there is None and overtaken is not None:
            await self._put(stored, put, found, flow)
            return
        raise overtaken or DigestMismatch(
            f"{self.store.name(stored.key)} of {stored.entry.path} is not what was sent"
        )

    async def _put_whole(
        self, stored: ManifestEntry, data: bytes, sha256: bytes, only: dict[str, str], flow: Flow
    ) -> None:
        about = {f"x-amz-meta-{name}": said for name, said in _metadata(stored).items()}
        if self._storage:
            about["x-amz-storage-class"] = self._storage["StorageClass"]
        await self.store.send(stored.key, data, sha256, flow, {**about, **only})

    async def _put_in_parts(self, source: Source, only: dict[str, str], flow: Flow) -> None:
        stored = source.stored
        size = layout.part_size(stored.stored_bytes, self._part_bytes)
        upload, there = await self._upload(stored, flow)
        parts: dict[int, dict[str, Any]] = {}
        # Parts are no object yet: the file may be proven while they are sent.
        proving = asyncio.create_task(source.prove())

        async def put_part(part: tuple[int, tuple[int, int]]) -> None:
            if proving.done():
                await proving
            number, (at, length) = part
            memory = spare.pop()
            data = memory[:length]
            await finish(partial(source.read, at, data))
            parts[number] = await self._put_part(
                stored.key, upload, number, data, there.get(number, {}), flow
            )
            # Nobody sends it any more, now that the server has answered.
            spare.append(memory)

        numbered = enumerate(layout.spans(0, stored.stored_bytes, size), 1)
        at_once = max(1, min(self._concurrency, PARTS_BYTES // size))
        spare = [room(size) for _ in range(at_once)]
        try:
            await each(numbered, put_part, at_once)
            await proving
        finally:
            await cancelled([proving])
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
        self,
        key: str,
        upload: str,
        number: int,
        data: memoryview,
        there: dict[str, Any],
        flow: Flow,
    ) -> dict[str, Any]:
        """Store a part unless it is there; return how it is named when all are put together."""
        digest = await finish(partial(layout.digest, data), executor=DIGESTS)
        if await finish(partial(_same, there, data, digest), executor=DIGESTS):
            etag = there["ETag"]
            flow.tell(len(data))
        else:
            query = {"partNumber": str(number), "uploadId": upload}
            said = await self.store.send(key, data, base64.b64decode(digest), flow, {}, query)
            etag = said.etag
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
                **{name.replace("-", ""): said for name, said in only.items()},
            )
        except Overtaken:
            with contextlib.suppress(TransportError):
                await self._abort(key, upload, flow)
            raise
        digests = b"".join(base64.b64decode(part["ChecksumSHA256"]) for part in parts)
        expected = f"{layout.digest(digests)}-{len(parts)}"
        if "-" in (got := said.get("ChecksumSHA256", "")) and got != expected:
            name = self.store.name(key)
            raise DigestMismatch(f"{name} was not put together from the parts that were sent")

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


def _check(
    name: str, said: Got, entry: DataEntry, start: int, length: int, whole: int | None
) -> None:
    """Raise unless an answer is the range that was asked for, of the entry's own object."""
    if said.object.sha256 != hex_of(entry.checksum):
        raise ObjectDamaged(f"{name} of {entry.path} says it is another content")
    offered, _, size = said.content_range.partition("/")
    if offered != f"bytes {start}-{start + length - 1}" or size != str(whole or size):
        wanted = "too few to be sealed" if whole is None else f"not {whole}"
        raise ObjectDamaged(f"{name} of {entry.path} is damaged: it has {size} bytes, {wanted}")


def _metadata(stored: ManifestEntry) -> dict[str, str]:
    about = {"sha256": hex_of(stored.entry.checksum), "size": str(stored.entry.size_bytes)}
    key_id = layout.sealed_with(stored.key)
    return about | {"sealed-with": key_id} if key_id else about


def _same(there: dict[str, Any], data: memoryview, digest: str) -> bool:
    """Whether a listed part holds these bytes."""
    if there.get("Size") != len(data):
        return False
    if known := there.get("ChecksumSHA256"):
        return bool(known == digest)
    # Not every server lists SHA-256; that of the part is proven when all are put together.
    return bool(there["ETag"].strip('"') == hashlib.md5(data, usedforsecurity=False).hexdigest())
