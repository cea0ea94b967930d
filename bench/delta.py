"""A database that changed, over its older version at the target: bytes and time, beside rsync.

All runs in a network namespace of its own, whose loopback counts every byte either way.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import msgspec

from adapters.files.digest import checksum_of
from adapters.files.landing import Landing
from adapters.http.signing import Signer
from adapters.p2p.asking import Around
from adapters.p2p.transport import P2PTransport
from adapters.throttle import Throttle
from adapters.transport import Request
from bench.measuring import MEGABYTE, commands, settle, usage, workplace
from bench.namespaces import demand
from bench.receiver import KEY, PORT
from bench.report import Report, begin, median, paired
from streams.values import DataEntry, DataType, Endpoint

SIZE_MB, BIG_SIZE_MB = 100, 500
ROUNDS, BIG_ROUNDS = 1, 5
_PATH = "games/gpu-7/hex8_2p.db"
_PAGE = 4096
_RSYNC_PORT = 8873
_GAME_BYTES = 4_000
#: Ours beside theirs: as it is, and with the digest that ours has.
_PROVEN = ", then openssl dgst"
_PAIRS = {"p2p": "rsync -B4096", "p2p with zstd": "rsync -z -B4096"}


class Turn(msgspec.Struct):
    """One way, once."""

    bytes: int
    seconds: float
    #: What the target's own process, or the peer's, took of it.
    cpu_s: float
    #: Of it: until every byte is there.
    fetching: float = 0.0


class Found(msgspec.Struct):
    """What came of one kind of change."""

    changed_bytes: int
    turns: dict[str, list[Turn]]


def run(size_mb: int, rounds: int, seed: int, base: Path | None) -> Report:
    """Measure both kinds of change, `rounds` times each way."""
    demand("rsync", "unshare", "ip")
    report = begin("delta", seed, size_mb=size_mb, rounds=rounds)
    with workplace(base) as place:
        inside = ["unshare", "--net", sys.executable, "-m", "bench.delta"]
        words = [str(place), str(size_mb), str(rounds), str(seed)]
        said = subprocess.run([*inside, *words], check=True, stdout=subprocess.PIPE).stdout
    for kind, found in msgspec.json.decode(said, type=dict[str, Found]).items():
        _tell(report, kind, found)
    report.notes.append(
        "Bytes are all that passed either way, with headers. Ours ends when the file is proven, "
        "synced, checked by SQLite and renamed, and keeps the older version whole until then; "
        "rsync's when it exits, having changed the older version in place, with nothing synced or "
        "checked. rsync runs against its own daemon, without ssh."
    )
    return report


def _tell(report: Report, kind: str, found: Found) -> None:
    report.add(f"{kind}: pages that differ", [found.changed_bytes / 1e6], "MB")
    for way, turns in found.turns.items():
        sizes, seconds = [t.bytes for t in turns], [t.seconds for t in turns]
        beside = _PAIRS.get(way, "")
        other = found.turns[beside] if beside else []
        ratio = paired(sizes, [t.bytes for t in other]) if other else None
        report.add(f"{kind}: {way}", [size / 1e6 for size in sizes], "MB", ratio, beside)
        ratio = paired(seconds, [t.seconds for t in other]) if other else None
        report.add(f"{kind}: {way}", seconds, "s", ratio, beside)
        report.add(f"{kind}: {way}, CPU at the target", [t.cpu_s for t in turns], "s")
        if other:
            proven = [t.seconds for t in found.turns[beside + _PROVEN]]
            ratio = paired(seconds, proven)
            report.add(f"{kind}: {way}", seconds, "s", ratio, beside + _PROVEN)
            fetching = [t.fetching for t in turns]
            ratio = median(fetching) / median([t.seconds for t in other])
            report.add(f"{kind}: {way}, of it fetching", fetching, "s", ratio, beside)


def measure(place: Path, size_mb: int, rounds: int, seed: int) -> dict[str, Found]:
    """All of it, in a namespace where nothing else runs."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    old = place / "old.db"
    rows = _database(old, size_mb * MEGABYTE, seed)
    kinds: dict[str, Callable[[Path], None]] = {
        "1 % of rows changed": partial(_change, rows=rows, seed=seed),
        "5 % of rows appended": partial(_append, rows=rows, seed=seed),
    }
    found = {}
    for number, (kind, change) in enumerate(kinds.items()):
        new = place / f"new-{number}" / "hex8_2p.db"
        new.parent.mkdir()
        shutil.copy(old, new)
        change(new)
        turns: dict[str, list[Turn]] = {}
        with _source(place / f"source-{number}", new) as entry, _daemon(new.parent):
            ways = _ways(place / "target", old, entry)
            for number in range(rounds):
                for way in ways if number % 2 == 0 else reversed(ways):
                    turns.setdefault(way, []).append(ways[way]())
            turns = {way: turns[way] for way in ways}
        found[kind] = Found(_changed_bytes(old, new), turns)
    return found


def _ways(root: Path, old: Path, entry: DataEntry) -> dict[str, Callable[[], Turn]]:
    url = f"rsync://127.0.0.1:{_RSYNC_PORT}/data/hex8_2p.db"
    rsync = ["rsync", "--inplace", "--no-whole-file", "-B4096", "--times", "--ignore-times"]
    ways: dict[str, Callable[[], Turn]] = {
        "p2p": lambda: _fetched(root, old, entry, compress=False),
        "p2p with zstd": lambda: _fetched(root, old, entry, compress=True),
    }
    for name, words in (("rsync -B4096", [*rsync, url]), ("rsync -z -B4096", [*rsync, "-z", url])):
        ways[name] = partial(_commanded, root, old, words)
        ways[name + _PROVEN] = partial(_commanded, root, old, words, ["openssl", "dgst", "-sha256"])
    return ways


@contextlib.contextmanager
def _target(root: Path, old: Path) -> Iterator[Path]:
    """A data root in which the older version stands."""
    file = root / _PATH
    file.parent.mkdir(parents=True)
    shutil.copy(old, file)
    settle(root / "warm", old.stat().st_size)
    try:
        yield file
    finally:
        shutil.rmtree(root)


def _fetched(root: Path, old: Path, entry: DataEntry, compress: bool) -> Turn:
    sys.setswitchinterval(0.0005)

    async def fetch() -> Turn:
        transport = P2PTransport(Around(Signer(KEY), compress=compress))
        source = Endpoint(node="source", http_url=f"http://127.0.0.1:{PORT}")
        request = Request("bench", entry, source, Endpoint(node="target"))
        before = _passed()
        with usage() as used:
            landing = await Landing.open(root, entry, "bench", entry.path)
            with usage() as fetching:
                await transport.fetch(request, landing, Throttle(), lambda *_: None)
            await landing.commit()
        await transport.close()
        return Turn(_passed() - before, used.seconds, used.cpu_s, fetching.seconds)

    with _target(root, old):
        return asyncio.run(fetch())


def _commanded(root: Path, old: Path, command: list[str], then: Sequence[str] = ()) -> Turn:
    with _target(root, old) as file:
        before = _passed()
        used = commands(*([*words, str(file)] for words in (command, then) if words))
        return Turn(_passed() - before, used.seconds, used.cpu_s)


@contextlib.contextmanager
def _source(directory: Path, file: Path) -> Iterator[DataEntry]:
    """A file server that holds the new version, in a process of its own."""
    directory.mkdir()
    entry = DataEntry(
        path=_PATH,
        data_type=DataType.METADATA,
        config_key="all",
        size_bytes=file.stat().st_size,
        checksum=checksum_of(file),
    )
    words = [sys.executable, "-m", "bench.receiver", "source", "127.0.0.1", "", str(directory)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(words, text=True, **pipes) as process:  # type: ignore[call-overload]
        process.stdout.readline()
        order = {"entry": msgspec.to_builtins(entry), "file": str(file)}
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()
        process.stdout.readline()
        yield entry
        process.terminate()


@contextlib.contextmanager
def _daemon(directory: Path) -> Iterator[None]:
    """An rsync daemon over a directory."""
    settings = directory.parent / "rsyncd.conf"
    settings.write_text(f"use chroot = no\n[data]\npath = {directory}\nuid = 0\ngid = 0\n")
    words = ["--no-detach", "--address=127.0.0.1", f"--port={_RSYNC_PORT}", f"--config={settings}"]
    with subprocess.Popen(["rsync", "--daemon", *words]) as process:
        while not _answers(_RSYNC_PORT):
            time.sleep(0.05)
        yield
        process.terminate()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _passed() -> int:
    """Bytes that went over this namespace's loopback."""
    lines = Path("/proc/self/net/dev").read_text().splitlines()
    (loopback,) = (line.split(":")[1] for line in lines if line.strip().startswith("lo:"))
    return int(loopback.split()[8])


def _database(file: Path, size_bytes: int, seed: int) -> int:
    """A database of games whose moves are JSON; how many there are."""
    rows = size_bytes // (_GAME_BYTES + 400)
    with contextlib.closing(sqlite3.connect(file)) as db, db:
        db.execute(f"PRAGMA page_size = {_PAGE}")
        db.execute("CREATE TABLE games (id TEXT PRIMARY KEY, config TEXT, moves TEXT)")
        numbers = random.Random(seed)
        db.executemany("INSERT INTO games VALUES (?, 'hex8_2p', ?)", _games(numbers, rows))
    return rows


def _change(file: Path, rows: int, seed: int) -> None:
    numbers = random.Random(seed + 1)
    with contextlib.closing(sqlite3.connect(file)) as db, db:
        for row in numbers.sample(range(1, rows + 1), rows // 100):
            db.execute("UPDATE games SET moves = ? WHERE rowid = ?", (_moves(numbers), row))


def _append(file: Path, rows: int, seed: int) -> None:
    numbers = random.Random(seed + 2)
    with contextlib.closing(sqlite3.connect(file)) as db, db:
        more = _games(numbers, rows // 20)
        db.executemany("INSERT INTO games VALUES (?, 'hex8_2p', ?)", more)


def _games(numbers: random.Random, count: int) -> Iterator[tuple[str, str]]:
    for _ in range(count):
        yield f"{numbers.getrandbits(128):032x}", _moves(numbers)


def _moves(numbers: random.Random) -> str:
    """Moves as self-play writes them, always of the same length."""
    moves: list[str] = []
    length = 0
    while length < _GAME_BYTES:
        bits = numbers.getrandbits(40)
        moves.append(f'{{"q":{bits & 7},"r":{bits >> 3 & 7},"v":0.{bits >> 6:010d}}}')
        length += len(moves[-1]) + 1
    return f"[{','.join(moves)}]"[:_GAME_BYTES]


def _changed_bytes(old: Path, new: Path) -> int:
    before, after = old.read_bytes(), new.read_bytes()
    places = range(0, len(after), _PAGE)
    return sum(_PAGE for at in places if before[at : at + _PAGE] != after[at : at + _PAGE])


if __name__ == "__main__":
    _, _place, *_numbers = sys.argv
    _found = measure(Path(_place), *map(int, _numbers))
    print(msgspec.json.encode(_found).decode())
