"""The servers under fire: one nats-server, or three that replicate, and that of the bucket."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from dataplane.demo.bucket import DemoBucket
from dataplane.keys import KeyStore
from dataplane.prove.cable import Cable
from streams.codec import STREAM
from streams.jetstream import JetStreamLog
from streams.log import LogError
from streams.server import HOST, EmbeddedServer, default_config
from streams.wire import api

CLUSTER_NAME = "prove"
#: A port on which nobody listens.
NOWHERE = 1


class BusServer:
    """One nats-server that can be killed, paused and started again."""

    def __init__(self, name: str, server: EmbeddedServer) -> None:
        self.name = name
        self.status = "not started"
        self._server = server

    @property
    def url(self) -> str:
        """Where clients connect."""
        return self._server.url

    @property
    def pid(self) -> int:
        """The process id; 0 if it was never started."""
        return self._server.pid or 0

    @property
    def ended(self) -> int | None:
        """1 if it ended by itself."""
        return 1 if self.status == "running" and not self._server.running else None

    async def start(self, **_: str) -> None:
        """Start it, again if it was started before, and wait until it answers."""
        await self._server.start_async()
        self.status = "running"

    async def kill(self) -> int:
        """End it by SIGKILL."""
        self.status = "killed"
        await asyncio.to_thread(self._server.kill)
        return self.pid

    async def stop(self) -> None:
        """End it by SIGTERM."""
        self.status = "stopped"
        await self._server.stop_async()

    def pause(self) -> None:
        """Stop its clock."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        if self._server.running:
            os.kill(self.pid, signal.SIGCONT)


class BucketServer:
    """The S3 server: what it was told is stored outlives its death."""

    def __init__(self, name: str, bucket: DemoBucket) -> None:
        self.name = name
        self.status = "not started"
        self._bucket = bucket
        self._server = bucket.server
        self._starting: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        """The process id; 0 if it was never started."""
        return self._server.pid

    @property
    def ended(self) -> int | None:
        """1 if it ended by itself."""
        return 1 if self.status == "running" and not self._server.running else None

    async def start(self, **_: str) -> None:
        """Start it, with what it held if it was started before, and wait until it answers."""
        if self._starting is None or self._starting.done():
            self._starting = asyncio.create_task(self._start())
        # A thread can't be cancelled: whoever starts it next waits for the one that is at it.
        await asyncio.shield(self._starting)

    async def _start(self) -> None:
        if self.status == "not started":
            await self._bucket.start()
        else:
            await asyncio.to_thread(self._server.start_again)
        self.status = "running"

    async def kill(self) -> int:
        """End it by SIGKILL."""
        self.status = "killed"
        await asyncio.to_thread(self._server.stop)
        return self.pid

    async def stop(self) -> None:
        """End it. It has no other way than to be killed."""
        self.status = "stopped"
        await asyncio.to_thread(self._server.stop)

    def pause(self) -> None:
        """Stop its clock."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        if self._server.running:
            os.kill(self.pid, signal.SIGCONT)


async def leader_of(log: JetStreamLog) -> str:
    """The name of the server that leads the log's stream; "" if nobody knows."""
    try:
        info = await api(log.connection, f"STREAM.INFO.{STREAM}")
    except LogError:
        return ""
    return str((info.get("cluster") or {}).get("leader") or "")


class Routes:
    """A cable from each server of a cluster to each other one, so that any can be cut off."""

    def __init__(self, names: Sequence[str]) -> None:
        #: Where each of them listens for the others.
        self.ports = dict(zip(names, free_ports(len(names)), strict=True))
        pairs = list(itertools.permutations(names, 2))
        self._ways = dict(zip(pairs, free_ports(len(pairs)), strict=True))
        self._cables = {
            (one, other): Cable(partial(self._address, other), port)
            for (one, other), port in self._ways.items()
        }

    def _address(self, name: str) -> list[tuple[str, int]]:
        return [(HOST, self.ports[name])]

    def ways_of(self, name: str) -> list[int]:
        """The ports through which one reaches the others."""
        return [port for (one, _), port in self._ways.items() if one == name]

    async def open(self) -> None:
        """Begin to carry; before any server is started."""
        for cable in self._cables.values():
            await cable.open()

    async def close(self) -> None:
        """Stop it."""
        for cable in self._cables.values():
            await cable.close()

    def isolate(self, name: str) -> None:
        """Cut one off from all others, as a switch that fails does; clients still reach it."""
        for pair, cable in self._cables.items():
            if name in pair:
                cable.sever()

    def join(self) -> None:
        """Let all of them reach each other again."""
        for cable in self._cables.values():
            cable.join()


def single(store: Path, log_file: Path) -> list[BusServer]:
    """One server."""
    server = EmbeddedServer(store, log_file=log_file, told_by=signal.SIGKILL)
    return [BusServer("nats-1", server)]


def clustered(
    root: Path,
    logs: Path,
    count: int = 3,
    *,
    keys: KeyStore | None = None,
    routes: Routes | None = None,
) -> list[BusServer]:
    """Servers that form a cluster; what a stream of three replicas needs.

    With `keys` they let in only who has one of them, and are servers to each other by their secret.
    With `routes`, made for their names, they reach each other through those.
    """
    names = names_of(count)
    ports = free_ports(2 * count)
    listen = routes.ports if routes else dict(zip(names, ports[count:], strict=True))
    if keys is not None:
        keys.join([f"{HOST}:{port}" for port in listen.values()])
    made = []
    for name, port in zip(names, ports, strict=False):
        store = root / name
        store.mkdir(parents=True, exist_ok=True)
        config = store / "nats.conf"
        others = [at for other, at in listen.items() if other != name]
        cluster = _cluster(listen[name], routes.ways_of(name) if routes else others)
        if routes is not None:
            # Nobody is to find another way to it than the cables that it was told of.
            cluster = f'advertise: "{HOST}:{NOWHERE}", {cluster}'
        config.write_text(_config(name, cluster, _includes(store, keys)))
        server = EmbeddedServer(
            store,
            port=port,
            config=config,
            log_file=logs / f"{name}.log",
            told_by=signal.SIGKILL,
        )
        made.append(BusServer(name, server))
    return made


def names_of(count: int) -> list[str]:
    """The names of so many servers."""
    return [f"nats-{number + 1}" for number in range(count)]


def _includes(home: Path, keys: KeyStore | None) -> tuple[str, str]:
    """What the configuration, and its part about the cluster, include of these keys."""
    if keys is None:
        return "", ""
    # nats-server takes every path for one that is relative to the configuration.
    users, routes = (os.path.relpath(file, home) for file in (keys.include, keys.routes_include))
    return f'include "{users}"\n', f'include "{routes}"\n'


def _cluster(port: int, peers: list[int]) -> str:
    """What a server is told of its cluster: where it listens, and where the others are."""
    urls = ", ".join(f'"nats-route://{HOST}:{peer}"' for peer in peers)
    return f'name: {CLUSTER_NAME}, listen: "{HOST}:{port}", no_advertise: true, routes: [{urls}]'


def _config(name: str, cluster: str, includes: tuple[str, str]) -> str:
    """The configuration that the software ships, made one of a cluster."""
    users, secret = includes
    return (
        default_config().read_text()
        + f'\nserver_name: "{name}"\n{users}'
        + f"cluster {{ {cluster}\n{secret}}}\n"
    )


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on now; held together, so that they differ."""
    sockets = [socket.create_server((HOST, 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
