"""The demo's processes: a bus, a coordinator, agents and players, each a child with its own files.

Nothing runs within the demo itself: what is killed here dies as it would on a machine of its own.
No child outlives the demo, however that ends.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from dataplane.config import ENVIRONMENT_PREFIX
from dataplane.daemon import PARENT_VARIABLE
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
_STOP_S = 5.0
_POLL_S = 0.1
_TAIL_LINES = 15


class DemoFailed(Exception):
    """The demo can't go on; the text says why, with the end of the log of who failed."""


@dataclass(frozen=True)
class Layout:
    """Where everything of a demo lies, below one directory."""

    root: Path

    @property
    def nats(self) -> Path:
        """The bus's store."""
        return self.root / "nats"

    def data(self, node: str) -> Path:
        """A node's data directory."""
        return self.root / node / "data"

    def state(self, node: str) -> Path:
        """A node's, or the coordinator's, state directory."""
        return self.root / node / "state"

    def log(self, name: str) -> Path:
        """What a process writes."""
        return self.root / "logs" / f"{name}.log"


@dataclass(frozen=True)
class Kill:
    """A process that was killed, and what it was doing."""

    name: str
    pid: int
    #: Seconds since 1970.
    time: float
    during: str


class Child:
    """One process: started, killed, and started again."""

    def __init__(
        self, name: str, command: Sequence[str], directory: Path, log: Path, env: Mapping[str, str]
    ) -> None:
        self.name = name
        self.status = "not started"
        self._command, self._directory, self._log, self._env = command, directory, log, env
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """The process id; 0 if it was never started."""
        return self._process.pid if self._process else 0

    @property
    def ended(self) -> int | None:
        """The exit status of a process that ended by itself; None if it runs or was told to end."""
        if self._process is None or self.status != "running":
            return None
        return self._process.returncode

    async def start(self) -> None:
        """Start it, again if it was started before."""
        self._directory.mkdir(parents=True, exist_ok=True)
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", *self._command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._directory,
                env=self._env,
                # A Ctrl-C on the terminal is for the demo, which then stops its children in order.
                start_new_session=True,
            )
        self.status = "running"

    async def kill(self) -> int:
        """End it by SIGKILL, as a crash would; the process id that was killed."""
        return await self._end(signal.SIGKILL, "killed")

    async def stop(self) -> None:
        """End it by SIGTERM, by SIGKILL if that takes too long. Harmless if it has ended."""
        try:
            async with asyncio.timeout(_STOP_S):
                await self._end(signal.SIGTERM, "stopped")
        except TimeoutError:
            await self.kill()

    async def finish(self) -> None:
        """Wait until it ends by itself."""
        if self._process is not None:
            await self._process.wait()

    async def _end(self, number: signal.Signals, status: str) -> int:
        if self._process is None:
            return 0
        self.status = status
        if self._process.returncode is None:
            self._process.send_signal(number)
        await self._process.wait()
        return self._process.pid

    def tail(self) -> str:
        """The last lines it wrote."""
        lines = self._log.read_text(errors="replace").splitlines() if self._log.exists() else []
        return "\n".join(f"    {line}" for line in lines[-_TAIL_LINES:]) or "    (nothing)"


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
            await self._server.stop_async()

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
        }
        env = {k: v for k, v in os.environ.items() if not k.startswith(ENVIRONMENT_PREFIX)}
        env |= {f"{ENVIRONMENT_PREFIX}{k.upper()}": str(v) for k, v in settings.items()}
        env |= {PARENT_VARIABLE: str(os.getpid()), "COLUMNS": "200"}
        directory = self.layout.root.resolve() / node
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
