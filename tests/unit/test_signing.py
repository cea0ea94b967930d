"""Signed URLs, and what the file server makes of bad ones."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import aiohttp
import pytest
from msgspec import structs

from adapters.errors import Refused
from adapters.files.inventory import Inventory
from adapters.http.receiving import Receiver, described
from adapters.http.signing import BadSignature, Signer
from adapters.http.transport import FileServer
from streams.values import DataEntry, DataType

CHECKSUM = "sha256:" + "ab" * 32
OTHER = "sha256:" + "cd" * 32
NOW = 1_800_000_000.0
KEY = b"a key of all nodes in a cluster!"


def signed(signer: Signer | None = None, base: str = "http://gpu-7:8770") -> str:
    """A URL for one content, path and target, good for a minute."""
    known = signer or Signer(KEY)
    return known.url(base, CHECKSUM, "games/gpu-7/ü x.db", "trainer", NOW, 60)


def query(url: str) -> dict[str, str]:
    """The query of a URL."""
    return dict(parse_qsl(urlsplit(url).query))


def test_a_node_that_is_told_of_tls_makes_no_url_without_it() -> None:
    """A signed URL is all that somebody on the way would need."""
    careful = Signer(KEY, plain=False)
    assert careful.url("https://x:1", CHECKSUM, "a", "c", NOW, 60).startswith("https://x:1/")
    for base in ("http://x:1", "HTTP://x:1", "x:1", ""):
        with pytest.raises(Refused, match="without TLS"):
            careful.url(base, CHECKSUM, "a", "c", NOW, 60)


def test_a_proper_url_names_its_target() -> None:
    """Whoever has the key can tell for whom a URL was signed."""
    assert urlsplit(signed()).path == "/entry/" + "ab" * 32
    assert Signer(KEY).verify(CHECKSUM, query(signed()), NOW + 60) == "trainer"


def test_an_expired_url_is_refused_as_such() -> None:
    """The reason says that it expired, not that it was wrong."""
    with pytest.raises(BadSignature, match="expired 5 s ago"):
        Signer(KEY).verify(CHECKSUM, query(signed()), NOW + 65)


@pytest.mark.parametrize("part", ["path", "target", "expires", "signature"])
def test_a_signature_is_bound_to_every_part_of_the_url(part: str) -> None:
    """Changing or leaving out any part makes the URL worthless."""
    parts = query(signed())
    changed = parts | {part: parts[part][:-1] + ("0" if parts[part][-1] != "0" else "1")}
    with pytest.raises(BadSignature, match="wrong signature"):
        Signer(KEY).verify(CHECKSUM, changed, NOW)
    with pytest.raises(BadSignature, match=f"lacks {part}"):
        Signer(KEY).verify(CHECKSUM, {k: v for k, v in parts.items() if k != part}, NOW)


def test_a_signature_is_bound_to_the_content_and_the_key() -> None:
    """It opens no other content, and another key's signature opens nothing."""
    with pytest.raises(BadSignature, match="wrong signature"):
        Signer(KEY).verify(OTHER, query(signed()), NOW)
    with pytest.raises(BadSignature, match="wrong signature"):
        Signer(b"another key, as long").verify(CHECKSUM, query(signed()), NOW)


def test_parts_cannot_be_shifted_into_each_other() -> None:
    """Moving a letter from the path to the target is another URL with another signature."""
    one = Signer(KEY).url("http://x", CHECKSUM, "ab", "c", NOW, 60)
    two = Signer(KEY).url("http://x", CHECKSUM, "a", "bc", NOW, 60)
    assert query(one)["signature"] != query(two)["signature"]


@pytest.mark.parametrize("expires", ["", "soon", "1e9", "-5", "٣٣٣", "9" * 5000])
def test_a_strange_expiry_is_refused(expires: str) -> None:
    """What is no plain number is refused like any bad URL, and never breaks the server."""
    with pytest.raises(BadSignature):
        Signer(KEY).verify(CHECKSUM, query(signed()) | {"expires": expires}, NOW)


@pytest.mark.parametrize("signature", ["", "ü", "\udc80", "00" * 32])
def test_a_strange_signature_is_refused(signature: str) -> None:
    """So is a signature in any other alphabet."""
    with pytest.raises(BadSignature):
        Signer(KEY).verify(CHECKSUM, query(signed()) | {"signature": signature}, NOW)


def test_a_short_key_is_refused() -> None:
    """A key that could be guessed is none, and is not named in the error."""
    with pytest.raises(ValueError, match="16") as caught:
        Signer(b"secret")
    assert "secret" not in str(caught.value)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[FileServer]:
    """A server that holds one content, at a fixed time."""
    (tmp_path / "x").write_bytes(b"0123456789")
    held = {CHECKSUM: tmp_path / "x"}
    server = FileServer(held.get, Signer(KEY), clock=lambda: NOW)
    await server.start()
    yield server
    await server.stop()


async def answer(url: str, **headers: str) -> tuple[int, bytes, dict[str, str]]:
    """Status, body and headers of what a URL brings."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with aiohttp.ClientSession() as session, session.get(url, headers=named) as response:
        found = {name.title(): value for name, value in response.headers.items()}
        return response.status, await response.read(), found


async def test_the_server_gives_a_content_to_a_proper_url(server: FileServer) -> None:
    """All of it, with its digest as ETag; and its counters are honest."""
    status, body, headers = await answer(signed(base=server.url))
    assert (status, body) == (200, b"0123456789")
    assert headers["Etag"] == f'"{CHECKSUM}"'
    assert (server.served.requests, server.served.bytes_sent) == (1, 10)


async def test_the_server_refuses_bad_urls_with_the_reason(server: FileServer) -> None:
    """Without saying whether it holds the content; and there is nothing to list."""
    foreign = Signer(b"another key, as long").url(server.url, CHECKSUM, "x", "t", NOW, 60)
    status, body, _ = await answer(foreign)
    assert (status, b"wrong signature" in body) == (403, True)
    missing = Signer(b"another key, as long").url(server.url, OTHER, "x", "t", NOW, 60)
    assert (await answer(missing))[0] == 403
    old = Signer(KEY).url(server.url, CHECKSUM, "x", "t", NOW - 100, 60)
    assert (await answer(old))[:2] == (403, b"the URL expired 40 s ago; do the clocks agree?")
    for path in ("/", "/entry/", "/entry/../x", "/entry/x", "/x"):
        assert (await answer(server.url + path))[0] == 404
    assert server.served.bytes_sent == 0


async def test_the_server_says_404_for_what_it_does_not_hold(server: FileServer) -> None:
    """To those who may ask."""
    assert (await answer(Signer(KEY).url(server.url, OTHER, "x", "t", NOW, 60)))[0] == 404


@pytest.mark.parametrize(
    ("asked", "status", "body", "said"),
    [
        ("bytes=4-", 206, b"456789", "bytes 4-9/10"),
        ("bytes=0-0", 206, b"0", "bytes 0-0/10"),
        ("bytes=8-50", 206, b"89", "bytes 8-9/10"),
        ("bytes=-3", 206, b"789", "bytes 7-9/10"),
        ("bytes=10-", 416, b"", "bytes */10"),
        ("bytes=5-2", 416, b"", "bytes */10"),
        ("bytes=-", 200, b"0123456789", None),
        ("bytes=0-1,4-5", 200, b"0123456789", None),
        ("lines=1-2", 200, b"0123456789", None),
    ],
)
async def test_the_server_gives_ranges(
    server: FileServer, asked: str, status: int, body: bytes, said: str | None
) -> None:
    """Single ranges of bytes; anything else brings the whole."""
    got, data, headers = await answer(signed(base=server.url), Range=asked)
    assert (got, data, headers.get("Content-Range")) == (status, body, said)


async def test_the_server_gives_a_range_of_the_content_meant_only(server: FileServer) -> None:
    """With If-Range of another content the whole comes, so that nobody mixes two."""
    url = signed(base=server.url)
    same = await answer(url, Range="bytes=4-", If_Range=f'"{CHECKSUM}"')
    assert same[:2] == (206, b"456789")
    assert (await answer(url, Range="bytes=4-", If_Range=f'"{OTHER}"'))[0] == 200


def test_a_url_to_fetch_is_no_url_to_send() -> None:
    """Who may read a content may not put one in its place, nor the other way round."""
    send = Signer(KEY).url("http://gpu-7:8770", CHECKSUM, "x", "gpu-7", NOW, 60, "PUT")
    assert Signer(KEY).verify(CHECKSUM, query(send), NOW, "PUT") == "gpu-7"
    with pytest.raises(BadSignature, match="wrong signature"):
        Signer(KEY).verify(CHECKSUM, query(send), NOW)
    with pytest.raises(BadSignature, match="wrong signature"):
        Signer(KEY).verify(CHECKSUM, query(signed()), NOW, "PUT")


@pytest.fixture
async def taking(tmp_path: Path) -> AsyncIterator[FileServer]:
    """A server that takes what is sent to gpu-7."""
    inventory = Inventory(tmp_path, "gpu-7")
    server = FileServer(
        lambda _: None, Signer(KEY), receiver=Receiver("gpu-7", tmp_path, inventory)
    )
    await server.start()
    yield server
    await server.stop()
    await inventory.close()


async def sent(server: FileServer, url: str, entry: DataEntry) -> tuple[int, str]:
    """How a body of one byte is answered."""
    headers = {**described(entry, "t-1"), "Content-Range": "bytes 0-0/1"}
    async with (
        aiohttp.ClientSession() as session,
        session.put(url, data=b"x", headers=headers) as answer,
    ):
        return answer.status, await answer.text()


def landed(root: Path) -> dict[str, bytes]:
    """The files of a data root."""
    return {path.name: path.read_bytes() for path in root.glob("*.bin")}


async def test_what_is_sent_must_be_what_the_url_was_signed_for(
    taking: FileServer, tmp_path: Path
) -> None:
    """Not another node's, not under another path, not another content; then it lands."""
    x = "sha256:" + hashlib.sha256(b"x").hexdigest()
    kind = DataType.METADATA
    entry = DataEntry(path="x.bin", data_type=kind, config_key="all", size_bytes=1, checksum=x)
    elsewhere = structs.replace(entry, path="y.bin")

    def url(target: str, verb: str = "PUT") -> str:
        return Signer(KEY).url(taking.url, x, "x.bin", target, time.time(), 60, verb)

    assert (await sent(taking, url("gpu-8"), entry))[0] == 403
    assert (await sent(taking, url("gpu-7", "GET"), entry))[0] == 403
    assert (await sent(taking, url("gpu-7"), elsewhere))[0] == 409
    assert landed(tmp_path) == {}
    assert (await sent(taking, url("gpu-7"), entry))[0] == 201
    assert landed(tmp_path) == {"x.bin": b"x"}
