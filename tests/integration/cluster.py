"""A small cluster of real processes for one test: a bus, coordinators and agents, each killable."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from dataplane.demo import gamedb, hex
from dataplane.presence import present
from dataplane.prove.servers import BusServer
from streams import events
from streams.codec import Recorded
from streams.connection import ConnectOptions
from streams.events import Event
from streams.jetstream import JetStreamLog
from streams.server import EmbeddedServer
from streams.values import S3_NODE, Role

PATIENCE_S = 60.0


class LocalCluster:
    """Processes under one directory. Every wait is for a condition, with a generous limit."""

    def __init__(
        self,
        base: Path,
        *,
        bus: Path | None = None,
        seeds: Path | None = None,
        watcher: ConnectOptions | None = None,
        servers: Sequence[BusServer] = (),
        **settings: object,
    ) -> None:
        """`bus` is another configuration of the server; `seeds` a directory with a key for each.

        The watcher uses the key of ``coordinator``, and connects as `watcher` says.
        `servers` run already, and go on running.
        """
        self.servers = servers
        self.base = base
        self._seeds = seeds
        self._watcher: ConnectOptions = watcher or {}
        self.server = EmbeddedServer(base / "nats", config=bus)
        if not servers:
            self.server.start()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._spawned: dict[str, float] = {}
        self._settings = {f"DATAPLANE_{k.upper()}": str(v) for k, v in settings.items()}
        self.log: JetStreamLog

    async def __aenter__(self) -> LocalCluster:
        options: ConnectOptions = {
            "name": "watcher",
            "nkey_seed_file": self._seed("coordinator"),
            **self._watcher,
        }
        self.log = await JetStreamLog.connect(self.url.split(","), **options)
        await self.log.ensure_topology(replicas=max(1, len(self.servers)))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.log.close()
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
            process.wait()
        self.server.stop()

    @property
    def url(self) -> str:
        """Where the bus is, every server of it."""
        return ",".join(one.url for one in self.servers) or self.server.url

    # Processes

    def coordinator(
        self, name: str = "coord", *options: str, **environment: str
    ) -> subprocess.Popen[bytes]:
        """Start a coordinator; `options` are those of the command itself."""
        return self._spawn("coordinator", name, environment, options)

    def agent(
        self, name: str, role: Role, *options: str, **environment: str
    ) -> subprocess.Popen[bytes]:
        """Start an agent; `options` are those of the command itself."""
        return self._spawn("agent", name, {"DATAPLANE_ROLES": str(role), **environment}, options)

    def _spawn(
        self, part: str, name: str, environment: dict[str, str], options: Sequence[str] = ()
    ) -> subprocess.Popen[bytes]:
        home = self.base / name
        home.mkdir(exist_ok=True)
        own = {
            "DATAPLANE_NODE": name,
            "DATAPLANE_NATS_URL": self.url,
            "DATAPLANE_STATE_DIR": str(home / "state"),
            "DATAPLANE_DATA_DIR": str(home / "data"),
            "DATAPLANE_PARENT_PID": str(os.getpid()),
            "DATAPLANE_SWEEP_INTERVAL": "1",
            # A few games are enough for a test, and this machine's memory is no rule of it.
            "DATAPLANE_POLICY__QUALITY__MIN_GAMES": "0",
            "DATAPLANE_POLICY__PLACEMENT__BROADCAST__MIN_FREE_DISK_GB": "0",
            "DATAPLANE_POLICY__PLACEMENT__BROADCAST__MIN_FREE_MEMORY": "0",
        }
        if (seed := self._seed(name)) is not None:
            own["DATAPLANE_NATS_NKEY"] = str(seed)
        started = time.time()
        with (home / "log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "dataplane", *options, part],
                env={**os.environ, **own, **self._settings, **environment},
                stdout=log,
                stderr=log,
                cwd=home,
            )
        self.processes[name] = process
        self._spawned[name] = started
        return process

    async def command(self, *words: str, status: int | None = 0, **environment: str) -> str:
        """Run ``dataplane`` with these words to its end, and return what it said; None: any end."""
        process = await self.commanded(*words, **environment)
        said, _ = await process.communicate()
        assert status in (None, process.returncode), said.decode()
        return said.decode()

    async def commanded(self, *words: str, **environment: str) -> asyncio.subprocess.Process:
        """Start ``dataplane`` with these words; what it says can be read."""
        own = {
            "DATAPLANE_NATS_URL": self.url,
            "DATAPLANE_STATE_DIR": str(self.base / "coord" / "state"),
        }
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "dataplane", *words),
            env={**os.environ, **own, **self._settings, **environment},
            stdout=asyncio.subprocess.PIPE,
            cwd=self.base,
        )

    def _seed(self, name: str) -> Path | None:
        return None if self._seeds is None else self._seeds / f"{name}.seed"

    def kill(self, name: str) -> None:
        """kill -9, and wait until it is gone."""
        self.processes[name].kill()
        self.processes[name].wait()

    def stop(self, name: str) -> int:
        """SIGTERM, and its exit status."""
        self.processes[name].send_signal(signal.SIGTERM)
        return self.processes[name].wait(PATIENCE_S)

    async def died(self, name: str) -> None:
        """Wait until a process has killed itself."""
        process = self.processes[name]
        await until(lambda: process.poll() is not None, f"{name} to die")
        assert process.returncode == -signal.SIGKILL, self.said(name)

    async def joined(self, *names: str) -> None:
        """Wait until these agents and coordinators have said that they are there."""

        async def all_there() -> bool:
            beats = await present(self.log.bus)
            since = {key.partition(".")[2]: beat["started"] for key, beat in beats.items()}
            # A heartbeat of a process that was killed stays for a while: only this one's counts.
            return all(since.get(name, 0.0) >= self._spawned[name] for name in names)

        await until(all_there, f"{names} to join")

    def said(self, name: str) -> str:
        """What a process wrote."""
        return (self.base / name / "log").read_text(errors="replace")[-4000:]

    # Data

    def play(self, node: str, games: int, config_key: str = "hex8_2p", padding: int = 0) -> Path:
        """Add real games to a node's own database."""
        path = self.base / node / "data" / "games" / f"{config_key}.db"
        path.parent.mkdir(parents=True, exist_ok=True)
        have = gamedb.count_games(path)
        rng = random.Random(f"{node}{config_key}{have}")
        with closing(gamedb.open_database(path)) as db:
            for number in range(have, have + games):
                game = gamedb.StoredGame(
                    game_id=f"{node}-{config_key}-{number}",
                    record=hex.play(hex.board_of(config_key), rng),
                    source_node=node,
                    created_at=time.time(),
                )
                gamedb.append_games(db, [game])
            if padding:
                db.execute("CREATE TABLE IF NOT EXISTS padding (data BLOB)")
                for _ in range(padding // 100_000):
                    db.execute("INSERT INTO padding VALUES (?)", (rng.randbytes(100_000),))
                db.commit()
        return path

    def received(self, target: str, node: str, config_key: str = "hex8_2p") -> Path:
        """Where a target keeps what a node produced."""
        return self.base / target / "data" / "games" / node / f"{config_key}.db"

    # The log

    async def facts(self, *kinds: type[Event]) -> list[Recorded]:
        """All facts, or those of these classes, as they are in the log now."""
        end = (await self.log.state()).last_sequence
        found: list[Recorded] = []
        if end:
            async for batch in self.log.read(until=end):
                found += [r for r in batch if not kinds or isinstance(r.event, kinds)]
        return found

    async def ended(self, chain: str, limit_s: float = PATIENCE_S) -> Recorded:
        """Wait until a chain has ended; its end."""
        found: list[Recorded] = []

        async def has_ended() -> bool:
            ends = await self.facts(events.DataSyncCompleted, events.DataSyncFailed)
            found[:] = [end for end in ends if end.chain == chain]
            return bool(found)

        await until(has_ended, f"chain {chain} to end", limit_s)
        return found[0]

    async def assert_exactly_once(
        self, chain: str, limit_s: float = PATIENCE_S
    ) -> events.DataSyncCompleted:
        """The chain has one end, a completion, one announcement, and its copies are the digests."""
        end = await self.ended(chain, limit_s)
        facts = [fact for fact in await self.facts() if fact.chain == chain]
        ends = [f for f in facts if isinstance(f.event, _ENDS)]
        assert len(ends) == 1, ends
        assert isinstance(end.event, events.DataSyncCompleted), end.event
        assert sum(isinstance(f.event, events.NewGamesAvailable) for f in facts) == 1
        for outcome in end.event.targets:
            if outcome.target == S3_NODE:
                continue
            file = self.base / outcome.target / "data" / outcome.path
            assert digest(file) == outcome.checksum
        return end.event


_ENDS = (events.DataSyncCompleted, events.DataSyncFailed)


def digest(path: Path) -> str:
    """A file's checksum as the catalog writes it."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


async def until(condition: Callable[[], object], what: str, limit_s: float = PATIENCE_S) -> None:
    """Wait for a condition, sync or async; fail naming what was waited for."""
    deadline = time.monotonic() + limit_s
    while True:
        holds = condition()
        if asyncio.iscoroutine(holds):
            holds = await holds
        if holds:
            return
        assert time.monotonic() < deadline, f"waited {limit_s} s for {what}"
        await asyncio.sleep(0.05)
