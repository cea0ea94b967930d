"""Messages as lines, as restored messages, and as segments: what comes back is what went in."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import zstandard
from hypothesis import given as sampled
from hypothesis import settings
from hypothesis import strategies as st

from streams import segments
from streams.kept import FileLog, FileUnreadable
from streams.segments import (
    ArchiveDamaged,
    ArchiveManifest,
    ConsumerInfo,
    manifest_of,
    manifest_text,
)
from streams.stored import NotALine, Stored, as_restored, as_stored, from_line, to_line
from tests.kept import archive

_NAMES = st.sampled_from(
    ["ce-id", "Nats-Msg-Id", "nats-batch-id", "Dp-Kept-At", "Dp-Kept-x", "dp-kept-AT", "x"]
)
_MESSAGES = st.builds(
    Stored,
    st.integers(1, 2**62),
    st.integers(0, 2**63 - 1),
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=20),
    st.dictionaries(_NAMES, st.text(st.characters(codec="utf-8"), max_size=10), max_size=4),
    st.binary(max_size=40) | st.text(st.characters(codec="utf-8")).map(str.encode),
)


def some(count: int, first: int = 1) -> list[Stored]:
    """Messages that follow each other."""
    return [
        Stored(n, 1_700_000_000_000_000_000 + n, f"dp.node.n{n}.X", {"ce-id": str(n)}, b"{}")
        for n in range(first, first + count)
    ]


@settings(max_examples=200, deadline=None)
@sampled(message=_MESSAGES)
def test_a_message_comes_back_from_its_line_and_from_a_restore(message: Stored) -> None:
    """Every field, byte for byte, also of headers that look like those of a restore."""
    line = to_line(message)
    assert line.count(b"\n") == 1
    assert from_line(line) == message
    again = Stored(message.sequence, 5, message.subject, as_restored(message), message.body)
    assert not any(name.lower().startswith("nats-") for name in again.headers)
    # What the restore itself needs of the bus does not stay.
    sent = again._replace(headers={**again.headers, "Nats-Expected-Last-Sequence": "7"})
    assert as_stored(sent) == message


@settings(max_examples=300, deadline=None)
@sampled(line=st.binary(max_size=200) | st.text(st.characters(codec="utf-8")).map(str.encode))
def test_foreign_lines_are_refused_in_one_way(line: bytes) -> None:
    """Whatever it is, it is a message or a `NotALine`."""
    try:
        from_line(line)
    except NotALine:
        pass


@pytest.mark.parametrize(
    "line",
    [
        b'{"sequence":0,"time_ns":1,"subject":"a"}',
        b'{"sequence":1,"time_ns":-1,"subject":"a"}',
        b'{"sequence":1,"time_ns":1,"subject":"a","body64":"?"}',
        b'{"sequence":1,"time_ns":1,"subject":"a","bodies":"x"}',
        b"",
    ],
)
def test_a_line_that_can_be_no_message_is_refused(line: bytes) -> None:
    """No sequence, no time before 1970, no unknown field."""
    with pytest.raises(NotALine):
        from_line(line)


def test_a_changed_segment_is_named() -> None:
    """A bit in the text, another segment under its name, a broken frame: each is told by name."""
    log, blobs = archive(some(20))
    first, second, _ = log.manifest.segments
    origin = log.manifest.origin
    text = bytearray(zstandard.ZstdDecompressor().decompress(blobs.held[first.name]))
    text[-5] ^= 1
    for data in (
        zstandard.ZstdCompressor().compress(bytes(text)),
        blobs.held[second.name],
        blobs.held[first.name][:-3],
        b"",
        b"nothing of the kind",
    ):
        with pytest.raises(ArchiveDamaged, match=first.name):
            segments.unpacked(first, data, origin)
    with pytest.raises(ArchiveDamaged, match=first.name):
        segments.unpacked(first, blobs.held[first.name], "another log")


def test_a_segment_that_claims_to_be_huge_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decompression stops at what a segment may hold, however small the file is."""
    monkeypatch.setattr(segments, "MOST_BYTES", 1 << 20)
    bomb = zstandard.ZstdCompressor().compress(bytes(50 << 20))
    assert len(bomb) < 10_000
    info, _ = segments.packed(some(1), "log", "")
    with pytest.raises(ArchiveDamaged, match="holds more than"):
        segments.unpacked(info, bomb, "log")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s[:1] + s[2:], "where 8 should come"),
        (lambda s: (s[0], s[1], s[1], s[2]), "where 15 should come"),
        (lambda s: (s[0], msgspec.structs.replace(s[1], previous="sha256:00"), s[2]), "follow"),
        (lambda s: (msgspec.structs.replace(s[0], name="../x"), *s[1:]), "name of a segment"),
    ],
)
def test_a_manifest_with_a_broken_chain_is_refused(change, said: str) -> None:  # type: ignore[no-untyped-def]
    """A segment left out, twice, not following, or with a name that is a path."""
    manifest = archive(some(20))[0].manifest
    assert manifest_of(manifest_text(manifest), "m") == manifest
    broken = ArchiveManifest(manifest.origin, change(manifest.segments))
    with pytest.raises(ArchiveDamaged, match=said):
        manifest_of(manifest_text(broken), "m")


def test_a_manifest_of_which_a_character_was_changed_is_refused() -> None:
    """Also where it tells of consumers: one that is restored with another filter hears nothing."""
    config = {"filter_subjects": ["dp.node.gpu-1.NODE_TERMINATING.>"], "max_ack_pending": 64}
    whole = msgspec.structs.replace(
        archive(some(20))[0].manifest, consumers=(ConsumerInfo("observe_gpu-1", 17, config, 3),)
    )
    text = manifest_text(whole)
    assert manifest_of(text, "m") == whole
    refused = 0
    for place, character in enumerate(text[: text.rindex(b'"digest"')]):
        if chr(character).isalnum():
            changed = text[:place] + bytes([character ^ 1]) + text[place + 1 :]
            try:
                # The name of a field that has its default may be lost.
                assert manifest_of(changed, "m") == whole
            except ArchiveDamaged:
                refused += 1
    assert refused > 500


def test_a_manifest_of_an_older_release_has_no_digest() -> None:
    """It is read as before."""
    whole = archive(some(20))[0].manifest
    assert manifest_of(msgspec.json.encode(whole), "m") == whole


async def test_an_exported_file_says_which_line_is_wrong(tmp_path: Path) -> None:
    """A gap and a torn line are named; the same lines whole are a log."""
    lines = [to_line(message) for message in some(2500, first=11)]
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"".join(lines[:3] + lines[4:]))
    with pytest.raises(FileUnreadable, match="line 4: 15 follows 13"):
        FileLog(path)
    path.write_bytes(b"".join(lines[:3]) + lines[3][:-9])
    with pytest.raises(FileUnreadable, match="line 4"):
        FileLog(path)
    path.write_bytes(b"".join(lines))
    log = FileLog(path)
    state = await log.state()
    assert (state.first_sequence, state.last_sequence) == (11, 2510)
    found = [m async for batch in log.messages(after=1500, until=2100) for m in batch]
    assert found == some(600, first=1501)
    assert (await log.get(2222)).sequence == 2222  # type: ignore[union-attr]
    assert await log.get(2511) is None
