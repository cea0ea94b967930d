"""Peer to peer between real servers: deltas, swarms, broadcasts, and peers that lie or die."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from adapters.errors import (
    DigestMismatch,
    EntryMissing,
    Interrupted,
    Stalled,
    TransportError,
    Unreachable,
)
from adapters.files.landing import Landed
from adapters.p2p import nearby
from adapters.p2p.gossip import subject_of
from streams.values import Endpoint
from tests.integration.peers import Gossiping, Node, entry_of

MAKE = Callable[..., Awaitable[Node]]
PATH = "games/gpu-7/hex8_2p.bin"
MEGABYTE = 1 << 20


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[MAKE]:
    """Makes nodes that serve, and stops them."""
    nodes: list[Node] = []
    gossip = Gossiping()

    async def made(name: str) -> Node:
        node = Node(tmp_path, name, gossip)
        await node.start()
        nodes.append(node)
        return node

    async with asyncio.timeout(120):
        yield made
        for node in nodes:
            await node.stop()


def database(path: Path, rows: int) -> None:
    """A database of games that do not compress much."""
    numbers = random.Random(7)
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE games (id INTEGER PRIMARY KEY, moves BLOB)")
        data = [(number, numbers.randbytes(900)) for number in range(rows)]
        db.executemany("INSERT INTO games VALUES (?, ?)", data)


# What need not travel


async def test_a_delta_costs_the_changed_pages(make: MAKE, tmp_path: Path) -> None:
    """Of a database with scattered changes, little more than the changed pages moves."""
    source, target = await make("gpu-7"), await make("train-1")
    path, file = "games/gpu-7/hex8_2p.db", tmp_path / "games.db"
    database(file, 8_000)
    old = source.put(path, file.read_bytes())
    await target.bring(old, source.at)
    numbers = random.Random(3)
    with contextlib.closing(sqlite3.connect(file)) as db, db:
        for number in numbers.sample(range(8_000), 80):
            db.execute("UPDATE games SET moves = ? WHERE id = ?", (os.urandom(900), number))
    before, data = (target.root / path).read_bytes(), file.read_bytes()
    pages = sum(before[at : at + 4096] != data[at : at + 4096] for at in range(0, len(data), 4096))
    new = source.put(path, data)
    passed = source.link.passed_down + source.link.passed_up
    came, landed = await target.bring(new, source.at)
    passed = source.link.passed_down + source.link.passed_up - passed
    assert landed.bytes == len(data)
    assert (target.root / path).read_bytes() == data
    assert came <= passed <= 1.2 * pages * 4096 + 16_000 < len(data) / 10


async def test_what_was_appended_is_all_that_moves(make: MAKE) -> None:
    """A growing file of any kind: its beginning is here already."""
    source, target = await make("gpu-7"), await make("train-1")
    data = os.urandom(4 * MEGABYTE)
    await target.bring(source.put(PATH, data), source.at)
    longer = data + os.urandom(MEGABYTE)
    came, _ = await target.bring(source.put(PATH, longer), source.at)
    assert (target.root / PATH).read_bytes() == longer
    assert MEGABYTE <= came <= MEGABYTE + 70_000


async def test_blocks_of_other_files_here_are_not_fetched(make: MAKE) -> None:
    """A copy of half of it lies here under another name, elsewhere in the file."""
    source, target = await make("gpu-7"), await make("train-1")
    half, rest = os.urandom(2 * MEGABYTE), os.urandom(2 * MEGABYTE)
    await target.bring(source.put("models/a.bin", half), source.at)
    came, _ = await target.bring(source.put("models/b.bin", rest + half), source.at)
    assert came == len(rest)
    assert (target.root / "models/b.bin").read_bytes() == rest + half


async def test_only_the_files_that_travelled_last_are_looked_through(
    make: MAKE, monkeypatch: pytest.MonkeyPatch
) -> None:
    """README names how many: of one before them, all moves again."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert f"one of the {nearby.MOST_CONTENTS} files here that last travelled so" in readme
    monkeypatch.setattr(nearby, "MOST_CONTENTS", 1)
    source, target = await make("gpu-7"), await make("train-1")
    first, last = os.urandom(MEGABYTE), os.urandom(MEGABYTE)
    for name, data in (("a", first), ("b", last)):
        await target.bring(source.put(f"models/{name}.bin", data), source.at)
    for name, data, moves in (("c", last, 1), ("d", first, 2)):
        longer = os.urandom(MEGABYTE) + data
        came, _ = await target.bring(source.put(f"models/{name}.bin", longer), source.at)
        assert came == moves * MEGABYTE, name


async def test_p7_an_older_version_that_changes_meanwhile_spoils_nothing(make: MAKE) -> None:
    """What is read of it is checked block by block, and what does not fit is fetched."""
    source, target = await make("gpu-7"), await make("train-1")
    data = os.urandom(3 * MEGABYTE)
    entry = source.put(PATH, data)
    (target.root / PATH).parent.mkdir(parents=True)
    (target.root / PATH).write_bytes(data[: 2 * MEGABYTE] + bytes(MEGABYTE))
    came, _ = await target.bring(entry, source.at)
    assert MEGABYTE <= came < MEGABYTE + 1000
    assert (target.root / PATH).read_bytes() == data


# Many small ones


async def test_many_small_ones_come_in_one_question_and_each_for_itself(make: MAKE) -> None:
    """What is gone, is large, or is of another size fails alone; all others come, proven."""
    source, target = await make("gpu-7"), await make("train-1")
    contents = [os.urandom(size) for size in [0, 1, 20_000, 262_144, *range(300, 500)]]
    entries = [source.put(f"data/{number}.bin", data) for number, data in enumerate(contents)]
    large = source.put("data/large.bin", os.urandom(300_000))
    gone = entry_of("data/gone.bin", b"nobody has it")
    other = msgspec.structs.replace(entries[2], path="data/other.bin", size_bytes=19_999)
    wanted = [gone, *entries, large, other]
    asked = source.server.served.requests
    came: dict[int, bytes] = {}
    failed = await target.fetch_many(
        wanted, source.at, lambda some: came.update({n: bytes(data) for n, data in some})
    )
    assert source.server.served.requests == asked + 1
    assert list(came.values()) == contents
    assert [wanted[n].path for n, error in enumerate(failed) if error] == [
        gone.path,
        large.path,
        other.path,
    ]
    assert all(isinstance(error, EntryMissing) for error in failed if error)


async def test_a_source_that_breaks_off_a_batch_spoils_only_what_did_not_come(make: MAKE) -> None:
    """Those that came before the connection was cut stay; the others say what happened."""
    source, target = await make("gpu-7"), await make("train-1")
    contents = [os.urandom(20_000) for _ in range(500)]
    entries = [source.put(f"data/{number}.bin", data) for number, data in enumerate(contents)]
    source.link.cut_after_bytes = 3 * MEGABYTE
    came: dict[int, bytes] = {}
    failed = await target.fetch_many(
        entries, source.at, lambda some: came.update({n: bytes(data) for n, data in some})
    )
    assert 0 < len(came) < len(entries)
    assert list(came.values()) == contents[: len(came)]
    assert failed[: len(came)] == [None] * len(came)
    assert {type(error) for error in failed[len(came) :]} == {Interrupted}


async def test_connections_that_are_cut_soon_bring_a_batch_all_the_same(make: MAKE) -> None:
    """Each brings something that stays, though none lives for more than a few small files."""
    source, target = await make("gpu-7"), await make("train-1")
    contents = [os.urandom(20_000) for _ in range(12)]
    entries = [source.put(f"data/{number}.bin", data) for number, data in enumerate(contents)]
    source.link.cut_after_bytes = 80_000
    came: dict[str, bytes] = {}
    while left := [entry for entry in entries if entry.path not in came]:
        before = len(came)
        await target.fetch_many(
            left,
            source.at,
            lambda some, left=left: came.update({left[n].path: bytes(d) for n, d in some}),
        )
        assert len(came) > before
    assert list(came.values()) == contents


# From many


async def test_a_swarm_of_partial_holders_is_enough(make: MAKE) -> None:
    """The source dies half-way; two others have different halves of it, and that is all of it."""
    source, third = await make("gpu-7"), await make("train-3")
    halves = [await make("train-1"), await make("train-2")]
    data = os.urandom(6 * MEGABYTE)
    entry = source.put(PATH, data)
    block_map = source.server._offers.map(entry.checksum)
    assert block_map is not None
    landings = [await node.open(entry) for node in halves]
    for number, (node, landing) in enumerate(zip(halves, landings, strict=True)):
        scattered = await landing.scatter(block_map)
        node.around.underway[entry.checksum] = scattered
        for index in range(number * block_map.count // 2, (number + 1) * block_map.count // 2):
            offset, length = block_map.span(index)
            assert not scattered.put(index, memoryview(data[offset : offset + length]))
    landing = await third.open(entry)
    await landing.scatter(block_map)
    await source.link.close()
    came = await third.fetch(landing, source.at, *(node.at for node in halves), stall_s=5.0)
    assert came == len(data)
    assert await landing.commit() == Landed(bytes=len(data))
    for one in landings:
        await one.abort()


async def test_p12_a_broadcast_leaves_the_source_about_once(make: MAKE) -> None:
    """Four nodes fetch the same at once; each piece is to leave the source once."""
    source = await make("train-1")
    targets = [await make(f"gpu-{number}") for number in range(4)]
    data = os.urandom(24 * MEGABYTE)
    entry = source.put(PATH, data)

    async def one(node: Node) -> tuple[int, Landed]:
        others = [other.at for other in targets if other is not node]
        return await node.bring(entry, source.at, *others, mbps=200.0)

    came = await asyncio.gather(*(one(node) for node in targets))
    assert all(landed == Landed(bytes=len(data)) for _, landed in came)
    assert all((node.root / PATH).read_bytes() == data for node in targets)
    assert source.server.served.bytes_sent < 1.5 * len(data)


async def test_who_begins_later_fetches_from_those_who_are_done(make: MAKE) -> None:
    """A node that is told of others finds out what they have by asking."""
    source, first, second = await make("gpu-7"), await make("train-1"), await make("train-2")
    data = os.urandom(8 * MEGABYTE)
    entry = source.put(PATH, data)
    await first.bring(entry, source.at)
    sent = source.server.served.bytes_sent
    await second.bring(entry, source.at, first.at)
    assert first.server.served.bytes_sent > len(data) // 3
    assert source.server.served.bytes_sent - sent < len(data)


# Peers that lie, and die


async def test_p22_a_lying_peer_is_found_out_block_by_block(make: MAKE) -> None:
    """What it gives is thrown away and fetched from the source."""
    source, liar, target = await make("gpu-7"), await make("train-1"), await make("train-2")
    data = os.urandom(6 * MEGABYTE)
    entry = source.put(PATH, data)
    assert source.server._offers.map(entry.checksum) is not None
    liar.put(PATH, data, wrong=os.urandom(len(data)))
    await target.bring(entry, source.at, liar.at)
    assert (target.root / PATH).read_bytes() == data


async def test_a_wrong_map_is_no_way_in(make: MAKE) -> None:
    """A stranger's map of other bytes: nothing lands, and nothing is kept."""
    source, target = await make("gpu-7"), await make("train-1")
    data = os.urandom(2 * MEGABYTE)
    entry = source.put(PATH, data, wrong=os.urandom(len(data)))
    with pytest.raises(DigestMismatch):
        await target.bring(entry, source.at)
    assert not (target.root / PATH).exists()
    assert list((target.root / ".dataplane/partial").iterdir()) == []


async def test_no_map_makes_a_clear_error_and_costs_no_memory(make: MAKE) -> None:
    """A source whose content is of another size has no map of this one."""
    source, target = await make("gpu-7"), await make("train-1")
    entry = source.put(PATH, os.urandom(MEGABYTE), wrong=os.urandom(2 * MEGABYTE))
    with pytest.raises(TransportError, match="block map"):
        await target.bring(entry, source.at)


async def test_a_peer_that_falls_silent_is_done_without(make: MAKE) -> None:
    """It has everything and stops answering half-way: its pieces are asked of others."""
    source, dying, target = await make("gpu-7"), await make("train-1"), await make("train-2")
    data = os.urandom(16 * MEGABYTE)
    entry = source.put(PATH, data)
    dying.put(PATH, data)
    dying.link.down = 2 * MEGABYTE
    landing = await target.open(entry)
    await target.fetch(landing, source.at, dying.at)
    assert dying.link.used_up.is_set()
    assert await landing.commit() == Landed(bytes=len(data))


async def test_a_peer_that_dies_takes_nothing_with_it(make: MAKE) -> None:
    """A receiver that owned a share of the pieces is gone: others take its share."""
    source, dead, target = await make("gpu-7"), await make("train-1"), await make("train-2")
    data = os.urandom(8 * MEGABYTE)
    entry = source.put(PATH, data)
    await dead.link.close()
    came, landed = await target.bring(entry, source.at, dead.at)
    assert (came, landed) == (len(data), Landed(bytes=len(data)))


async def test_nobody_left_is_the_sources_own_error(make: MAKE) -> None:
    """So that retries and breakers know whom it concerns."""
    source, target = await make("gpu-7"), await make("train-1")
    entry = source.put(PATH, os.urandom(2 * MEGABYTE))
    await source.link.close()
    with pytest.raises(Unreachable):
        await target.bring(entry, source.at, Endpoint(node="x", http_url="http://127.0.0.1:9"))


async def test_what_nobody_left_has_is_not_waited_for(make: MAKE) -> None:
    """The source is gone and all others hold the same half, as they go on saying."""
    source, other, target = await make("gpu-7"), await make("train-1"), await make("train-2")
    data = os.urandom(4 * MEGABYTE)
    entry = source.put(PATH, data)
    block_map = source.server._offers.map(entry.checksum)
    assert block_map is not None
    landings = [await node.open(entry) for node in (other, target)]
    for node, landing in zip((other, target), landings, strict=True):
        scattered = await landing.scatter(block_map)
        node.around.underway[entry.checksum] = scattered
        for index in range(block_map.count // 2):
            offset, length = block_map.span(index)
            assert not scattered.put(index, memoryview(data[offset : offset + length]))
    having = other.server._offers.having(entry.checksum)
    assert having is not None and not having.whole
    said = msgspec.structs.replace(having, node="train-1", url=other.at.http_url).encode()

    async def going_on() -> None:
        while True:
            assert target.around.gossip is not None
            target.around.gossip.tell(subject_of(entry.checksum), said)
            await asyncio.sleep(0.2)

    saying = asyncio.create_task(going_on())
    await source.link.close()
    async with asyncio.timeout(60):
        with pytest.raises(Unreachable):
            await target.fetch(landings[1], source.at, other.at, stall_s=3600.0)
    saying.cancel()
    for one in landings:
        await one.abort()


# Going on


async def test_p6_what_a_killed_process_had_is_gone_on_with(make: MAKE, tmp_path: Path) -> None:
    """kill -9 in the middle: blocks that were there are not fetched again, and no version is mixed
    with another."""
    source = await make("gpu-7")
    data = os.urandom(12 * MEGABYTE)
    entry = source.put(PATH, data)
    code = FETCH.format(base=str(tmp_path), url=source.link.url, file=str(source.root / PATH))
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    while source.link.passed_down < 6 * MEGABYTE:  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    await child.wait()
    (tmp_path / "killed").rename(tmp_path / "aside")
    target = await make("again")
    shutil.rmtree(tmp_path / "again")
    (tmp_path / "aside").rename(tmp_path / "again")
    newer = source.put(PATH + ".new", os.urandom(12 * MEGABYTE))
    landing = await target.open(newer)
    assert landing.offset == 0
    await landing.abort()
    came, landed = await target.bring(entry, source.at)
    assert landed == Landed(bytes=len(data))
    assert 0 < came < len(data) - 2 * MEGABYTE
    assert (target.root / PATH).read_bytes() == data


FETCH = """
import asyncio
from pathlib import Path
from streams.values import Endpoint
from tests.integration.peers import Node, entry_of

async def main():
    node = Node(Path({base!r}), "killed")
    landing = await node.open(entry_of("games/gpu-7/hex8_2p.bin", Path({file!r}).read_bytes()))
    await node.fetch(landing, Endpoint(node="gpu-7", http_url={url!r}), mbps=80.0)

asyncio.run(main())
"""


async def test_p6_another_map_does_not_trust_what_was_there(make: MAKE) -> None:
    """Blocks that came by one map are checked again by another."""
    source, target = await make("gpu-7"), await make("train-1")
    data = os.urandom(4 * MEGABYTE)
    entry = source.put(PATH, data)
    source.link.down, source.link.cuts = 2 * MEGABYTE, True
    landing = await target.open(entry)
    with pytest.raises((Interrupted, Stalled)):
        await target.fetch(landing, source.at)
    await landing.abort()
    source.link.heal()
    again = await target.open(entry)
    there = again.block_map
    assert there is not None
    other = type(there)(there.size_bytes, there.block_bytes, bytes(len(there.digests)))
    scattered = await again.scatter(other)
    assert scattered.held_bytes == 0
    await again.abort()


async def test_another_transport_goes_on_from_the_first_gap(make: MAKE) -> None:
    """Blocks behind it are forgotten; those before it are not fetched again."""
    source, target = await make("gpu-7"), await make("train-1")
    data = os.urandom(2 * MEGABYTE)
    entry = source.put(PATH, data)
    block_map = source.server._offers.map(entry.checksum)
    assert block_map is not None
    landing = await target.open(entry)
    scattered = await landing.scatter(block_map)
    for index in (0, 1, 2, 9):
        offset, length = block_map.span(index)
        scattered.put(index, memoryview(data[offset : offset + length]))
    await landing.abort()
    again = await target.open(entry)
    assert again.offset == 3 * block_map.block_bytes
    await again.write(data[again.offset :])
    assert await again.commit() == Landed(bytes=len(data))


async def test_a_peer_that_ends_each_connection_gives_all_the_same(
    make: MAKE, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As what stands before a server may do: each question makes a connection of its own."""
    source, target = await make("source"), await make("target")
    monkeypatch.setattr(web.BaseRequest, "keep_alive", property(lambda _: False))
    data = os.urandom(20 * MEGABYTE)
    came, landed = await target.bring(source.put(PATH, data), source.at)
    assert (came, landed.bytes) == (len(data), len(data))
    assert (target.root / PATH).read_bytes() == data
