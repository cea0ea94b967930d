"""What shrinks comes packed over HTTP where the grant is small, as proven as anything else."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from adapters.errors import DigestMismatch, Interrupted, Stalled
from adapters.files.landing import Landing
from adapters.http import packed
from adapters.http.packed import shrinks
from adapters.throttle import Throttle
from tests.contract.rigs import HttpRig, Rig, files_in, left_in
from tests.contract.test_transport import entry_of, fetch, file_of, offered, until

PATH = "games/gpu-7/hex8_2p.jsonl"
#: Games as text: a third of it is chance.
DATA = b"".join(
    json.dumps({"game": number, "moves": ["a1", "b2"] * 20, "seed": os.urandom(24).hex()}).encode()
    + b"\n"
    for number in range(20_000)
)
#: Slow enough that packing pays, and too fast to wait for.
GRANT_MBPS = 399.0


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    """A file server behind a proxy."""
    async with HttpRig(tmp_path, large_bytes=1 << 20).running() as running:
        yield running


async def brought(rig: Rig, root: Path, path: str, grant_mbps: float) -> int:
    """Fetch and land; bytes that moved."""
    landing = await Landing.open(root, offered(rig, root.parent, DATA, path), "t-1", path)
    try:
        came = await fetch(rig, landing, throttle=Throttle(grant_mbps))
        await landing.commit()
        return came
    finally:
        await landing.abort()


async def test_what_shrinks_moves_fewer_bytes_than_it_has(rig: Rig, root: Path) -> None:
    """They are counted as they moved, and the file is the same."""
    came = await brought(rig, root, PATH, GRANT_MBPS)
    assert came < len(DATA) / 2
    assert came <= rig.link.passed_down < came + 10_000
    assert files_in(root) == {PATH: DATA}


@pytest.mark.parametrize(
    ("path", "grant_mbps"),
    [(PATH, 0.0), (PATH, 401.0), ("models/x.pth", GRANT_MBPS), ("training/x.bin", GRANT_MBPS)],
)
async def test_a_fast_link_and_what_is_packed_already_cost_no_packing(
    rig: Rig, root: Path, path: str, grant_mbps: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All bytes come as they are."""
    monkeypatch.setattr("adapters.files.checks.problem_in", lambda *_: "")
    assert await brought(rig, root, path, grant_mbps) == len(DATA)


async def test_who_does_not_pack_is_understood(
    rig: Rig, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server may give the bytes as they are to whoever asks for them packed."""
    monkeypatch.setattr("adapters.http.server.PACKED", "nothing that anybody asks for")
    assert await brought(rig, root, PATH, GRANT_MBPS) == len(DATA)
    assert files_in(root) == {PATH: DATA}


async def test_p6_a_packed_fetch_that_was_cut_goes_on_where_it_was(rig: Rig, root: Path) -> None:
    """The rest is packed by itself."""
    landing = await Landing.open(root, offered(rig, root.parent, DATA, PATH), "t-1", PATH)
    rig.link.down, rig.link.cuts = 500_000, True
    with pytest.raises(Interrupted):
        await fetch(rig, landing, throttle=Throttle(GRANT_MBPS))
    first = landing.offset
    assert 500_000 < first < len(DATA)
    await landing.abort()
    rig.link.heal()
    rig.link.cuts = False
    before = rig.link.passed_down
    await brought(rig, root, PATH, GRANT_MBPS)
    assert rig.link.passed_down - before < (len(DATA) - first) / 2
    assert files_in(root) == {PATH: DATA}


async def test_p22_a_packed_byte_spoiled_on_the_way_never_lands(rig: Rig, root: Path) -> None:
    """Either what is packed makes no sense any more, or the digest finds it out."""
    rig.link.spoil_at = [400_000]
    with pytest.raises((Interrupted, DigestMismatch)):
        await brought(rig, root, PATH, GRANT_MBPS)
    assert files_in(root) == {}


async def test_p6_a_source_that_shrinks_meanwhile_does_not_end_well(
    rig: Rig, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is packed has no end then."""
    entry, file = entry_of(DATA, PATH), file_of(tmp_path, DATA)
    rig.hold(entry, file)
    monkeypatch.setattr(packed, "_PIECE_BYTES", len(DATA) // 4)
    real = os.pread

    def shrinking(handle: int, count: int, offset: int) -> bytes:
        return b"" if offset > len(DATA) // 2 else real(handle, count, offset)

    monkeypatch.setattr(packed.os, "pread", shrinking)
    landing = await Landing.open(root, entry, "t-1", PATH)
    with pytest.raises(Interrupted):
        await fetch(rig, landing, throttle=Throttle(GRANT_MBPS))
    await landing.abort()


async def test_k13_silence_ends_a_packed_fetch_and_cancelling_does_at_once(
    rig: Rig, root: Path
) -> None:
    """What came is kept for the next attempt."""
    landing = await Landing.open(root, offered(rig, root.parent, DATA, PATH), "t-1", PATH)
    rig.link.down = 500_000
    with pytest.raises(Stalled):
        await fetch(rig, landing, stall_s=1.0, throttle=Throttle(GRANT_MBPS))
    assert landing.offset > 0
    rig.link.used_up.clear()
    rig.link.down = 100_000
    fetching = asyncio.create_task(fetch(rig, landing, stall_s=60.0, throttle=Throttle(GRANT_MBPS)))
    await until(rig.link.used_up.is_set)
    fetching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    await landing.abort()
    assert len(left_in(root)) == 1


def test_games_and_text_shrink_and_what_is_packed_already_does_not() -> None:
    """By the name, as everything else is told of a type."""
    assert [name for name in ("a.db", "a.jsonl", "A.JSON", "a.csv") if not shrinks(name)] == []
    assert [name for name in ("a.npz", "a.pth", "a.pt", "a.onnx", "a") if shrinks(name)] == []
