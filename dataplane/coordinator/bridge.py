"""From facts to what they cause: the one loop that drives chains.

It reads what nodes say through a durable consumer, waits until the views have seen it, asks each
chain that it touches what is owed, appends that in one atomic batch guarded chain by chain, and
acknowledges only then. Dying at any point costs a redelivery. A chain that can't be decided is in
nobody's way: it is tried again ever later, and set aside as a fact in the end.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice

import msgspec

from dataplane.chain import exhausted, owed, set_aside
from dataplane.coordinator.trouble import Troubles, delay_s
from dataplane.crashpoints import reach
from dataplane.planner import SyncPlanner
from dataplane.policy import Policy
from projections.chains import ChainRow, place_of
from projections.cluster import ClusterView
from projections.projector import Projector
from projections.store import StoreError
from projections.transfers import ENTRY_MISSING
from streams import events
from streams.appending import place_guards
from streams.codec import Fact, Recorded, chain_fact, encode, in_trace
from streams.log import (
    Delivery,
    DuplicateFact,
    Guard,
    Log,
    LogError,
    LogFull,
    LogUnavailable,
    Receipt,
    SequenceConflict,
)
from streams.subjects import chain_filter
from streams.values import S3_NODE

logger = logging.getLogger(__name__)

DURABLE = "bridge"
HEARS = ("dp.node.>",)
ACK_WAIT_S = 10.0
MAX_PENDING = 512
#: Events whose chains are decided together; bounded by the 1,000 facts of an atomic append.
BATCH = 128
_MOST_FACTS = 900
#: What is decided in one go takes no longer: a lease lasts for seconds.
SLICE_S = 0.1
_SWEEP_PAGE = 100
#: What waits for a bus that is away is not put off for longer than this.
_LOG_PATIENCE_S = 8.0
#: Of what a chain waits for, as many are looked at to see that it goes on.
_LOOKED_AT = 16


class Decision(msgspec.Struct, frozen=True):
    """What one chain owes, and the condition under which it may be said."""

    chain: str
    cause: str
    facts: tuple[Fact, ...]
    guard: Guard


class EventBridge:
    """Drives chains. Several may run on one log: the guards let only one decide."""

    def __init__(
        self,
        log: Log,
        projector: Projector,
        policy: Policy,
        *,
        clock: Callable[[], float] = time.time,
        leads: Callable[[], bool] = lambda: True,
    ) -> None:
        self._log = log
        self._projector = projector
        self._policy = policy
        self._clock = clock
        self._leads = leads
        self.handled = 0
        self.decided = 0
        self.conflicts = 0
        self.errors = 0
        #: What the log said when it refused to grow; "" since it took something again.
        self.full = ""
        #: Chains that could not be decided.
        self.troubles = Troubles("chain {} could not be decided")
        #: How often deliveries were dealt with, in whatever way: progress, for health.
        self.turns = 0

    async def run(self) -> None:
        """Handle what is delivered, for ever."""
        deliveries = await self._log.consume(
            DURABLE, HEARS, ack_wait_s=ACK_WAIT_S, max_pending=MAX_PENDING
        )
        try:
            async for first in deliveries:
                await self._handle([first, *deliveries.take_ready(BATCH - 1)])
        finally:
            await deliveries.close()

    async def sweep(self) -> None:
        """Ask every open chain, and every rejected message, what is owed; page by page."""
        after = b""
        asked: set[str] = set()
        await self._reject()
        while True:
            with self._projector.store.read() as reader:
                page = []
                for chain in ClusterView(reader).open_chains(after):
                    page.append(chain)
                    if len(page) == _SWEEP_PAGE:
                        break
            await self.drive({chain.id: chain.trigger_id for chain in page})
            asked.update(chain.id for chain in page)
            if len(page) < _SWEEP_PAGE:
                self.troubles.only(asked)
                return
            after = place_of(page[-1])
            await asyncio.sleep(0)

    async def _handle(self, deliveries: list[Delivery]) -> None:
        self.turns += 1
        try:
            await self._projector.wait_for(max(d.recorded.sequence for d in deliveries), ACK_WAIT_S)
            touched = self._touched([d.recorded for d in deliveries])
            await self.drive({chain: id for id, chains in touched.items() for chain in chains})
            if any(d.recorded.event is None for d in deliveries):
                await self._reject()
        except (LogError, TimeoutError) as error:
            self.errors += 1
            if isinstance(error, LogFull):
                self.full = f"the log is full: {error}"
            first = deliveries[0].recorded
            logger.warning("not handled, will be redelivered: %s (from event %s)", error, first.id)
            with suppress(LogError):
                await asyncio.gather(*(d.nak(_put_off_s(d)) for d in deliveries))
            return
        reach("coordinator.appended")
        await asyncio.gather(*(self._answer(d, touched[d.recorded.id]) for d in deliveries))

    async def _answer(self, delivery: Delivery, chains: Sequence[str]) -> None:
        """Acknowledge what is dealt with; what touches a chain in trouble comes again, later."""
        if any(chain in self.troubles for chain in chains):
            await delivery.nak(delay_s(delivery.attempt))
            return
        await delivery.ack()
        self.handled += 1

    def _touched(self, batch: Iterable[Recorded]) -> dict[str, list[str]]:
        """Chains that each of these facts may have moved on, by the fact's id."""
        with self._projector.store.read() as reader:
            view = ClusterView(reader)
            return {recorded.id: _moved_on(view, recorded, self._policy) for recorded in batch}

    async def drive(self, chains: Mapping[str, str]) -> None:
        """Append what these chains owe; the value of each is the id of the event that asks.

        As many are decided at once as take no longer than `SLICE_S`: what is decided is appended
        before the lease can end, also where the machine is slow.
        """
        asked, more = iter(chains.items()), True
        while more:
            decisions, more = self._decide(asked, time.perf_counter() + SLICE_S)
            for group in _groups(decisions):
                reach("coordinator.decided")
                try:
                    await self._append(group)
                except (SequenceConflict, DuplicateFact):
                    # One chain's conflict refuses the whole batch: take them one by one.
                    for decision in group:
                        await self._append_alone(decision)
            if more:
                await asyncio.sleep(0)

    def _decide(
        self, asked: Iterator[tuple[str, str]], until: float = math.inf
    ) -> tuple[list[Decision], bool]:
        """Decide on the next of these until the time is up; whether any may be left."""
        now = self._clock()
        decisions = []
        with self._projector.store.read() as reader:
            view = ClusterView(reader)
            planner = SyncPlanner(self._policy, view, now)
            for id, cause in asked:
                chain = view.chain(id)
                if chain is None or self.troubles.must_wait(id, now):
                    continue
                guard = Guard(chain_filter(id), view.last_sequence_of(id))
                facts = self._owed(chain, view, planner, guard, now, cause)
                if facts:
                    decisions.append(Decision(id, cause, tuple(facts), guard))
                if time.perf_counter() >= until:
                    return decisions, True
        return decisions, False

    def _owed(
        self,
        chain: ChainRow,
        view: ClusterView,
        planner: SyncPlanner,
        guard: Guard,
        now: float,
        cause: str,
    ) -> list[Fact]:
        """What a chain owes. An error in finding that out is this chain's alone."""
        trace = view.joined_trace(chain.id)
        try:
            transfers = {row.id: row for row in view.transfers_of(chain.id)}
            facts = owed(chain, transfers, planner.decide, self._policy, now, cause)
            facts = [in_trace(fact, trace) for fact in facts]
            _check_sayable(facts, guard, now)
        except StoreError:
            raise
        except Exception as error:
            trouble = self.troubles.failed(chain.id, error, now)
            logger.error("chain %s can't be decided", chain.id, exc_info=error)
            if not trouble.hopeless:
                return []
            aside = set_aside(chain, trouble.tries, trouble.problem, now, cause)
            return [in_trace(fact, trace) for fact in aside]
        self.troubles.over(chain.id)
        return facts

    async def _append(self, group: list[Decision]) -> Receipt:
        if not self._leads():
            raise LogUnavailable("this coordinator leads no more: another decides")
        facts = [fact for decision in group for fact in decision.facts]
        receipt = await self._log.append(facts, [decision.guard for decision in group])
        self.full = ""
        self.decided += len(group)
        for decision in group:
            self.troubles.over(decision.chain)
        return receipt

    async def _append_alone(self, decision: Decision) -> None:
        """Append one decision; on a conflict see what was decided, and decide again if need be."""
        try:
            await self._append([decision])
            return
        except (SequenceConflict, DuplicateFact):
            self.conflicts += 1
        last = await self._log.last(chain_filter(decision.chain))
        if last is not None:
            await self._projector.wait_for(last.sequence)
        for again in self._decide(iter([(decision.chain, decision.cause)]))[0]:
            # A second conflict is left to the next event or the sweep: somebody else is at it.
            with suppress(SequenceConflict, DuplicateFact):
                await self._append([again])

    async def _reject(self) -> None:
        """Say EVENT_REJECTED of messages that could not be understood, once each."""
        with self._projector.store.read() as reader:
            rows = ClusterView(reader).rejections_unsaid()[:_SWEEP_PAGE]
        for row in rows:
            id = f"rejected-{row.sequence}"
            event = events.EventRejected(
                sequence=row.sequence, subject=row.subject, reason=row.reason
            )
            with suppress(SequenceConflict, DuplicateFact):
                await self._log.append([chain_fact(event, id, "")], [Guard(chain_filter(id), 0)])


def _check_sayable(facts: Sequence[Fact], guard: Guard, now: float) -> None:
    """Raises ValueError where the log could never take these facts in one append.

    Seen before it is asked: there it would be the trouble of all that are appended together.
    """
    if facts:
        place_guards(facts, [guard])
    for fact in facts:
        encode(fact, now)


def _moved_on(view: ClusterView, recorded: Recorded, policy: Policy) -> list[str]:
    """Chains that a fact may have moved on."""
    if isinstance(recorded.event, events.TransferSucceeded):
        target = recorded.event.target
        waiting = _waiting_at(view, recorded.event)
        return [chain for chain in waiting if not _goes_on(view, chain, target, policy)]
    if isinstance(recorded.event, events.TransferFailed):
        row = view.transfer(recorded.event.transfer)
        if row is not None and recorded.event.error_class == ENTRY_MISSING:
            # It may be to be planned again as what has taken its place, whatever else goes on.
            return list(row.chains)
        if row is None or not exhausted(row, policy, 0):
            # It is tried again: whoever waits for it goes on waiting.
            return []
        return [chain for chain in row.chains if not _goes_on(view, chain, row.target, policy)]
    return [recorded.chain] if recorded.chain else []


def _goes_on(view: ClusterView, chain: str, target: str, policy: Policy) -> bool:
    """Whether a chain surely owes nothing after a result on `target`: more is under way.

    Found out without reading the chain, which may be as long as its files are many. Where arrivals
    are counted, each may be the one that counts.
    """
    if any(rule.quorum for _, rule in policy.placement.rules_on(view.trigger_of(chain))):
        return False
    for row in islice(view.waiting_in(chain), _LOOKED_AT):
        if row.target == S3_NODE and target != S3_NODE:
            # What was to reach nodes has: it may be time to announce it.
            return False
        # Chains that asked earlier count more of its failures: what they all count with.
        if not exhausted(row, policy, 0):
            return True
    return False


def _put_off_s(delivery: Delivery) -> float:
    return min(delay_s(delivery.attempt), _LOG_PATIENCE_S)


def _waiting_at(view: ClusterView, event: events.TransferSucceeded) -> list[str]:
    """Chains that wait for this arrival, or for an older version of it on the same target."""
    row = view.transfer(event.transfer)
    waiting = list(row.chains) if row else []
    for other in view.superseded_at(event.target, event.entry.path):
        waiting += other.chains
    return waiting


def _groups(decisions: list[Decision]) -> Iterable[list[Decision]]:
    """Decisions that fit into one atomic append."""
    group: list[Decision] = []
    size = 0
    for decision in decisions:
        if group and size + len(decision.facts) > _MOST_FACTS:
            yield group
            group, size = [], 0
        group.append(decision)
        size += len(decision.facts)
    if group:
        yield group
