"""Landing: one large file over HTTP, proven by its digest and synced to disk, beside ``curl``.

All fetch from one server, the project's own, in a process of its own. ``curl`` neither checks nor
syncs what it got; ``curl`` and then ``openssl dgst`` is the peer that at least checks it.
"""

from __future__ import annotations

import asyncio
import hashlib
import multiprocessing
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from adapters.files.landing import Landing
from adapters.http.signing import Signer
from adapters.http.transport import FileServer, HttpTransport
from adapters.throttle import Throttle
from adapters.transport import Request
from bench.measuring import Usage, commands, process, settle, usage, workplace
from bench.report import Report, begin, median, paired
from streams.values import DataEntry, DataType, Endpoint

SIZE_MIB, ROUNDS, BIG_ROUNDS = 1024, 3, 7
_MEBIBYTE = 1 << 20
_TTL_S = 3600.0
#: So long after it was freed, memory is cold.
_COLD_S = 5.0


def run(size_mib: int, rounds: int, cold: bool, seed: int, base: Path | None) -> Report:
    """Fetch a file of random bytes in each way, in adjacent turns of changing order.

    `cold`: with memory that the machine has given back to its host; else each finds it warm.
    """
    _demand("curl", "openssl")
    report = begin("land", seed, size_mib=size_mib, rounds=rounds, cold=cold)
    with workplace(base) as place:
        entry = make_file(place / "source.bin", size_mib, seed)
        signer = Signer(random.Random(seed).randbytes(32))
        with _served(place / "source.bin", signer) as url, process() as agent:
            ways = _ways(url, signer, entry, place, agent)
            warm = partial(settle, place / "warm", entry.size_bytes)
            prepare = partial(time.sleep, _COLD_S) if cold else warm
            found = [_turn(ways, number, place, prepare) for number in range(rounds)]
    _tell(report, entry.size_bytes, found)
    return report


def _tell(report: Report, size: int, found: list[dict[str, Usage]]) -> None:
    rates = {way: [size / turn[way].seconds / 1e9 for turn in found] for way in found[0]}
    ours = rates.pop("land")
    report.add("landing: digest, sync, rename", ours, "GB/s")
    for way, theirs in rates.items():
        report.add(way, theirs, "GB/s")
        report.add(f"landing beside {way}", ours, "GB/s", paired(ours, theirs), way)
    fetching = [size / turn["land"].parts["fetching"] / 1e9 for turn in found]
    report.add("of it: fetching, before the sync", fetching, "GB/s")
    for way in found[0]:
        name = "landing" if way == "land" else way
        gibibytes = size / (1 << 30)
        report.add(f"client CPU: {name}", [turn[way].cpu_s / gibibytes for turn in found], "s/GiB")
        peak = median([turn[way].peak_bytes / 1e6 for turn in found])
        report.add(f"peak memory: {name}", [peak], "MB")
    report.notes.append(
        "Landing is timed within its process, which runs already as an agent does; curl from its "
        "start. One SHA-256 thread bounds landing, and the disk its sync."
    )


def _turn(
    ways: dict[str, Callable[[], Usage]],
    number: int,
    place: Path,
    prepare: Callable[[], None],
) -> dict[str, Usage]:
    """Every way once, each into a new file that is removed; every second turn backwards."""
    found = {}
    order = list(ways) if number % 2 == 0 else list(reversed(ways))
    for way in order:
        prepare()
        (place / "target").mkdir()
        found[way] = ways[way]()
        shutil.rmtree(place / "target")
    return found


def _ways(
    url: str, signer: Signer, entry: DataEntry, place: Path, agent: ProcessPoolExecutor
) -> dict[str, Callable[[], Usage]]:
    signed = signer.url(url, entry.checksum, entry.path, "bench", time.time(), _TTL_S)
    copy = str(place / "target" / "copy.bin")
    curl = ["curl", "--silent", "--show-error", "--fail", "--output", copy, signed]
    digest = ["openssl", "dgst", "-sha256", copy]
    return {
        "land": lambda: agent.submit(_land, url, signer, entry, place / "target").result(),
        "curl": partial(commands, curl),
        "curl, then openssl": partial(commands, curl, digest),
    }


def _land(url: str, signer: Signer, entry: DataEntry, root: Path) -> Usage:
    """As an agent does it, in a process as it is then."""
    sys.setswitchinterval(0.0005)

    async def land() -> Usage:
        transport = HttpTransport(signer)
        request = Request(
            transfer="bench",
            entry=entry,
            source=Endpoint(node="source", http_url=url),
            target=Endpoint(node="bench"),
            local_path=entry.path,
        )
        with usage() as used:
            landing = await Landing.open(root, entry, "bench", entry.path)
            with usage() as fetching:
                await transport.fetch(request, landing, Throttle(), lambda done, total: None)
            landed = await landing.commit()
        used.parts = {"fetching": fetching.seconds}
        assert landed.bytes == entry.size_bytes
        await transport.close()
        return used

    return asyncio.run(land())


def make_file(file: Path, size_mib: int, seed: int) -> DataEntry:
    """Write a file that nothing compresses; the entry that means it."""
    numbers, sha = random.Random(seed), hashlib.sha256()
    with file.open("wb") as out:
        for _ in range(size_mib):
            block = numbers.randbytes(_MEBIBYTE)
            sha.update(block)
            out.write(block)
        os.fsync(out.fileno())
    return DataEntry(
        path="metadata/random.bin",
        data_type=DataType.METADATA,
        config_key="all",
        size_bytes=file.stat().st_size,
        checksum=f"sha256:{sha.hexdigest()}",
        mtime=time.time(),
    )


@contextmanager
def _served(file: Path, signer: Signer) -> Iterator[str]:
    """The project's file server over one file, in a process of its own; its URL."""
    fresh = multiprocessing.get_context("spawn")
    ours, theirs = fresh.Pipe()
    process = fresh.Process(target=_serve, args=(file, signer, theirs), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        ours.send("enough")
        process.join()


def _serve(file: Path, signer: Signer, pipe: Connection) -> None:
    async def serve() -> None:
        server = FileServer(lambda checksum: file, signer)
        await server.start()
        pipe.send(server.url)
        await asyncio.to_thread(pipe.recv)
        await server.stop()

    asyncio.run(serve())


def _demand(*programs: str) -> None:
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        names = " ".join(missing)
        raise SystemExit(f"bench land needs {names}: apt-get install {names}")
