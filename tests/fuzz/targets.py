"""Which decoders there are, what is fed to them, and which errors they may raise."""

from __future__ import annotations

import base64
import io
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import msgspec
import zstandard
from hypothesis import strategies as st

from adapters.errors import Interrupted, Refused
from adapters.files.blocks import (
    DIGEST_BYTES,
    LEAF_DIGEST_BYTES,
    BlockMap,
    MalformedMap,
    block_bytes_of,
    block_count_of,
)
from adapters.http import receiving, server
from adapters.http import transport as http_transport
from adapters.http.batches import MalformedBatch, decode_list
from adapters.http.signing import BadSignature, Signer
from adapters.p2p import pages
from adapters.p2p.gossip import Having, bits_in
from adapters.p2p.pages import MalformedPages
from adapters.s3 import layout as s3_layout
from adapters.s3.layout import Manifest, ManifestEntry, ManifestUnreadable, manifest_of
from adapters.s3.sealing import HEADER_BYTES, Opener, SealBroken, Sealer
from adapters.ssh.rsync_words import progress_in
from adapters.transport import Request
from dataplane.agent.progress import ProgressMessage
from dataplane.audit.moments import moment_of
from dataplane.config import ConfigError, DataPlaneConfig
from dataplane.coordinator.deleting import DeletionAnswer, DeletionOrder
from dataplane.coordinator.granting import GrantsTold
from dataplane.held import HeldPage
from dataplane.proving import Proof, ProofRequest
from dataplane.queries import QUERIES, understand
from streams import segments, wire
from streams.codec import Fact, decode, encode
from streams.events import TransferAssigned
from streams.foreign import Unreadable, from_json
from streams.identity import PathRules, data_type_of, escapes
from streams.micro import ServiceRefusal
from streams.segments import ArchiveDamaged, ArchiveManifest
from streams.stored import NotALine, Stored, as_restored, as_stored, from_line, to_line
from streams.subjects import matches, parse_subject
from streams.values import DataEntry, Endpoint, is_token
from tests.fuzz import files
from tests.fuzz.spoiling import spoiled
from tests.spec import CREATED, as_fact, games_of
from tests.unit.histories import any_event, said

Feed = Callable[[Any], object]


class Target(NamedTuple):
    """A decoder under fire."""

    name: str
    inputs: st.SearchStrategy[Any]
    feed: Feed
    #: What it may raise; anything else is a find.
    declared: tuple[type[Exception], ...] = ()
    #: Its part of the inputs, beside the others': less where one takes long.
    weight: float = 1.0


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


_TOKENS = st.sampled_from(
    ["dp", "node", "chain", "task", "gpu-7", "hex8_2p", "*", ">", "", "é", "x" * 65]
)
_SUBJECTS = st.lists(_TOKENS | st.text(max_size=6), max_size=6).map(".".join) | st.text(max_size=30)
_HEADER_NAMES = st.sampled_from(
    ["ce-id", "ce-type", "ce-correlationid", "ce-causationid", "ce-dataversion", "Nats-Msg-Id"]
)
_HEADERS = st.dictionaries(
    _HEADER_NAMES | st.text(max_size=8), st.text(max_size=12) | st.just("1"), max_size=5
)


def _said(fact: Fact) -> tuple[str, dict[str, str], bytes]:
    headers, body = encode(fact, 1_700_000_000.0)
    return fact.subject, headers, body


_WRITTEN = any_event().map(lambda event: _said(as_fact(said(event), 1)))


@st.composite
def _messages(draw: st.DrawFn) -> tuple[str, dict[str, str], bytes]:
    subject, headers, body = draw(_WRITTEN)
    kind = draw(st.integers(0, 3))
    if kind == 0:
        return subject, headers, draw(spoiled(st.just(body)))
    if kind == 1:
        return subject, {}, msgspec.json.encode(draw(_JSON))
    if kind == 2:
        return draw(_SUBJECTS), draw(_HEADERS), body
    return subject, {**headers, **draw(_HEADERS)}, draw(st.binary(max_size=60))


def _decode(message: tuple[str, dict[str, str], bytes]) -> None:
    subject, headers, body = message
    recorded = decode(7, 1.0, subject, headers, body)
    assert (recorded.event is None) == bool(recorded.problem)
    assert recorded.chain == "" or is_token(recorded.chain)


_STORED = st.builds(
    Stored,
    st.integers(1, 2**62),
    st.integers(0, 2**62),
    _SUBJECTS,
    st.dictionaries(
        st.text(st.characters(codec="utf-8"), max_size=8),
        st.text(st.characters(codec="utf-8"), max_size=8),
        max_size=3,
    ),
    st.binary(max_size=30),
)


def _segment(messages: list[bytes]) -> tuple[segments.SegmentInfo, bytes]:
    held = [Stored(n, n, "dp.node.n.X", {}, body) for n, body in enumerate(messages, 1)]
    return segments.packed(held, CREATED, "")


@st.composite
def _segments(draw: st.DrawFn) -> tuple[segments.SegmentInfo, bytes]:
    info, data = _segment(draw(st.lists(st.binary(max_size=20), min_size=1, max_size=3)))
    if draw(st.booleans()):
        return info, draw(spoiled(st.just(data)))
    text = draw(spoiled(st.just(zstandard.ZstdDecompressor().decompress(data))))
    packed = zstandard.ZstdCompressor().compress(text)
    if draw(st.booleans()):
        # Somebody who can write the manifest too.
        info = msgspec.structs.replace(info, digest=segments._digest(text))
    return info, packed


def _archive_manifest(n: int) -> bytes:
    info, _ = _segment([b"x"] * n)
    return segments.manifest_text(ArchiveManifest(CREATED, (info,)))


def _bucket_manifest(n: int) -> bytes:
    entries = [games_of("gpu-1", f"content {number}") for number in range(n)]
    stored = [
        ManifestEntry(entry=e, key=s3_layout.object_key(e.checksum), stored_bytes=e.size_bytes)
        for e in entries
    ]
    manifest: Manifest = manifest_of("gpu-1", stored, 1.0)
    return s3_layout.encoded(manifest)


_map_sizes = st.sampled_from([0, 1, 4096, 65_536, 65_537, 1_000_000])


def _block_map(size_bytes: int) -> bytes:
    count = block_count_of(size_bytes)
    digests = bytes(DIGEST_BYTES * count)
    return BlockMap(size_bytes, block_bytes_of(size_bytes), digests).encode()


@st.composite
def _maps(draw: st.DrawFn) -> tuple[bytes, int]:
    size = draw(_map_sizes)
    return draw(spoiled(st.just(_block_map(size)))), size


_OLDS = [pages.Old(0, bytes(16 * LEAF_DIGEST_BYTES)), pages.Old(15, bytes(8))]


def _pages(body: bytes) -> None:
    for packed in (body, zstandard.ZstdCompressor().compress(body)):
        read = pages.unpacked(io.BytesIO(packed).read)
        try:
            list(pages.decode_answer(read, _OLDS, BlockMap.parse(_block_map(1_000_000))))
        except MalformedPages:
            if packed is not body:
                raise


_SIGNER = Signer(b"k" * 32)
_URL = _SIGNER.url("http://h", games_of("a", "b").checksum, "p", "t", 1.0, 60.0)
_QUERY = st.dictionaries(
    st.sampled_from(["path", "target", "expires", "signature", "x"]),
    st.text(max_size=20) | st.sampled_from(["9" * 5000, "١٢", "-1", "1e9", "61"]),
    max_size=5,
)


def _verify(query: dict[str, str]) -> None:
    _SIGNER.verify(games_of("a", "b").checksum, query, 2.0)
    raise AssertionError(f"a signature was made up: {query}")


_NUMBERS = st.integers(0, 10**20).map(str) | st.sampled_from(["", "-", "٣", " 1", "+1", "0x1"])


@st.composite
def _ranges(draw: st.DrawFn) -> str:
    unit = draw(st.sampled_from(["bytes=", "bytes ", "items=", "bytes=bytes=", ""]))
    tail = draw(st.sampled_from(["", ",0-1", "/*", "/10", "\r\nX: y"]))
    return f"{unit}{draw(_NUMBERS)}-{draw(_NUMBERS)}{tail}"


def _range(text: str) -> None:
    first, count = server._span(server._RANGE.fullmatch(text), 1000)
    assert first >= 0 and (count <= 0 or first + count <= 1000), (text, first, count)


_HAVING = st.builds(Having, st.just("gpu-7"), st.just("http://h:1"), st.booleans(), st.binary())


def _having(body: bytes) -> None:
    told = Having.decode(body)
    if told is not None:
        assert 0 <= bits_in(told.pieces, 9) < 1 << 9


@st.composite
def _entry_headers(draw: st.DrawFn) -> tuple[dict[str, str], str]:
    entry = games_of("gpu-1")
    said = base64.b64encode(draw(spoiled(st.just(msgspec.json.encode(entry))))).decode()
    header = draw(st.just(said) | st.text(max_size=20) | st.just("é" + said))
    return {receiving.ENTRY_HEADER: header}, draw(st.sampled_from([entry.path, "x"]))


def _entry_in(said: tuple[dict[str, str], str]) -> None:
    headers, path = said
    request: Any = SimpleNamespace(headers=headers, query={"path": path})
    entry, _ = receiving._said(request, games_of("gpu-1").checksum)
    assert entry.checksum == games_of("gpu-1").checksum


def _offset_in(said: str) -> None:
    there = Endpoint(node="gpu-1")
    request = Request("t-1", games_of("gpu-1"), there, there)
    assert 0 <= http_transport._offset(said, request) <= request.entry.size_bytes


_SEALER = Sealer(bytes(32))
_PLAIN = games_of("a", "b").checksum, 9


def _sealed() -> bytes:
    content = _SEALER.sealing(*_PLAIN)
    return content.header + content.seal(0, b"plaintext")


_SEALED = _sealed()


def _unseal(data: bytes) -> None:
    opener = Opener(_SEALER.opening(data[:HEADER_BYTES], *_PLAIN))
    opened = opener.feed(data[HEADER_BYTES:])
    opener.finish()
    assert opened == b"plaintext"


_KINDS: tuple[Any, ...] = (
    dict[str, Any],
    list[str],
    DataEntry,
    GrantsTold,
    HeldPage,
    Proof,
    ProofRequest,
    DeletionAnswer,
    DeletionOrder,
    TransferAssigned,
    ProgressMessage,
)
_DEEP = st.sampled_from([b"[" * 100_000, b'{"x":' * 100_000, b'{"x":"\xff"}', b'"\xed\xa0\x80"'])


@st.composite
def _words(draw: st.DrawFn) -> tuple[bytes, Any]:
    page = HeldPage(7, (games_of("a"), games_of("b")), "00ff")
    proof = Proof(node="a", proven=True, checksum="sha256:00", size_bytes=1)
    whole = st.sampled_from([page, proof, GrantsTold({"t": 1.5}), games_of("a")])
    body = draw(spoiled(whole.map(msgspec.json.encode)) | _JSON.map(msgspec.json.encode) | _DEEP)
    return body, draw(st.sampled_from(_KINDS))


_ASKED = st.sampled_from(["node", "path", "after", "last", "data_type", "config_key", "x"])
_QUESTIONS = (
    st.binary(max_size=40)
    | st.dictionaries(_ASKED, _JSON, max_size=3).map(msgspec.json.encode)
    | _DEEP
    | st.dictionaries(_ASKED, st.text(max_size=6), max_size=3)
)


def _ask(said: bytes | dict[str, str]) -> None:
    """As each of the questions."""
    for name in QUERIES:
        with suppress(ServiceRefusal):
            understand(name, said)


def _config(text: bytes) -> None:
    with tempfile.NamedTemporaryFile(suffix=".toml") as file:
        file.write(text)
        file.flush()
        DataPlaneConfig.load(Path(file.name), environment={"DATAPLANE_NODE": "n1"}).policy()


_TOML = b"""node = "n1"
roles = ["training"]
max_retries = 3
replicas = 1
transports = ["http"]
s3_enabled = false
[policy.replication]
minimum = 2
[policy.exclusion]
exclude_hosts = ["a*"]
"""
_FIELDS = st.sampled_from([*DataPlaneConfig.__struct_fields__, "policy", "nothing"])

_RULES = PathRules()


def _path(path: str) -> None:
    data_type_of(path)
    if not escapes(path):
        logical = _RULES.logical(path, "gpu-7")
        assert not escapes(_RULES.local(logical, "gpu-8")), path


def _restored(message: Stored) -> None:
    again = message._replace(headers=as_restored(message))
    assert as_stored(again) == message
    as_stored(message)


TARGETS: tuple[Target, ...] = (
    Target("messages", _messages(), _decode),
    Target("subjects", _SUBJECTS, parse_subject, (ValueError,)),
    Target("filters", st.tuples(_SUBJECTS, _SUBJECTS), lambda pair: matches(*pair)),
    Target(
        "raw headers",
        spoiled(st.just(b"NATS/1.0\r\nce-id: 1\r\nx: y\r\n\r\n")) | st.binary(max_size=80),
        wire.parse_headers,
    ),
    Target("raw subjects", st.binary(max_size=40), wire.subject_of),
    Target(
        "lines",
        spoiled(_STORED.map(to_line)) | _JSON.map(msgspec.json.encode) | st.binary(max_size=80),
        from_line,
        (NotALine,),
    ),
    Target("restored messages", _STORED, _restored),
    Target(
        "segments", _segments(), lambda pair: segments.unpacked(*pair, CREATED), (ArchiveDamaged,)
    ),
    Target(
        "archive manifests",
        spoiled(st.integers(1, 3).map(_archive_manifest)) | _JSON.map(msgspec.json.encode),
        lambda data: segments.manifest_of(data, "m"),
        (ArchiveDamaged,),
    ),
    Target(
        "bucket manifests",
        spoiled(st.integers(0, 3).map(_bucket_manifest)) | _JSON.map(msgspec.json.encode),
        lambda data: s3_layout.parsed(data, "gpu-1"),
        (ManifestUnreadable,),
    ),
    Target(
        "configuration files",
        spoiled(st.just(_TOML)) | st.binary(max_size=60),
        _config,
        (ConfigError,),
        0.1,
    ),
    Target(
        "configuration values",
        st.dictionaries(_FIELDS, _JSON, max_size=4),
        lambda values: DataPlaneConfig.from_values({"node": "n1", **values}).policy(),
        (ConfigError,),
        0.1,
    ),
    Target("block maps", _maps(), lambda pair: BlockMap.decode(*pair), (MalformedMap,)),
    Target(
        "block maps of any size",
        spoiled(_map_sizes.map(_block_map)) | st.binary(max_size=40),
        BlockMap.parse,
        (MalformedMap,),
    ),
    Target("batches asked for", st.binary(max_size=100), decode_list, (MalformedBatch,)),
    Target(
        "pages asked for",
        st.binary(max_size=300),
        lambda body: pages.decode_question(body, 1_000_000),
        (MalformedPages,),
    ),
    Target("pages answered", st.binary(max_size=600), _pages, (MalformedPages,)),
    Target(
        "what peers have",
        spoiled(_HAVING.map(Having.encode)) | st.binary(max_size=60),
        _having,
    ),
    Target("entries in headers", _entry_headers(), _entry_in, (Refused,)),
    Target("offsets in headers", _NUMBERS | st.text(max_size=12), _offset_in, (Interrupted,)),
    Target(
        "sealed contents",
        spoiled(st.just(_SEALED)) | st.binary(max_size=120),
        _unseal,
        (SealBroken,),
    ),
    Target("rsync's words", spoiled(st.just(b"\r     32768  50%    1.2MB/s")), progress_in),
    Target("signed URLs", _QUERY, _verify, (BadSignature,)),
    Target("ranges asked for", _ranges(), _range),
    Target(
        "ranges sent",
        _ranges(),
        lambda text: receiving._first(text, games_of("a", "b")),
        (Refused,),
    ),
    Target(
        "paths",
        st.text(max_size=30)
        | st.lists(st.sampled_from(["..", ".", "", "a", "gpu-7", "*"]), max_size=5).map("/".join),
        _path,
    ),
    Target("training sets", files.ARCHIVES, partial(files.look_inside, "a.npz"), (), 0.2),
    Target("models", files.ARCHIVES, partial(files.look_inside, "a.pt"), (), 0.2),
    Target("games", files.DATABASES, partial(files.look_inside, "hex8_2p.db"), (), 0.05),
    Target("databases read each way", files.DATABASES, files.read_database, (), 0.05),
    Target("words of others", _words(), lambda pair: from_json(*pair), (Unreadable,), 0.5),
    Target("questions", _QUESTIONS, _ask, (), 0.2),
    Target(
        "moments",
        st.text(max_size=12) | st.from_regex(r"[#0-9.:smhdT-]{1,14}", fullmatch=True),
        lambda text: moment_of(text, "TIME"),
        (ConfigError,),
    ),
)
