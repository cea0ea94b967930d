"""Sealing: what is sealed opens only whole, in order, with its key and under its entry."""

from __future__ import annotations

import hashlib
import os
import traceback
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from adapters.s3.sealing import (
    HEADER_BYTES,
    TAG_BYTES,
    KeyUnusable,
    Opener,
    SealBroken,
    Sealed,
    Sealer,
)
from dataplane.cli.app import app

KEY = bytes(range(32))
CHUNK = 64
SEALER = Sealer(KEY, chunk_bytes=CHUNK)
CONTENTS = st.binary(max_size=5 * CHUNK)


def checksum_of(plain: bytes) -> str:
    """The digest a content is sealed under."""
    return f"sha256:{hashlib.sha256(plain).hexdigest()}"


def sealing(plain: bytes) -> Sealed:
    """How a content is sealed."""
    return SEALER.sealing(checksum_of(plain), len(plain))


def sealed_form(plain: bytes, offset: int = 0, length: int = 1 << 30) -> bytes:
    """A range of what is stored for a content."""
    read = sealing(plain).read(lambda at, count: plain[at : at + count], offset, length)
    return b"".join(read)


def opened(stored: bytes, plain: bytes, piece: int = 37, sealer: Sealer = SEALER) -> bytes:
    """What a stored form opens to under a content's entry, fed in pieces."""
    sealed = sealer.opening(stored[:HEADER_BYTES], checksum_of(plain), len(plain))
    opener = Opener(sealed)
    rest = stored[HEADER_BYTES:]
    got = b"".join(opener.feed(rest[at : at + piece]) for at in range(0, len(rest), piece))
    opener.finish()
    return got


@given(CONTENTS, st.integers(1, 200))
def test_what_is_sealed_opens_to_what_it_was(plain: bytes, piece: int) -> None:
    """Any content, in pieces of any size."""
    assert opened(sealed_form(plain), plain, piece) == plain


@given(CONTENTS)
def test_the_sealed_size_is_known_before_anything_is_sealed(plain: bytes) -> None:
    """An upload in parts must know its end."""
    assert len(sealed_form(plain)) == sealing(plain).sealed_bytes


@given(CONTENTS, st.integers(0, 500), st.integers(0, 500))
def test_any_range_of_the_sealed_form_can_be_made_alone(
    plain: bytes, offset: int, length: int
) -> None:
    """Parts are sealed apart from each other, and again when an upload is gone on with."""
    assert sealed_form(plain, offset, length) == sealed_form(plain)[offset : offset + length]


@given(st.binary(min_size=1, max_size=5 * CHUNK), st.data())
def test_a_content_opens_from_any_offset_on(plain: bytes, data: st.DataObject) -> None:
    """A download that was broken off goes on from its last byte."""
    offset = data.draw(st.integers(0, len(plain) - 1))
    stored = sealed_form(plain)
    opener = Opener(SEALER.opening(stored[:HEADER_BYTES], checksum_of(plain), len(plain)), offset)
    assert opener.feed(stored[opener.starts_at :]) == plain[offset:]
    opener.finish()


@given(CONTENTS, st.data())
def test_any_flipped_bit_is_refused(plain: bytes, data: st.DataObject) -> None:
    """In the header, in a chunk or in a tag."""
    stored = bytearray(sealed_form(plain))
    place = data.draw(st.integers(0, len(stored) - 1))
    stored[place] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(SealBroken):
        opened(bytes(stored), plain)


@given(CONTENTS, st.data())
def test_any_truncation_is_refused(plain: bytes, data: st.DataObject) -> None:
    """Even at the border of two chunks."""
    stored = sealed_form(plain)
    with pytest.raises(SealBroken):
        opened(stored[: data.draw(st.integers(0, len(stored) - 1))], plain)


@given(CONTENTS, st.binary(min_size=1, max_size=100))
def test_anything_after_the_end_is_refused(plain: bytes, more: bytes) -> None:
    """What was appended to an object is no part of the content."""
    with pytest.raises(SealBroken):
        opened(sealed_form(plain) + more, plain)


@given(st.lists(st.binary(min_size=CHUNK, max_size=CHUNK), min_size=2, max_size=4))
def test_chunks_in_another_order_are_refused(chunks: list[bytes]) -> None:
    """Each chunk opens only in its own place."""
    plain = b"".join(chunks)
    stored = sealed_form(plain)
    step = CHUNK + TAG_BYTES
    first, second = stored[HEADER_BYTES:][:step], stored[HEADER_BYTES:][step : 2 * step]
    swapped = stored[:HEADER_BYTES] + second + first + stored[HEADER_BYTES + 2 * step :]
    with pytest.raises(SealBroken):
        opened(swapped, plain)


@given(CONTENTS, CONTENTS)
def test_a_content_opens_only_under_its_own_digest(plain: bytes, other: bytes) -> None:
    """An object that was put in the place of another is refused at its first chunk."""
    if plain == other:
        return
    with pytest.raises(SealBroken):
        opened(sealed_form(plain), other)


@given(st.binary(min_size=16, max_size=5 * CHUNK))
def test_nothing_of_the_content_shows(plain: bytes) -> None:
    """No run of the content's bytes is in what is stored."""
    stored = sealed_form(plain)
    assert not any(plain[at : at + 16] in stored for at in range(len(plain) - 15))


def test_the_same_content_is_sealed_to_the_same_bytes() -> None:
    """Otherwise parts of two attempts would not fit together."""
    assert sealed_form(b"x" * 300) == sealed_form(b"x" * 300)


def test_two_contents_share_no_cipher() -> None:
    """Equal chunks of different contents look different."""
    one, two = sealed_form(bytes(2 * CHUNK)), sealed_form(bytes(3 * CHUNK))
    assert one[HEADER_BYTES:][:CHUNK] != two[HEADER_BYTES:][:CHUNK]


def test_another_key_does_not_open_it_and_says_so() -> None:
    """Who has the wrong key learns which one is wanted."""
    other = Sealer(bytes(32), chunk_bytes=CHUNK)
    with pytest.raises(SealBroken, match=SEALER.key_id):
        opened(sealed_form(b"x"), b"x", sealer=other)


def test_a_sealer_with_other_chunks_opens_it() -> None:
    """The chunk size is the sealed form's own: the default may change."""
    assert opened(sealed_form(b"x" * 300), b"x" * 300, sealer=Sealer(KEY)) == b"x" * 300


def test_a_new_key_is_for_its_owner_only_and_never_replaces_one(tmp_path: Path) -> None:
    """A key that was overwritten would take all its backups with it."""
    path = tmp_path / "key"
    Sealer.make_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert Sealer.from_file(path).key_id == Sealer.from_file(path).key_id
    with pytest.raises(FileExistsError):
        Sealer.make_key(path)


def test_the_command_makes_a_key_and_never_replaces_one(tmp_path: Path) -> None:
    """What it wrote seals; asked again it names the file, and the key is the same."""
    path = tmp_path / "sealing.key"
    assert CliRunner().invoke(app, ["keys", "seal", str(path)]).exit_code == 0
    before = Sealer.from_file(path).key_id
    again = CliRunner().invoke(app, ["keys", "seal", str(path)])
    assert again.exit_code != 0
    assert Sealer.from_file(path).key_id == before


@pytest.mark.parametrize("held", [KEY, KEY.hex().encode(), KEY.hex().encode() + b"\n"])
def test_a_key_is_read_in_its_forms(tmp_path: Path, held: bytes) -> None:
    """Raw or in hexadecimal."""
    path = tmp_path / "key"
    path.write_bytes(held)
    path.chmod(0o600)
    assert Sealer.from_file(path).key_id == SEALER.key_id


@pytest.mark.parametrize("held", [b"", b"short", KEY[:-1], b"zz" * 32, KEY.hex().encode() + b"00"])
def test_what_is_no_key_is_refused_and_not_shown(tmp_path: Path, held: bytes) -> None:
    """What a file holds may be a mistyped key."""
    path = tmp_path / "key"
    path.write_bytes(held)
    path.chmod(0o600)
    with pytest.raises(KeyUnusable) as caught:
        Sealer.from_file(path)
    text = "".join(traceback.format_exception(caught.value))
    assert not held or held.decode("latin-1") not in text


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    """As ssh does it."""
    path = tmp_path / "key"
    path.write_bytes(KEY)
    path.chmod(0o640)
    with pytest.raises(KeyUnusable, match="chmod 600"):
        Sealer.from_file(path)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    """Who reads it learns which file is wanted."""
    with pytest.raises(KeyUnusable, match="no-key"):
        Sealer.from_file(tmp_path / "no-key")


def test_a_sealer_never_shows_its_key() -> None:
    """Neither in its text nor in that of what it makes."""
    for one in (SEALER, sealing(b"x"), Opener(sealing(b"x"))):
        assert KEY.hex() not in repr(one)
        assert repr(KEY) not in repr(one)


def test_a_large_content_is_sealed_in_default_chunks() -> None:
    """One round trip with what is really used."""
    sealer, plain = Sealer(KEY), os.urandom((2 << 20) + 12_345)
    sealed = sealer.sealing(checksum_of(plain), len(plain))
    read = sealed.read(lambda at, count: plain[at : at + count], 0, sealed.sealed_bytes)
    stored = b"".join(read)
    assert opened(stored, plain, 300_000, sealer) == plain
