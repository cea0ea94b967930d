"""The demo's processes: a bus, a coordinator, agents and players, each a child with its own files.

Nothing runs within the demo itself: what is killed here dies as it would on a machine of its own.
No child outlives the demo, however that ends.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from dataplane.demo.bucket import POLICY, DemoBucket
from dataplane.demo.children import Child, Layout, environment_of
from dataplane.demo.s3_server import S3ServerFailed, installed
from streams.server import EmbeddedServer
from streams.values import Role

COORDINATOR = "coordinator"
CONFIG_KEYS = ("hex8_2p", "square8_2p")
#: What one transfer may use: slow enough for a transfer to be seen, and to be killed within.
BANDWIDTH_MBPS = 16
#: Games of one round and configuration, and search statistics with each: about 1.5 MB together.
GAMES_PER_ROUND, PADDING_KB = 40, 20
#: Between two rounds players go on committing games, while what they announced is copied.
PAUSE_S, LIVE_GAMES = 4.0, 6
_POLL_S = 0.1


class DemoFailed(Exception):
    """The demo can't go on; the text says why, with the end of the log of who failed."""


@dataclass(frozen=True)
class Kill:
    """A process that was killed, and what it was doing."""

    name: str
    pid: int
    #: Seconds since 1970.
    time: float
    during: str


class DemoCluster:
    """All processes of a demo. As ``async with`` it starts the bus, and stops everything."""

    def __init__(self, layout: Layout, nodes: int, rounds: int) -> None:
        self.layout = layout
        self.rounds = rounds
        trainers = nodes // 2
        #: Node names by what they do; the players' are first.
        self.roles: dict[str, Role] = {
            **{f"selfplay-{n + 1}": Role.SELFPLAY for n in range(nodes - trainers)},
            **{f"training-{n + 1}": Role.TRAINING for n in range(trainers)},
        }
        self.kills: list[Kill] = []
        #: None where the S3 server is not installed.
        self.bucket: DemoBucket | None = DemoBucket(layout.root / "s3")
        self._server = EmbeddedServer(layout.nats, log_file=layout.log("nats-server"))
        self._children: dict[str, Child] = {}

    @property
    def url(self) -> str:
        """Where the bus is."""
        return self._server.url

    @property
    def trainers(self) -> list[str]:
        """Nodes that receive games."""
        return [name for name, role in self.roles.items() if role is Role.TRAINING]

    @property
    def expected_chains(self) -> int:
        """How many triggers the players will publish."""
        players = len(self.roles) - len(self.trainers)
        return players * len(CONFIG_KEYS) * self.rounds

    def chains_before(self, number: int) -> int:
        """How many triggers the players publish before a round; rounds count from 1."""
        return self.expected_chains // self.rounds * (number - 1)

    def children(self) -> list[Child]:
        """All processes but the bus, in the order of their first start."""
        return list(self._children.values())

    async def __aenter__(self) -> Self:
        await self._server.start_async()
        try:
            await self._start_bucket()
        except BaseException:
            await self._server.stop_async()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self.stop_children()
        finally:
            if self.bucket is not None:
                self.bucket.stop()
            await self._server.stop_async()

    async def _start_bucket(self) -> None:
        """Start the bucket, or do without where its server is not installed."""
        if self.bucket is None or not installed():
            self.bucket = None
            return
        (self.layout.root / "policy.toml").write_text(POLICY)
        try:
            await self.bucket.start()
        except S3ServerFailed as error:
            raise DemoFailed(str(error)) from None

    async def start_data_plane(self) -> None:
        """Start the coordinator and the agents, all at once."""
        self._add(COORDINATOR, ["dataplane", "coordinator"], COORDINATOR, roles=Role.COORDINATOR)
        for node, role in self.roles.items():
            self._add(node, ["dataplane", "agent"], node, roles=role)
        for child in self.children():
            await child.start()

    async def start_players(self) -> list[Child]:
        """Start self-play on the self-play nodes."""
        names = [name for name, role in self.roles.items() if role is Role.SELFPLAY]
        players = [self._add(f"{name}.player", self._play(name), name) for name in names]
        for player in players:
            await player.start()
        return players

    async def kill(self, name: str, during: str) -> None:
        """Kill a process with SIGKILL, and note what it was doing."""
        now = time.time()
        self.kills.append(Kill(name, await self._children[name].kill(), now, during))

    async def start_again(self, name: str) -> None:
        """Start a killed process with the files it left."""
        await self._children[name].start()

    async def stop_children(self) -> None:
        """Stop all processes but the bus."""
        async with asyncio.TaskGroup() as group:
            for child in self._children.values():
                group.create_task(child.stop())

    async def watch(self) -> None:
        """Raise DemoFailed as soon as a process ends that was not told to."""
        while True:
            for child in self._children.values():
                if child.ended == 0 and child.name.endswith(".player"):
                    child.status = "done"
                elif child.ended is not None:
                    raise DemoFailed(self.complaint(child, f"ended with status {child.ended}"))
            if not self._server.running:
                raise DemoFailed(f"the bus ended; its log is {self.layout.log('nats-server')}")
            await asyncio.sleep(_POLL_S)

    def complaint(self, child: Child, what: str) -> str:
        """What went wrong with a process, and the end of its log."""
        return f"{child.name} (process {child.pid}) {what}; the end of its log:\n{child.tail()}"

    def complaints(self, what: str) -> str:
        """What went wrong, and the end of every process's log."""
        tails = [f"{child.name}, {child.status}:\n{child.tail()}" for child in self.children()]
        return "\n".join([what, *tails])

    def _add(self, name: str, command: Sequence[str], node: str, **settings: object) -> Child:
        settings |= {
            "node": node,
            "nats_url": self.url,
            "data_dir": self.layout.data(node).resolve(),
            "state_dir": self.layout.state(node).resolve(),
            "default_bandwidth_limit_mbps": BANDWIDTH_MBPS,
            "shutdown_push_seconds": 0,
        }
        if self.bucket is not None:
            policy = (self.layout.root / "policy.toml").resolve()
            settings |= {**self.bucket.settings(), "config": policy}
        directory = self.layout.root.resolve() / node
        env = environment_of(settings)
        if self.bucket is not None:
            env |= self.bucket.credentials()
        child = Child(name, command, directory, self.layout.log(name), env)
        self._children[name] = child
        return child

    def _play(self, node: str) -> list[str]:
        command = ["dataplane.demo.selfplay", "--node", node, "--nats", self.url]
        command += ["--data-dir", str(self.layout.data(node).resolve())]
        for config_key in CONFIG_KEYS:
            command += ["--config-key", config_key]
        options = {
            "rounds": self.rounds,
            "games-per-round": GAMES_PER_ROUND,
            "padding-kb": PADDING_KB,
            "pause": PAUSE_S,
            "live-games": LIVE_GAMES,
        }
        return command + [text for k, v in options.items() for text in (f"--{k}", str(v))]
