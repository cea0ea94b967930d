"""Hands out pending transfers: admission asked again after every change and every backoff.

All assignments share one guard, so that two coordinators never fill the same slot twice. It must
never hold state of its own: what is pending and in flight is in the views. What admission stumbles
over is left out, and no reason to end.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from functools import partial
from itertools import chain, islice

from dataplane.admission import (
    ASSIGNMENTS,
    MOST_LOOKED_AT,
    Admission,
    admit,
    shares_of,
    unanswered,
)
from dataplane.coordinator.granting import Granter
from dataplane.coordinator.suspects import Suspects
from dataplane.crashpoints import reach
from dataplane.planner import SyncPlanner
from dataplane.policy import Policy
from projections.catalog import entry_key
from projections.cluster import ClusterView
from projections.links import LinkRow
from projections.nodes import NodeRow
from projections.projector import Projector
from projections.store import StoreError
from projections.transfers import TransferRow
from streams.codec import Fact, encode, in_trace
from streams.log import Bus, DuplicateFact, Guard, Log, LogError, SequenceConflict
from streams.values import S3_NODE, Transport

logger = logging.getLogger(__name__)
#: Unanswered attempts are looked for at least this often.
TICK_S = 1.0


class Dispatcher:
    """Assigns transfers. Several may run on one log: the guard lets one assign at a time."""

    def __init__(
        self,
        log: Log,
        projector: Projector,
        policy: Policy,
        node: str,
        *,
        clock: Callable[[], float] = time.time,
        leads: Callable[[], bool] = lambda: True,
        bus: Bus | None = None,
    ) -> None:
        self._granter = Granter(bus, policy, clock) if bus else None
        #: The last warning said of each transfer, by its id.
        self._warned: dict[str, str] = {}
        self._log = log
        self._projector = projector
        self._policy = policy
        self._node = node
        self._clock = clock
        self._leads = leads
        self._changed = asyncio.Event()
        #: Nodes of which no heartbeat has been heard for a while.
        self.silent: Set[str] = frozenset()
        self.assigned = 0
        self.errors = 0
        #: What can't be reckoned with, and what is wrong with admission as a whole: "" if nothing.
        self.suspects = Suspects()
        self.problem = ""
        #: When it last looked, and how often: progress, for health.
        self.last_progress = time.monotonic()
        self.turns = 0
        projector.on_commit.append(lambda _: self._changed.set())
        if self._granter is not None:
            self._granter.on_change = self._changed.set

    async def run(self) -> None:
        """Assign what may start, for ever."""
        if self._granter is not None:
            self._granter.begin()
        while True:
            self._changed.clear()
            next_at: float | None = None
            try:
                next_at = await self.dispatch()
                self.last_progress = time.monotonic()
            except (LogError, TimeoutError) as error:
                self.errors += 1
                logger.warning("nothing was assigned this time: %s", error)
            self.turns += 1
            if self.problem:
                await asyncio.sleep(TICK_S)
            wait = TICK_S if next_at is None else min(TICK_S, max(0.0, next_at - self._clock()))
            with suppress(TimeoutError):
                # Not `wait_for`: before Python 3.12 it can swallow a cancellation.
                async with asyncio.timeout(wait):
                    await self._changed.wait()

    async def dispatch(self) -> float | None:
        """Assign once; when to ask again if nothing changes, None for no particular time."""
        now = self._clock()
        with self._projector.store.read() as reader:
            view = ClusterView(reader)
            admission, late = self._judged(view, now)
            risks = self._unsaid(admission.risks, view)
            guard = Guard(ASSIGNMENTS, view.last_assigned_sequence())
            ends = self.suspects.ends(view, self._policy, now)
            orders = [_traced(view, fact) for fact in admission.assignments]
            late = [_traced(view, fact) for fact in late]
        if not self._leads():
            # It was paused since it read: what it saw is no longer how things stand.
            return None
        for fact in late:
            await self._log.publish(fact)
        for transfer, fact in risks.items():
            await self._log.publish(fact)
            self._warned[transfer] = fact.id
        for facts, of_the_chain in ends:
            # Of those who set it aside, one is heard.
            with suppress(SequenceConflict, DuplicateFact):
                await self._log.append(facts, [of_the_chain])
        if orders:
            await self._assign(orders, guard)
        return admission.next_at

    def _judged(self, view: ClusterView, now: float) -> tuple[Admission, list[Fact]]:
        """What may start, and what was never answered; whatever stands in their way is left out."""
        known = Known(view, self._policy, now)
        moving = partial(self._probe_moving, known, now)
        waiting = partial(self._probe_waiting, known, now)

        def judge() -> tuple[Admission, list[Fact]]:
            in_flight = list(self.suspects.without(view.in_flight(), moving, now))
            sound = partial(self.suspects.without, probe=waiting, now=now)
            return self._judge(view, in_flight, sound, known, now)

        try:
            found = judge()
        except StoreError:
            raise
        except Exception as error:
            self.errors += 1
            pending = islice(chain(view.pending(), view.pending_by_age()), MOST_LOOKED_AT)
            blamed = self.suspects.blame(view.in_flight(), moving, now)
            if self.suspects.blame(pending, waiting, now) or blamed:
                return self._judged(view, now)
            # Not the fault of one alone: nothing is assigned until it is mended.
            problem = f"nothing can be assigned: {type(error).__name__}: {error}"
            if problem != self.problem:
                logger.error("%s", problem, exc_info=error)
            self.problem = problem
            return Admission((), None), []
        self.problem = ""
        return found

    def _judge(
        self,
        view: ClusterView,
        in_flight: list[TransferRow],
        sound: Callable[[Iterable[TransferRow]], Iterator[TransferRow]],
        known: Known,
        now: float,
    ) -> tuple[Admission, list[Fact]]:
        full: set[str] = set()
        grants = None
        if self._granter is not None:
            self._granter.see(in_flight, known.node)
            grants = self._granter.grants
        admission = admit(
            sound(view.pending_fairly(full)),
            in_flight,
            known,
            self._policy,
            now,
            full,
            oldest=sound(view.pending_by_age()),
            grants=grants,
        )
        for fact in (*admission.assignments, *admission.risks.values()):
            encode(fact, now)
        late = unanswered(in_flight, known.node, self._policy, now, self._node, self.silent)
        if self._granter is not None:
            self._granter.divide(in_flight, known.node)
        return admission, late

    def _probe_waiting(self, known: Known, now: float, transfer: TransferRow) -> None:
        """Raises what is wrong with a pending transfer: admitted as if there were no other."""
        admission = admit([transfer], [], known, self._policy, now)
        for fact in (*admission.assignments, *admission.risks.values()):
            encode(fact, now)

    def _probe_moving(self, known: Known, now: float, transfer: TransferRow) -> None:
        """Raises what is wrong with a transfer that is under way."""
        admit([], [transfer], known, self._policy, now)
        shares_of([transfer], self._policy, known.node)
        unanswered([transfer], known.node, self._policy, now, self._node)

    def _unsaid(self, risks: Mapping[str, Fact], view: ClusterView) -> dict[str, Fact]:
        """Risks that were not said before; said again after a restart, they have the same id."""
        new = {id: fact for id, fact in risks.items() if self._warned.get(id) != fact.id}
        if new:
            self._warned = {id: said for id, said in self._warned.items() if view.transfer(id)}
        return new

    async def _assign(self, assignments: Sequence[Fact], guard: Guard) -> None:
        reach("coordinator.admitted")
        try:
            receipt = await self._log.append(assignments, [guard])
        except (SequenceConflict, DuplicateFact):
            # Somebody assigned in the meantime: see it, then decide on what is left.
            last = await self._log.last(ASSIGNMENTS)
            if last is not None:
                await self._projector.wait_for(last.sequence)
            return
        self.assigned += len(assignments)
        await self._projector.wait_for(receipt.sequence)


class Known:
    """What admission asks, from one reading."""

    def __init__(self, view: ClusterView, policy: Policy, now: float) -> None:
        self._view = view
        self._now = now
        self._planner = SyncPlanner(policy, view, now)
        #: By transfer: asked for where it comes from, and for who else has it.
        self._sources: dict[str, Sequence[str]] = {}

    def node(self, name: str) -> NodeRow | None:
        return None if name == S3_NODE else self._planner.known.node(name)

    def nodes(self) -> Sequence[NodeRow]:
        return self._planner.known.nodes()

    def link(self, node: str, transport: Transport | None = None) -> LinkRow | None:
        return self._planner.known.link(node, transport)

    def sources(self, transfer: TransferRow) -> Sequence[str]:
        if transfer.id not in self._sources:
            self._sources[transfer.id] = self._ranked(transfer)
        return self._sources[transfer.id]

    def _ranked(self, transfer: TransferRow) -> Sequence[str]:
        target = self._planner.known.node(transfer.target)
        if target is None:
            return ()
        key = entry_key(transfer.entry.path, transfer.entry.checksum)
        entry = self._view.catalog.at(key)
        holders = entry.locations if entry is not None else ()
        return self._planner.rank_sources(holders, target, entry)

    def served(self, config_key: str) -> int:
        return self._view.served(config_key, self._now)

    def newer_versions(self, transfer: TransferRow) -> Sequence[TransferRow]:
        return self._view.newer_versions(transfer)


def _traced(view: ClusterView, fact: Fact) -> Fact:
    """In the trace that its chain has joined, if it has one."""
    return in_trace(fact, view.joined_trace(fact.chain)) if fact.chain else fact
