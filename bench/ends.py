"""The far ends of a comparison on this machine: file server, sshd, rsync daemon and S3 server."""

from __future__ import annotations

import asyncio
import hashlib
import multiprocessing
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec

from adapters.files.inventory import Inventory
from adapters.files.maps import MapStore
from adapters.http.receiving import Receiver
from adapters.http.signing import Signer
from adapters.http.transport import FileServer
from streams.values import DataEntry, DataType, Endpoint
from tests.integration.s3_server import ACCESS_KEY, SECRET_KEY, S3Server
from tests.integration.ssh_server import SshServer

#: What the file server and all who ask it share.
KEY = b"a key that all nodes of a bench share"
_MEBIBYTE = 1 << 20


class File(msgspec.Struct, frozen=True):
    """An entry, and the file here that holds it."""

    entry: DataEntry
    path: str


class Setting(msgspec.Struct):
    """How all ends are reached, for a process of its own."""

    http: Endpoint
    ssh: Endpoint
    known_hosts: str
    identity: str
    s3_url: str
    #: A new one for each turn up, and the one that holds everything for turns down.
    bucket: str
    full_bucket: str
    rsyncd_port: int


class Ends:
    """The running servers, and the files they offer."""

    def __init__(
        self, base: Path, sshd: SshServer, s3: S3Server, http: Endpoint, port: int
    ) -> None:
        self._held = base / "held"
        self._s3 = s3
        #: Whether what is made is put into the bucket too.
        self.fills_bucket = True
        self._turns = 0
        self.base = base
        self.setting = Setting(
            http,
            sshd.endpoint(base / "pushed"),
            str(sshd.directory / "known_hosts"),
            str(sshd.directory / "user_key"),
            s3.url,
            "",
            "bench-full",
            port,
        )
        s3.client.create_bucket(Bucket=self.setting.full_bucket)
        self.renew()

    def renew(self) -> None:
        """A bucket and a directory that nothing was pushed to yet."""
        self._turns += 1
        self.setting.bucket = f"bench-{self._turns}"
        self._s3.client.create_bucket(Bucket=self.setting.bucket)
        pushed = self.base / f"pushed-{self._turns}"
        pushed.mkdir()
        if self._turns > 1:
            subprocess.run(["rm", "-rf", self.base / f"pushed-{self._turns - 1}"], check=True)
        where = msgspec.structs.replace(self.setting.ssh, data_root=str(pushed))
        self.setting.ssh = where

    def make(self, directory: Path, sizes: list[int], seed: int) -> list[File]:
        """Files of random bytes that every far end offers."""
        directory.mkdir()
        numbers = random.Random(seed)
        files = []
        for index, size in enumerate(sizes):
            path = directory / f"{index:05}.bin"
            sha = hashlib.sha256()
            with path.open("wb") as out:
                for at in range(0, size, _MEBIBYTE):
                    block = numbers.randbytes(min(_MEBIBYTE, size - at))
                    sha.update(block)
                    out.write(block)
            files.append(self._offered(path, sha.hexdigest(), f"{directory.name}/{path.name}"))
        return files

    def make_sparse(self, path: Path, size: int) -> File:
        """A file of zeros that takes no room, offered too."""
        path.touch()
        os.truncate(path, size)
        sha, block = hashlib.sha256(), bytes(4 * _MEBIBYTE)
        for at in range(0, size, len(block)):
            sha.update(block[: size - at])
        return self._offered(path, sha.hexdigest(), f"sparse/{path.name}", for_others=False)

    def _offered(self, path: Path, digits: str, name: str, *, for_others: bool = True) -> File:
        entry = DataEntry(
            path=name,
            data_type=DataType.METADATA,
            config_key="all",
            size_bytes=path.stat().st_size,
            checksum=f"sha256:{digits}",
            mtime=time.time(),
        )
        (self._held / digits).unlink(missing_ok=True)
        os.link(path, self._held / digits)
        if self.fills_bucket:
            self._fill_bucket(path, digits, name if for_others else "")
        return File(entry, str(path))

    def _fill_bucket(self, path: Path, digits: str, name: str) -> None:
        """Once under its digest, for ours, and once under its name, for others."""
        with path.open("rb") as body:
            self._s3.client.put_object(
                Bucket=self.setting.full_bucket,
                Key=f"objects/sha256/{digits[:2]}/{digits}",
                Body=body,
                Metadata={"sha256": digits},
            )
            if name:
                body.seek(0)
                self._s3.client.put_object(Bucket=self.setting.full_bucket, Key=name, Body=body)


@contextmanager
def running_ends(base: Path) -> Iterator[Ends]:
    """Start all far ends, and stop them."""
    (base / "held").mkdir(parents=True)
    sshd, s3 = SshServer(base / "ssh"), S3Server(base / "s3")
    (base / "s3").mkdir()
    os.environ.update(
        AWS_ACCESS_KEY_ID=ACCESS_KEY,
        AWS_SECRET_ACCESS_KEY=SECRET_KEY,
        AWS_DEFAULT_REGION="us-east-1",
        AWS_EC2_METADATA_DISABLED="true",
        AWS_CONFIG_FILE="/nonexistent",
        AWS_SHARED_CREDENTIALS_FILE="/nonexistent",
    )
    # Not everybody understands a bundle of certificates, and none is used here.
    os.environ.pop("AWS_CA_BUNDLE", None)
    sshd.start()
    try:
        s3.start()
        with _served(base) as url, _daemon(base) as port:
            yield Ends(base, sshd, s3, Endpoint(node="source", http_url=url), port)
    finally:
        s3.stop()
        sshd.stop()


@contextmanager
def _served(base: Path) -> Iterator[str]:
    """The project's file server in a process of its own; its URL."""
    fresh = multiprocessing.get_context("spawn")
    ours, theirs = fresh.Pipe()
    process = fresh.Process(target=_serve, args=(base, theirs), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        ours.send("enough")
        process.join()


def _serve(base: Path, pipe: Connection) -> None:
    # As an agent does.
    sys.setswitchinterval(0.0005)

    def locate(checksum: str) -> Path | None:
        path = base / "held" / checksum.removeprefix("sha256:")
        return path if path.exists() else None

    async def serve() -> None:
        (base / "serving").mkdir()
        (base / "received").mkdir()
        inventory = Inventory(base / "received", "source")
        server = FileServer(
            locate,
            Signer(KEY),
            maps=MapStore(base / "serving"),
            receiver=Receiver("source", base / "received", inventory),
        )
        await server.start()
        pipe.send(server.url)
        await asyncio.to_thread(pipe.recv)
        await server.stop()
        await inventory.close()

    asyncio.run(serve())


@contextmanager
def _daemon(base: Path) -> Iterator[int]:
    """An rsync daemon over everything that is made for the run, and with room; its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    config = base / "rsyncd.conf"
    (base / "taken").mkdir()
    config.write_text(
        f"address=127.0.0.1\nport={port}\nuse chroot=no\nuid=0\ngid=0\n"
        f"[all]\npath={base.parent}\n[taken]\npath={base / 'taken'}\nread only=no\n"
    )
    command = ["rsync", "--daemon", "--no-detach", f"--config={config}"]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.02)
        yield port
    finally:
        child.kill()
        child.wait()
