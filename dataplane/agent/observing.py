"""What an agent says of its node's files: by itself when they change, and in answer to triggers.

What was found, published and marked as said belongs together: one report at a time. It must never
call a file gone that nobody looked at, nor say of a received file that it is this node's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator
from contextlib import aclosing

from adapters.files.inventory import Inventory, Scan
from adapters.files.places import OWN_DIRECTORY
from dataplane.agent.deliveries import (
    described,
    is_last_try,
    kept_alive,
    left_to_redelivery,
    meanwhile,
)
from dataplane.agent.footing import Footing
from dataplane.agent.reconciling import Reconciler
from dataplane.config import DataPlaneConfig
from dataplane.consumers import triggers_of
from dataplane.crashpoints import reach
from dataplane.held import held_by
from dataplane.standstill import Progress
from streams import events
from streams.codec import Fact, Recorded, fact_id, in_trace, node_fact, split_entries, trace_joined
from streams.log import Bus, Delivery, Log, LogError
from streams.values import ALL_CONFIGS, DataEntry, config_key_in

logger = logging.getLogger(__name__)
#: How long the answer to a trigger waits for files that are being written, of its limit.
PATIENCE = 0.5
#: How often an answer that takes long is said to come, in each of these limits.
_WORDS = 3
#: How often it is looked whether the log is still the same one.
FOOTING_S = 10.0
#: Triggers that were waiting are not each worth a look.
LOOKED_S = 1.0


class Observer:
    """Reports of one node's inventory."""

    def __init__(self, log: Log, bus: Bus, config: DataPlaneConfig, inventory: Inventory) -> None:
        self._log = log
        self._bus = bus
        self._config = config
        self.node = config.node
        self._inventory = inventory
        self._reconciler = Reconciler(log, bus, config.node, inventory)
        self._footing = Footing(log, config.data_dir / OWN_DIRECTORY)
        self._looked_at = float("-inf")
        #: When triggers that wait for what is being written were heard of first.
        self._heard_at: dict[str, float] = {}
        self._reporting = asyncio.Lock()
        #: What keeps it from saying what is here; "" if nothing does.
        self.problem = ""
        self._turns = 0

    async def progress(self) -> Progress:
        """How many questions wait for an answer, and how far answering is. Raises a `LogError`."""
        consumer = await self._log.consumer(triggers_of(self.node).name)
        waiting = consumer.waiting + consumer.unacknowledged if consumer else 0
        return Progress("answering of triggers", waiting, self._turns + self._inventory.steps)

    async def remember_received(self) -> None:
        """Ask the log what this node has received, so that nothing of it is ever taken for ours.

        What was pushed here is said by who pushed; the inventory was told of it before. Only where
        it has forgotten everything, everybody's words are read. Where the log has forgotten too, a
        coordinator is asked; raises a `LogError` where none answers.
        """
        state = await self._log.state()
        received: dict[str, DataEntry] = {}
        forgot = await self._forgot()
        if forgot and state.first_sequence > 1:
            known = await held_by(self._bus, self.node)
            received = {e.path: e for e in known.entries if e.primary_location != self.node}
        speakers = "*" if forgot else self.node
        subject = f"dp.node.{speakers}.TRANSFER_SUCCEEDED.>"
        if state.last_sequence == 0:
            return
        reading = self._log.read(until=state.last_sequence, subjects=[subject])
        async with aclosing(reading) as batches:
            async for batch in batches:
                for recorded in batch:
                    event = recorded.event
                    if isinstance(event, events.TransferSucceeded) and event.target == self.node:
                        received[event.entry.path] = event.entry
        await self._inventory.adopt(received.values())

    async def _forgot(self) -> bool:
        """Whether there are files here and the inventory knows of none."""
        if await self._inventory.held():
            return False
        there = await asyncio.to_thread(lambda: list(self._config.data_dir.iterdir()))
        return any(path.name != OWN_DIRECTORY for path in there)

    async def watch(self) -> None:
        """Report what changes by itself, without a trigger."""
        async for _ in self._inventory.watch(asyncio.Event()):
            with self._looking_may_fail():
                with contextlib.suppress(LogError):
                    await self.report()
                self.problem = ""
            # A live database changes all the time; triggers do not wait for this.
            await asyncio.sleep(self._config.policy().schedule.event_gap_s)

    async def report(self) -> None:
        """Look once, and report what has changed. Raises a `LogError`."""
        async with self._reporting:
            await self._report(await self._inventory.scan())

    async def reconcile(self) -> None:
        """Compare log and disk from time to time, for ever."""
        while True:
            await asyncio.sleep(self._config.policy().schedule.reconcile_s)
            with self._looking_may_fail(), contextlib.suppress(LogError):
                await self.reconcile_now()

    async def reconcile_now(self) -> None:
        """Compare them, and say what differs. Raises a `LogError`, and what a look may fail by."""
        async with self._reporting:
            await self._reconcile()

    async def _reconcile(self) -> None:
        await self._report(await self._inventory.scan())
        await self._reconciler.reconcile()

    async def keep_footing(self) -> None:
        """Look from time to time, for ever, whether the log is still the one it was."""
        while True:
            with self._looking_may_fail(), contextlib.suppress(LogError):
                async with self._reporting:
                    await self._say_anew_if_another()
            await asyncio.sleep(FOOTING_S)

    async def _say_anew_if_another(self) -> None:
        """Say what a log that was rolled back, or made anew, does not know any more."""
        problem, state = await self._footing.look()
        if problem and await self._inventory.told():
            logger.warning("log and disk are compared: %s", problem)
            self._reconciler.forget()
            await self._inventory.forget_where()
            await self._reconcile()
        await self._footing.stand(state)
        self._looked_at = time.monotonic()

    async def answer_triggers(self) -> None:
        """Say what this node holds, to each trigger that speaks of its files."""
        deliveries = await triggers_of(self.node).open(self._log)
        try:
            async with asyncio.TaskGroup() as answering:
                # Who waits behind a long reading is told so as well as who asked for it.
                async for delivery in deliveries:
                    answering.create_task(self._answer_one(delivery))
        finally:
            await deliveries.close()

    @contextlib.contextmanager
    def _looking_may_fail(self) -> Iterator[None]:
        """Neither a disk that fails nor a surprise ends the agent: it serves what it can, says so,
        and looks again.
        """
        try:
            yield
        except LogError:
            raise
        except Exception as error:
            self._failed(error)
            surprise = None if isinstance(error, OSError) else error
            logger.warning("%s", self.problem, exc_info=surprise)

    def _failed(self, error: Exception) -> None:
        self.problem = f"the data directory can't be looked through: {described(error)}"

    async def _answer_one(self, delivery: Delivery) -> None:
        self._turns += 1
        async with (
            kept_alive(delivery),
            left_to_redelivery(delivery),
            self._said_to_come(delivery.recorded),
        ):
            try:
                await self._answer(delivery)
            except LogError:
                raise
            except Exception as error:
                self._failed(error)
                if not is_last_try(delivery):
                    raise
                logger.error("%s", self.problem, exc_info=error)
                # Who asks does not wait for ever.
                await self._answer_with_the_problem(delivery.recorded)
                self._heard_at.pop(delivery.recorded.id, None)
                await delivery.ack()
        self._turns += 1

    def _said_to_come(self, trigger: Recorded) -> contextlib.AbstractAsyncContextManager[None]:
        """Say that the answer will come, as long as reading goes on: who stands still says nothing.

        A database of many gigabytes takes longer to read than who asks would wait for silence.
        """
        before = self._inventory.steps

        async def say() -> None:
            nonlocal before
            if before == self._inventory.steps:
                return
            before = self._inventory.steps
            id = fact_id("reading", self.node, trigger.id, time.time_ns())
            event = events.FilesObserved(node=self.node, last_part=False)
            await self._log.publish(
                node_fact(event, self.node, id, chain=trigger.chain, cause=trigger.id)
            )

        return meanwhile(say, self._config.answer_limit_seconds / _WORDS)

    async def _answer(self, delivery: Delivery) -> None:
        trigger = delivery.recorded
        if trigger.event is None:
            await delivery.ack()
            return
        whole_node = isinstance(trigger.event, events.NodeTerminating)
        async with self._reporting:
            looked_now = time.monotonic() - self._looked_at < LOOKED_S
            if self._footing.is_behind(trigger.sequence) and not looked_now:
                # In a log that knows less than was said, nothing new would be no answer.
                await self._say_anew_if_another()
            scan = await self._inventory.scan(None if whole_node else trigger.config_key)
            if _relevant(scan.waiting, trigger) and self._may_wait(trigger):
                await delivery.nak(1.0)
                return
            await self._report(scan, trigger)
        self._heard_at.pop(trigger.id, None)
        await delivery.ack()

    def _may_wait(self, trigger: Recorded) -> bool:
        """Whether who asked can wait a little longer. By the log's clock and by ours: this node's
        may be an hour behind.
        """
        now = time.monotonic()
        waited = max(time.time() - trigger.time, now - self._heard_at.setdefault(trigger.id, now))
        return waited < self._config.answer_limit_seconds * PATIENCE

    async def _answer_with_the_problem(self, trigger: Recorded) -> None:
        event = events.FilesObserved(node=self.node, problems=(self.problem[:1000],))
        id = fact_id("unobserved", self.node, trigger.id)
        fact = node_fact(event, self.node, id, chain=trigger.chain, cause=trigger.id)
        await self._log.publish(in_trace(fact, trace_joined(trigger)))

    async def _report(self, scan: Scan, trigger: Recorded | None = None) -> None:
        """Publish what a scan found, whole or not at all, then mark it as said."""
        if trigger is None and not scan.changed and not scan.removed:
            return
        facts = [*self._removals(scan), *self._observations(scan, trigger)]
        if len(facts) == 1:
            receipt = await self._log.publish(facts[0])
        else:
            receipt = await self._log.append(facts)
        self._footing.said(receipt, facts[-1])
        reach("agent.observed")
        await self._inventory.reported(scan.changed, scan.removed, receipt.sequence)

    def _observations(self, scan: Scan, trigger: Recorded | None) -> list[Fact]:
        if trigger is None and not scan.changed:
            return []
        problems = _relevant((*scan.problems, *scan.waiting), trigger, scan.blind)
        parts = split_entries(scan.changed)
        content = fact_id(*((e.path, e.checksum, e.mtime) for e in scan.changed))
        chain, cause = (trigger.chain, trigger.id) if trigger else ("", "")
        facts = [
            node_fact(
                events.FilesObserved(
                    node=self.node,
                    entries=entries,
                    last_part=index == len(parts) - 1,
                    problems=problems if index == 0 else (),
                ),
                self.node,
                fact_id("observed", self.node, cause, content, index),
                chain=chain,
                cause=cause,
            )
            for index, entries in enumerate(parts)
        ]
        trace = trace_joined(trigger) if trigger else ""
        return [in_trace(fact, trace) for fact in facts]

    def _removals(self, scan: Scan) -> list[Fact]:
        if not scan.removed:
            return []
        return [
            node_fact(
                events.FilesRemoved(node=self.node, paths=paths),
                self.node,
                fact_id("removed", self.node, time.time_ns(), index),
            )
            for index, paths in enumerate(split_entries(scan.removed))
        ]


def _relevant(
    problems: tuple[str, ...], trigger: Recorded | None, blind: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """Problems a report tells: all, or those of the configuration that a trigger speaks of and
    those that hide what it may be about.
    """
    if trigger is not None and trigger.config_key != ALL_CONFIGS:
        asked = trigger.config_key
        problems = tuple(p for p in problems if p in blind or config_key_in(p) == asked)
    return tuple(text[:1000] for text in problems[:100])
