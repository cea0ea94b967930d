"""The S3 transport and a bucket's manifests, against a real S3 server."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import inspect
import itertools
import logging
import os
import socket
import time
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from adapters.errors import (
    DigestMismatch,
    EntryMissing,
    Interrupted,
    NeverReplaced,
    Refused,
    TransportError,
    Unreachable,
    told_as,
)
from adapters.files.group import Group, Wanted
from adapters.files.landing import Landed, Landing
from adapters.s3 import bucket as s3_bucket
from adapters.s3 import layout
from adapters.s3 import manifests as s3_manifests
from adapters.s3 import store as s3_store
from adapters.s3 import transport as s3
from adapters.s3 import wire as s3_wire
from adapters.s3.bucket import S3Bucket
from adapters.s3.flow import Flow
from adapters.s3.layout import LaterRelease, ManifestEntry, ManifestUnreadable
from adapters.s3.sealing import Sealer
from adapters.s3.transport import S3Transport
from adapters.throttle import Throttle
from adapters.transport import Fetches, Pushes, Request
from streams.values import DataEntry, DataType, Endpoint
from tests.contract.rigs import left_in
from tests.faults import Proxy
from tests.integration.s3_server import (
    ACCESS_KEY,
    HOST,
    SECRET_KEY,
    S3Server,
    new_bucket,
    running_s3_server,
    with_credentials,
)
from tests.memory import forget_peak, memory
from tests.unit.test_inventory import play

__all__ = ["running_s3_server"]

PART = 5 << 20
#: So slow that an attempt can be stopped in its middle.
STEADY_MBPS = 160.0
PATIENCE_S = 60.0
MARK = b"this must not be readable by whoever may read the bucket"
_NUMBERS = itertools.count()

Progress = Callable[[int, int], None]


class Files:
    """Local files, each the exact content of an entry."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def make(self, data: bytes, path: str = "data/x.bin", **known: Any) -> tuple[DataEntry, Path]:
        """A file that holds `data`, and the entry that means it."""
        entry = DataEntry(
            path=path,
            data_type=DataType.METADATA,
            config_key="all",
            size_bytes=len(data),
            checksum=f"sha256:{hashlib.sha256(data).hexdigest()}",
            **known,
        )
        file = self._directory / f"{next(_NUMBERS)}"
        file.write_bytes(data)
        return entry, file


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """The standard chain finds the test's credentials."""
    with_credentials(monkeypatch)


@pytest.fixture
def client(s3_server: S3Server) -> Any:
    """For what is done to the bucket by hand."""
    return s3_server.client


@pytest.fixture
def bucket(s3_server: S3Server) -> str:
    """A bucket of the test's own, empty."""
    return new_bucket(s3_server)


@pytest.fixture
async def connect(s3_server: S3Server, bucket: str) -> AsyncIterator[Callable[..., S3Transport]]:
    """Makes transports to the test's bucket."""
    made: list[S3Transport] = []

    def make(**settings: Any) -> S3Transport:
        known: dict[str, Any] = {
            "bucket": bucket,
            "endpoint_url": s3_server.url,
            "part_bytes": PART,
        }
        made.append(S3Transport(**(known | settings)))
        return made[-1]

    yield make
    for transport in made:
        await transport.close()


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Where the source keeps its files."""
    (tmp_path / "source").mkdir()
    return Files(tmp_path / "source")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The target's data root."""
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def quiet(_done: int, _total: int) -> None:
    """Nobody looks."""


def request_for(entry: DataEntry, stall_s: float = 30.0) -> Request:
    """One attempt."""
    source, target = Endpoint(node="gpu-7"), Endpoint(node="s3")
    return Request("t-1", entry, source, target, stall_s=stall_s, connect_s=5.0)


async def push(
    transport: Pushes,
    entry: DataEntry,
    file: Path,
    *,
    stall_s: float = 30.0,
    throttle: Throttle | None = None,
    progress: Progress = quiet,
) -> int:
    """One attempt up."""
    return await transport.push(request_for(entry, stall_s), file, throttle or Throttle(), progress)


async def fetch(
    transport: Fetches,
    entry: DataEntry,
    root: Path,
    *,
    stall_s: float = 30.0,
    throttle: Throttle | None = None,
    progress: Progress = quiet,
) -> int:
    """One attempt down, committed."""
    landing = await Landing.open(root, entry, "t-1", entry.path)
    try:
        request = request_for(entry, stall_s)
        came = await transport.fetch(request, landing, throttle or Throttle(), progress)
        await landing.commit()
        return came
    finally:
        await landing.abort()


async def stopped_after(
    nbytes: int,
    attempt: Callable[..., Coroutine[Any, Any, int]],
    transport: S3Transport,
    entry: DataEntry,
    place: Path,
) -> None:
    """`push` or `fetch`, cancelled once so many bytes are done."""
    reached = asyncio.Event()

    def look(done: int, _total: int) -> None:
        if done >= nbytes:
            reached.set()

    throttle = Throttle(STEADY_MBPS)
    task = asyncio.ensure_future(attempt(transport, entry, place, throttle=throttle, progress=look))
    await asyncio.wait_for(reached.wait(), PATIENCE_S)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def names_in(root: Path) -> list[str]:
    """All that lies below a directory, also what is the data plane's own."""
    return [path.name for path in root.rglob("*")]


def keys_in(client: Any, bucket: str) -> list[str]:
    """All objects of a bucket."""
    return [one["Key"] for one in client.list_objects_v2(Bucket=bucket).get("Contents", [])]


def whole(landed: object) -> bool:
    """Whether a restore brought a file."""
    return isinstance(landed, Landed)


# A file, up and down


@pytest.mark.parametrize("size", [PART, PART + 1, 40_000_000])
async def test_what_is_pushed_is_fetched_as_it_was(
    connect: Callable[..., S3Transport], files: Files, root: Path, size: int
) -> None:
    """In one piece and in many; each byte moves once in each direction."""
    data = os.urandom(size)
    entry, file = files.make(data)
    transport = connect()
    assert await push(transport, entry, file) == size
    assert await fetch(transport, entry, root) == size
    assert (root / entry.path).read_bytes() == data


async def test_names_of_any_script_are_no_matter(
    connect: Callable[..., S3Transport], files: Files, root: Path
) -> None:
    """A key is a digest, and a manifest is UTF-8."""
    entry, file = files.make(b"x" * 1000, "données/对局 №1 🎲 ' & +.bin")
    transport = connect()
    await push(transport, entry, file)
    await S3Bucket(transport).write_manifest("gpu-7", manifest("gpu-7", transport, entry))
    await fetch(transport, entry, root)
    assert (root / entry.path).read_bytes() == b"x" * 1000
    assert [one.path for one in (await S3Bucket(connect()).catalog()).known] == [entry.path]


async def test_an_object_says_its_digest_size_and_class(
    connect: Callable[..., S3Transport], client: Any, bucket: str, files: Files
) -> None:
    """Whoever looks at the bucket with other tools can check it."""
    transport = connect()
    for size in (100, 2 * PART):
        entry, file = files.make(os.urandom(size))
        await push(transport, entry, file)
        said = client.head_object(Bucket=bucket, Key=layout.object_key(entry.checksum))
        assert said["StorageClass"] == "STANDARD_IA"
        assert said["Metadata"] == {
            "sha256": entry.checksum.removeprefix("sha256:"),
            "size": str(size),
        }


async def test_the_storage_class_can_be_left_to_the_server(
    connect: Callable[..., S3Transport], client: Any, bucket: str, files: Files
) -> None:
    """Not every server has the class that is asked for by default."""
    entry, file = files.make(b"x")
    await push(connect(storage_class=""), entry, file)
    said = client.head_object(Bucket=bucket, Key=layout.object_key(entry.checksum))
    assert said.get("StorageClass", "STANDARD") == "STANDARD"


@pytest.mark.parametrize("size", [1000, 3 * PART])
async def test_the_same_content_is_stored_once(
    connect: Callable[..., S3Transport], client: Any, bucket: str, files: Files, size: int
) -> None:
    """Under whatever path and from whatever node it comes again; no byte of a large one moves."""
    data = os.urandom(size)
    first, file = files.make(data, "data/first.bin")
    second, copy = files.make(data, "data/second.bin")
    assert await push(connect(), first, file) == size
    told: list[tuple[int, int]] = []
    again = await push(connect(), second, copy, progress=lambda *t: told.append(t))
    assert again == (0 if size > s3.ASKED_FROM_BYTES else size)
    assert told == [(size, size)]
    assert keys_in(client, bucket) == [layout.object_key(first.checksum)]


@pytest.mark.parametrize("size", [1000, 3 * PART])
async def test_two_who_push_the_same_at_once_both_succeed(
    connect: Callable[..., S3Transport], root: Path, files: Files, size: int
) -> None:
    """Whoever is overtaken sees that what stands there is as good as its own."""
    entry, file = files.make(os.urandom(size))
    await asyncio.gather(*(push(connect(), entry, file) for _ in range(3)))
    await fetch(connect(), entry, root)


async def test_a_file_that_is_not_its_entry_is_never_stored(
    connect: Callable[..., S3Transport], client: Any, bucket: str, files: Files
) -> None:
    """A wrong object under a digest would spoil every later backup of that digest."""
    transport = connect()
    for size, wrong in ((1000, b"y" * 1000), (1000, b"x" * 999), (2 * PART, b"y" * 2 * PART)):
        entry, file = files.make(b"x" * size)
        file.write_bytes(wrong)
        with pytest.raises(DigestMismatch):
            await push(transport, entry, file)
    assert keys_in(client, bucket) == []


async def test_an_object_cut_short_is_replaced_by_its_content(
    connect: Callable[..., S3Transport], client: Any, bucket: str, files: Files, root: Path
) -> None:
    """What is there under a digest and is not its content holds up no backup."""
    for size in (1000, 2 * PART):
        entry, file = files.make(os.urandom(size), f"data/{size}.bin")
        key = layout.object_key(entry.checksum)
        client.put_object(Bucket=bucket, Key=key, Body=b"cut short")
        assert await push(connect(), entry, file) >= size
        await fetch(connect(), entry, root)


async def test_p12_parts_take_so_much_memory_however_large_they_are(
    connect: Callable[..., S3Transport], tmp_path: Path
) -> None:
    """Of the largest objects a part is so large that four at once would be too much."""
    size, file = 192 << 20, tmp_path / "sparse"
    file.touch()
    os.truncate(file, size)
    entry = DataEntry(
        path="data/sparse.bin",
        data_type=DataType.METADATA,
        config_key="all",
        size_bytes=size,
        checksum=f"sha256:{hashlib.sha256(bytes(size)).hexdigest()}",
    )
    transport = connect(part_bytes=48 << 20)
    before = memory("VmRSS")
    forget_peak()
    assert await push(transport, entry, file) == size
    assert memory("VmHWM") - before < s3.PARTS_BYTES + (24 << 20)


# Resume


async def test_a_killed_upload_sends_only_the_rest(
    connect: Callable[..., S3Transport],
    client: Any,
    bucket: str,
    files: Files,
    root: Path,
    s3_server: S3Server,
) -> None:
    """Parts that are there are not sent again, and are the right ones."""
    entry, file = files.make(os.urandom(6 * PART))
    await stopped_after(3 * PART, push, connect(concurrency=2), entry, file)
    kept = bytes_in_parts(client, bucket)
    assert kept >= PART
    link = Proxy(s3_server.port)
    await link.open()
    transport = connect(endpoint_url=link.url)
    moved = await push(transport, entry, file)
    # A part that was on its way by then may have been taken after all.
    assert 0 < moved <= entry.size_bytes - kept
    assert moved <= link.passed_up < moved + 100_000
    await transport.close()
    await link.close()
    assert client.list_multipart_uploads(Bucket=bucket).get("Uploads", []) == []
    await fetch(connect(), entry, root)


async def test_parts_of_another_size_are_sent_again(
    connect: Callable[..., S3Transport], files: Files, root: Path
) -> None:
    """An upload that was begun with other settings spoils nothing."""
    entry, file = files.make(os.urandom(5 * PART))
    await stopped_after(2 * PART, push, connect(concurrency=1), entry, file)
    assert await push(connect(part_bytes=PART + 4096), entry, file) == entry.size_bytes
    await fetch(connect(), entry, root)


async def test_a_part_that_is_not_the_files_is_sent_again(
    connect: Callable[..., S3Transport], client: Any, bucket: str, files: Files, root: Path
) -> None:
    """A part counts by its digest, not by its number and size."""
    entry, file = files.make(os.urandom(3 * PART))
    key = layout.object_key(entry.checksum)
    upload = client.create_multipart_upload(
        Bucket=bucket,
        Key=key,
        Metadata={"sha256": entry.checksum.removeprefix("sha256:")},
    )["UploadId"]
    client.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=1, Body=bytes(PART))
    assert await push(connect(), entry, file) == entry.size_bytes
    await fetch(connect(), entry, root)


async def test_only_stale_uploads_are_given_up(
    connect: Callable[..., S3Transport], client: Any, bucket: str, files: Files
) -> None:
    """And only those of objects: a foreign one is none of our business."""
    entry, file = files.make(os.urandom(4 * PART))
    await stopped_after(PART, push, connect(concurrency=1), entry, file)
    client.create_multipart_upload(Bucket=bucket, Key="somebody/else")
    assert await connect().abort_stale() == 0
    assert await connect().abort_stale(older_than_s=-60) == 1
    left = client.list_multipart_uploads(Bucket=bucket)["Uploads"]
    assert [one["Key"] for one in left] == ["somebody/else"]


# What can go wrong


async def test_an_object_of_other_size_or_digest_is_no_copy(
    connect: Callable[..., S3Transport], client: Any, bucket: str, files: Files, root: Path
) -> None:
    """Another source may have the right one."""
    entry, _ = files.make(b"x" * 1000)
    key, digits = layout.object_key(entry.checksum), entry.checksum.removeprefix("sha256:")
    for body, claimed in ((b"x" * 10, digits), (b"x" * 2000, digits), (b"x" * 1000, "other")):
        client.put_object(Bucket=bucket, Key=key, Body=body, Metadata={"sha256": claimed})
        with pytest.raises(EntryMissing):
            await fetch(connect(), entry, root)


async def test_what_the_bucket_does_not_hold_is_missing(
    connect: Callable[..., S3Transport], files: Files, root: Path
) -> None:
    """Another source may have it; the same will not."""
    entry, _ = files.make(b"x" * 1000)
    for transport in (connect(), connect(sealer=Sealer(bytes(32)))):
        with pytest.raises(EntryMissing):
            await fetch(transport, entry, root)


async def test_a_bucket_that_does_not_exist_is_refused(
    connect: Callable[..., S3Transport], files: Files, root: Path
) -> None:
    """With what to do about it; it is never taken for an empty one."""
    entry, file = files.make(b"x" * 1000)
    transport = connect(bucket="no-such-bucket")
    attempts: list[Coroutine[Any, Any, object]] = [
        fetch(transport, entry, root),
        push(transport, entry, file),
        S3Bucket(transport).catalog(),
        S3Bucket(transport).consolidate(),
        S3Bucket(transport).consolidate([]),
    ]
    for attempt in attempts:
        with pytest.raises(Refused, match="no such bucket"):
            await attempt


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("AWS_SECRET_ACCESS_KEY", "wrong-secret-0815", "the secret key does not belong"),
        ("AWS_ACCESS_KEY_ID", "unknown-key-0815", "the access key is not known"),
    ],
)
async def test_wrong_credentials_are_refused_and_never_shown(
    connect: Callable[..., S3Transport],
    files: Files,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
    value: str,
    said: str,
) -> None:
    """The text says what is wrong; neither it nor the log holds a key."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv(name, value)
    entry, file = files.make(b"x" * 1000)
    transport = connect()
    for attempt in (fetch(transport, entry, root), push(transport, entry, file)):
        with pytest.raises(Refused, match=said) as caught:
            await attempt
        text = "".join(traceback.format_exception(caught.value)) + repr(transport) + caplog.text
        assert not [key for key in (value, ACCESS_KEY, SECRET_KEY) if key in text]


async def test_no_credentials_are_refused_in_words(
    connect: Callable[..., S3Transport],
    files: Files,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An operator reads that there are none."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    entry, _ = files.make(b"x")
    with pytest.raises(Refused, match="no credentials"):
        await fetch(connect(), entry, root)


async def test_a_server_that_is_away_is_named_with_its_address_and_what_to_look_at(
    connect: Callable[..., S3Transport], files: Files, bucket: str, root: Path
) -> None:
    """Bucket, key and the system's reason, whoever asked."""
    with socket.socket() as nobody:
        nobody.bind((HOST, 0))
        at = f"{HOST}:{nobody.getsockname()[1]}"
        transport = connect(endpoint_url=f"http://{at}")
        entry, file = files.make(b"x" * 1000)
        key = layout.object_key(entry.checksum)
        attempts: dict[str, Coroutine[Any, Any, object]] = {
            key: fetch(transport, entry, root),
            f"{key} ": push(transport, entry, file),
            layout.CONSOLIDATED_KEY: S3Bucket(transport).read_manifest(""),
            "": S3Bucket(transport).nodes(),
        }
        for what, attempt in attempts.items():
            with pytest.raises(Unreachable) as away:
                await attempt
            assert str(away.value) == (
                f"s3://{bucket}/{what.strip()} at {at} can't be reached: connection refused; "
                "look at s3_endpoint, and at the way there"
            )


async def test_an_endpoint_that_is_no_address_is_refused(
    connect: Callable[..., S3Transport], files: Files, root: Path
) -> None:
    """And not shown: a URL may hold a password."""
    entry, _ = files.make(b"x")
    password = f"hunter{2}"
    for url in (f"user:{password}@nowhere", f"http://user:{password}@127.0.0.1:9", "http://[::1"):
        with pytest.raises(Refused, match="s3_endpoint") as caught:
            await fetch(connect(endpoint_url=url), entry, root)
        assert password not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("status", "code", "family"),
    [
        (503, "SlowDown", Interrupted),
        (500, "InternalError", Interrupted),
        (502, "<html>", Interrupted),
        (403, "AccessDenied", Refused),
        (400, "ExpiredToken", Refused),
        (400, "leaked-by-the-server", Refused),
    ],
)
async def test_what_a_server_says_is_told_by_its_code_alone(
    connect: Callable[..., S3Transport],
    files: Files,
    root: Path,
    status: int,
    code: str,
    family: type[Exception],
) -> None:
    """Once each: a refused request is not made again, and the server's own words are dropped."""
    entry, _ = files.make(b"x" * 1000)
    asked = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        await reader.readuntil(b"\r\n\r\n")
        body = f"<Error><Code>{code}</Code><Message>leaked {SECRET_KEY}</Message></Error>"
        head = f"HTTP/1.1 {status} No\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        writer.write((head + body).encode())
        writer.close()

    server = await asyncio.start_server(answer, HOST, 0)
    transport = connect(endpoint_url=f"http://{HOST}:{server.sockets[0].getsockname()[1]}")
    with pytest.raises(family) as caught:
        await fetch(transport, entry, root)
    server.close()
    assert asked == 1
    assert "leaked" not in str(caught.value)


@pytest.mark.parametrize(
    "page", ["<html><p>Please log in</p></html>", "<html><p>Please log in", ""]
)
async def test_what_is_no_server_of_s3_is_refused_though_it_says_yes_to_everything(
    connect: Callable[..., S3Transport], files: Files, page: str
) -> None:
    """Nothing counts as stored, begun or listed there: the endpoint is another, or a proxy."""
    async with answering(200, page) as (url, _):
        transport = connect(endpoint_url=url)
        for attempt in asking(transport, files):
            with pytest.raises((Refused, Interrupted)):
                await attempt


@pytest.mark.parametrize("status", [301, 307])
@pytest.mark.parametrize("page", ["<Error><Code>PermanentRedirect</Code></Error>", ""])
async def test_a_bucket_of_another_region_is_refused_with_what_to_set(
    connect: Callable[..., S3Transport], files: Files, status: int, page: str
) -> None:
    """Nobody is asked where it is, and where nothing tells it nobody asks on and on."""
    async with answering(status, page) as (url, asked):
        transport = connect(endpoint_url=url)
        for attempt in asking(transport, files):
            asked.clear()
            with pytest.raises(Refused, match="set s3_region"):
                await attempt
            assert len(asked) <= 2


async def test_memory_is_flat(
    connect: Callable[..., S3Transport], tmp_path: Path, root: Path
) -> None:
    """Of a content of 192 MB, a few parts are in memory at a time."""
    block = os.urandom(1 << 20)
    sha, file = hashlib.sha256(), tmp_path / "large"
    with file.open("wb") as out:
        for number in range(192):
            piece = number.to_bytes(4, "big") + block[4:]
            sha.update(piece)
            out.write(piece)
    entry = DataEntry(
        path="data/large.bin",
        data_type=DataType.METADATA,
        config_key="all",
        size_bytes=192 << 20,
        checksum=f"sha256:{sha.hexdigest()}",
    )
    transport = connect()
    small, little = Files(tmp_path).make(b"x" * PART)
    await push(transport, small, little)
    before, most = resident(), 0

    def look(_done: int, _total: int) -> None:
        nonlocal most
        most = max(most, resident())

    await push(transport, entry, file, progress=look)
    await fetch(transport, entry, root, progress=look)
    assert most - before < 96 << 20


# Manifests


async def test_p10_a_manifest_never_names_an_object_that_is_not_there(
    connect: Callable[..., S3Transport], client: Any, bucket: str, files: Files
) -> None:
    """Nor one that is not whole; then nothing at all is written."""
    transport = connect()
    there, file = files.make(b"there", "data/there.bin")
    absent, _ = files.make(b"absent", "data/absent.bin")
    await push(transport, there, file)
    s3_bucket = S3Bucket(transport)
    with pytest.raises(EntryMissing, match=r"data/absent\.bin"):
        await s3_bucket.write_manifest("gpu-7", manifest("gpu-7", transport, there, absent))
    client.put_object(Bucket=bucket, Key=layout.object_key(absent.checksum), Body=b"abs")
    with pytest.raises(EntryMissing, match=r"data/absent\.bin"):
        await s3_bucket.write_manifest("gpu-7", manifest("gpu-7", transport, there, absent))
    with pytest.raises(EntryMissing):
        await s3_bucket.read_manifest("gpu-7")
    assert await s3_bucket.nodes() == []


async def test_what_was_just_pushed_is_named_without_a_question_and_nothing_else_is(
    connect: Callable[..., S3Transport], client: Any, bucket: str, files: Files
) -> None:
    """A backup of many asks once for each; what was stored before is still asked for."""
    transport = connect()
    just = await stored(transport, files, "data/just.bin", b"just")
    before, _ = files.make(b"before", "data/before.bin")
    named, pushed = manifest("gpu-7", transport, just, before), {layout.object_key(just.checksum)}
    with pytest.raises(EntryMissing, match=r"data/before\.bin"):
        await S3Bucket(transport).write_manifest("gpu-7", named, pushed)
    asked: list[str] = []
    head = transport.store.head

    async def heard(key: str, flow: Flow) -> Any:
        asked.append(key)
        return await head(key, flow)

    transport.store.head = heard  # type: ignore[method-assign]
    await S3Bucket(transport).write_manifest("gpu-7", manifest("gpu-7", transport, just), pushed)
    assert asked == []


async def test_p10_the_manifest_is_written_after_its_objects(
    connect: Callable[..., S3Transport], client: Any, bucket: str, files: Files
) -> None:
    """Once they are there, it names them with key, size and digest."""
    transport = connect()
    entry = await stored(transport, files, "data/x.bin", b"x")
    written = await S3Bucket(transport).write_manifest("gpu-7", manifest("gpu-7", transport, entry))
    assert await S3Bucket(connect()).read_manifest("gpu-7") == written
    (one,) = written.entries
    assert client.head_object(Bucket=bucket, Key=one.key)["ContentLength"] == one.stored_bytes


async def test_p8_a_manifest_keeps_what_its_node_has_lost(
    connect: Callable[..., S3Transport], files: Files
) -> None:
    """A node that comes back with an empty disk takes nothing out of its backup."""
    transport = connect()
    s3_bucket = S3Bucket(transport)
    entry = await stored(transport, files, "data/x.bin", b"x")
    await s3_bucket.write_manifest("gpu-7", manifest("gpu-7", transport, entry))
    again = await s3_bucket.write_manifest("gpu-7", manifest("gpu-7", transport))
    assert [one.entry for one in again.entries] == [entry]


async def test_p8_consolidating_keeps_what_no_manifest_names_any_more(
    connect: Callable[..., S3Transport], client: Any, bucket: str, files: Files
) -> None:
    """Neither a node that is gone nor one that is passed over drops anything."""
    transport = connect()
    s3_bucket = S3Bucket(transport)
    for node in ("gpu-7", "gpu-8"):
        entry = await stored(transport, files, f"data/{node}.bin", node.encode())
        await s3_bucket.write_manifest(node, manifest(node, transport, entry))
    await s3_bucket.consolidate()
    client.delete_object(Bucket=bucket, Key=layout.manifest_key("gpu-7"))
    for nodes in (None, ["gpu-8"], ["gpu-7"], []):
        kept = await s3_bucket.consolidate(nodes)
        assert [one.entry.path for one in kept.entries] == ["data/gpu-7.bin", "data/gpu-8.bin"]


def test_p8_nothing_here_can_delete_an_object() -> None:
    """There is no such call in these modules, so no mistake can make it."""
    for module in (s3, s3_bucket, s3_manifests, s3_store, s3_wire):
        source = inspect.getsource(module)
        assert "delete" not in source.replace("deletes an object", ""), module.__name__


async def test_many_consolidators_at_once_lose_nothing(
    connect: Callable[..., S3Transport], files: Files
) -> None:
    """Each adds its own node's entries to what the others wrote meanwhile."""
    transport = connect()
    names = [f"gpu-{number}" for number in range(6)]
    for node in names:
        entry = await stored(transport, files, f"data/{node}.bin", node.encode())
        await S3Bucket(transport).write_manifest(node, manifest(node, transport, entry))
    await asyncio.gather(*(S3Bucket(connect()).consolidate([node]) for node in names))
    kept = await S3Bucket(transport).read_manifest("")
    assert [one.entry.path for one in kept.entries] == [f"data/{node}.bin" for node in names]


async def test_two_writers_of_one_manifest_lose_nothing(
    connect: Callable[..., S3Transport], files: Files
) -> None:
    """A node that was started twice by mistake."""
    transport = connect()
    entries = [await stored(transport, files, f"data/{n}.bin", bytes([n])) for n in range(5)]
    await asyncio.gather(
        *(
            S3Bucket(transport).write_manifest("gpu-7", manifest("gpu-7", transport, entry))
            for entry in entries
        )
    )
    kept = await S3Bucket(transport).read_manifest("gpu-7")
    assert [one.entry for one in kept.entries] == entries


async def test_what_has_not_changed_is_not_written_again(
    connect: Callable[..., S3Transport], client: Any, bucket: str, files: Files
) -> None:
    """An hourly cycle in which nothing happened leaves the manifest alone."""
    transport = connect()
    entry = await stored(transport, files, "data/x.bin", b"x")
    s3_bucket = S3Bucket(transport)
    first = await s3_bucket.write_manifest("gpu-7", manifest("gpu-7", transport, entry))
    assert await s3_bucket.write_manifest("gpu-7", manifest("gpu-7", transport, entry)) == first


async def test_a_manifest_that_cant_be_read_ends_no_backups_and_is_kept_as_it_was(
    connect: Callable[..., S3Transport],
    client: Any,
    bucket: str,
    files: Files,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It may be all that names some objects: what it names counts again once it can be read."""
    transport = connect()
    s3_bucket, key = S3Bucket(transport), layout.manifest_key("gpu-7")
    lost = await stored(transport, files, "data/lost.bin", b"lost")
    whole_one = layout.encoded(manifest("gpu-7", transport, lost))
    client.put_object(Bucket=bucket, Key=key, Body=whole_one[:-9])
    entry = await stored(transport, files, "data/x.bin", b"x")
    # Whoever else writes it at the same time puts the same one aside.
    await asyncio.gather(
        s3_bucket.write_manifest("gpu-7", manifest("gpu-7", transport, entry)),
        s3_bucket.write_manifest("gpu-7", manifest("gpu-7", transport, entry)),
    )
    assert [one.entry for one in (await s3_bucket.read_manifest("gpu-7")).entries] == [entry]
    (beside,) = [key for key in keys_in(client, bucket) if key.startswith(layout.ASIDE_PREFIX)]
    assert client.get_object(Bucket=bucket, Key=beside)["Body"].read() == whole_one[:-9]
    assert f"s3://{bucket}/{key}" in caplog.text
    assert f"s3://{bucket}/{beside}" in caplog.text
    catalog = await s3_bucket.catalog()
    assert catalog.known == (entry,)
    assert f"s3://{bucket}/{beside}" in catalog.doubt
    assert "mend it there" in catalog.doubt
    client.put_object(Bucket=bucket, Key=beside, Body=whole_one)
    client.delete_object(Bucket=bucket, Key=key)
    assert (await s3_bucket.catalog()).known == (lost,), "also once no other is there"
    await s3_bucket.write_manifest("gpu-7", manifest("gpu-7", transport, entry))
    assert await s3_bucket.catalog() == await S3Bucket(connect()).catalog()
    assert (await s3_bucket.catalog()).known == (lost, entry)
    assert (await s3_bucket.prove(lost.path, lost.checksum)).proven
    assert not (await s3_bucket.catalog()).doubt


async def test_who_may_not_keep_an_unreadable_manifest_beside_leaves_it_and_is_told_both(
    connect: Callable[..., S3Transport],
    client: Any,
    bucket: str,
    files: Files,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is wrong with it, and what is not allowed; who may not look there reads all others."""
    transport, key = connect(), layout.manifest_key("gpu-7")
    client.put_object(Bucket=bucket, Key=key, Body=b"no JSON")
    entry = await stored(transport, files, "data/x.bin", b"x")
    await S3Bucket(transport).write_manifest("gpu-8", manifest("gpu-8", transport, entry))

    async def denied(*_: object) -> None:
        raise Refused("s3://b/unreadable/x: AccessDenied")

    monkeypatch.setattr(transport.store, "copy", denied)
    with pytest.raises(ManifestUnreadable, match=f"{key}.*kept beside.*AccessDenied"):
        await S3Bucket(transport).write_manifest("gpu-7", manifest("gpu-7", transport, entry))
    assert client.get_object(Bucket=bucket, Key=key)["Body"].read() == b"no JSON"
    listed = transport.store.listed

    async def not_aside(*asked: Any, **more: Any) -> list[Any]:
        if more["Prefix"] == layout.ASIDE_PREFIX:
            raise Refused("s3://b/unreadable/: AccessDenied")
        return await listed(*asked, **more)

    monkeypatch.setattr(transport.store, "listed", not_aside)
    assert (await S3Bucket(transport).catalog()).known == (entry,)


async def test_a_manifest_of_a_later_release_is_let_be(
    connect: Callable[..., S3Transport], client: Any, bucket: str, files: Files
) -> None:
    """Who wrote it goes on with it; who is older is told to be upgraded."""
    transport, key = connect(), layout.manifest_key("gpu-7")
    later = b'{"version": 999}'
    client.put_object(Bucket=bucket, Key=key, Body=later)
    entry = await stored(transport, files, "data/x.bin", b"x")
    with pytest.raises(LaterRelease, match=f"s3://{bucket}/{key} .*upgrade this"):
        await S3Bucket(transport).write_manifest("gpu-7", manifest("gpu-7", transport, entry))
    assert client.get_object(Bucket=bucket, Key=key)["Body"].read() == later
    assert keys_in(client, bucket) == [key, layout.object_key(entry.checksum)]


async def test_what_was_read_wrong_on_its_way_is_not_lost(
    connect: Callable[..., S3Transport],
    client: Any,
    bucket: str,
    files: Files,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is put aside is what the bucket has, not what came of it."""
    transport = connect()
    s3_bucket = S3Bucket(transport)
    first = await stored(transport, files, "data/1.bin", b"1")
    await s3_bucket.write_manifest("gpu-7", manifest("gpu-7", transport, first))
    read, spoiled = layout.parsed, itertools.count()

    def parsed(data: bytes, node: str, name: str) -> layout.Manifest:
        return read(data if next(spoiled) else data[:-9], node, name)

    monkeypatch.setattr(layout, "parsed", parsed)
    second = await stored(transport, files, "data/2.bin", b"2")
    await s3_bucket.write_manifest("gpu-7", manifest("gpu-7", transport, second))
    assert (await s3_bucket.catalog()).known == (first, second)


async def test_a_consolidated_manifest_that_cant_be_read_is_begun_anew_from_all_nodes(
    connect: Callable[..., S3Transport], client: Any, bucket: str, files: Files
) -> None:
    """Though only one of them has grown; a node's that can't be read is passed over."""
    transport = connect()
    s3_bucket = S3Bucket(transport)
    for node in ("gpu-7", "gpu-8"):
        entry = await stored(transport, files, f"data/{node}.bin", node.encode())
        await s3_bucket.write_manifest(node, manifest(node, transport, entry))
    for node in ("", "gpu-9"):
        client.put_object(Bucket=bucket, Key=layout.manifest_key(node), Body=b"no JSON")
    kept = await s3_bucket.consolidate(["gpu-7"])
    assert [one.entry.path for one in kept.entries] == ["data/gpu-7.bin", "data/gpu-8.bin"]
    assert await s3_bucket.read_manifest("") == kept
    (aside,) = [key for key in keys_in(client, bucket) if key.startswith(layout.ASIDE_PREFIX)]
    assert layout.aside_of(aside) == ""
    assert [aside in str(one) for one in (await s3_bucket.catalog()).unreadable] == [True, False]


async def test_with_a_node_comes_back_what_it_produced_and_another_stored(
    connect: Callable[..., S3Transport], bucket: str, files: Files, root: Path
) -> None:
    """A node that could not reach the bucket has no manifest that names it, or none at all."""
    transport = connect()
    s3_bucket = S3Bucket(transport)
    theirs = [
        await stored(transport, files, path, path.encode())
        for path in ("games/gpu-7/b.jsonl", "games/gpu-8/c.jsonl")
    ]
    await s3_bucket.write_manifest("gpu-8", manifest("gpu-8", transport, *theirs))
    await s3_bucket.restore_node("gpu-7", root)
    assert files_under(root) == {"games/b.jsonl": b"games/gpu-7/b.jsonl"}
    own = await stored(transport, files, "games/gpu-7/a.jsonl", b"own")
    await s3_bucket.write_manifest("gpu-7", manifest("gpu-7", transport, own))
    became, unreadable = await s3_bucket.restore_node("gpu-7", root)
    assert sorted(became) == ["games/gpu-7/a.jsonl", "games/gpu-7/b.jsonl"]
    assert not unreadable


async def test_of_a_node_whose_manifest_cant_be_read_comes_back_what_others_name(
    connect: Callable[..., S3Transport], client: Any, bucket: str, files: Files, root: Path
) -> None:
    """What it produced and was consolidated, and what it has named since; it is told that more may
    be named.
    """
    transport = connect()
    s3_bucket = S3Bucket(transport)
    for node in ("gpu-7", "gpu-8"):
        entry = await stored(transport, files, f"games/{node}/a.jsonl", node.encode())
        await s3_bucket.write_manifest(node, manifest(node, transport, entry))
    await s3_bucket.consolidate()
    client.put_object(Bucket=bucket, Key=layout.manifest_key("gpu-7"), Body=b"no JSON")
    became, (unreadable,) = await s3_bucket.restore_node("gpu-7", root)
    assert list(became) == ["games/gpu-7/a.jsonl"]
    assert files_under(root) == {"games/a.jsonl": b"gpu-7"}
    assert f"s3://{bucket}/{layout.manifest_key('gpu-7')}" in str(unreadable)
    entry = await stored(transport, files, "shared/new.bin", b"new")
    await s3_bucket.write_manifest("gpu-7", manifest("gpu-7", transport, entry))
    became, (unreadable,) = await s3_bucket.restore_node("gpu-7", root)
    assert files_under(root) == {"games/a.jsonl": b"gpu-7", "shared/new.bin": b"new"}
    assert layout.ASIDE_PREFIX in str(unreadable)
    with pytest.raises(EntryMissing, match="gpu-9"):
        await s3_bucket.restore_node("gpu-9", root)


# Restore


async def test_a_node_is_restored_from_the_bucket_alone(
    connect: Callable[..., S3Transport], files: Files, root: Path
) -> None:
    """Every file is where the node kept it, with its bytes; two paths may share a content."""
    contents = {
        "games/gpu-7/notes.txt": b"n" * 3000,
        "shared/a.bin": b"same",
        "shared/b.bin": b"same",
        "shared/large.bin": os.urandom(2 * PART),
    }
    transport = connect()
    entries = [await stored(transport, files, path, data) for path, data in contents.items()]
    await S3Bucket(transport).write_manifest("gpu-7", manifest("gpu-7", transport, *entries))
    fresh = S3Bucket(connect())
    assert all(map(whole, (await fresh.restore_node("gpu-7", root)).became.values()))
    found = files_under(root)
    assert found == {path.replace("games/gpu-7/", "games/"): d for path, d in contents.items()}


async def test_what_stands_already_is_not_fetched_again(
    connect: Callable[..., S3Transport], client: Any, bucket: str, files: Files, root: Path
) -> None:
    """A restore that was broken off is called again."""
    transport = connect()
    entry = await stored(transport, files, "shared/a.bin", b"a")
    await S3Bucket(transport).write_manifest("gpu-7", manifest("gpu-7", transport, entry))
    (root / "shared").mkdir()
    (root / "shared/a.bin").write_bytes(b"a")
    client.delete_object(Bucket=bucket, Key=layout.object_key(entry.checksum))
    became, _ = await S3Bucket(transport).restore_node("gpu-7", root)
    assert became == {"shared/a.bin": Landed(bytes=1)}


async def test_p5_a_restore_replaces_nothing_that_is_another_content(
    connect: Callable[..., S3Transport],
    files: Files,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It may be newer than the backup, a database with games that are only there; also what comes
    to be there meanwhile. All else is restored.
    """
    transport = connect()
    paths = ("games/gpu-7/live.db", "shared/late.bin", "shared/gone.bin")
    entries = [await stored(transport, files, path, path.encode()) for path in paths]
    await S3Bucket(transport).write_manifest("gpu-7", manifest("gpu-7", transport, *entries))
    play(root / "games/live.db", 3)
    before = files_under(root)
    bring = S3Transport.bring

    async def begun_meanwhile(self: S3Transport, key: str, *more: Any) -> int:
        came = await bring(self, key, *more)
        if key == layout.object_key(entries[1].checksum):
            (root / "shared").mkdir(exist_ok=True)
            (root / "shared/late.bin").write_bytes(b"newer")
        return came

    monkeypatch.setattr(S3Transport, "bring", begun_meanwhile)
    became, _ = await S3Bucket(transport).restore_node("gpu-7", root)
    assert {path: type(became[path]) for path in paths} == {
        "games/gpu-7/live.db": NeverReplaced,
        "shared/late.bin": NeverReplaced,
        "shared/gone.bin": Landed,
    }
    late = {"shared/late.bin": b"newer", "shared/gone.bin": b"shared/gone.bin"}
    assert files_under(root) == before | late


async def test_how_far_a_restore_is_is_told_of_all_as_of_one(
    connect: Callable[..., S3Transport], files: Files, root: Path
) -> None:
    """What stands there already counts as come."""
    transport = connect()
    entries = [
        await stored(transport, files, f"shared/{name}", name.encode() * 1000) for name in "ab"
    ]
    await S3Bucket(transport).write_manifest("gpu-7", manifest("gpu-7", transport, *entries))
    (root / "shared").mkdir()
    (root / "shared/a").write_bytes(b"a" * 1000)
    told: list[tuple[int, int]] = []
    await S3Bucket(transport).restore_node("gpu-7", root, progress=lambda *at: told.append(at))
    assert told == sorted(told)
    assert told[-1] == (2000, 2000)
    (root / "x").mkdir()
    alone: list[tuple[int, int]] = []
    await S3Bucket(transport).restore_file(
        "shared/b", root / "x", progress=lambda *at: alone.append(at)
    )
    assert alone[-1] == (1000, 1000)


async def test_that_an_empty_file_is_restored_is_told(
    connect: Callable[..., S3Transport], files: Files, root: Path
) -> None:
    """Nothing of nothing is all of it."""
    transport = connect()
    empty = await stored(transport, files, "shared/empty", b"")
    await S3Bucket(transport).write_manifest("gpu-7", manifest("gpu-7", transport, empty))
    told: list[tuple[int, int]] = []
    await S3Bucket(transport).restore_file(
        "shared/empty", root, progress=lambda *at: told.append(at)
    )
    assert told == [(0, 0)]


async def test_one_file_that_fails_holds_up_no_other(
    connect: Callable[..., S3Transport], client: Any, bucket: str, files: Files, root: Path
) -> None:
    """It is named, with its error."""
    transport = connect()
    lost = await stored(transport, files, "shared/lost.bin", b"lost")
    kept = await stored(transport, files, "shared/kept.bin", b"kept")
    await S3Bucket(transport).write_manifest("gpu-7", manifest("gpu-7", transport, lost, kept))
    client.delete_object(Bucket=bucket, Key=layout.object_key(lost.checksum))
    became, _ = await S3Bucket(transport).restore_node("gpu-7", root)
    assert isinstance(became["shared/lost.bin"], EntryMissing)
    assert whole(became["shared/kept.bin"])


async def test_the_catalog_is_restored_from_the_bucket_alone(
    connect: Callable[..., S3Transport], files: Files
) -> None:
    """The newest entry of each path, whether it was consolidated already or not."""
    transport = connect()
    s3_bucket = S3Bucket(transport)
    old = await stored(transport, files, "shared/x.bin", b"old", version=1)
    await s3_bucket.write_manifest("gpu-7", manifest("gpu-7", transport, old))
    await s3_bucket.consolidate()
    new = await stored(transport, files, "shared/x.bin", b"new", version=2, games=None, samples=5)
    await s3_bucket.write_manifest("gpu-8", manifest("gpu-8", transport, new))
    assert (await S3Bucket(connect()).catalog()).known == (new,)
    assert [one.entry for one in (await s3_bucket.read_manifest("")).entries] == [old]


async def test_a_manifest_that_cant_be_read_holds_up_nothing_that_others_name(
    connect: Callable[..., S3Transport], client: Any, bucket: str, files: Files, root: Path
) -> None:
    """Whoever restores or asks for a proof is told which it is; nobody takes its place."""
    transport = connect()
    s3_bucket = S3Bucket(transport)
    entry = await stored(transport, files, "shared/x.bin", b"x" * 500)
    await s3_bucket.write_manifest("gpu-7", manifest("gpu-7", transport, entry))
    damaged = layout.manifest_key("gpu-8")
    client.put_object(Bucket=bucket, Key=damaged, Body=b"\0 no JSON")
    landed, (unreadable,) = await s3_bucket.restore_file("shared/x.bin", root)
    assert (landed.bytes, damaged in str(unreadable)) == (500, True)
    catalog = await s3_bucket.catalog()
    assert (catalog.known, len(catalog.unreadable)) == ((entry,), 1)
    with pytest.raises(EntryMissing, match=f"shared/y.bin.*{damaged}"):
        await s3_bucket.restore_file("shared/y.bin", root)
    assert (await s3_bucket.prove("shared/x.bin", entry.checksum)).proven
    assert damaged in (await s3_bucket.prove("shared/y.bin", entry.checksum)).reason
    client.put_object(Bucket=bucket, Key=layout.manifest_key(""), Body=b"")
    assert len((await s3_bucket.catalog()).unreadable) == 2


async def test_a_file_is_restored_by_its_manifest_entry(
    connect: Callable[..., S3Transport], files: Files, root: Path
) -> None:
    """Into a landing, which proves it."""
    transport = connect()
    entry = await stored(transport, files, "shared/x.bin", b"x" * 500)
    await S3Bucket(transport).write_manifest("gpu-7", manifest("gpu-7", transport, entry))
    (named,) = (await S3Bucket(transport).read_manifest("gpu-7")).entries
    landing = await Landing.open(root, entry, "t-1", entry.path)
    assert await S3Bucket(connect()).restore(named, landing) == 500
    assert await landing.commit() == Landed(bytes=500)


# Sealed


@pytest.mark.parametrize("size", [0, 1000, 3 * PART + 7])
async def test_what_is_sealed_is_restored_and_never_readable_in_the_bucket(
    connect: Callable[..., S3Transport],
    client: Any,
    bucket: str,
    files: Files,
    root: Path,
    size: int,
) -> None:
    """Every object of the bucket is looked through for the content's bytes."""
    data = (MARK * (size // len(MARK) + 1))[:size]
    transport = connect(sealer=Sealer(os.urandom(32)))
    entry = await stored(transport, files, "shared/x.bin", data)
    await S3Bucket(transport).write_manifest("gpu-7", manifest("gpu-7", transport, entry))
    held = [
        client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys_in(client, bucket)
    ]
    assert len(held) == 2
    assert not [body for body in held if MARK[:16] in body]
    became, _ = await S3Bucket(transport).restore_node("gpu-7", root)
    assert whole(became["shared/x.bin"])
    assert (root / "shared/x.bin").read_bytes() == data


async def test_a_sealed_upload_and_download_go_on_where_they_stopped(
    connect: Callable[..., S3Transport], client: Any, bucket: str, files: Files, root: Path
) -> None:
    """Sealed again, the parts are the same."""
    sealer = Sealer(os.urandom(32))
    entry, file = files.make(os.urandom(5 * PART + 99))
    await stopped_after(2 * PART, push, connect(sealer=sealer, concurrency=1), entry, file)
    kept = bytes_in_parts(client, bucket)
    assert kept >= PART
    size = connect(sealer=sealer).stored(entry).stored_bytes
    assert await push(connect(sealer=sealer), entry, file) == size - kept
    await stopped_after(2 * PART, fetch, connect(sealer=sealer), entry, root)
    assert 0 < await fetch(connect(sealer=sealer), entry, root) < size - PART


async def test_a_sealed_object_opens_only_with_its_key(
    connect: Callable[..., S3Transport], files: Files, bucket: str, root: Path
) -> None:
    """Without it, or with another one, a node is told so, of which object and of which file."""
    transport = connect(sealer=Sealer(bytes(32)))
    entry = await stored(transport, files, "shared/x.bin", b"x")
    await S3Bucket(transport).write_manifest("gpu-7", manifest("gpu-7", transport, entry))
    for other in (connect(), connect(sealer=Sealer(b"k" * 32))):
        became, _ = await S3Bucket(other).restore_node("gpu-7", root)
        refused = became["shared/x.bin"]
        assert isinstance(refused, Refused)
        assert f"s3://{bucket}/sealed/" in str(refused) and "shared/x.bin" in str(refused)


async def test_a_restore_leaves_nothing_beside_what_came(
    connect: Callable[..., S3Transport], client: Any, bucket: str, files: Files, root: Path
) -> None:
    """With the wrong key nothing at all, with the right one the file; what broke off is kept."""
    sealed = connect(sealer=Sealer(bytes(32)))
    entry = await stored(sealed, files, "shared/x.bin", os.urandom(2 * PART))
    await S3Bucket(sealed).write_manifest("gpu-7", manifest("gpu-7", sealed, entry))
    wrong = S3Bucket(connect(sealer=Sealer(b"k" * 32)))
    with pytest.raises(Refused):
        await wrong.restore_file("shared/x.bin", root)
    assert isinstance((await wrong.restore_node("gpu-7", root)).became["shared/x.bin"], Refused)
    assert names_in(root) == []

    async def restore(transport: S3Transport, _: DataEntry, root: Path, **how: Any) -> int:
        return (await S3Bucket(transport).restore_file("shared/x.bin", root, **how)).landed.bytes

    await stopped_after(PART, restore, sealed, entry, root)
    assert len(left_in(root)) == 1
    assert await restore(sealed, entry, root) == 2 * PART
    assert names_in(root) == ["shared", "x.bin"]


async def test_a_sealed_object_that_was_changed_is_refused(
    connect: Callable[..., S3Transport], client: Any, bucket: str, files: Files, root: Path
) -> None:
    """A flipped bit anywhere, and nothing is kept."""
    sealer = Sealer(bytes(32))
    entry = await stored(connect(sealer=sealer), files, "shared/x.bin", b"x" * 3_000_000)
    key = layout.sealed_key(entry.checksum, sealer.key_id)
    body = bytearray(client.get_object(Bucket=bucket, Key=key)["Body"].read())
    body[2_500_000] ^= 1
    metadata = client.head_object(Bucket=bucket, Key=key)["Metadata"]
    client.put_object(Bucket=bucket, Key=key, Body=bytes(body), Metadata=metadata)
    landing = await Landing.open(root, entry, "t-1", entry.path)
    with pytest.raises(DigestMismatch):
        await connect(sealer=sealer).fetch(request_for(entry), landing, Throttle(), quiet)
    assert landing.offset == 0
    await landing.abort()


@pytest.mark.parametrize("kept", [0, 20, 2_500_000])
@pytest.mark.parametrize("sealer", [None, Sealer(bytes(32))])
async def test_an_object_that_was_cut_short_is_told_as_damaged_and_not_as_absent(
    connect: Callable[..., S3Transport],
    client: Any,
    bucket: str,
    files: Files,
    root: Path,
    sealer: Sealer | None,
    kept: int,
) -> None:
    """By its own name, though a node with a key looks for one without it, too."""
    transport = connect(sealer=sealer)
    entry = await stored(transport, files, "shared/x.bin", b"x" * 3_000_000)
    key = transport.stored(entry).key
    found = client.get_object(Bucket=bucket, Key=key)
    cut = found["Body"].read()[:kept]
    client.put_object(Bucket=bucket, Key=key, Body=cut, Metadata=found["Metadata"])
    (many,) = await transport.fetch_many([request_for(entry)], lambda _: None)
    with pytest.raises(EntryMissing) as one:
        await fetch(transport, entry, root)
    for error in (many, one.value):
        assert told_as(type(error)) == "EntryMissing"
        assert f"s3://{bucket}/{key}" in str(error)
        assert "damaged" in str(error)
    client.delete_object(Bucket=bucket, Key=key)
    with pytest.raises(EntryMissing, match="the bucket does not hold it"):
        await fetch(transport, entry, root)
    assert await fetch(transport, await stored(connect(), files, entry.path, b"x"), root) == 1


async def test_who_has_a_key_still_fetches_what_was_stored_plain(
    connect: Callable[..., S3Transport], files: Files, root: Path
) -> None:
    """Sealing may be switched on later."""
    entry = await stored(connect(), files, "shared/x.bin", b"x" * 100)
    assert await fetch(connect(sealer=Sealer(bytes(32))), entry, root) == 100


async def test_clusters_with_prefixes_share_a_bucket_and_see_nothing_of_each_other(
    connect: Callable[..., S3Transport], client: Any, bucket: str, files: Files, root: Path
) -> None:
    """Objects small and large, manifests, restoring, and uploads that somebody left behind."""
    ours, theirs = connect(prefix="clusters/a"), connect(prefix="clusters/ab")
    small, large = files.make(b"small", "a"), files.make(os.urandom(PART + 1), "b")
    for entry, file in (small, large):
        await push(ours, entry, file)
    await S3Bucket(ours).write_manifest("gpu-7", manifest("gpu-7", ours, small[0], large[0]))
    await S3Bucket(ours).consolidate()
    own = [layout.object_key(entry.checksum) for entry, _ in (small, large)]
    own += [layout.manifest_key("gpu-7"), layout.manifest_key("")]
    assert keys_in(client, bucket) == sorted(f"clusters/a/{key}" for key in own)
    assert await S3Bucket(ours).nodes() == ["gpu-7"]
    assert await S3Bucket(theirs).nodes() == []
    landed, unreadable = await S3Bucket(ours).restore_file("b", root)
    assert not unreadable
    assert landed.bytes == PART + 1
    with pytest.raises(EntryMissing):
        await S3Bucket(theirs).restore_file("b", root)
    key = f"clusters/a/{layout.object_key(large[0].checksum)}"
    client.create_multipart_upload(Bucket=bucket, Key=key)
    assert await theirs.abort_stale(-60.0) == 0
    assert await ours.abort_stale(-60.0) == 1


@contextlib.asynccontextmanager
async def answering(status: int, page: str) -> AsyncIterator[tuple[str, list[str]]]:
    """A server that says the same to everything: its URL, and by which methods it was asked."""
    asked: list[str] = []

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        await request.read()
        asked.append(request.method)
        return web.Response(status=status, text=page, content_type="text/html")

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    site = web.TCPSite(runner, HOST, 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
    yield f"http://{HOST}:{port}", asked
    await runner.cleanup()


def asking(transport: S3Transport, files: Files) -> list[Coroutine[Any, Any, object]]:
    """An object sent, small and large files pushed, a listing, and an upload begun."""
    small, large = files.make(b"x" * 1000), files.make(os.urandom(3 * PART))
    return [
        transport.store.send("a", b"x", hashlib.sha256(b"x").digest(), Flow(), {}),
        push(transport, *small),
        push(transport, *large),
        S3Bucket(transport).nodes(),
        transport.store.call("create_multipart_upload", Flow().answering(), "k"),
    ]


def manifest(node: str, transport: S3Transport, *entries: DataEntry) -> layout.Manifest:
    """A manifest that names what a transport stores of some entries."""
    named: list[ManifestEntry] = [transport.stored(entry) for entry in entries]
    return layout.manifest_of(node, named, time.time())


async def stored(
    transport: S3Transport, files: Files, path: str, data: bytes, **known: Any
) -> DataEntry:
    """An entry whose content is in the bucket."""
    entry, file = files.make(data, path, **known)
    await push(transport, entry, file)
    return entry


def bytes_in_parts(client: Any, bucket: str) -> int:
    """What the only unfinished upload has."""
    (upload,) = client.list_multipart_uploads(Bucket=bucket)["Uploads"]
    parts = client.list_parts(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
    return sum(part["Size"] for part in parts.get("Parts", []))


def files_under(root: Path) -> dict[str, bytes]:
    """All files of a data root, but not the data plane's own."""
    paths = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
    return {
        path.as_posix(): (root / path).read_bytes()
        for path in paths
        if not path.parts[0].startswith(".")
    }


def resident() -> int:
    """Bytes of this process that are in memory."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


async def test_a_replica_in_the_bucket_is_proven_by_manifest_and_object(
    bucket: str, client: Any, connect: Callable[..., S3Transport], files: Files
) -> None:
    """K22: what no manifest names, or whose object is gone or another, is no copy."""
    transport = connect()
    s3_bucket = S3Bucket(transport)
    entry = await stored(transport, files, "data/x.bin", b"games")
    assert "no manifest" in (await s3_bucket.prove(entry.path, entry.checksum)).reason
    await s3_bucket.write_manifest("gpu-7", manifest("gpu-7", transport, entry))
    proof = await s3_bucket.prove(entry.path, entry.checksum)
    assert (proof.proven, proof.node, proof.size_bytes) == (True, "s3", 5)
    key = layout.object_key(entry.checksum)
    client.put_object(Bucket=bucket, Key=key, Body=b"rotten")
    assert "another content" in (await s3_bucket.prove(entry.path, entry.checksum)).reason
    client.delete_object(Bucket=bucket, Key=key)
    assert "gone" in (await s3_bucket.prove(entry.path, entry.checksum)).reason


# Many small ones


@pytest.mark.parametrize("sealed", [False, True])
async def test_many_small_objects_come_at_once_and_each_for_itself(
    connect: Callable[..., S3Transport],
    files: Files,
    root: Path,
    client: Any,
    bucket: str,
    sealed: bool,
) -> None:
    """What is not there, or is another content, fails alone; the others land as a group."""
    transport = connect(sealer=Sealer(bytes(32))) if sealed else connect()
    contents = [os.urandom(size) for size in [0, 1, 20_000, 262_144, *range(300, 330)]]
    made = [files.make(data, f"data/{number}.bin") for number, data in enumerate(contents)]
    for entry, file in made:
        await transport.push(request_for(entry), file, Throttle(), quiet)
    plain, file = files.make(b"stored before there was a key", "data/plain.bin")
    await connect().push(request_for(plain), file, Throttle(), quiet)
    gone, _ = files.make(b"nobody stored it", "data/gone.bin")
    other, _ = files.make(b"this", "data/other.bin")
    key = layout.object_key(other.checksum)
    client.put_object(Bucket=bucket, Key=key, Body=b"that", Metadata={"sha256": "0" * 64})
    entries = [gone, *(entry for entry, _ in made), other, plain]
    group = Group(root, [Wanted(entry, entry.path) for entry in entries])
    failed = await transport.fetch_many([request_for(entry) for entry in entries], group.put)
    group.commit()
    group.close()
    missing = [entry.path for entry, error in zip(entries, failed, strict=True) if error]
    assert missing == [gone.path, other.path]
    assert all(isinstance(error, EntryMissing) for error in failed if error)
    landed = [*contents, b"stored before there was a key"]
    assert [(root / e.path).read_bytes() for e in entries if e not in (gone, other)] == landed


async def test_many_small_objects_of_a_bucket_that_is_not_there_all_say_so(
    connect: Callable[..., S3Transport], files: Files
) -> None:
    """Each has the error, and nothing is handed on."""
    entries = [files.make(b"%d" % number, f"data/{number}.bin")[0] for number in range(5)]
    wanted = [request_for(entry) for entry in entries]
    failed = await connect(bucket="no-such-bucket").fetch_many(wanted, lambda *_: pytest.fail())
    assert all(isinstance(error, TransportError) for error in failed)


@pytest.mark.parametrize(
    ("chosen", "becomes"), [(logging.DEBUG, logging.INFO), (logging.WARNING, logging.WARNING)]
)
async def test_what_libraries_tell_is_cut_down_and_never_let_out(
    connect: Callable[..., S3Transport],
    files: Files,
    monkeypatch: pytest.MonkeyPatch,
    chosen: int,
    becomes: int,
) -> None:
    """All that they could tell holds tokens; who wants to hear less of them is not overruled."""
    library = logging.getLogger("aiobotocore")
    monkeypatch.setattr(library, "level", chosen)
    await stored(connect(), files, "shared/x.bin", b"x")
    assert library.level == becomes
