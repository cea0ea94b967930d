"""From facts to what they cause: the one loop that drives chains.

It reads what nodes say through a durable consumer, waits until the views have seen it, asks each
chain that it touches what is owed, appends that in one atomic batch guarded chain by chain, and
acknowledges only then. Dying at any point costs a redelivery. A chain that can't be decided is in
nobody's way: it is tried again ever later, and set aside as a fact in the end.

What is decided may be long: it is found out in a thread of its own, on one reading of the views,
and a plan that is larger than an append is said part by part. Whoever decides on where another has
died says the rest.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TypeVar

import msgspec
from msgspec.structs import replace

from dataplane.chain import exhausted, owed, set_aside
from dataplane.coordinator.trouble import Troubles, delay_s
from dataplane.crashpoints import reach
from dataplane.logs import about, about_chain
from dataplane.planner import SyncPlanner
from dataplane.policy import Policy
from projections.chains import Chain, ChainRow, place_of
from projections.cluster import ClusterView
from projections.projector import Projector
from projections.store import Reader, StoreError
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
    LogUnavailable,
    Receipt,
    SequenceConflict,
)
from streams.subjects import chain_filter
from streams.values import S3_NODE

T = TypeVar("T")
logger = logging.getLogger(__name__)

DURABLE = "bridge"
HEARS = ("dp.node.>",)
ACK_WAIT_S = 10.0
MAX_PENDING = 512
#: Events whose chains are decided together; bounded by the 1,000 facts of an atomic append.
BATCH = 128
_MOST_FACTS = 900
#: Of facts that are appended together, as they are said: they are made and sent in one go.
_MOST_BYTES = 1024 * 1024
#: After so long what was decided is appended before more is.
SLICE_S = 0.1
_SWEEP_PAGE = 100
#: A chain of more copies is long: the sweep asks it no more often than every second for each so
#: many.
LONG_COPIES = 1_000
#: What waits for a bus that is away is not put off for longer than this.
_LOG_PATIENCE_S = 8.0


class Decision(msgspec.Struct, frozen=True):
    """What one chain owes, and the condition under which it may be said."""

    chain: str
    cause: str
    facts: tuple[Fact, ...]
    guard: Guard
    #: Of all facts as they are said.
    size_bytes: int = 0


class Asked(msgspec.Struct, frozen=True):
    """What came of asking one chain."""

    chain: Chain
    trace: str
    decision: Decision
    #: Why it could not be decided; None if it was.
    error: Exception | None = None


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
        #: Chains that could not be decided.
        self.troubles = Troubles("chain {} could not be decided")
        #: When the sweep asked each chain last.
        self._swept: dict[str, float] = {}
        #: One is driven after the other: two would decide the same, and one of them in vain.
        self._driving = asyncio.Lock()
        self._turns = 0
        #: What the last decision reads, or has read.
        self._reading: Reader | None = None

    @property
    def turns(self) -> int:
        """A number that changes with whatever is done, also within one long decision."""
        return self._turns + (self._reading.steps if self._reading else 0)

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
        """Ask every open chain, and every rejected message, what is owed; page by page.

        A chain of very many copies is asked the more rarely: what moves it on asks it at once.
        """
        after, now = b"", self._clock()
        asked: set[str] = set()
        await self._reject()
        while True:
            with self._projector.store.read() as reader:
                page = []
                for chain in ClusterView(reader).open_chains(after):
                    page.append(chain)
                    if len(page) == _SWEEP_PAGE:
                        break
            due = [chain for chain in page if self._is_due(chain, now)]
            await self.drive({chain.id: chain.trigger_id for chain in due})
            asked.update(chain.id for chain in page)
            if len(page) < _SWEEP_PAGE:
                self.troubles.only(asked)
                self._swept = {id: at for id, at in self._swept.items() if id in asked}
                return
            after = place_of(page[-1])
            await asyncio.sleep(0)

    def _is_due(self, chain: ChainRow, now: float) -> bool:
        every_s = chain.copies / LONG_COPIES if chain.copies > LONG_COPIES else 0.0
        if now - self._swept.get(chain.id, -math.inf) < every_s:
            return False
        self._swept[chain.id] = now
        return True

    async def _handle(self, deliveries: list[Delivery]) -> None:
        self._turns += 1
        try:
            await self._projector.wait_for(max(d.recorded.sequence for d in deliveries), ACK_WAIT_S)
            touched = self._touched([d.recorded for d in deliveries])
            await self.drive({chain: id for id, chains in touched.items() for chain in chains})
            if any(d.recorded.event is None for d in deliveries):
                await self._reject()
        except (LogError, TimeoutError) as error:
            self.errors += 1
            first = deliveries[0].recorded
            with about(first):
                logger.warning(
                    "not handled, will be redelivered: %s (from event %s)", error, first.id
                )
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
        soon, also where the machine is slow.
        """
        async with self._driving:
            asked, more = iter(chains.items()), True
            while more:
                decisions, more = await self._decide(asked, SLICE_S)
                for group in _groups(decisions):
                    await self._append_group(group)

    async def _append_group(self, group: list[Decision]) -> None:
        if len(group) == 1:
            await self._append_alone(group[0])
            return
        try:
            await self._append(group)
        except (SequenceConflict, DuplicateFact):
            # One chain's conflict refuses the whole batch: take them one by one.
            for decision in group:
                await self._append_alone(decision)

    async def _decide(
        self, asked: Iterator[tuple[str, str]], slice_s: float = math.inf
    ) -> tuple[list[Decision], bool]:
        """Decide on the next of these until the time is up; whether any may be left."""
        now = self._clock()
        waiting = {id for id, _ in self.troubles.items() if self.troubles.must_wait(id, now)}
        found, more = await self._in_decider(lambda: self._ask(asked, waiting, now, slice_s))
        decisions = [self._heard(one, now) for one in found]
        return [decision for decision in decisions if decision.facts], more

    async def _in_decider(self, work: Callable[[], T]) -> T:
        """Where deciding takes seconds, the loop keeps its turns: the lease is renewed there.

        Who is cancelled meanwhile waits for its end: the views must not be closed before.
        """
        working = asyncio.ensure_future(asyncio.to_thread(work))
        try:
            return await asyncio.shield(working)
        except asyncio.CancelledError:
            await asyncio.wait([working])
            raise

    def _ask(
        self,
        asked: Iterator[tuple[str, str]],
        waiting: Container[str],
        now: float,
        slice_s: float,
    ) -> tuple[list[Asked], bool]:
        """Ask the next of these what they owe, in one reading. Nothing is said yet."""
        until = time.perf_counter() + slice_s
        found = []
        with self._projector.store.read() as reader:
            self._reading = reader
            view = ClusterView(reader)
            planner = SyncPlanner(self._policy, view, now)
            for id, cause in asked:
                if id in waiting:
                    continue
                chain = view.whole_chain(id)
                if chain is not None:
                    found.append(self._owed(chain, view, planner, now, cause))
                if time.perf_counter() >= until:
                    return found, True
        return found, False

    def _owed(
        self, chain: Chain, view: ClusterView, planner: SyncPlanner, now: float, cause: str
    ) -> Asked:
        """What a chain owes. An error in finding that out is this chain's alone."""
        guard = Guard(chain_filter(chain.id), view.last_sequence_of(chain.id))
        trace = view.joined_trace(chain.id)
        try:
            transfers = {row.id: row for row in view.transfers_of(chain.id)}
            facts = owed(chain, transfers, planner.decide, self._policy, now, cause)
            facts = [in_trace(fact, trace) for fact in facts]
            size = _said_bytes(facts, guard, now)
        except StoreError:
            raise
        except Exception as error:
            with about_chain(chain.id, cause):
                logger.error("chain %s can't be decided", chain.id, exc_info=error)
            return Asked(chain, trace, Decision(chain.id, cause, (), guard), error)
        return Asked(chain, trace, Decision(chain.id, cause, tuple(facts), guard, size))

    def _heard(self, asked: Asked, now: float) -> Decision:
        """What is to be said of a chain that was asked."""
        chain, decision, error = asked.chain, asked.decision, asked.error
        if error is None:
            self.troubles.over(chain.id)
            return decision
        trouble = self.troubles.failed(chain.id, error, now)
        if not trouble.hopeless:
            return decision
        cause, policy = decision.cause, self._policy
        aside = set_aside(chain, trouble.tries, trouble.problem, policy, now, cause)
        return replace(decision, facts=tuple(in_trace(fact, asked.trace) for fact in aside))

    async def _append(self, group: list[Decision]) -> Receipt:
        if not self._leads():
            raise LogUnavailable("this coordinator leads no more: another decides")
        reach("coordinator.decided")
        self._turns += 1
        facts = [fact for decision in group for fact in decision.facts]
        receipt = await self._log.append(facts, [decision.guard for decision in group])
        self.decided += len(group)
        for decision in group:
            self.troubles.over(decision.chain)
            if logger.isEnabledFor(logging.DEBUG):
                with about_chain(decision.chain, decision.cause):
                    logger.debug("decided: %s", ", ".join(_types(decision)))
        return receipt

    async def _append_alone(self, decision: Decision) -> None:
        """Append one decision; on a conflict see what was decided, and decide again if need be."""
        try:
            await self._append_in_pieces(decision)
            return
        except (SequenceConflict, DuplicateFact):
            self.conflicts += 1
        last = await self._log.last(chain_filter(decision.chain))
        if last is not None:
            await self._projector.wait_for(last.sequence)
        for again in (await self._decide(iter([(decision.chain, decision.cause)])))[0]:
            # A second conflict is left to the next event or the sweep: somebody else is at it.
            with suppress(SequenceConflict, DuplicateFact):
                await self._append_in_pieces(again)

    async def _append_in_pieces(self, decision: Decision) -> None:
        """Append one decision, each piece under the guard that the one before it left."""
        pieces, guard = pieces_of(decision), decision.guard
        for piece in pieces:
            receipt = await self._append([replace(decision, facts=piece, guard=guard)])
            guard = replace(guard, last_sequence=receipt.sequence)
        if len(pieces) > 1:
            # Until the views have it, who asks this chain would find the rest of it still owed.
            await self._projector.wait_for(guard.last_sequence)

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


def _types(decision: Decision) -> list[str]:
    """The names of what was decided, each once."""
    return list(dict.fromkeys(events.type_name(type(fact.event)) for fact in decision.facts))


def _said_bytes(facts: Sequence[Fact], guard: Guard, now: float) -> int:
    """How large these facts are. Raises ValueError where the log could never take them.

    Seen before it is asked: there it would be the trouble of all that are appended together.
    """
    size = 0
    for piece in pieces_of(Decision("", "", tuple(facts), guard)):
        place_guards(piece, [guard])
    for fact in facts:
        size += len(encode(fact, now)[1])
    return size


def pieces_of(decision: Decision) -> list[tuple[Fact, ...]]:
    """The facts of a decision as they are appended: together, but for the parts of a long plan.

    Those leave a chain as it was, with a plan of which the rest is owed, so that each may be said
    alone. Each is as large as a message may be: the loop has its turn between one and the next.
    """
    unfinished, rest = list[Fact](), list[Fact]()
    for fact in decision.facts:
        event = fact.event
        part = isinstance(event, events.SyncPlanned) and not event.last_part
        (unfinished if part else rest).append(fact)
    return [*((fact,) for fact in unfinished), *([tuple(rest)] if rest else [])]


def _moved_on(view: ClusterView, recorded: Recorded, policy: Policy) -> list[str]:
    """Chains that a fact may have moved on."""
    if isinstance(recorded.event, events.TransferSucceeded):
        target = recorded.event.target
        waiting = _waiting_at(view, recorded.event)
        return [chain for chain in waiting if not _goes_on(view, chain, target, policy)]
    if isinstance(recorded.event, events.TransferFailed):
        row = view.transfer(recorded.event.transfer)
        if row is not None and row.ended:
            return list(row.chains)
        if row is not None and recorded.event.error_class == ENTRY_MISSING:
            # It may be to be planned again as what has taken its place, whatever else goes on. For
            # a chain of very many copies the sweep sees to that, for all of them at once.
            return [chain for chain in row.chains if not _is_long(view, chain)]
        if row is None or not exhausted(row, policy, 0):
            # It is tried again: whoever waits for it goes on waiting.
            return []
        return [chain for chain in row.chains if not _goes_on(view, chain, row.target, policy)]
    own = [recorded.chain] if recorded.chain else []
    if isinstance(recorded.event, events.FilesObserved):
        # What a node has written itself may have taken the place of what was on its way there.
        paths = {entry.path for entry in recorded.event.entries}
        rows = view.superseded_at(recorded.event.node) if paths else []
        overtaken = [chain for row in rows if row.entry.path in paths for chain in row.chains]
        return list(dict.fromkeys([*own, *overtaken]))
    return own


def _goes_on(view: ClusterView, chain: str, target: str, policy: Policy) -> bool:
    """Whether a chain surely owes nothing after a result on `target`: more is under way.

    Found out without reading the chain, which may be as long as its files are many. Where arrivals
    are counted, each may be the one that counts.
    """
    if any(rule.quorum for _, rule in policy.placement.rules_on(view.trigger_of(chain))):
        return False
    for row in view.waiting_in(chain):
        if row.target == S3_NODE and target != S3_NODE:
            # What was to reach nodes has: it may be time to announce it.
            return False
        # Chains that asked earlier count more of its failures: what they all count with.
        if not exhausted(row, policy, 0):
            return True
    return False


def _is_long(view: ClusterView, id: str) -> bool:
    chain = view.chain(id)
    return chain is not None and chain.copies > LONG_COPIES


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
    """Decisions that fit into one atomic append; one that is larger than that stands alone."""
    group: list[Decision] = []
    count = size = 0
    for decision in decisions:
        count, size = count + len(decision.facts), size + decision.size_bytes
        if group and (count > _MOST_FACTS or size > _MOST_BYTES):
            yield group
            group, count, size = [], len(decision.facts), decision.size_bytes
        group.append(decision)
    if group:
        yield group
