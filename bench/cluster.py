"""A cluster of real processes on this machine: a bus, a coordinator, agents, and nothing slowed."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from dataplane.config import ENVIRONMENT_PREFIX
from dataplane.daemon import PARENT_VARIABLE
from dataplane.demo.children import Child
from dataplane.presence import present
from streams.codec import Recorded
from streams.events import DataSyncFailed, NewGamesAvailable
from streams.jetstream import JetStreamLog
from streams.server import EmbeddedServer
from streams.subjects import type_filter
from streams.values import Role

_PATIENCE_S = 60.0
_COORDINATOR = "coord"


class Cluster:
    """Players and trainers below one directory. As ``async with``, they all run."""

    def __init__(self, base: Path, players: int, trainers: int) -> None:
        self.base = base
        self.players = [f"selfplay-{n + 1}" for n in range(players)]
        self.trainers = [f"training-{n + 1}" for n in range(trainers)]
        self.log: JetStreamLog
        self._server = EmbeddedServer(base / "nats")
        self._children: list[Child] = []
        self._ends: dict[str, asyncio.Future[Recorded]] = {}
        self._follower: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._server.start_async()
        self.log = await JetStreamLog.connect(self._server.url, name="bench")
        await self.log.ensure_topology()
        roles = {_COORDINATOR: Role.COORDINATOR}
        roles |= dict.fromkeys(self.players, Role.SELFPLAY)
        roles |= dict.fromkeys(self.trainers, Role.TRAINING)
        for name, role in roles.items():
            self._children.append(self._child(name, role))
            await self._children[-1].start()
        await self._all_there(set(roles))
        self._follower = asyncio.create_task(self._follow())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._follower is not None:
            self._follower.cancel()
            await asyncio.gather(self._follower, return_exceptions=True)
        await asyncio.gather(*(child.stop() for child in self._children))
        await self.log.close()
        await self._server.stop_async()

    def data(self, node: str) -> Path:
        """A node's data directory."""
        return self.base / node / "data"

    @property
    def url(self) -> str:
        """The bus's."""
        return self._server.url

    @property
    def bus_pid(self) -> int:
        """The bus's process."""
        return self._server.pid or 0

    @property
    def coordinator_pid(self) -> int:
        """The coordinator's process."""
        return self._children[0].pid

    @property
    def views(self) -> Path:
        """Where the coordinator keeps its views."""
        return self.base / _COORDINATOR / "state" / "views"

    async def end(self) -> int:
        """The log's last sequence."""
        return (await self.log.state()).last_sequence

    async def announced(self, chain: str) -> Recorded:
        """Wait for a chain's NEW_GAMES_AVAILABLE. Raises RuntimeError if it fails or takes long."""
        end = self._ends.setdefault(chain, asyncio.get_running_loop().create_future())
        try:
            async with asyncio.timeout(_PATIENCE_S):
                recorded = await end
        except TimeoutError:
            raise RuntimeError(f"chain {chain} did not end; logs are in {self.base}") from None
        if isinstance(recorded.event, DataSyncFailed):
            raise RuntimeError(f"chain {chain} failed: {recorded.event.reason}")
        return recorded

    async def _follow(self) -> None:
        subjects = [type_filter(NewGamesAvailable), type_filter(DataSyncFailed)]
        async for batch in self.log.read(subjects=subjects):
            for recorded in batch:
                future = asyncio.get_running_loop().create_future
                end = self._ends.setdefault(recorded.chain, future())
                if not end.done():
                    end.set_result(recorded)

    async def _all_there(self, names: set[str]) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while missing := names - {key.partition(".")[2] for key in await present(self.log.bus)}:
            if time.monotonic() > deadline:
                tails = "\n".join(child.tail() for child in self._children)
                raise RuntimeError(f"{', '.join(sorted(missing))} did not come:\n{tails}")
            await asyncio.sleep(0.05)

    def _child(self, name: str, role: Role) -> Child:
        part = "coordinator" if role is Role.COORDINATOR else "agent"
        home = self.base / name
        settings = {
            "node": name,
            "nats_url": self._server.url,
            "roles": str(role),
            "data_dir": self.data(name),
            "state_dir": home / "state",
            "default_bandwidth_limit_mbps": 0,
            # One game more is a file to move.
            "policy__quality__min_games": 0,
        }
        env = {k: v for k, v in os.environ.items() if not k.startswith(ENVIRONMENT_PREFIX)}
        env |= {f"{ENVIRONMENT_PREFIX}{k.upper()}": str(v) for k, v in settings.items()}
        env[PARENT_VARIABLE] = str(os.getpid())
        return Child(name, ["dataplane", part], home, home / "log", env)
