"""What every transport must do that moves many small entries at once, either way.

Each one is for itself: what one fails with keeps no other from coming.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import cast

import pytest
from aiohttp import web

from adapters.errors import (
    DigestMismatch,
    EntryMissing,
    Interrupted,
    NeverReplaced,
    PathEscapes,
    Refused,
    Stalled,
    TransportError,
    Unreachable,
    told_as,
)
from adapters.files.group import Group, Wanted
from adapters.files.landing import Landed
from adapters.http import server
from adapters.transport import Brought, FetchesMany, PushesMany
from streams.values import SMALL_BYTES, DataEntry, Transport
from tests.contract.conftest import made
from tests.contract.rigs import Rig, files_in, left_in
from tests.contract.test_transport import (
    NAMES,
    PATIENCE_S,
    entry_of,
    file_of,
    offered,
    until,
)

FETCHING = ("p2p", "http", "s3", "rsync")
PUSHING = ("http",)
#: More than what may be on its way when a connection ends.
MANY = [os.urandom(50_000) for _ in range(120)]


@pytest.fixture(params=FETCHING)
async def rig(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Rig]:
    """Each transport that fetches many, in turn."""
    async with made(request.param, request, tmp_path, monkeypatch).running() as running:
        assert isinstance(running.fetches, FetchesMany)
        yield running


@pytest.fixture(params=PUSHING)
async def far(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Rig]:
    """Each transport that pushes many, in turn."""
    async with made(request.param, request, tmp_path, monkeypatch).running() as running:
        assert isinstance(running.pushes, PushesMany)
        yield running


def all_offered(rig: Rig, tmp_path: Path, contents: Sequence[bytes]) -> list[DataEntry]:
    """Entries whose contents the far end offers."""
    paths = (f"data/{number}.bin" for number in range(len(contents)))
    return [offered(rig, tmp_path, data, path) for data, path in zip(contents, paths, strict=True)]


async def bring(
    rig: Rig, root: Path, entries: Sequence[DataEntry], stall_s: float = 20.0
) -> list[Landed | TransportError | None]:
    """Fetch them at once and let them land; what became of each."""
    group = Group(root, [Wanted(entry, entry.path) for entry in entries])
    requests = [
        rig.request(entry, f"t-{n}", entry.path, stall_s, 10.0) for n, entry in enumerate(entries)
    ]
    try:
        async with asyncio.timeout(PATIENCE_S):
            failed = await cast(FetchesMany, rig.fetches).fetch_many(requests, group.put)
        for number, error in enumerate(failed):
            if error is not None:
                group.fail(number, error)
        group.commit()
        return group.outcomes
    finally:
        group.close()


def errors(outcomes: Sequence[object]) -> set[type]:
    """The classes of what failed."""
    return {type(one) for one in outcomes if not isinstance(one, Landed)}


async def test_each_comes_byte_for_byte_and_what_is_missing_fails_alone(
    rig: Rig, tmp_path: Path, root: Path
) -> None:
    """From nothing to the largest small one, whatever its name; a node is asked once."""
    contents = [os.urandom(size) for size in [0, 1, 20_000, SMALL_BYTES]]
    entries = all_offered(rig, tmp_path, contents)
    entries += [offered(rig, tmp_path, name.encode(), f"names/{name}") for name in NAMES]
    gone = entry_of(b"nobody has it", "data/gone.bin")
    outcomes = await bring(rig, root, [gone, *entries])
    assert isinstance(outcomes[0], EntryMissing)
    assert [type(one) for one in outcomes[1:]] == [Landed] * len(entries)
    if rig.lands:
        assert rig.link.connections == 1
    expected = {f"data/{number}.bin": data for number, data in enumerate(contents)}
    assert files_in(root) == expected | {f"names/{name}": name.encode() for name in NAMES}


async def test_one_content_comes_under_each_path_that_wants_it(
    rig: Rig, tmp_path: Path, root: Path
) -> None:
    """Whoever moves a file into its place can't do so twice."""
    paths = ["data/a.bin", "data/b.bin", "data/c.bin"]
    entries = [offered(rig, tmp_path, b"alike", path) for path in paths]
    assert [type(one) for one in await bring(rig, root, entries)] == [Landed] * 3
    assert files_in(root) == dict.fromkeys(paths, b"alike")
    assert left_in(root) == []


async def test_p22_what_is_other_content_than_it_says_never_lands(
    rig: Rig, tmp_path: Path, root: Path
) -> None:
    """Neither of the right size nor of another; and it keeps no other from landing."""
    first, last = all_offered(rig, tmp_path, [b"first", b"last"])
    alike, longer = entry_of(b"meant", "data/alike.bin"), entry_of(b"meant!", "data/longer.bin")
    for entry, data in ((alike, b"other"), (longer, b"much longer")):
        file = tmp_path / f"{len(data)}.bin"
        file.write_bytes(data)
        rig.hold(entry, file)
    outcomes = await bring(rig, root, [first, alike, longer, last])
    told = [told_as(type(one)) for one in outcomes]
    assert told == ["Landed", "DigestMismatch", "EntryMissing", "Landed"]
    assert files_in(root) == {"data/0.bin": b"first", "data/1.bin": b"last"}
    assert left_in(root) == []


async def test_what_came_before_a_connection_was_cut_stays(
    rig: Rig, tmp_path: Path, root: Path
) -> None:
    """The others say what happened, and come the next time."""
    entries = all_offered(rig, tmp_path, MANY)
    rig.link.down, rig.link.cuts = 3_000_000, True
    outcomes = await bring(rig, root, entries)
    landed = [number for number, one in enumerate(outcomes) if isinstance(one, Landed)]
    assert 0 < len(landed) < len(entries)
    assert errors(outcomes) <= {Interrupted, Unreachable}
    assert files_in(root) == {f"data/{number}.bin": MANY[number] for number in landed}
    rig.link.heal()
    rig.link.cuts = False
    lacking = [
        entry for entry, one in zip(entries, outcomes, strict=True) if type(one) in errors(outcomes)
    ]
    assert errors(await bring(rig, root, lacking)) == set()
    assert len(files_in(root)) == len(entries)


async def test_a_byte_spoiled_on_the_way_costs_one_file(
    rig: Rig, tmp_path: Path, root: Path
) -> None:
    """Its digest finds it out; the others are proven by theirs."""
    entries = all_offered(rig, tmp_path, MANY[:20])
    rig.link.spoil_at = [700_000]
    outcomes = await bring(rig, root, entries)
    assert errors(outcomes) <= {DigestMismatch, Interrupted, EntryMissing}
    assert len(outcomes) > len(files_in(root)) > 0
    assert all(MANY[int(Path(path).stem)] == data for path, data in files_in(root).items())


async def test_who_does_not_trust_us_refuses_each(rig: Rig, tmp_path: Path, root: Path) -> None:
    """That is not the same as not having them."""
    entries, before = all_offered(rig, tmp_path, [b"a", b"b"]), rig.fetches
    rig.distrust()
    assert [type(one) for one in await bring(rig, root, entries)] == [Refused, Refused]
    await before.close()


async def test_who_is_away_is_unreachable_for_each(rig: Rig, tmp_path: Path, root: Path) -> None:
    """Nobody listens there, or no address is known."""
    entries = all_offered(rig, tmp_path, [b"a", b"b"])
    await rig.link.close()
    assert [type(one) for one in await bring(rig, root, entries)] == [Unreachable, Unreachable]


async def test_k13_silence_ends_those_that_did_not_come_as_stalled(
    rig: Rig, tmp_path: Path, root: Path
) -> None:
    """What came before stays."""
    entries = all_offered(rig, tmp_path, MANY)
    rig.link.down = 3_000_000
    outcomes = await bring(rig, root, entries, stall_s=1.0)
    assert errors(outcomes) == {Stalled}
    if rig.fetches.name is Transport.RSYNC:
        # One rsync moves them all: its error says which.
        said = {str(one) for one in outcomes if isinstance(one, Stalled)}
        assert ["no byte of data/0.bin and 119 others" in one for one in said] == [True]
    assert 0 < len(files_in(root)) < len(entries)


async def test_after_a_cancelled_fetch_nothing_is_handed_on(
    rig: Rig, tmp_path: Path, root: Path
) -> None:
    """Whoever took the contents may let go of them then."""
    entries = all_offered(rig, tmp_path, MANY)
    rig.link.down = 3_000_000
    came: list[tuple[int, Brought]] = []
    requests = [
        rig.request(entry, f"t-{n}", entry.path, 30.0, 10.0) for n, entry in enumerate(entries)
    ]
    fetching = asyncio.create_task(cast(FetchesMany, rig.fetches).fetch_many(requests, came.extend))
    await until(rig.link.used_up.is_set)
    fetching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    taken = len(came)
    rig.link.heal()
    await asyncio.wait([asyncio.create_task(bring(rig, root, entries))])
    assert len(came) == taken


# Pushing


async def push(
    rig: Rig, entries: Sequence[DataEntry], files: Sequence[Path], stall_s: float = 20.0
) -> list[int | TransportError]:
    """Push them at once; how many bytes of each moved, or what it failed with."""
    requests = [
        rig.request(entry, f"t-{n}", entry.path, stall_s, 10.0) for n, entry in enumerate(entries)
    ]
    async with asyncio.timeout(PATIENCE_S):
        return list(await cast(PushesMany, rig.pushes).push_many(requests, files))


def to_send(
    tmp_path: Path, contents: Sequence[bytes], path: str = "data/{}.bin"
) -> tuple[list[DataEntry], list[Path]]:
    """Entries, and the files that hold them."""
    entries = [entry_of(data, path.format(number)) for number, data in enumerate(contents)]
    return entries, [file_of(tmp_path, data) for data in contents]


async def test_each_is_pushed_byte_for_byte_and_what_is_gone_fails_alone(
    far: Rig, tmp_path: Path
) -> None:
    """From nothing to the largest small one, whatever its name; and again without harm."""
    contents = [os.urandom(size) for size in [0, 1, 20_000, SMALL_BYTES]]
    entries, files = to_send(tmp_path, contents)
    entries += [entry_of(name.encode(), f"names/{name}") for name in NAMES]
    files += [file_of(tmp_path, name.encode()) for name in NAMES]
    gone = entry_of(b"no file", "data/gone.bin")
    for moves in (True, False):
        first, *moved = await push(far, [gone, *entries], [tmp_path / "none", *files])
        assert isinstance(first, EntryMissing)
        assert moved == [entry.size_bytes * moves for entry in entries]
    assert far.link.connections == 2
    expected = {f"data/{number}.bin": data for number, data in enumerate(contents)}
    assert far.here() == expected | {f"names/{name}": name.encode() for name in NAMES}
    assert left_in(far.root) == []


async def test_a_target_of_an_older_version_takes_one_after_the_other(
    far: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that knows no batches says so, and each still lands or fails by itself."""

    async def unknown(*_: object) -> web.Response:
        raise web.HTTPMethodNotAllowed("PUT", ["POST"])

    monkeypatch.setattr(server, "answer_batch", unknown)
    entries, files = to_send(tmp_path, [b"first", b"second"])
    gone = entry_of(b"no file", "data/gone.bin")
    first, *moved = await push(far, [gone, *entries], [tmp_path / "none", *files])
    assert isinstance(first, EntryMissing)
    assert moved == [entry.size_bytes for entry in entries]
    assert far.here() == {"data/0.bin": b"first", "data/1.bin": b"second"}


async def test_p22_a_file_that_is_not_its_entry_never_appears(far: Rig, tmp_path: Path) -> None:
    """Of the right size or not; and it keeps no other from landing."""
    entries, files = to_send(tmp_path, [b"first", b"meant", b"meant!", b"last"])
    files[1].write_bytes(b"other")
    files[2].write_bytes(b"much longer")
    failed = await push(far, entries, files)
    assert [type(one) for one in failed] == [int, DigestMismatch, EntryMissing, int]
    assert far.here() == {"data/0.bin": b"first", "data/3.bin": b"last"}
    assert left_in(far.root) == []


async def test_p5_p19_what_may_not_come_is_refused_alone(far: Rig, tmp_path: Path) -> None:
    """A path that leads out, a link that does or leads to itself, and a directory of that name."""
    (tmp_path / "elsewhere").mkdir()
    (far.root / "out").symlink_to(tmp_path / "elsewhere")
    (far.root / "round").symlink_to("round")
    (far.root / "data/taken.bin").mkdir(parents=True)
    paths = ["data/fine.bin", "../x.bin", "out/x.bin", "round/x.bin", "data/taken.bin"]
    entries = [entry_of(path.encode(), path) for path in paths]
    failed = await push(far, entries, [file_of(tmp_path, path.encode()) for path in paths])
    assert [type(one) for one in failed] == [
        int,
        PathEscapes,
        PathEscapes,
        PathEscapes,
        NeverReplaced,
    ]
    assert far.here() == {"data/fine.bin": b"data/fine.bin"}
    assert list((tmp_path / "elsewhere").iterdir()) == []


async def test_what_came_before_the_sender_was_cut_off_has_landed(far: Rig, tmp_path: Path) -> None:
    """Whole, each of it; nobody was told, and all are pushed again."""
    entries, files = to_send(tmp_path, MANY)
    far.link.up, far.link.cuts = 3_000_000, True
    failed = await push(far, entries, files)
    assert {type(one) for one in failed} <= {Interrupted, Stalled}
    await until(lambda: 0 < len(far.here()) < len(entries) and left_in(far.root) == [])
    assert all(MANY[int(Path(path).stem)] == data for path, data in far.here().items())
    far.link.heal()
    far.link.cuts = False
    assert not any(isinstance(one, TransportError) for one in await push(far, entries, files))
    assert len(far.here()) == len(entries)


async def test_who_does_not_trust_the_sender_refuses_each(far: Rig, tmp_path: Path) -> None:
    """And takes none."""
    entries, files = to_send(tmp_path, [b"a", b"b"])
    before = far.pushes
    far.distrust()
    assert [type(one) for one in await push(far, entries, files)] == [Refused, Refused]
    assert far.here() == {}
    await before.close()


async def test_a_target_that_is_away_is_unreachable_for_each(far: Rig, tmp_path: Path) -> None:
    """Nobody listens there."""
    entries, files = to_send(tmp_path, [b"a", b"b"])
    await far.link.close()
    assert [type(one) for one in await push(far, entries, files)] == [Unreachable, Unreachable]


async def test_k13_a_target_that_says_nothing_is_stalled(far: Rig, tmp_path: Path) -> None:
    """However much of it was taken."""
    entries, files = to_send(tmp_path, MANY)
    far.link.down = 0
    failed = await push(far, entries, files, stall_s=1.0)
    assert {type(one) for one in failed} == {Stalled}
