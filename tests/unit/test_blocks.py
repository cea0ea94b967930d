"""Block maps, their store and questions for pages: shapes that strangers send are checked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import TransportError
from adapters.files.blocks import (
    BLOCK_BYTES,
    LEAF_BYTES,
    MOST_BLOCKS,
    BlockMap,
    MalformedMap,
    Mapping,
    block_bytes_of,
    encoded_bytes,
    leaf_digests,
    map_of,
)
from adapters.files.maps import MapStore
from adapters.files.reading import MAPPED_FROM_BYTES, Reader
from adapters.http.batches import MOST_FRAMES, MalformedBatch, decode_list, encode_list, frames
from adapters.p2p.gossip import Having, bits_in, pieces_in
from adapters.p2p.pages import (
    MalformedPages,
    Old,
    answer,
    decode_answer,
    decode_question,
    encode_question,
    most_blocks,
    patched,
    unpacked,
)
from streams.identity import PathRules


def mapped(tmp_path: Path, data: bytes) -> BlockMap:
    """The map of a file that holds `data`."""
    (tmp_path / "file").write_bytes(data)
    handle = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        return map_of(handle, len(data))
    finally:
        os.close(handle)


@pytest.mark.parametrize("size", [1, BLOCK_BYTES, BLOCK_BYTES + 1, 3_000_000])
def test_map_knows_each_block_of_its_content(tmp_path: Path, size: int) -> None:
    """And no other; and comes back from the wire as it was."""
    data = os.urandom(size)
    found = mapped(tmp_path, data)
    assert found.count == -(-size // BLOCK_BYTES)
    for index in range(found.count):
        offset, length = found.span(index)
        block = data[offset : offset + length]
        assert found.fits(index, block)
        assert not found.fits(index, bytes(len(block)))
    assert BlockMap.decode(found.encode(), size) == found == BlockMap.parse(found.encode())


@pytest.mark.parametrize("size", [0, 1, 1 << 33, (1 << 33) + 1, 89 * 10**9, 2**50])
def test_p12_maps_are_bounded_however_large_the_content_is(size: int) -> None:
    """Blocks grow with the content, so that a map has at most so many."""
    assert encoded_bytes(size) <= 16 + 16 * MOST_BLOCKS
    assert block_bytes_of(size) % BLOCK_BYTES == 0


@given(st.binary(max_size=200))
def test_nonsense_is_no_map(data: bytes) -> None:
    """It is said as an error of the transport, before anything is made of it."""
    with pytest.raises(MalformedMap) as caught:
        BlockMap.decode(data, 1_000_000)
    assert isinstance(caught.value, TransportError)
    with pytest.raises(MalformedMap):
        BlockMap.decode(mapped_bytes(b"x" * 1_000_000)[:-1] + b"", 1_000_000)


def mapped_bytes(data: bytes) -> bytes:
    """An encoded map of the right length and kind."""
    count = -(-len(data) // BLOCK_BYTES)
    return BlockMap(len(data), BLOCK_BYTES, bytes(16 * count)).encode()


def test_map_of_another_content_of_another_size_is_refused() -> None:
    """Also where it is as long as it should be."""
    with pytest.raises(MalformedMap):
        BlockMap.decode(mapped_bytes(bytes(BLOCK_BYTES)), BLOCK_BYTES - 1)


def test_file_that_ended_early_has_no_map(tmp_path: Path) -> None:
    """It shrank while it was read."""
    (tmp_path / "file").write_bytes(b"short")
    handle = os.open(tmp_path / "file", os.O_RDONLY)
    with pytest.raises(OSError, match="ended"):
        map_of(handle, 1_000_000)
    os.close(handle)


def test_store_keeps_maps_and_lets_go_of_those_used_least(tmp_path: Path) -> None:
    """Bounded in bytes; what is damaged is as if it were not there."""
    store = MapStore(tmp_path, most_bytes=5_000)
    maps = {f"sha256:{number:064x}": mapped(tmp_path, os.urandom(6_000_000)) for number in range(5)}
    for age, (checksum, block_map) in enumerate(maps.items()):
        store.put(checksum, block_map)
        for file in (tmp_path / ".dataplane/maps").iterdir():
            os.utime(file, (age, age)) if file.name == checksum[7:] else None
    kept = [checksum for checksum in maps if store.get(checksum, 6_000_000)]
    assert kept == list(maps)[-3:]
    assert store.get(kept[0], 5) is None
    assert store.get(kept[0], 6_000_000) is None
    assert [checksum for checksum, _ in store.newest(9)] == list(reversed(kept[1:]))


def test_one_reading_of_a_large_file_gives_its_digest_and_its_map(tmp_path: Path) -> None:
    """Whoever asks for the map first does not wait for a second reading."""
    data = os.urandom(MAPPED_FROM_BYTES + 5_000)
    (tmp_path / "models").mkdir()
    (tmp_path / "models/a.bin").write_bytes(data)
    reading = Reader(tmp_path, "gpu-1", PathRules(), lambda: False).read("models/a.bin", None, None)
    assert reading.row is not None
    kept = MapStore(tmp_path).get(reading.row.entry.checksum, len(data))
    assert kept == mapped(tmp_path, data)


@pytest.mark.parametrize("shown", [1, 2 * BLOCK_BYTES, 3 * BLOCK_BYTES + 1])
def test_no_map_of_other_bytes_than_were_expected(shown: int) -> None:
    """A file that grew or shrank while it was read has none."""
    mapping = Mapping(3 * BLOCK_BYTES)
    mapping.add(memoryview(bytes(shown)))
    assert mapping.made() is None


def block_and_map(tmp_path: Path) -> tuple[bytes, BlockMap]:
    """A content of three blocks, the last of them short."""
    data = os.urandom(2 * BLOCK_BYTES + 5_000)
    return data, mapped(tmp_path, data)


@pytest.mark.parametrize("compress", [True, False])
def test_pages_that_differ_make_the_new_block_of_the_old_one(
    tmp_path: Path, compress: bool
) -> None:
    """Only they are in the answer, and blocks that the peer lacks are not."""
    data, block_map = block_and_map(tmp_path)
    old = bytearray(data)
    old[3 * LEAF_BYTES] ^= 1
    old[2 * BLOCK_BYTES + 4_500] ^= 1
    spans = [block_map.span(index) for index in range(3)]
    blocks = [bytes(old[offset : offset + length]) for offset, length in spans]
    olds = [Old(index, leaf_digests(block)) for index, block in enumerate(blocks)]
    assert decode_question(encode_question(olds), len(data)) == olds

    def read(index: int) -> bytes | None:
        offset, length = spans[index]
        return None if index == 1 else data[offset : offset + length]

    said = memoryview(answer(olds, read, compress))
    at = 0

    def more(count: int) -> bytes:
        nonlocal at
        at += count
        return bytes(said[at - count : at])

    found = dict(decode_answer(unpacked(more) if compress else more, olds, block_map))
    assert {index: list(pages) for index, pages in found.items()} == {0: [3], 2: [1]}
    for index, pages in found.items():
        assert block_map.fits(index, patched(bytearray(blocks[index]), pages))


@given(st.binary(max_size=500), st.integers(0, 10**7))
def test_nonsense_is_no_question_for_pages(body: bytes, size: int) -> None:
    """Or it is a question that asks for no more than was agreed."""
    try:
        olds = decode_question(body, size)
    except MalformedPages:
        return
    assert len(olds) <= most_blocks(block_bytes_of(size))


def test_answer_that_is_cut_or_not_compressed_is_malformed(tmp_path: Path) -> None:
    """No page is made up."""
    data, block_map = block_and_map(tmp_path)
    olds = [Old(0, bytes(128))]
    said = answer(olds, lambda index: data[:BLOCK_BYTES], False)
    parts = iter([said[:1], said[1:3], b"short"])
    with pytest.raises(MalformedPages):
        list(decode_answer(lambda count: next(parts), olds, block_map))
    with pytest.raises(MalformedPages):
        unpacked(lambda count: b"not zstd at all")(10)


def test_batch_holds_what_is_small_and_here(tmp_path: Path) -> None:
    """In the order in which it was asked for; what is large or away is marked as absent."""
    (tmp_path / "small").write_bytes(b"abc")
    (tmp_path / "large").write_bytes(bytes(300_000))
    held = {f"sha256:{1:064x}": tmp_path / "small", f"sha256:{2:064x}": tmp_path / "large"}
    wanted = [*held, f"sha256:{3:064x}"]
    assert decode_list(encode_list(wanted)) == wanted
    said = b"".join(frames(wanted, held.get))
    absent = (-1).to_bytes(8, "little", signed=True)
    assert said == (3).to_bytes(8, "little") + b"abc" + absent + absent


@pytest.mark.parametrize("body", [b"", b"x" * 31, b"x" * 32 * (MOST_FRAMES + 1)])
def test_nonsense_is_no_list_of_contents(body: bytes) -> None:
    """Neither is a list that is longer than was agreed."""
    with pytest.raises(MalformedBatch):
        decode_list(body)


def test_gossip_says_which_pieces_are_whole(tmp_path: Path) -> None:
    """A piece counts once all its blocks are there; nonsense is ignored."""
    block_map = mapped(tmp_path, os.urandom(10 * BLOCK_BYTES))
    have = bytes([1, 1, 1, 1, 0, 1, 1, 1, 1, 1])
    pieces = pieces_in(block_map, have)
    assert bits_in(pieces, 3) == 0b101
    said = Having("gpu-1", "http://gpu-1", pieces=pieces)
    assert Having.decode(said.encode()) == said
    assert Having.decode(b"nonsense") is None
    assert bits_in(b"\xff" * 100, 3) == 0b111
