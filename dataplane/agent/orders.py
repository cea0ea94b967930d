"""What this node is asked to do: assignments, carried out as they come, and what came of each said.

An order that ends by a surprise is tried again a few times and then said to have failed: it must
neither end the agent nor leave whoever gave it without an answer.
"""

from __future__ import annotations

import asyncio
import logging
import time

import msgspec

from adapters.errors import Unforeseen
from dataplane.agent.attempt import Attempt, Outcome
from dataplane.agent.deliveries import described, is_last_try, kept_alive, left_to_redelivery
from dataplane.agent.progress import Progress as ProgressTold
from dataplane.agent.saying import Saying
from dataplane.agent.transfers import TransportManager, quarantine_fact
from dataplane.consumers import tasks_of
from dataplane.coordinator.granting import GrantKeeper
from dataplane.crashpoints import reach
from dataplane.questions import ask_any
from dataplane.standstill import Progress
from streams import events
from streams.codec import Fact, Recorded, fact_id, in_trace, node_fact, trace_joined
from streams.foreign import Unreadable, from_json
from streams.log import Bus, Delivery, Log, LogError

logger = logging.getLogger(__name__)

#: Who sends or passes on is not replaced sooner.
LATE_S = 5.0
_PENDING = "dp.query.pending"
_PENDING_ANSWER_S = 5.0


class _Work:
    """An order that is being carried out, and how often something of it has come."""

    def __init__(self, order: events.TransferAssigned, tell: ProgressTold) -> None:
        self.order = order
        self.since = time.monotonic()
        self.told = 0
        self._tell = tell

    def __call__(self, done: int, total: int) -> None:
        """It is so far."""
        self.told += 1
        self._tell(done, total)


class Orders:
    """The assignments of one node."""

    def __init__(
        self,
        log: Log,
        bus: Bus,
        node: str,
        manager: TransportManager,
        grants: GrantKeeper,
        saying: Saying,
    ) -> None:
        self._log = log
        self._bus = bus
        self._node = node
        self._manager = manager
        self._grants = grants
        self._saying = saying
        self._turns = 0
        self._working: set[_Work] = set()

    async def progress(self) -> list[Progress]:
        """How many orders wait to be taken, and how far those are that should have ended.

        Raises a `LogError`.
        """
        consumer = await self._log.consumer(tasks_of(self._node).name)
        loops = [Progress("taking of orders", consumer.waiting if consumer else 0, self._turns)]
        now = time.monotonic()
        return loops + [
            Progress(f"transfer {one.order.transfer}", 1, one.told)
            for one in self._working
            if now - one.since > one.order.timeout_s
        ]

    async def take(self) -> None:
        """Carry out assignments, all that are given at once: how many is decided by who gives."""
        deliveries = await tasks_of(self._node).open(self._log)
        try:
            async with asyncio.TaskGroup() as group:
                async for delivery in deliveries:
                    group.create_task(self._obey(delivery))
        finally:
            await deliveries.close()

    async def _obey(self, delivery: Delivery) -> None:
        recorded, order = delivery.recorded, delivery.recorded.event
        async with kept_alive(delivery), left_to_redelivery(delivery):
            self._turns += 1
            if isinstance(order, events.TransferAssigned) and not await self._is_over(delivery):
                try:
                    await self._carry_out(recorded, order)
                except LogError:
                    raise
                except Exception as surprise:
                    if not is_last_try(delivery):
                        raise
                    logger.error("order %s is given up", recorded.id, exc_info=surprise)
                    await self._give_up(recorded, order, surprise)
            await delivery.ack()

    async def _is_over(self, delivery: Delivery) -> bool:
        """Whether a coordinator says that an order is not this node's any more: while it was away,
        whoever sends or passes on for others is replaced. What is for this node itself never is.
        """
        recorded, order = delivery.recorded, delivery.recorded.event
        assert isinstance(order, events.TransferAssigned)
        late = delivery.attempt > 1 or time.time() - recorded.time > LATE_S
        if order.target == self._node or not late:
            return False
        try:
            question = {
                "transfers": [order.transfer],
                "executor": self._node,
                "sequence": recorded.sequence,
            }
            answer = await ask_any(
                self._bus, _PENDING, msgspec.json.encode(question), _PENDING_ANSWER_S
            )
            over = order.transfer not in from_json(answer, list[str])
        except (LogError, Unreadable) as error:
            logger.debug("no coordinator says whether an order is over: %s", error)
            return False
        if over:
            logger.info("order %s is over: it was given to another, or is done", recorded.id)
        return over

    async def _carry_out(self, recorded: Recorded, order: events.TransferAssigned) -> None:
        """Move the bytes and say what came of it; the caller acknowledges after that."""
        work = _Work(order, ProgressTold(self._bus, order))
        self._working.add(work)
        try:
            with self._grants.running(order):
                result = await self._manager.transfer(order, work)
        finally:
            self._working.discard(work)
            self._turns += 1
        facts = [self._result_fact(recorded, result)]
        if isinstance(result, events.TransferFailed):
            quarantined = quarantine_fact(self._node, order.entry, result)
            if quarantined is not None:
                id = fact_id("quarantined", recorded.id)
                facts.append(node_fact(quarantined, self._node, id, chain=recorded.chain))
        for fact in facts:
            await self._saying.say(fact)
        self._manager.said(order.transfer)
        reach("agent.reported")

    async def _give_up(
        self, recorded: Recorded, order: events.TransferAssigned, surprise: Exception
    ) -> None:
        """Say that it failed, and by what, to whoever waits for it."""
        failed = Attempt(self._node, order).failed(Unforeseen(described(surprise)))
        await self._saying.say(self._result_fact(recorded, failed))

    def _result_fact(self, order: Recorded, result: Outcome) -> Fact:
        # An attempt has one outcome of each kind however often it is carried out.
        id = fact_id(order.id, events.type_name(result))
        fact = node_fact(result, self._node, id, chain=order.chain, cause=order.id)
        return in_trace(fact, trace_joined(order))
