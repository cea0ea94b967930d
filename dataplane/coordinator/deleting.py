"""Carries deletions out: reserve, have the other copies proven, let the node delete, say so.

It holds no state: a deletion is driven from where the log says it stands, by any coordinator, as
often as need be. The node is asked over the bus and never by a task that could wait for it: what it
does late it would do on old proofs.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import msgspec

from dataplane.coordinator.trouble import Trouble, Troubles
from dataplane.deletion import (
    Keep,
    copies_chain,
    done,
    refused,
    reserve,
    settle,
    undecided,
    witnesses,
)
from dataplane.logs import about_chain
from dataplane.policy import Policy
from dataplane.proving import prove_all
from projections.cluster import ClusterView
from projections.deletions import DeletionRow, DeletionState
from projections.projector import Projector
from projections.store import StoreError
from streams.codec import Fact
from streams.foreign import Unreadable, from_json
from streams.log import Answering, Bus, DuplicateFact, Guard, Log, LogError, SequenceConflict
from streams.subjects import chain_filter
from streams.values import Count

logger = logging.getLogger(__name__)
TICK_S = 1.0
#: Deletions that are driven at once: each makes several nodes read a file.
AT_ONCE = 4
ANSWER_S = 30.0
#: A node that has not deleted within this time after it was allowed to is no longer allowed to: the
#: proofs have grown old. Nobody asks then, and a node that is asked does not obey.
WITHDRAWN_AFTER_S = 120.0


class DeletionOrder(msgspec.Struct, frozen=True):
    """What a node is asked to delete, and by which grant."""

    request: str
    path: str
    checksum: str
    #: Id of the DELETION_GRANTED; it must be the last word on the entry's copies.
    grant: str


class DeletionAnswer(msgspec.Struct, frozen=True):
    """What came of it; said once FILES_REMOVED is in the log."""

    deleted: bool
    freed_bytes: Count = 0
    reason: str = ""


Remover = Callable[[DeletionOrder], Awaitable[DeletionAnswer]]


def delete_subject(node: str) -> str:
    """Where a node is asked to delete a copy."""
    return f"dp.rpc.{node}.delete"


async def answer_deletions(bus: Bus, node: str, remover: Remover) -> Answering:
    """Answer for `node`, until the result is closed."""

    async def answer(subject: str, body: bytes) -> bytes:
        order = from_json(body, DeletionOrder)
        return msgspec.json.encode(await remover(order))

    return await bus.answer(delete_subject(node), answer)


async def still_granted(log: Log, order: DeletionOrder, now: float) -> bool:
    """Whether a grant is the last word on its entry's copies, as the log's leader sees it, and
    not too old.

    A grant far in the future is as good as none: one of the clocks is wrong.
    """
    last = await log.last(chain_filter(copies_chain(order.path, order.checksum)))
    if last is None or last.id != order.grant:
        return False
    return abs(now - last.time) < WITHDRAWN_AFTER_S


class Deleter:
    """Drives deletions. Several may run on one log: the guards let only one decide."""

    def __init__(
        self,
        log: Log,
        bus: Bus,
        projector: Projector,
        policy: Policy,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._log = log
        self._bus = bus
        self._projector = projector
        self._policy = policy
        self._clock = clock
        self._changed = asyncio.Event()
        #: By id, what is being driven, and in which turn it last began to be.
        self._driving: dict[str, asyncio.Task[None]] = {}
        self._tried: dict[str, int] = {}
        self._turn = 0
        self.errors = 0
        #: Deletions that could not be taken further, and when they are tried again.
        self.troubles = Troubles("deletion {} could not go on")
        projector.on_commit.append(lambda _: self._changed.set())

    async def run(self) -> None:
        """Drive what is open, for ever."""
        async with asyncio.TaskGroup() as group:
            while True:
                self._changed.clear()
                self._start(group)
                with suppress(TimeoutError):
                    async with asyncio.timeout(TICK_S):
                        await self._changed.wait()

    def _start(self, group: asyncio.TaskGroup) -> None:
        """Start open deletions that nobody drives yet, those tried longest ago first."""
        with self._projector.store.read() as reader:
            rows = {row.id: row for row in ClusterView(reader).open_deletions()}
        self._driving = {id: task for id, task in self._driving.items() if not task.done()}
        self._tried = {id: turn for id, turn in self._tried.items() if id in rows}
        self.troubles.only(rows)
        now = self._clock()
        idle = [id for id in rows if id not in self._driving]
        waiting = [id for id in idle if not self.troubles.must_wait(id, now)]
        waiting.sort(key=lambda id: self._tried.get(id, 0))
        for id in waiting[: AT_ONCE - len(self._driving)]:
            self._turn += 1
            self._tried[id] = self._turn
            self._driving[id] = group.create_task(self._drive(rows[id]), name=f"deletion {id}")

    async def _drive(self, row: DeletionRow) -> None:
        """Take a deletion as far as it goes now. What stops it is in no other's way."""
        # Until it is reserved nobody knows which content it is about.
        chain = copies_chain(row.path, row.checksum) if row.checksum else ""
        with about_chain(chain, row.id):
            await self._drive_on(row)

    async def _drive_on(self, row: DeletionRow) -> None:
        try:
            while row.open:
                await self._step(row)
                self.troubles.over(row.id)
                with self._projector.store.read() as reader:
                    now = ClusterView(reader).deletion(row.id)
                if now is None or now.state is row.state:
                    return
                row = now
        except (LogError, TimeoutError) as error:
            self.errors += 1
            self.troubles.failed(row.id, error, self._clock())
            logger.warning("deletion %s waits: %s", row.id, error)
            return
        except StoreError:
            raise
        except Exception as error:
            # Whatever is wrong with it, it is in the way of no other deletion.
            self.errors += 1
            trouble = self.troubles.failed(row.id, error, self._clock())
            logger.error("deletion %s can't be decided", row.id, exc_info=error)
            if trouble.hopeless and row.state is not DeletionState.GRANTED:
                await self._set_aside(row, trouble)
            return
        # There is room for another one.
        self._changed.set()

    async def _set_aside(self, row: DeletionRow, trouble: Trouble) -> None:
        """It was tried often enough: whoever asked hears that the copy stays, and why."""
        try:
            problem = trouble.problem
            await self._decide(row, lambda view, now: undecided(now, trouble.tries, problem))
            self.troubles.over(row.id)
        except (LogError, TimeoutError) as error:
            logger.warning("deletion %s can't be set aside: %s", row.id, error)

    async def _step(self, row: DeletionRow) -> None:
        if row.state is DeletionState.REQUESTED:
            await self._decide(row, lambda view, now: reserve(now, view, self._policy))
        elif row.state is DeletionState.RESERVED:
            await self._prove(row)
        else:
            await self._carry_out(row)

    async def _prove(self, row: DeletionRow) -> None:
        with self._projector.store.read() as reader:
            asked = witnesses(row, ClusterView(reader), self._policy)
        if isinstance(asked, Keep):
            await self._decide(row, lambda view, now: refused(now, now.checksum, asked))
            return
        proofs = await prove_all(self._bus, asked.nodes, asked.entry)
        await self._decide(row, lambda view, now: settle(now, asked, proofs, view, self._policy))

    async def _carry_out(self, row: DeletionRow) -> None:
        """Ask the node while its grant is young; till then its silence leaves the deletion open.

        Once it has said that the copy is gone it is not asked again: one that came meanwhile stays.
        """
        # Its last answer may have been lost, but not what it had said before it gave it.
        await self._projector.wait_for((await self._log.state()).last_sequence)
        with self._projector.store.read() as reader:
            view = ClusterView(reader)
            now, versions = view.deletion(row.id), view.catalog.versions(row.path)
        if now is None or not now.open:
            return
        if now.removed_at:
            sizes = [one.size_bytes for one in versions if one.checksum == row.checksum]
            await self._end(row, DeletionAnswer(True, freed_bytes=sum(sizes)))
            return
        if self._clock() - row.granted_at >= WITHDRAWN_AFTER_S:
            reason = (
                f"withdrawn: {row.node} has not said within {WITHDRAWN_AFTER_S:g} s that it did"
            )
            await self._end(row, DeletionAnswer(False, reason=reason))
            return
        order = DeletionOrder(row.id, row.path, row.checksum, now.grant)
        try:
            body = await self._bus.request(
                delete_subject(row.node), msgspec.json.encode(order), ANSWER_S
            )
            answer = from_json(body, DeletionAnswer)
        except (LogError, Unreadable) as error:
            logger.debug("%s gave no answer to %s: %s", row.node, order, error)
            return
        await self._end(row, answer)

    async def _end(self, row: DeletionRow, answer: DeletionAnswer) -> None:
        await self._decide(
            row,
            lambda view, now: done(
                now,
                deleted=answer.deleted,
                freed_bytes=answer.freed_bytes,
                reason=answer.reason,
            ),
        )

    async def _decide(
        self, row: DeletionRow, decide: Callable[[ClusterView, DeletionRow], Fact]
    ) -> None:
        """Append a decision on the state as it is now; if somebody was there first, see it."""
        with self._projector.store.read() as reader:
            view = ClusterView(reader)
            now = view.deletion(row.id)
            if now is None or now.state is not row.state:
                return
            fact = decide(view, now)
            guard = _guard_of(view, fact)
        await self._append([fact], guard)

    async def _append(self, facts: Sequence[Fact], guard: Guard) -> None:
        try:
            receipt = await self._log.append(facts, [guard])
            await self._projector.wait_for(receipt.sequence)
        except (SequenceConflict, DuplicateFact):
            last = await self._log.last(guard.subjects)
            if last is not None:
                await self._projector.wait_for(last.sequence)


def _guard_of(view: ClusterView, fact: Fact) -> Guard:
    return Guard(chain_filter(fact.chain), view.last_sequence_of(fact.chain))
