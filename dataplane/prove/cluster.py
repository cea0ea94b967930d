"""The processes that are put under fire, and the files they leave."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import msgspec

from dataplane.config import DataPlaneConfig
from dataplane.crashpoints import POINTS
from dataplane.demo.bucket import DemoBucket
from dataplane.demo.children import Child, Layout, environment_of
from dataplane.demo.s3_server import installed
from dataplane.outbox import Outbox
from dataplane.policy import Policy
from dataplane.prove.cable import Cable
from dataplane.prove.servers import (
    NOWHERE,
    BucketServer,
    BusServer,
    Routes,
    clustered,
    free_ports,
    names_of,
    single,
)
from streams.identity import PathRules
from streams.server import HOST
from streams.values import Role, Trait

CONFIG_KEYS = ("hex8_2p", "square8_2p")
COORDINATORS = ("coordinator-1", "coordinator-2")
#: The exit status of a process that can't reach what it needs: to be started again is all it asks.
OUT_OF_REACH = 3
#: Kinds of processes that the data plane can't do without.
VITAL = ("agent", "coordinator", "nats-server")
#: A disk that can be filled: a small file system of its own under one node's data. Databases grow
#: as long as a run goes on, and a kill takes a while: by so much for each it must be larger.
SMALL_DISK_MB = 192
SMALL_DISK_MB_PER_KILL = 2
#: What decides quickly enough for a run of a minute, and still waits for who was killed.
SETTINGS: dict[str, object] = {
    # Most files are small here: a few of them are to fill a slot.
    "policy__bandwidth__small_per_slot": 2,
    "default_bandwidth_limit_mbps": 64,
    "answer_limit_seconds": 30,
    "chain_limit_seconds": 20,
    "transport_timeout_seconds": 20,
    "stall_timeout_seconds": 5,
    "sweep_interval": 1,
    "max_retries": 6,
    "max_in_flight": 8,
    "max_concurrent_syncs": 4,
    "manifest_refresh_interval": 20,
    "web_enabled": False,
    "scrub_interval": 5,
    "scrub_limit_mbps": 400,
    "shutdown_push_seconds": 2,
    "policy__s3__min_games": 2,
    "policy__s3__storage_class": "",
    "policy__schedule__replication_s": 10,
    "policy__schedule__s3_cycle_s": 30,
    "policy__schedule__cleanup_s": 3,
    "policy__schedule__prestage_s": 2,
    "policy__prestage__cooldown_s": 4,
    "policy__breakers__transport_open_s": 10,
    "policy__breakers__node_open_s": 20,
}


class Target(Protocol):
    """A process that can be put under fire."""

    name: str
    status: str

    @property
    def pid(self) -> int: ...
    @property
    def ended(self) -> int | None: ...
    async def start(self, **more: str) -> None: ...
    async def kill(self) -> int: ...
    async def stop(self) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...


class Kill(msgspec.Struct, frozen=True):
    """A process that was killed, where, and what it was doing."""

    name: str
    kind: str
    #: A named point, or ``random``.
    place: str
    during: str
    #: Seconds since 1970.
    time: float


class Ending(msgspec.Struct, frozen=True):
    """A process that ended though nobody told it to, and was started again."""

    name: str
    #: Its exit status; negative where a signal ended it.
    status: int
    #: The last it wrote.
    why: str

    @property
    def at_fault(self) -> bool:
        """Whether that was an error: to end where what it needs is out of reach is none."""
        return self.status != OUT_OF_REACH

    def __str__(self) -> str:
        """For people."""
        return f"{self.name} ended with status {self.status}: {self.why or 'it said nothing'}"


class ProveCluster:
    """All processes. As ``async with`` it starts the bus, and stops everything at the end."""

    def __init__(self, layout: Layout, *, replicas: int, nodes: int, kills: int) -> None:
        """`kills` is how many the run is to last for."""
        self.layout = layout
        self.replicas = replicas
        logs = layout.root / "logs"
        #: The ways between the servers; None where there is but one.
        self.routes = Routes(names_of(replicas)) if replicas > 1 else None
        self.servers: list[BusServer] = (
            clustered(layout.nats, logs, replicas, routes=self.routes)
            if replicas > 1
            else single(layout.nats, layout.log("nats-1"))
        )
        trainers = max(2, (nodes - 1) // 2)
        players = max(1, nodes - 1 - trainers)
        self.players = [f"selfplay-{n + 1}" for n in range(players)]
        self.trainers = [f"training-{n + 1}" for n in range(trainers)]
        self.roles: dict[str, Role] = {
            **dict.fromkeys(self.players, Role.SELFPLAY),
            **dict.fromkeys(self.trainers, Role.TRAINING),
            "storage-1": Role.STORAGE,
        }
        #: Nodes that nobody reaches, as behind a NAT: what concerns them is pushed, or relayed.
        self.blocked = {self.players[-1], self.trainers[-1]} if players > 1 else set[str]()
        self.children: dict[str, Child] = {}
        #: What can be cut, by the process whose it is, and by where it goes if that is not the bus.
        self.cables: dict[str, Cable] = {}
        self.kills: list[Kill] = []
        #: Nodes that were killed and wiped for good, once they were drained.
        self.wiped: list[str] = []
        self.endings: list[Ending] = []
        #: The point at which a child was told to die, if it was.
        self.armed: dict[str, str] = {}
        self._mounted: list[Path] = []
        self._small_disk_mb = SMALL_DISK_MB + SMALL_DISK_MB_PER_KILL * kills
        self.small_disk = ""
        #: The bucket; None where its server is not installed.
        self.bucket = DemoBucket(layout.root / "s3") if installed() else None
        self._bucket_server = BucketServer("s3-1", self.bucket) if self.bucket else None

    @property
    def url(self) -> str:
        """Where the bus is, every server of it."""
        return ",".join(server.url for server in self.servers)

    def targets(self) -> Iterator[Target]:
        """Every process that can be put under fire."""
        yield from self._all_servers()
        yield from self.children.values()

    def _all_servers(self) -> list[BusServer | BucketServer]:
        bucket = self._bucket_server
        return [*self.servers, bucket] if bucket is not None else [*self.servers]

    async def __aenter__(self) -> Self:
        if self.routes is not None:
            await self.routes.open()
        await asyncio.gather(*(server.start() for server in self._all_servers()))
        return self

    def policy(self) -> Policy:
        """What the coordinators decide by."""
        tables: dict[str, dict[str, object]] = {}
        for name, value in SETTINGS.items():
            if name.startswith("policy__"):
                _, concern, field = name.split("__")
                tables.setdefault(concern, {})[field] = value
        plain = {k: v for k, v in SETTINGS.items() if not k.startswith("policy__")}
        return DataPlaneConfig.from_values(
            {**plain, **self._of_bucket(), "policy": tables}
        ).policy()

    def _of_bucket(self) -> dict[str, object]:
        return self.bucket.settings() if self.bucket is not None else {}

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self.stop_children()
        finally:
            await asyncio.gather(*(server.stop() for server in self._all_servers()))
            if self.routes is not None:
                await self.routes.close()
            self.unmount()

    async def start_data_plane(self) -> None:
        """Start coordinators and agents, all at once."""
        self._mount_small_disk(self.trainers[-1])
        for name in COORDINATORS:
            more = await self._cabled(name, serves=False)
            self._add(name, ["dataplane", "coordinator"], name, roles=Role.COORDINATOR, **more)
        for node, role in self.roles.items():
            traits = Trait.GPU if role is not Role.STORAGE else Trait.EXTERNAL_STORAGE
            more = await self._cabled(node)
            if node == self.trainers[0]:
                more["consolidate_to"] = "games/canonical_{config}.db"
            self._add(node, ["dataplane", "agent"], node, roles=role, traits=traits, **more)
        await asyncio.gather(*(child.start() for child in self.children.values()))

    async def join_spot(self, name: str) -> None:
        """Let a node join that is rented for a while, and that plays."""
        more = await self._cabled(name)
        traits, role = Trait.EPHEMERAL, Role.SELFPLAY
        self._add(name, ["dataplane", "agent"], name, roles=role, traits=traits, **more)
        await self.children[name].start()

    async def wipe(self, name: str) -> None:
        """Kill a node and delete all it had; it never comes back."""
        self.wiped.append(name)
        child = self.children.pop(name)
        await child.retire()
        self.kills.append(Kill(name, "agent", "drained, then wiped", "", time.time()))
        for one in [one for one in self.cables if one.partition(" ")[0] == name]:
            await self.cables.pop(one).close()
        await asyncio.to_thread(shutil.rmtree, self.layout.data(name), ignore_errors=True)
        await asyncio.to_thread(shutil.rmtree, self.layout.state(name), ignore_errors=True)

    async def _cabled(self, name: str, *, serves: bool = True) -> dict[str, object]:
        """Lay the cables of a process: what it must be told of them.

        One to the bus, one to the bucket; and one from others, if it serves files and they may
        reach it.
        """
        bus = self.cables[name] = Cable(self._addresses)
        await bus.open()
        told: dict[str, object] = {"nats_url": f"nats://{bus.address}"}
        if self.bucket is not None:
            to_bucket = self.cables[f"{name} to the bucket"] = Cable(self._address_of_bucket)
            await to_bucket.open()
            told["s3_endpoint"] = f"http://{to_bucket.address}"
        if name in self.blocked:
            told["http_advertise"] = f"http://{HOST}:{NOWHERE}"
        elif serves:
            (port,) = free_ports(1)
            others = self.cables[f"{name} from others"] = Cable(lambda: [(HOST, port)])
            await others.open()
            told |= {"http_port": port, "http_advertise": f"http://{others.address}"}
        return told

    def _address_of_bucket(self) -> list[tuple[str, int]]:
        assert self.bucket is not None
        return [(HOST, self.bucket.server.port)]

    async def start_players(self, seed: int, pause_s: float, games: int) -> None:
        """Start self-play on the self-play nodes, without an end."""
        for node in self.players:
            command = ["dataplane.demo.selfplay", "--node", node, "--seed", str(seed)]
            command += ["--nats", f"nats://{self.cables[node].address}"]
            command += ["--data-dir", str(self.layout.data(node).resolve())]
            command += [text for key in CONFIG_KEYS for text in ("--config-key", key)]
            command += ["--rounds", "1000000", "--games-per-round", str(games)]
            command += ["--padding-kb", "0", "--pause", str(pause_s), "--live-games", "1"]
            await self._add(f"{node}.player", command, node).start()

    async def stop_players(self) -> None:
        """Let them end in order: what they said is said."""
        players = [child for child in self.children.values() if is_player(child.name)]
        for child in players:
            child.resume()
        await asyncio.gather(*(child.stop() for child in players))

    async def stop_children(self) -> None:
        """Stop all processes but the bus."""
        for child in self.children.values():
            child.resume()
        await asyncio.gather(*(child.stop() for child in self.children.values()))
        await asyncio.gather(*(cable.close() for cable in self.cables.values()))

    async def tend(self) -> None:
        """Start again, for ever, what ended without the adversary: armed, or by itself."""
        while True:
            for child in list(self.children.values()):
                if child.ended is not None and not (child.ended == 0 and is_player(child.name)):
                    self._ended(child)
                    await _start_again(child)
            for server in self._all_servers():
                if server.ended is not None:
                    self.endings.append(Ending(server.name, server.ended, "its log says why"))
                    await _start_again(server)
            await asyncio.sleep(0.1)

    def _ended(self, child: Child) -> None:
        """Keep that it ended: at the point it was told to die at, or by itself."""
        assert child.ended is not None
        point = self.armed.pop(child.name, "")
        if point and child.ended == -9:
            kind = kind_of(child.name)
            self.kills.append(Kill(child.name, kind, point, "at that point", time.time()))
        else:
            self.endings.append(Ending(child.name, child.ended, child.last_words()))

    def arm(self, name: str, point: str, count: int) -> dict[str, str]:
        """What in a child's environment makes it die at a named point, the n-th time."""
        self.armed[name] = point
        return {"DATAPLANE_KILL_AT": f"{point}:{count}"}

    def published(self) -> list[str]:
        """Ids of events that the players were told are stored, here or in their outbox."""
        found = []
        for node in self.players:
            file = self.layout.log(f"{node}.player")
            for line in file.read_text(errors="replace").splitlines() if file.exists() else ():
                with contextlib.suppress(msgspec.DecodeError):
                    said = msgspec.json.decode(line)
                    if isinstance(said, dict) and said.get("event_id"):
                        found.append(str(said["event_id"]))
        return found

    def copy(self, node: str, path: str) -> Path:
        """Where a node keeps a path of the catalog."""
        return self.layout.data(node) / PathRules().local(path, node)

    def unsent(self) -> int:
        """Events that wait in some node's outbox."""
        outboxes = (Outbox(self.layout.state(node) / "outbox") for node in self.children)
        return sum(1 for outbox in outboxes for _ in outbox.waiting())

    def complaints(self) -> str:
        """The end of every process's log."""
        children = self.children.values()
        return "\n".join(f"{child.name}, {child.status}:\n{child.tail()}" for child in children)

    def _addresses(self) -> list[tuple[str, int]]:
        urls = [server.url.removeprefix("nats://") for server in self.servers]
        return [(host, int(port)) for host, _, port in (url.partition(":") for url in urls)]

    def _add(self, name: str, command: list[str], node: str, **settings: object) -> Child:
        settings = {
            **SETTINGS,
            **self._of_bucket(),
            "node": node,
            "nats_url": self.url,
            "replicas": self.replicas,
            "data_dir": self.layout.data(node).resolve(),
            "state_dir": self.layout.state(node).resolve(),
            **settings,
        }
        directory = self.layout.root.resolve() / node
        env = environment_of(settings)
        if self.bucket is not None:
            env |= self.bucket.credentials()
        child = Child(name, command, directory, self.layout.log(name), env)
        self.children[name] = child
        return child

    def _mount_small_disk(self, node: str) -> None:
        """Put one node's data on a small disk, where this process may mount one."""
        place = self.layout.data(node)
        place.mkdir(parents=True, exist_ok=True)
        if not sys.platform.startswith("linux") or os.geteuid() != 0 or not shutil.which("mount"):
            return
        options = ["-o", f"size={self._small_disk_mb}m"]
        done = subprocess.run(
            ["mount", "-t", "tmpfs", *options, "tmpfs", str(place)], capture_output=True
        )
        if done.returncode == 0:
            self._mounted.append(place)
            self.small_disk = node

    def unmount(self) -> None:
        """Let go of the small disk, keeping what is on it for whoever looks."""
        for place in self._mounted:
            kept = place.with_name("data.kept")
            shutil.copytree(place, kept, dirs_exist_ok=True, symlinks=True)
            subprocess.run(["umount", "-l", str(place)], capture_output=True)
            shutil.copytree(kept, place, dirs_exist_ok=True, symlinks=True)
            shutil.rmtree(kept)
        self._mounted = []


async def _start_again(target: Target) -> None:
    """After a moment, unless somebody else has by then."""
    target.status = "ended"
    await asyncio.sleep(0.2)
    if target.status == "ended":
        await target.start()


def is_player(name: str) -> bool:
    """Whether a process is a player."""
    return name.endswith(".player")


def kind_of(name: str) -> str:
    """What kind of process this is: nats-server, s3-server, coordinator, agent or player."""
    if is_player(name):
        return "player"
    if name.startswith("nats-"):
        return "nats-server"
    if name.startswith("s3-"):
        return "s3-server"
    return "coordinator" if name.startswith("coordinator-") else "agent"


def points_of(kind: str) -> list[str]:
    """The named points that a process of a kind comes by."""
    return [point for point in POINTS if point.startswith(f"{kind}.")]
