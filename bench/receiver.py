"""One machine of a broadcast, as a process: it serves, and fetches when it is told to.

``python -m bench.receiver NAME ADDRESS BUS DIRECTORY``, with "" for no bus; it reads one JSON
object a line and answers with one.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from adapters.files.blocks import BlockMap, map_of
from adapters.files.landing import Landing
from adapters.files.maps import MapStore
from adapters.http.server import FileServer
from adapters.http.signing import Signer
from adapters.http.transport import HttpTransport
from adapters.p2p.asking import Around
from adapters.p2p.transport import P2PTransport
from adapters.throttle import Throttle
from adapters.transport import Fetches, Request
from streams.jetstream import JetStreamLog
from streams.values import DataEntry, Endpoint

KEY = b"for the bench alone"
PORT = 8770


async def serve(name: str, address: str, bus: str, directory: Path) -> None:
    """Serve and fetch, until there is nothing more to read."""
    sys.setswitchinterval(0.0005)
    log = await JetStreamLog.connect(bus) if bus else None
    held: dict[str, Path] = {}
    maps = MapStore(directory)
    around = Around(Signer(KEY), held.get, maps, gossip=log.bus if log else None)
    server = FileServer(
        held.get, around.signer, address, PORT, maps=around.maps, underway=around.underway
    )
    await server.start()
    ways: dict[str, Fetches] = {"p2p": P2PTransport(around), "pull": HttpTransport(around.signer)}
    _say({"url": server.url})
    while line := await asyncio.to_thread(sys.stdin.readline):
        order = json.loads(line)
        entry = msgspec.convert(order["entry"], DataEntry)
        if "file" in order:
            held[entry.checksum] = file = Path(order["file"])
            # As an inventory does that has read the file.
            maps.put(entry.checksum, await asyncio.to_thread(_mapped, file))
            _say({})
            continue
        endpoints = [Endpoint(node=one, http_url=url) for one, url in order["nodes"].items()]
        source, me = endpoints[0], Endpoint(node=name, http_url=server.url)
        peers = tuple(one for one in endpoints[1:] if one.node != name)
        request = Request("bench", entry, source, me, peers=peers if order["way"] == "p2p" else ())
        began, cpu = time.perf_counter(), time.process_time()
        landing = await Landing.open(directory, entry, "bench", entry.path)
        came = await ways[order["way"]].fetch(request, landing, Throttle(), lambda *_: None)
        fetched_s = time.perf_counter() - began
        await landing.commit()
        held[entry.checksum] = directory / entry.path
        cpu_s = time.process_time() - cpu
        _say({"came": came, "fetched_s": fetched_s, "cpu_s": cpu_s})
    if log is not None:
        await log.close()


def _mapped(file: Path) -> BlockMap:
    with file.open("rb") as opened:
        return map_of(opened.fileno(), os.fstat(opened.fileno()).st_size)


def _say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4])))
