"""Each transport with a far end behind a proxy, set up the same way: what the contract runs on."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from adapters.files.inventory import Inventory
from adapters.files.maps import MapStore
from adapters.files.places import OWN_DIRECTORY
from adapters.http.receiving import Receiver
from adapters.http.signing import Signer
from adapters.http.transport import FileServer, HttpTransport
from adapters.p2p.asking import Around
from adapters.p2p.transport import P2PTransport
from adapters.s3 import layout
from adapters.s3.transport import S3Transport
from adapters.ssh.base64_ssh import Base64Transport
from adapters.ssh.connections import SshOptions
from adapters.ssh.rsync import RsyncTransport
from adapters.transport import Fetches, Pushes, Request
from streams.values import DataEntry, Endpoint
from tests.faults import Proxy
from tests.integration.s3_server import S3Server
from tests.integration.ssh_server import SshServer

KEY = b"the cluster's own key"
FAR = "gpu-7"
#: The smallest part of an upload: what a transport to S3 goes on with.
PART = 5 << 20


class Rig:
    """A transport here, and a far end that it fetches from and pushes to through `link`."""

    fetches: Fetches
    pushes: Pushes
    link: Proxy
    #: The far end's data root; what a push makes appear is in it.
    root: Path
    far: Endpoint
    #: Whether a push ends in a data root at all, with names, links and disks of its own.
    lands = True
    #: Whether one attempt outlives a cut connection and a bad byte, because it asks block by block.
    by_blocks = False
    #: Bytes over the link for each of an entry.
    swell = 1.0

    def request(
        self, entry: DataEntry, transfer: str, local: str, stall_s: float, connect_s: float
    ) -> Request:
        """One attempt, either way."""
        return Request(
            transfer,
            entry,
            self.far,
            self.far,
            content_path=self.offered(entry),
            local_path=local,
            stall_s=stall_s,
            connect_s=connect_s,
        )

    def hold(self, entry: DataEntry, file: Path) -> None:
        """Let the far end offer a file as an entry's content."""
        raise NotImplementedError

    def distrust(self) -> None:
        """Let the far end no longer trust this side."""
        raise NotImplementedError

    def offered(self, entry: DataEntry) -> str:
        """Where the far end keeps the content, for transports that name files."""
        return ""

    def here(self) -> dict[str, bytes]:
        """All files that the far end has, under their final names."""
        return files_in(self.root)


class HttpRig(Rig):
    """`HttpTransport` and `FileServer`, with entries above some size counting as large."""

    def __init__(self, base: Path, large_bytes: int) -> None:
        self._large_bytes = large_bytes
        self._held: dict[str, Path] = {}
        self.root = base / "far"
        self.root.mkdir()
        self._inventory = Inventory(self.root, FAR)
        receiver = Receiver(FAR, self.root, self._inventory, stall_s=10.0)
        self._server = FileServer(self._held.get, Signer(KEY), receiver=receiver)
        self.fetches = self.pushes = HttpTransport(Signer(KEY), large_bytes=large_bytes)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Rig]:
        """Start everything, and stop it."""
        await self._server.start()
        self.link = Proxy(self._server.port)
        await self.link.open()
        self.far = Endpoint(node=FAR, http_url=self.link.url, data_root=str(self.root))
        yield self
        await self.fetches.close()
        await self.link.close()
        await self._server.stop()
        await self._inventory.close()

    def hold(self, entry: DataEntry, file: Path) -> None:
        """As `Rig.hold`."""
        self._held[entry.checksum] = file

    def distrust(self) -> None:
        """As `Rig.distrust`."""
        signer = Signer(b"a key of someone else")
        self.fetches = self.pushes = HttpTransport(signer, large_bytes=self._large_bytes)


class P2PRig(HttpRig):
    """`P2PTransport` and `FileServer`; what is pushed goes over HTTP."""

    by_blocks = True

    def __init__(self, base: Path) -> None:
        super().__init__(base, 1 << 60)
        self._server = FileServer(
            self._held.get,
            Signer(KEY),
            receiver=Receiver(FAR, self.root, self._inventory, stall_s=10.0),
            maps=MapStore(self.root),
        )
        self.fetches = P2PTransport(Around(Signer(KEY)))

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Rig]:
        """Start everything, and stop it."""
        async with super().running():
            yield self
            await self.pushes.close()

    def distrust(self) -> None:
        """As `Rig.distrust`."""
        super().distrust()
        self.fetches = P2PTransport(Around(Signer(b"a key of someone else")))


class SshRig(Rig):
    """A transport over a real sshd."""

    def __init__(
        self,
        base: Path,
        server: SshServer,
        make: Callable[[SshOptions], RsyncTransport | Base64Transport],
        swell: float,
    ) -> None:
        self._server = server
        self._make = make
        self._held: dict[str, Path] = {}
        self.swell = swell
        self.root = base / "far"
        self.root.mkdir()
        self.fetches = self.pushes = make(server.options())

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Rig]:
        """Start everything, and stop it."""
        self.link = Proxy(self._server.port)
        await self.link.open()
        self.far = self._server.endpoint(self.root, self.link.port)
        yield self
        await self.fetches.close()
        await self.link.close()

    def hold(self, entry: DataEntry, file: Path) -> None:
        """As `Rig.hold`."""
        self._held[entry.checksum] = file

    def offered(self, entry: DataEntry) -> str:
        """As `Rig.offered`."""
        return str(self._held.get(entry.checksum, "/nowhere/x.bin"))

    def distrust(self) -> None:
        """As `Rig.distrust`."""
        self.fetches = self.pushes = self._make(self._server.options("other_user_key"))


class S3Rig(Rig):
    """`S3Transport` and a real S3 server with a bucket of its own."""

    lands = False

    def __init__(self, base: Path, server: S3Server, bucket: str) -> None:
        self._server = server
        self._bucket = bucket
        self.root = base / "far"
        server.client.create_bucket(Bucket=bucket)
        self.far = Endpoint(node="s3")

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Rig]:
        """Start everything, and stop it."""
        self.link = Proxy(self._server.port)
        await self.link.open()
        self.fetches = self.pushes = self._transport()
        yield self
        await self.fetches.close()
        await self.link.close()

    def hold(self, entry: DataEntry, file: Path) -> None:
        """As `Rig.hold`: whatever the file holds, the object claims to be the entry's."""
        with file.open("rb") as body:
            self._server.client.put_object(
                Bucket=self._bucket,
                Key=layout.object_key(entry.checksum),
                Body=body,
                Metadata={"sha256": entry.checksum.removeprefix("sha256:")},
            )

    def distrust(self) -> None:
        """As `Rig.distrust`."""
        self.fetches = self.pushes = self._transport("no-such-bucket")

    def here(self) -> dict[str, bytes]:
        """As `Rig.here`, by key."""
        client = self._server.client
        listed = client.list_objects_v2(Bucket=self._bucket).get("Contents", [])
        return {
            one["Key"]: client.get_object(Bucket=self._bucket, Key=one["Key"])["Body"].read()
            for one in listed
        }

    def _transport(self, bucket: str = "") -> S3Transport:
        # One part after the other, so that something is whole when an attempt ends.
        return S3Transport(
            bucket or self._bucket, endpoint_url=self.link.url, part_bytes=PART, concurrency=1
        )


def files_in(root: Path) -> dict[str, bytes]:
    """All files under final names."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and OWN_DIRECTORY not in path.parts
    }


def left_in(root: Path) -> list[str]:
    """All files that a transport of ours keeps or has forgotten; not the inventory's, nor which
    blocks of a file are there.
    """
    own = root / OWN_DIRECTORY
    return sorted(
        path.relative_to(own).as_posix()
        for path in own.rglob("*")
        if path.is_file()
        and path.relative_to(own).parts[0] in ("partial", "rsync", "quarantine")
        and not (path.suffix == ".blocks" and path.with_suffix("").exists())
    )
