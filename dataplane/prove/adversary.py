"""What is done to the cluster: by a seed, to any process, at named points and at random.

It leaves something alive most of the time, because a cluster that is wholly dead proves nothing;
and it undoes in the end whatever it did but the damage.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import msgspec

from dataplane.prove.cluster import (
    COORDINATORS,
    VITAL,
    Kill,
    ProveCluster,
    Target,
    kind_of,
    points_of,
)
from dataplane.prove.scene import Scene
from dataplane.prove.servers import leader_of
from streams.identity import PathRules, data_type_of
from streams.jetstream import JetStreamLog
from streams.values import S3_NODE

#: Processes that may be away or paused at once.
_MOST_AWAY = 2
#: With so many chains open the adversary takes thrice its time.
_MANY_OPEN = 60
#: The gap between two acts is at least this part of what the cluster needs to start.
_OF_A_START = 0.15
#: How long a nats-server is cut off.
_PARTITION_S = 3.0, 14.0
#: The share of processes started again that are told to die at a named point.
_ARMED_SHARE = 0.8


class Deed(msgspec.Struct, frozen=True):
    """Something that was done, other than a kill."""

    kind: str
    name: str
    what: str
    #: Seconds since 1970.
    time: float


class Flip(msgspec.Struct, frozen=True):
    """One byte of a copy that was changed on the disk, with size and times as before."""

    node: str
    path: str
    checksum: str


class Adversary:
    """Does one thing after another until cancelled; `undo` then."""

    def __init__(
        self,
        cluster: ProveCluster,
        scene: Scene,
        log: JetStreamLog,
        seed: int,
        *,
        gap_s: float,
        damage: bool,
    ) -> None:
        self._cluster = cluster
        self._log = log
        self._scene = scene
        self._rng = random.Random(f"adversary {seed}")
        self._gap_s = gap_s
        self._damage = damage
        self._away: set[str] = set()
        self._acts: set[asyncio.Task[None]] = set()
        self.deeds: list[Deed] = []
        self.flips: list[Flip] = []

    def suit(self, joined_s: float) -> None:
        """Suit this machine, on which it took the cluster so long to start.

        Where processes are killed faster than they start, none ever does anything.
        """
        self._gap_s = max(self._gap_s, joined_s * _OF_A_START)

    async def run(self) -> None:
        """Choose and do, for ever."""
        while True:
            await asyncio.sleep(self._pace_s() * self._rng.uniform(0.3, 1.7))
            act = asyncio.create_task(self._choose()())
            self._acts.add(act)
            act.add_done_callback(self._acts.discard)

    def _pace_s(self) -> float:
        """The gap until the next act: up to three times as long where the cluster is behind.

        A cluster that only starts processes anew has nothing under way that a kill could hit.
        """
        return self._gap_s * (1.0 + 2.0 * min(1.0, len(self._scene.open) / _MANY_OPEN))

    async def undo(self) -> None:
        """Let everything live again: what is paused, cut, filled or away."""
        for act in list(self._acts):
            act.cancel()
        await asyncio.gather(*self._acts, return_exceptions=True)
        for cable in self._cluster.cables.values():
            cable.join()
        if self._cluster.routes is not None:
            self._cluster.routes.join()
        await asyncio.to_thread(self._filler().unlink, missing_ok=True)
        for target in list(self._cluster.targets()):
            target.resume()
            if target.status in ("killed", "stopped"):
                await target.start()

    def _choose(self) -> Callable[[], Coroutine[Any, Any, None]]:
        choices: list[tuple[int, Callable[[], Coroutine[Any, Any, None]]]] = [
            (12, self._kill),
            (4, self._pause),
            (2, self._restart),
            (5, self._cut),
            (1, self._delete_views),
        ]
        if self._cluster.small_disk:
            choices.append((1, self._fill))
        if self._damage:
            choices.append((2, self._flip))
        if self._cluster.replicas > 1:
            choices += [(2, self._kill_leader), (2, self._partition)]
        weights = [weight for weight, _ in choices]
        return self._rng.choices([act for _, act in choices], weights)[0]

    def _victim(self, *kinds: str) -> Target | None:
        """A process that lives, each kind as likely as the others."""
        if len(self._away) >= _MOST_AWAY:
            return None
        alive = [
            target
            for target in self._cluster.targets()
            if target.status == "running" and target.name not in self._away
        ]
        if any(name.startswith("nats-") for name in self._away):
            # A second server away takes the quorum, which proves nothing about the rest.
            alive = [target for target in alive if kind_of(target.name) != "nats-server"]
        wanted = kinds or ("nats-server", "coordinator", "agent", "agent", "player", "s3-server")
        kind = self._rng.choice(wanted)
        of_kind = [target for target in alive if kind_of(target.name) == kind]
        busy = [target for target in of_kind if self._during(target.name)]
        return self._rng.choice(busy or of_kind) if of_kind else None

    def _during(self, name: str) -> str:
        """What a process has under way; "" if nothing that anybody waits for."""
        kind, scene = kind_of(name), self._scene
        if kind == "player":
            return ""  # it plays at any time: to kill it proves nothing of the data plane
        if kind == "agent":
            return scene.work_of(name)
        if kind == "s3-server":
            return scene.work_of(S3_NODE)
        if kind == "coordinator" and name in self._away:
            return ""
        return f"{len(scene.open)} chains were open" if scene.open else ""

    def _missed(self) -> list[str]:
        """Kinds of vital processes, now at work, of which no kill has hit any at work so far."""
        hit = {kill.kind for kill in self._cluster.kills if kill.during}
        at_work = {
            kind_of(target.name)
            for target in self._cluster.targets()
            if target.status == "running"
            and target.name not in self._away
            and self._during(target.name)
        }
        return [kind for kind in VITAL if kind in at_work - hit]

    async def _kill(self) -> None:
        target = self._victim(*self._missed())
        if target is None:
            return
        during, kind = self._during(target.name), kind_of(target.name)
        with self._keeping_away(target.name):
            await target.kill()
            self._cluster.armed.pop(target.name, None)
            self._cluster.kills.append(Kill(target.name, kind, "random", during, time.time()))
            await self._start_later(target)

    async def _kill_leader(self) -> None:
        """Kill the one of the nats-servers that every append goes through."""
        leader = await leader_of(self._log)
        found = [one for one in self._cluster.servers if one.name == leader]
        away = any(name.startswith("nats-") for name in self._away)
        if not found or away or len(self._away) >= _MOST_AWAY or found[0].status != "running":
            return
        during = self._during(leader)
        with self._keeping_away(leader):
            await found[0].kill()
            kill = Kill(leader, "nats-server", "leader of the log", during, time.time())
            self._cluster.kills.append(kill)
            await self._start_later(found[0])

    async def _start_later(self, target: Target) -> None:
        """Start it after a while, often told to die at a point it will come by."""
        await asyncio.sleep(self._rng.uniform(0.1, 2.5))
        points = points_of(kind_of(target.name))
        if points and self._rng.random() < _ARMED_SHARE:
            point, count = self._rng.choice(points), self._rng.randint(1, 2)
            await target.start(**self._cluster.arm(target.name, point, count))
        else:
            await target.start()

    async def _pause(self) -> None:
        target = self._victim()
        if target is None:
            return
        with self._keeping_away(target.name):
            self._did("pause", target.name, self._during(target.name))
            target.pause()
            try:
                await asyncio.sleep(self._rng.uniform(0.5, 6.0))
            finally:
                target.resume()

    async def _restart(self) -> None:
        target = self._victim("nats-server", "coordinator", "agent")
        if target is None:
            return
        with self._keeping_away(target.name):
            self._did("restart", target.name, self._during(target.name))
            await target.stop()
            self._cluster.armed.pop(target.name, None)
            await self._start_later(target)

    async def _cut(self) -> None:
        name = self._rng.choice(sorted(self._cluster.cables))
        cable = self._cluster.cables[name]
        if cable.cut:
            return
        process, _, where = name.partition(" ")
        self._did(f"cut {where or 'to the bus'}", process, self._during(process))
        cable.sever()
        try:
            await asyncio.sleep(self._rng.uniform(0.5, 5.0))
        finally:
            cable.join()

    async def _partition(self) -> None:
        """Cut one nats-server off from the others, the leader as often as not.

        Its clients still reach it: what they say there has no quorum.
        """
        servers, routes = self._cluster.servers, self._cluster.routes
        if routes is None or any(name.startswith("nats-") for name in self._away):
            return
        leader = await leader_of(self._log) if self._rng.random() < 0.5 else ""
        name = leader or self._rng.choice([server.name for server in servers])
        if len(self._away) >= _MOST_AWAY or any(one.startswith("nats-") for one in self._away):
            return
        with self._keeping_away(name):
            self._did("partition", name, self._during(name))
            routes.isolate(name)
            try:
                # Longer than it takes to miss a leader and to elect another.
                await asyncio.sleep(self._rng.uniform(*_PARTITION_S))
            finally:
                routes.join()

    async def _delete_views(self) -> None:
        """Kill a coordinator and take its views away: it comes back without a memory."""
        name = self._rng.choice(COORDINATORS)
        target = self._cluster.children[name]
        if self._away or target.status != "running":
            return
        with self._keeping_away(name):
            during = self._during(name)
            await target.kill()
            self._cluster.kills.append(
                Kill(name, "coordinator", "random, views deleted", during, time.time())
            )
            views = self._cluster.layout.state(name) / "views"
            await asyncio.to_thread(shutil.rmtree, views, ignore_errors=True)
            self._did("views deleted", name, during)
            await self._start_later(target)

    async def _fill(self) -> None:
        """Fill a node's disk to the last byte for a while."""
        self._did("disk filled", self._cluster.small_disk, "")
        filling = asyncio.create_task(asyncio.to_thread(_fill_up, self._filler()))
        try:
            await asyncio.shield(filling)
            await asyncio.sleep(self._rng.uniform(1.0, 5.0))
        finally:
            # A thread can't be cancelled: what it still writes would outlive the removal.
            await filling
            await asyncio.to_thread(self._filler().unlink, missing_ok=True)

    def _filler(self) -> Path:
        return self._cluster.layout.data(self._cluster.small_disk or "nobody") / "filler.tmp"

    async def _flip(self) -> None:
        """Change one byte of a copy at rest, as a disk that rots does."""
        already = {(flip.node, flip.path) for flip in self.flips}
        copies = [
            place
            for place in self._scene.copies.keys() - already
            if place[0] in self._cluster.roles  # one that is rented is gone before it is looked at
        ]
        # Of a shared path, and of a file of the node's own, another content is a new version by who
        # changed it: a disk that rots leaves the file's ctime as it was, and nobody else can.
        producer = PathRules().producer
        candidates = sorted(place for place in copies if producer(place[1]) not in ("", place[0]))
        if not candidates:
            return
        # Each kind as likely as the others: there are many more games than models.
        kind = self._rng.choice(sorted({_kind_of(path) for _, path in candidates}))
        node, path = self._rng.choice([one for one in candidates if _kind_of(one[1]) == kind])
        checksum = self._scene.copies[node, path]
        file = self._cluster.copy(node, path)
        if await asyncio.to_thread(_flip_byte, file, self._rng.random()):
            self.flips.append(Flip(node, path, checksum))
            self._did(f"byte of {kind} flipped", node, path)

    @contextlib.contextmanager
    def _keeping_away(self, name: str) -> Iterator[None]:
        self._away.add(name)
        try:
            yield
        finally:
            self._away.discard(name)

    def _did(self, kind: str, name: str, what: str) -> None:
        self.deeds.append(Deed(kind, name, what, time.time()))


def _kind_of(path: str) -> str:
    return str(data_type_of(path) or "other data")


def _fill_up(file: Path) -> None:
    with contextlib.suppress(OSError), file.open("wb") as filler:
        free = os.statvfs(file.parent)
        os.posix_fallocate(filler.fileno(), 0, max(1, free.f_bavail * free.f_frsize))


def _flip_byte(file: Path, where: float) -> bool:
    """Flip one bit, and give the file the times it had; whether that could be done."""
    try:
        before = file.stat()
        with file.open("r+b") as opened:
            position = int(where * before.st_size)
            opened.seek(position)
            byte = opened.read(1)
            if not byte:
                return False
            opened.seek(position)
            opened.write(bytes([byte[0] ^ 0x10]))
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    except OSError:
        return False
    return True
