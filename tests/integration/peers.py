"""Nodes that serve and fetch peer to peer, all in one process, with gossip among them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

from adapters.errors import TransportError
from adapters.files.landing import Landed, Landing
from adapters.files.maps import MapStore
from adapters.http.server import FileServer
from adapters.http.signing import Signer
from adapters.p2p.asking import Around
from adapters.p2p.transport import P2PTransport
from adapters.throttle import Throttle
from adapters.transport import Request, Take
from streams.values import DataEntry, DataType, Endpoint
from tests.faults import Proxy

KEY = b"the cluster's own key"


class Gossiping:
    """Words among all who listen, as over a bus."""

    def __init__(self) -> None:
        self._listeners: list[tuple[str, asyncio.Queue[bytes]]] = []

    def tell(self, subject: str, body: bytes) -> None:
        """As `Gossip.tell`."""
        for wanted, queue in self._listeners:
            if wanted == subject:
                queue.put_nowait(body)

    async def listen(self, subject: str) -> AsyncGenerator[tuple[str, bytes], None]:
        """As `Gossip.listen`."""
        mine = (subject, asyncio.Queue[bytes]())
        self._listeners.append(mine)
        try:
            while True:
                yield subject, await mine[1].get()
        finally:
            self._listeners.remove(mine)


class Node:
    """One node: a data root, a file server behind a proxy, and the transport."""

    def __init__(self, base: Path, name: str, gossip: Gossiping | None = None) -> None:
        self.name = name
        self.root = base / name
        self.root.mkdir(parents=True)
        self.held: dict[str, Path] = {}
        self.around = Around(Signer(KEY), self.held.get, MapStore(self.root), gossip=gossip)
        self.server = FileServer(
            self.held.get,
            self.around.signer,
            maps=self.around.maps,
            underway=self.around.underway,
        )
        self.transport = P2PTransport(self.around)
        self.link = Proxy(0)

    async def start(self) -> None:
        """Serve."""
        await self.server.start()
        self.link = Proxy(self.server.port)
        await self.link.open()

    async def stop(self) -> None:
        """Let go of everything."""
        await self.transport.close()
        await self.link.close()
        await self.server.stop()

    @property
    def at(self) -> Endpoint:
        """How others reach it."""
        return Endpoint(node=self.name, http_url=self.link.url)

    def put(self, path: str, data: bytes, wrong: bytes | None = None) -> DataEntry:
        """Hold a content under a path; `wrong` is what really lies there."""
        entry = entry_of(path, data)
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data if wrong is None else wrong)
        self.held[entry.checksum] = file
        return entry

    async def open(self, entry: DataEntry, transfer: str = "t-1") -> Landing:
        """A landing of an entry under its own path."""
        return await Landing.open(self.root, entry, transfer, entry.path)

    async def fetch(
        self, landing: Landing, source: Endpoint, *peers: Endpoint, mbps: float = 0.0, **how: Any
    ) -> int:
        """One attempt."""
        request = Request(
            "t-1",
            landing.entry,
            source,
            self.at,
            peers=peers,
            **{"stall_s": 20.0, "connect_s": 5.0, **how},
        )
        return await self.transport.fetch(request, landing, Throttle(mbps), lambda *_: None)

    async def fetch_many(
        self, entries: Sequence[DataEntry], source: Endpoint, take: Take
    ) -> Sequence[TransportError | None]:
        """One attempt at many small ones."""
        wanted = [
            Request(f"t-{number}", entry, source, self.at, stall_s=20.0, connect_s=5.0)
            for number, entry in enumerate(entries)
        ]
        return await self.transport.fetch_many(wanted, take)

    async def bring(
        self, entry: DataEntry, source: Endpoint, *peers: Endpoint, **how: Any
    ) -> tuple[int, Landed]:
        """Fetch and commit, and hold it from then on."""
        landing = await self.open(entry)
        try:
            came = await self.fetch(landing, source, *peers, **how)
            landed = await landing.commit()
        finally:
            await landing.abort()
        self.held[entry.checksum] = self.root / entry.path
        return came, landed


def entry_of(path: str, data: bytes) -> DataEntry:
    """An entry that means exactly `data`."""
    return DataEntry(
        path=path,
        data_type=DataType.METADATA,
        config_key="all",
        size_bytes=len(data),
        checksum=f"sha256:{hashlib.sha256(data).hexdigest()}",
    )
