"""One run: a cluster in one event loop until nothing is owed, and what broke a promise."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
from collections.abc import Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from dataplane import laws
from dataplane.chain import ENDED_IN_TIME_S
from dataplane.coordinator import bridge, deleting, dispatch, drains, staging, sweeping
from dataplane.coordinator.bridge import EventBridge
from dataplane.coordinator.deleting import Deleter
from dataplane.coordinator.dispatch import Dispatcher
from dataplane.coordinator.drains import Drains
from dataplane.coordinator.staging import Stager
from dataplane.coordinator.sweeping import Sweeper
from dataplane.policy import (
    Bandwidth,
    Chains,
    Policy,
    Prestage,
    Quality,
    Replication,
    Retries,
    Schedule,
)
from dataplane.turns import said
from projections.cluster import ClusterView
from projections.fold import TABLES, checkpoint, fold, view_digests
from projections.projector import Projector
from projections.trainings import Staging
from streams import events
from streams.codec import Recorded, fact_id, node_fact
from streams.events import Event
from streams.log import LogError
from streams.memory import MemoryBus
from streams.values import DataType, Role
from tests.simulation import schedule as schedules
from tests.simulation.bus import Faults, FaultyBus, FaultyLog
from tests.simulation.clock import VirtualLoop
from tests.simulation.custody import LOOK_S, LOOK_SELDOM_S, Keeping, Overseer
from tests.simulation.disk import Disk
from tests.simulation.nodes import Node
from tests.simulation.schedule import COORDINATORS, NODES, PLAYERS, TRAINERS, Step
from tests.simulation.store import MemoryStore

T0 = 1_700_000_000.0
POLICY = Policy(
    # Its files are small: each is to take a slot of its own.
    bandwidth=Bandwidth(max_per_node=1, max_total=2, small_per_slot=1),
    quality=Quality(min_games=0),
    retries=Retries(attempt_base_s=20.0, max_retries=6, backoff_max_s=8.0),
    # No chain of a simulation grows old: of those that lose time some are to be overdue.
    chains=Chains(answer_limit_s=60.0, limit_s=10.0),
    replication=Replication(warn_after_s=15.0, cooldown_s=30.0),
    schedule=Schedule(replication_s=10.0, cleanup_s=10.0),
)
#: With slots to be spared for what is brought ahead of trainings that follow each other quickly.
AHEAD = replace(
    POLICY,
    bandwidth=Bandwidth(max_per_node=2, max_total=4, small_per_slot=1),
    prestage=Prestage(min_confidence=0.5, horizon_s=15.0, max_share=0.5, cooldown_s=3.0),
    schedule=Schedule(replication_s=10.0, cleanup_s=10.0, prestage_s=3.0),
)
SWEEP_S = 5.0
#: Unanswered attempts are looked for more rarely than by the real dispatcher: time costs steps.
TICK_S = 5.0
#: A cluster that is left in peace owes nothing any more after this.
PATIENCE_S = 1_500.0
#: How long a decision may be on its way to the log.
_ON_THE_WAY_S = 5.0


def laws_under(policy: Policy, steps: Sequence[Step]) -> tuple[laws.Law, ...]:
    """What must hold of every run."""
    # A chain that ends in time may be said to have later: whoever decided it was paused in between.
    pauses = [step.length_s for step in steps if step.what == "coordinator-pauses"]
    slack_s = ENDED_IN_TIME_S + _ON_THE_WAY_S + max(pauses, default=0.0)
    slots = policy.bandwidth.max_total, policy.bandwidth.max_per_node
    return (
        *laws.ALWAYS,
        laws.late_chains_are_named(policy.chains.limit_s, slack_s),
        laws.budgets_are_kept(*slots),
        laws.what_is_ahead_leaves_slots(policy.prestage.max_share, *slots),
        laws.attempts_are_counted(policy.retries.max_retries),
        laws.deletions_leave_enough(policy.disk.min_verified_copies),
    )


class Outcome(msgspec.Struct, frozen=True):
    """What came of a run."""

    problems: list[str]
    chains: int
    facts: int
    steps: int
    #: Virtual seconds.
    took_s: float
    #: Bytes brought ahead of a training, and of them those it found.
    ahead: tuple[int, int] = (0, 0)


class SimProjector(Projector):
    """The real projector on a store in memory: what it folds, and how, is the real thing."""

    def __init__(self, log: FaultyLog, kept: MemoryStore) -> None:
        super().__init__(log, Path("/nonexistent"))
        self._kept = kept

    async def start(self, until: int | None = None) -> None:
        self._created = (await self._log.state()).created
        self._store = self._kept  # type: ignore[assignment]
        with self._kept.read() as reader:
            self.checkpoint = checkpoint(reader)

    async def _in_writer(self, work: Callable[[], Any]) -> Any:
        await asyncio.sleep(0)
        return work()


class SimBridge(EventBridge):
    """The real bridge, that decides in the one thread there is."""

    async def _in_decider(self, work: Callable[[], Any]) -> Any:
        await asyncio.sleep(0)
        return work()


class SimCoordinator:
    """A coordinator's loops. Two of them decide at once: that one leads is left out on purpose."""

    def __init__(
        self,
        name: str,
        log: FaultyLog,
        clock: Callable[[], float],
        bus: MemoryBus | None,
        unrest: asyncio.Event,
        policy: Policy = POLICY,
    ) -> None:
        self._bus = bus
        self._policy = policy
        self._unrest = unrest
        self.name = name
        self.views = MemoryStore(TABLES)
        self._first_log = log
        self._clock = clock
        self.log = log

    async def run(self) -> None:
        """Until cancelled, which is how it dies; what it folded stays."""
        self.log = log = self._first_log.another()
        projector = SimProjector(log, self.views)
        await projector.start()
        bridge = SimBridge(log, projector, self._policy, clock=self._clock)
        dispatcher = Dispatcher(log, projector, self._policy, self.name, clock=self._clock)
        async with asyncio.TaskGroup() as group:
            group.create_task(projector.run())
            group.create_task(bridge.run())
            group.create_task(dispatcher.run())
            group.create_task(self._sweep(bridge))
            if self._policy is AHEAD:
                sweeper = Sweeper(log, projector, AHEAD, self.name, clock=self._clock)
                group.create_task(self._stage(sweeper.stager))
            if self._bus is not None:
                bus = FaultyBus(self._bus, log)
                deleter = Deleter(log, bus, projector, POLICY, clock=self._clock)  # type: ignore[arg-type]
                group.create_task(deleter.run())
                sweeper = Sweeper(log, projector, POLICY, self.name, clock=self._clock)
                group.create_task(self._survey(sweeper))
                drains = Drains(log, bus, projector, POLICY, clock=self._clock)  # type: ignore[arg-type]
                group.create_task(drains.run())

    async def _survey(self, sweeper: Sweeper) -> None:
        """Look at all there is, while there is unrest: a cluster at rest need not be looked at."""
        while True:
            await asyncio.sleep(POLICY.schedule.replication_s)
            if self._unrest.is_set():
                with contextlib.suppress(LogError, TimeoutError):
                    await sweeper.survey_and_say()
                    await sweeper.clean_up()

    async def _stage(self, stager: Stager) -> None:
        """Bring data ahead of trainings that are near."""
        while True:
            await asyncio.sleep(AHEAD.schedule.prestage_s)
            with contextlib.suppress(LogError, TimeoutError):
                await stager.stage_ahead()

    async def _sweep(self, bridge: EventBridge) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            with contextlib.suppress(LogError, TimeoutError):
                await bridge.sweep()


class World:
    """Everybody, and what happens to them."""

    def __init__(self, schedule: schedules.Schedule, loop: VirtualLoop) -> None:
        self._schedule = schedule
        self._loop = loop
        self._rng = random.Random(f"world {schedule.seed}")
        self.faults = Faults(random.Random(f"faults {schedule.seed}"), schedule.share)
        self.log = FaultyLog(self._clock, faults=self.faults)
        disks = {name: Disk() for name in NODES}
        roles = dict.fromkeys(PLAYERS, Role.SELFPLAY)
        roles |= dict.fromkeys(TRAINERS, Role.TRAINING) | {"vault": Role.STORAGE}
        self._bus = MemoryBus() if schedule.custody else None
        self._policy = AHEAD if schedule.ahead else POLICY
        self.overseer = Overseer(disks, POLICY, self.log._store.messages)
        self.nodes = {
            name: Node(name, roles[name], disks, self._rng, self._keeping(name, disks))
            for name in NODES
        }
        self._unrest = asyncio.Event()
        self._unrest.set()
        self.coordinators = {
            name: SimCoordinator(
                name, self.log.another(), self._clock, self._bus, self._unrest, self._policy
            )
            for name in COORDINATORS
        }
        self._running: dict[str, asyncio.Task[None]] = {}
        self._saying: set[asyncio.Task[None]] = set()
        #: Who is to go, and produces no more; who is waiting to wipe one; who was wiped.
        self._silent: set[str] = set()
        self._wiping: list[asyncio.Task[None]] = []
        self._wiped: list[str] = []
        self._numbers = 0

    def _keeping(self, name: str, disks: dict[str, Disk]) -> Keeping | None:
        if not self._schedule.custody:
            return None
        look_s = LOOK_SELDOM_S if self._schedule.drains else LOOK_S
        return Keeping(name, disks[name], self.overseer, POLICY, self._rng, self._clock, look_s)

    def _clock(self) -> float:
        return T0 + self._loop.time()

    async def run(self) -> Outcome:
        """Begin, let the schedule happen, leave everybody in peace, and judge."""
        for node in self.nodes.values():
            event = events.NodeRegistered(description=node.description())
            await self.log._store_directly(node_fact(event, node.name, f"joined-{node.name}"))
        for name in (*NODES, *COORDINATORS):
            self._start(name)
        acts = [asyncio.create_task(self._act(step)) for step in self._schedule.steps]
        await asyncio.gather(*acts)
        self.faults.stop()
        settled = await self._settle()
        for task in self._wiping:
            task.cancel()
        for name in list(self._running):
            await self._kill(name)
        facts = self.log._store.messages
        problems = [] if settled else [f"it did not come to rest within {PATIENCE_S:g} s"]
        promised = (
            *laws_under(self._policy, self._schedule.steps),
            laws.nothing_is_lost_with(self._wiped),
        )
        problems += laws.broken(facts, promised)
        problems += self.overseer.problems
        problems += self._views_problems(facts) + self._disk_problems(facts)
        chains = len(laws.chains(facts))
        ahead = laws.copies_ahead(facts)
        return Outcome(problems, chains, len(facts), self._loop.steps, self._loop.time(), ahead)

    # What happens

    async def _act(self, step: Step) -> None:
        await asyncio.sleep(step.at)
        if step.name in self._wiped or (step.name in self._silent and step.what in _PRODUCES):
            return
        if step.what in _TRIGGERS:
            self._say(step)
        elif step.what == "bus-is-away":
            self.faults.out_until = self._loop.time() + min(step.length_s, 10.0)
        elif step.what == "coordinator-pauses":
            log = self.coordinators[step.name].log
            log.pause()
            await asyncio.sleep(step.length_s)
            log.resume()
        elif step.what == "loses":
            if (path := self._some_path(step)) is not None:
                self.overseer.take(step.name, path, self._clock())
        elif step.what == "alone-keeps":
            if (path := self._some_path(step)) is not None:
                for name in [one for one in NODES if one != step.name]:
                    self.overseer.take(name, path, self._clock())
        elif step.what == "deletes":
            event = events.DeletionRequested(path=self._some_path(step) or "none", node=step.name)
            self._say_event(event, step.name)
        elif step.what == "stays":
            self._say_event(events.NodeDrainCancelled(node=step.name), step.name)
        elif step.what == "is-wiped-once-drained":
            self._silent.add(step.name)
            self._wiping.append(asyncio.create_task(self._wipe(step.name, self._clock())))
        elif step.what == "fills":
            for full in (True, False):
                event = events.NodeRegistered(
                    description=self.nodes[step.name].description(full=full), changed=True
                )
                # A node describes itself in order.
                await self._say_event(event, step.name)
                await asyncio.sleep(step.length_s)
        else:
            await self._kill(step.name)
            if step.what == "views-are-lost":
                self.coordinators[step.name].views = MemoryStore(TABLES)
            await asyncio.sleep(step.length_s)
            if step.name not in self._wiped:
                self._start(step.name)

    async def _wipe(self, name: str, since: float) -> None:
        """What an operator does: empty a disk once NODE_DRAINED is the last word on what he asked.

        Who asked before knows nothing of what was produced since.
        """
        while not self._may_be_wiped(name, since):  # noqa: ASYNC110 - an operator looks now and then
            await asyncio.sleep(1.0)
        await self._kill(name)
        self.overseer.wiped(name)
        self._wiped.append(name)

    def _may_be_wiped(self, name: str, since: float) -> bool:
        asked, may = set[str](), False
        for one in self.log._store.messages:
            event = one.event
            if getattr(event, "node", "") != name:
                continue
            if isinstance(event, events.NodeTerminating):
                asked |= {one.chain} if one.time >= since else set()
            elif isinstance(event, events.NodeDrainCancelled):
                may = False
            elif isinstance(event, events.NodeDrained):
                may = one.chain in asked
        return may

    def _some_path(self, step: Step) -> str | None:
        """One of those that a node holds, of a configuration."""
        files = self.nodes[step.name].disk.files
        paths = sorted(p for p, entry in files.items() if entry.config_key == step.config_key)
        return self._rng.choice(paths) if paths else None

    def _say(self, step: Step) -> None:
        """A node does something and says so."""
        event = _TRIGGERS[step.what](self.nodes[step.name], step.config_key, self._numbers + 1)
        self._say_event(event, step.name)

    def _say_event(self, event: Event, name: str) -> asyncio.Task[None]:
        """A node says something, again until the log has it."""
        self._numbers += 1
        fact = node_fact(event, name, fact_id("said", self._numbers))

        async def say() -> None:
            log = self.log.another()
            while True:
                try:
                    await said(log, fact)
                    return
                except LogError:
                    await asyncio.sleep(1.0)

        task = asyncio.create_task(say())
        self._saying.add(task)
        return task

    def _start(self, name: str) -> None:
        if name in self._running:
            return
        work: Coroutine[Any, Any, None]
        if name in self.coordinators:
            work = self._keep_alive(self.coordinators[name].run)
        else:
            node = self.nodes[name]
            work = self._keep_alive(lambda: self._run_node(node))
        self._running[name] = asyncio.create_task(work)

    async def _run_node(self, node: Node) -> None:
        log = self.log.another()
        await node.run(log, FaultyBus(self._bus, log) if self._bus is not None else None)

    async def _keep_alive(self, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """What a supervisor does: a process that ends by an error of the bus begins anew."""
        while True:
            try:
                await run()
            except* LogError:
                await asyncio.sleep(0.2)

    async def _kill(self, name: str) -> None:
        task = self._running.pop(name, None)
        if task is None:
            return
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error

    async def _settle(self) -> bool:
        """Whether the log has stood still, with every chain ended and every view up to it."""
        self._unrest.clear()
        deadline, before = self._loop.time() + PATIENCE_S, -1
        while self._loop.time() < deadline:
            await asyncio.sleep(2 * SWEEP_S)
            for task in self._running.values():
                if task.done():
                    task.result()
            end = len(self.log._store.messages)
            if end == before and all(task.done() for task in self._saying) and self._calm(end):
                return True
            before = end
        return False

    def _calm(self, end: int) -> bool:
        disks = [one.disk for name, one in self.nodes.items() if name not in self._wiped]
        if any(one.missed for one in disks):
            return False
        for one in self.coordinators.values():
            with one.views.read() as reader:
                view = ClusterView(reader)
                counts = view.counts()
                if view.checkpoint.sequence < end or list(view.open_deletions()):
                    return False
            if counts["chains_open"] or counts["transfers_in_flight"]:
                return False
        return True

    # What is judged besides the log

    def _views_problems(self, facts: list[Recorded]) -> list[str]:
        """Both coordinators' views are the fold of the log, byte for byte."""
        fresh = MemoryStore(TABLES)
        created = self.log._store.created
        fresh.write(lambda tx: fold(tx, facts, created))
        with fresh.read() as reader:
            wanted = view_digests(reader)
            staging = ClusterView(reader).staging(self._clock())
        problems = list(_staging_problems(staging, *laws.copies_ahead(facts)))
        for name, one in self.coordinators.items():
            with one.views.read() as reader:
                have = view_digests(reader)
            wrong = [view for view in wanted if have[view] != wanted[view]]
            if wrong:
                problems.append(f"the views of {name} are not the fold of the log: {wrong}")
        return problems

    def _disk_problems(self, facts: list[Recorded]) -> list[str]:
        """What the log says of a node's copies is on that node's disk."""
        newest: dict[tuple[str, str], Any] = {}
        for recorded in facts:
            event = recorded.event
            if isinstance(event, events.TransferSucceeded):
                place = event.target, event.entry.path
                if place not in newest or event.entry.version >= newest[place].version:
                    newest[place] = event.entry
            elif isinstance(event, events.FilesRemoved):
                for path in event.paths:
                    newest.pop((event.node, path), None)
        return [
            f"{path} on {name} is not {entry.checksum}"
            for (name, path), entry in newest.items()
            if name not in self._wiped
            and path not in self.nodes[name].disk.own
            and _checksum_at(self.nodes[name].disk, path) != entry.checksum
        ]


def _staging_problems(staging: Staging, moved: int, found: int) -> Iterable[str]:
    """What was brought ahead is found, in vain, or still waited for, each byte once."""
    told = staging.hit_bytes + staging.wasted_bytes + staging.waiting_bytes
    if staging.staged_bytes != told:
        yield f"{staging.staged_bytes} bytes were brought ahead, and {told} accounted for"
    if staging.staged_bytes > moved or staging.hit_bytes > found:
        have = staging.staged_bytes, staging.hit_bytes
        yield f"{have} bytes count as brought ahead and found: by the log {(moved, found)}"


def _checksum_at(disk: Disk, path: str) -> str:
    there = disk.files.get(path)
    return there.checksum if there else ""


def _plays(node: Node, config_key: str, number: int) -> Event:
    path = f"games/{node.name}/{config_key}.db"
    node.write(path, DataType.GAMES, config_key, f"{node.name} {number}")
    return events.SelfplayComplete(config_key=config_key, source_node=node.name, games_count=20)


def _prepares(node: Node, config_key: str, number: int) -> Event:
    for part in range(3):
        path = f"training/{config_key}_{number}_{part}.npz"
        node.write(path, DataType.NPZ, config_key, f"samples {number} {part}")
    return _plays(node, config_key, number)


def _promotes(node: Node, config_key: str, number: int) -> Event:
    path = f"models/canonical_{config_key}.pth"
    node.write(path, DataType.MODELS, config_key, f"model {number}")
    return events.ModelPromoted(config_key=config_key, node=node.name, model_path=path)


def _orphans(node: Node, config_key: str, number: int) -> Event:
    path = f"games/{node.name}/orphans_{number}_{config_key}.db"
    node.write(path, DataType.GAMES, config_key, f"orphans {number}")
    return events.OrphanGamesDetected(
        node=node.name, config_key=config_key, orphan_count=20, paths=(path,)
    )


def _terminates(node: Node, config_key: str, number: int) -> Event:
    return events.NodeTerminating(node=node.name)


def _trains(node: Node, config_key: str, number: int) -> Event:
    return events.TrainingStarted(config_key=config_key, node=node.name)


def _needs(node: Node, config_key: str, number: int) -> Event:
    return events.DataNeeded(node=node.name, config_key=config_key, data_type=DataType.GAMES)


_TRIGGERS: dict[str, Callable[[Node, str, int], Event]] = {
    "plays": _plays,
    "prepares": _prepares,
    "promotes": _promotes,
    "finds-orphans": _orphans,
    "terminates": _terminates,
    "trains": _trains,
    "needs": _needs,
}


#: Those of them that make files.
_PRODUCES = ("plays", "prepares", "promotes", "finds-orphans")


def run(schedule: schedules.Schedule) -> Outcome:
    """Run a schedule in a loop of its own."""
    logging.disable(logging.CRITICAL)
    real = dispatch.TICK_S, deleting.TICK_S, sweeping.PAGE_S, bridge.SLICE_S, staging.PAGE_S
    real_drains_tick_s, drains.TICK_S = drains.TICK_S, TICK_S
    # How long something takes on this machine is no part of what a seed says.
    dispatch.TICK_S, deleting.TICK_S = TICK_S, TICK_S
    sweeping.PAGE_S = bridge.SLICE_S = staging.PAGE_S = math.inf
    loop = VirtualLoop(random.Random(f"order {schedule.seed}"))
    try:
        return loop.run_until_complete(World(schedule, loop).run())
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(_ended(left))
        logging.disable(logging.NOTSET)
        dispatch.TICK_S, deleting.TICK_S, sweeping.PAGE_S, bridge.SLICE_S, staging.PAGE_S = real
        drains.TICK_S = real_drains_tick_s
        loop.close()


async def _ended(tasks: Iterable[asyncio.Task[Any]]) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)
