"""The contract of a log, held to by every log: `MemoryLog` and `JetStreamLog`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from streams.codec import MAX_MESSAGE_BYTES, Fact, Recorded, chain_fact, node_fact
from streams.events import FilesRemoved, SelfplayComplete, SelfplayNeeded
from streams.jetstream import JetStreamLog
from streams.log import (
    Deliveries,
    Delivery,
    DuplicateFact,
    Guard,
    Log,
    LogUnavailable,
    NoLongerHeld,
    SequenceConflict,
)
from streams.memory import MemoryLog
from streams.subjects import chain_filter
from streams.values import DataType
from tests.conftest import PATIENCE_S, empty_log, eventually


class Bench:
    """A log under test, and the two things that aren't in the contract but every log has."""

    def __init__(
        self,
        log: Log,
        another: Callable[[], Awaitable[Log]],
        say: Callable[[str, bytes], None],
    ) -> None:
        self.log = log
        self.another = another
        #: Store a message without headers, as a shell script would.
        self.say = say


@pytest.fixture(params=["memory", "jetstream"])
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    """Each implementation in turn, empty."""
    bounded = request.cls is TestShortened
    async with AsyncExitStack() as stack:
        if request.param == "memory":
            yield _in_memory(stack)
        else:
            url = request.getfixturevalue("nats_server").url
            log = await stack.enter_async_context(empty_log(url, bounded=bounded))
            yield _on_jetstream(log, url, stack)


def _in_memory(stack: AsyncExitStack) -> Bench:
    log = MemoryLog()

    async def another() -> Log:
        other = log.another()
        stack.push_async_callback(other.close)
        return other

    return Bench(log, another, log.tell)


def _on_jetstream(log: JetStreamLog, url: str, stack: AsyncExitStack) -> Bench:
    async def another() -> Log:
        other = await JetStreamLog.connect(url)
        stack.push_async_callback(other.close)
        return other

    return Bench(log, another, log.bus.tell)


@pytest.fixture
def log(bench: Bench) -> Log:
    """The log under test."""
    return bench.log


def trigger(number: int, node: str = "gpu-1", config: str = "hex8_2p") -> Fact:
    """Something a node says."""
    event = SelfplayComplete(config_key=config, source_node=node, games_count=number)
    return node_fact(event, node, f"{node}-{config}-{number}")


def decision(chain: str, number: int) -> Fact:
    """Something decided for a chain."""
    event = SelfplayNeeded(config_key="hex8_2p", node="gpu-1", data_type=DataType.GAMES)
    return chain_fact(event, chain, "cause", number)


def fresh(chain: str, last_sequence: int = 0) -> list[Guard]:
    """The guard under which a chain is decided."""
    return [Guard(chain_filter(chain), last_sequence)]


async def everything(log: Log, **options: Any) -> list[Recorded]:
    """All that the log holds now."""
    options.setdefault("until", (await log.state()).last_sequence)
    return [fact async for batch in log.read(**options) for fact in batch]


async def ids(log: Log, **options: Any) -> list[str]:
    """The ids of all that the log holds now, in order."""
    return [fact.id for fact in await everything(log, **options)]


async def soon(work: Awaitable[Any]) -> Any:
    """What `work` gives, or a failure instead of a hanging test."""
    async with asyncio.timeout(PATIENCE_S):
        return await work


async def deliver(deliveries: Deliveries, count: int, *, ack: bool = True) -> list[Delivery]:
    """The next deliveries."""
    taken: list[Delivery] = []
    async with asyncio.timeout(PATIENCE_S):
        async for delivery in deliveries:
            taken.append(delivery)
            if ack:
                await delivery.ack()
            if len(taken) == count:
                break
    return taken


class TestAppend:
    """Append is atomic, guarded, and safe to repeat."""

    async def test_sequences_count_from_one_without_gaps(self, log: Log) -> None:
        """The log numbers facts 1, 2, 3 in the order in which it took them."""
        receipts = [await log.publish(trigger(number)) for number in range(3)]
        assert [receipt.sequence for receipt in receipts] == [1, 2, 3]
        assert [fact.sequence for fact in await everything(log)] == [1, 2, 3]

    async def test_a_new_log_is_empty_and_says_who_it_is(self, log: Log) -> None:
        """State tells first and last sequence, and a creation time that stays."""
        before = await log.state()
        await log.publish(trigger(1))
        after = await log.state()
        assert (before.first_sequence, before.last_sequence) == (1, 0)
        assert (after.first_sequence, after.last_sequence) == (1, 1)
        assert before.created == after.created != ""

    async def test_facts_of_one_append_stand_next_to_each_other(self, log: Log) -> None:
        """Concurrent appends never mix, and the receipt names the last fact's sequence."""
        batches = [[decision(f"c{n}", k) for k in range(5)] for n in range(6)]
        receipts = await asyncio.gather(*(log.append(batch) for batch in batches))
        stored = await ids(log)
        for batch, receipt in zip(batches, receipts, strict=True):
            end = receipt.sequence
            assert stored[end - 5 : end] == [fact.id for fact in batch]

    async def test_a_guard_that_holds_lets_the_append_through(self, log: Log) -> None:
        """Zero means that nothing may stand there; else it is the last sequence."""
        first = await log.append([decision("c", 1), decision("c", 2)], fresh("c"))
        second = await log.append([decision("c", 3)], fresh("c", first.sequence))
        assert (first.sequence, second.sequence) == (2, 3)
        assert not first.duplicate and not second.duplicate

    @pytest.mark.parametrize("count", [1, 3])
    async def test_a_guard_that_fails_stores_nothing(self, log: Log, count: int) -> None:
        """Who comes second gets SequenceConflict, however many facts they bring."""
        await log.append([decision("c", 0)], fresh("c"))
        with pytest.raises(SequenceConflict):
            await log.append([decision("c", n + 1) for n in range(count)], fresh("c"))
        assert (await log.state()).last_sequence == 1

    async def test_one_failed_guard_of_many_refuses_the_whole_append(self, log: Log) -> None:
        """Decisions of several chains in one append stand or fall together."""
        await log.append([decision("b", 0)], fresh("b"))
        facts = [decision("a", 1), decision("b", 1), decision("c", 1)]
        with pytest.raises(SequenceConflict):
            await log.append(facts, [*fresh("a"), *fresh("b"), *fresh("c")])
        receipt = await log.append(facts, [*fresh("a"), *fresh("b", 1), *fresh("c")])
        assert receipt.sequence == 4

    async def test_of_those_who_race_for_a_guard_one_wins(self, bench: Bench) -> None:
        """Deciders with different decisions for one chain: one is stored, the others learn."""
        rival = await bench.another()
        logs = [bench.log, rival] * 4
        outcomes = await asyncio.gather(
            *(
                one.append([decision("c", 10 * n), decision("c", 10 * n + 1)], fresh("c"))
                for n, one in enumerate(logs)
            ),
            return_exceptions=True,
        )
        lost = [outcome for outcome in outcomes if isinstance(outcome, SequenceConflict)]
        assert len(lost) == len(logs) - 1
        assert (await bench.log.state()).last_sequence == 2

    @pytest.mark.parametrize("count", [1, 3])
    async def test_the_same_append_again_finds_its_own_facts(self, log: Log, count: int) -> None:
        """After an unknown outcome the same facts and guards again: it is there, once."""
        facts = [decision("c", n) for n in range(count)]
        await log.publish(trigger(0))
        first = await log.append(facts, fresh("c"))
        again = await log.append(facts, fresh("c"))
        assert not first.duplicate and again.duplicate
        assert again.sequence == first.sequence == (await log.state()).last_sequence

    async def test_a_late_repetition_is_found_behind_later_facts(self, log: Log) -> None:
        """Also when others have gone on from there, the repeated append is recognised."""
        facts = [decision("c", 1), decision("c", 2)]
        first = await log.append(facts, fresh("c"))
        await log.append([decision("c", 3)], fresh("c", first.sequence))
        assert (await log.append(facts, fresh("c"))).sequence == first.sequence

    async def test_half_the_same_decision_is_a_conflict(self, log: Log) -> None:
        """Another decision that shares its first fact is somebody else's."""
        await log.append([decision("c", 1), decision("c", 2)], fresh("c"))
        with pytest.raises(SequenceConflict):
            await log.append([decision("c", 1), decision("c", 3)], fresh("c"))
        assert (await log.state()).last_sequence == 2

    @pytest.mark.parametrize("count", [1, 3])
    async def test_an_unguarded_append_is_repeated_without_harm(self, log: Log, count: int) -> None:
        """Without guards the ids say that it is there, also behind others under its subject."""
        facts = [trigger(n) for n in range(count)]
        first = await log.append(facts)
        await log.publish(trigger(99))
        again = await log.append(facts)
        assert (again.sequence, again.duplicate) == (first.sequence, True)
        assert (await log.state()).last_sequence == count + 1

    async def test_a_known_fact_among_new_ones_refuses_them_all(self, log: Log) -> None:
        """DuplicateFact, and nothing is stored, though the guard holds."""
        await log.publish(decision("c", 2))
        with pytest.raises(DuplicateFact):
            await log.append([decision("c", 1), decision("c", 2)], fresh("c", 1))
        with pytest.raises(DuplicateFact):
            await log.append([decision("c", 2)], fresh("c", 1))
        assert (await log.state()).last_sequence == 1

    async def test_what_makes_no_sense_is_refused_before_it_is_sent(self, log: Log) -> None:
        """No facts, too many, a guard that covers none, two guards or one id for two facts."""
        facts = [decision("c", n) for n in range(1001)]
        for wrong, guards in (
            ([], []),
            (facts, []),
            (facts[:1], fresh("other")),
            (facts[:2], [*fresh("c"), Guard("dp.chain.*.>", 0)]),
            ([facts[0], facts[0]], []),
        ):
            with pytest.raises(ValueError):
                await log.append(wrong, guards)
        assert (await log.state()).last_sequence == 0

    async def test_a_thousand_facts_are_one_append(self, log: Log) -> None:
        """The largest append is stored whole."""
        facts = [decision("c", n) for n in range(1000)]
        assert (await log.append(facts, fresh("c"))).sequence == 1000
        assert await ids(log) == [fact.id for fact in facts]


class TestPublish:
    """A published fact is stored once by its id."""

    async def test_the_same_id_is_stored_once(self, log: Log) -> None:
        """The second receipt names the first's sequence."""
        first = await log.publish(trigger(1))
        await log.publish(trigger(2))
        again = await log.publish(trigger(1))
        assert (again.sequence, again.duplicate) == (first.sequence, True)
        assert (await log.state()).last_sequence == 2

    async def test_many_at_once_are_all_stored(self, log: Log) -> None:
        """Publishers do not wait for each other."""
        receipts = await asyncio.gather(*(log.publish(trigger(n)) for n in range(200)))
        assert sorted(receipt.sequence for receipt in receipts) == list(range(1, 201))

    async def test_the_largest_fact_fits_and_a_larger_one_is_refused(self, log: Log) -> None:
        """What the codec lets through the log takes; more is a ValueError, no lost connection."""
        frame = len('{"node":"gpu-1","paths":[""]}')
        for size, fits in ((MAX_MESSAGE_BYTES - frame, True), (MAX_MESSAGE_BYTES, False)):
            event = FilesRemoved(node="gpu-1", paths=("x" * size,))
            fact = node_fact(event, "gpu-1", f"large-{size}", chain="c" * 64, cause="d" * 64)
            if fits:
                assert (await log.publish(fact)).sequence == 1
            else:
                with pytest.raises(ValueError):
                    await log.publish(fact)
        assert (await everything(log))[0].event is not None


class TestRead:
    """Reading gives every fact in order, from where the reader was."""

    async def test_reading_goes_on_behind_the_checkpoint(self, log: Log) -> None:
        """Exactly what stands behind `after` comes, in order."""
        for number in range(10):
            await log.publish(trigger(number))
        assert [fact.sequence for fact in await everything(log, after=7)] == [8, 9, 10]

    async def test_reading_ends_at_until(self, log: Log) -> None:
        """The fact at `until` is the last; at the checkpoint itself there is nothing."""
        for number in range(10):
            await log.publish(trigger(number))
        assert [fact.sequence for fact in await everything(log, after=2, until=5)] == [3, 4, 5]
        assert await everything(log, after=5, until=5) == []
        assert await everything(log, after=9, until=3) == []

    async def test_filters_leave_out_the_others(self, log: Log) -> None:
        """Of several filters each adds what it matches; order stays the log's."""
        for number in range(4):
            await log.publish(trigger(number, node=f"gpu-{number}"))
            await log.publish(decision("c", number))
        filters = ["dp.node.gpu-1.>", "dp.node.*.SELFPLAY_COMPLETE.square8_2p", "dp.chain.c.>"]
        found = await everything(log, subjects=filters)
        assert [fact.sequence for fact in found] == [2, 3, 4, 6, 8]

    async def test_a_filtered_read_ends_though_nothing_matches_at_the_end(self, log: Log) -> None:
        """`until` is a place in the log, not among what matches."""
        for number in range(5):
            await log.publish(trigger(number))
        await log.publish(decision("c", 1))
        nodes = await soon(everything(log, subjects=["dp.node.>"], until=6))
        nothing = await soon(everything(log, subjects=["dp.task.>"], until=6))
        assert [fact.sequence for fact in nodes] == [1, 2, 3, 4, 5]
        assert nothing == []

    async def test_a_filtered_read_ends_when_others_pass_until(self, log: Log) -> None:
        """It waits for the log to reach `until`, and needs no match to notice."""
        await log.publish(trigger(1))
        reading = asyncio.create_task(everything(log, subjects=["dp.node.>"], until=3))
        await log.publish(decision("c", 1))
        await log.publish(decision("c", 2))
        assert [fact.sequence for fact in await soon(reading)] == [1]

    async def test_a_reader_waits_for_what_is_not_there_yet(self, log: Log) -> None:
        """Without `until` new facts come as they are stored."""
        reading = log.read(after=1)
        await log.publish(trigger(1))
        waiting = asyncio.ensure_future(anext(reading))
        await log.publish(trigger(2))
        assert [fact.sequence for fact in await soon(waiting)] == [2]
        await reading.aclose()

    async def test_readers_do_not_disturb_each_other(self, log: Log) -> None:
        """Several readers at once each get everything."""
        for number in range(50):
            await log.publish(trigger(number))
        readings = await soon(asyncio.gather(*(ids(log) for _ in range(5))))
        assert all(reading == readings[0] and len(reading) == 50 for reading in readings)

    async def test_a_long_log_comes_in_batches_without_a_gap(self, log: Log) -> None:
        """More than one batch, and more than one request to the bus."""
        for start in range(0, 3000, 1000):
            await log.append([decision("c", start + n) for n in range(1000)])
        batches = [batch async for batch in log.read(until=3000)]
        assert [fact.sequence for batch in batches for fact in batch] == list(range(1, 3001))
        assert all(0 < len(batch) <= 500 for batch in batches)


class TestLook:
    """Single messages, and the same message by every way."""

    async def test_get_gives_the_message_at_a_sequence(self, log: Log) -> None:
        """None where the log holds nothing."""
        await log.publish(trigger(1))
        found = await log.get(1)
        assert found is not None and found.id == trigger(1).id
        assert await log.get(2) is None

    async def test_last_gives_the_newest_under_a_filter(self, log: Log) -> None:
        """By subject, by prefix and by wildcard; None where nothing matches."""
        await log.publish(decision("a", 1))
        await log.publish(decision("b", 1))
        await log.publish(trigger(1))

        async def sequence(subjects: str) -> int | None:
            found = await log.last(subjects)
            return found.sequence if found else None

        assert await sequence(chain_filter("a")) == 1
        assert await sequence("dp.chain.>") == 2
        assert await sequence("dp.chain.*.SELFPLAY_NEEDED.hex8_2p") == 2
        assert await sequence(decision("a", 1).subject) == 1
        assert await sequence(chain_filter("c")) is None

    async def test_a_message_is_the_same_by_every_way(self, log: Log) -> None:
        """Read, get, last and consume give equal facts, times and all: views depend on it."""
        await log.publish(trigger(1))
        await log.append([decision("c", 1)], fresh("c"))
        read = await everything(log)
        deliveries = await log.consume("all", [], ack_wait_s=30, max_pending=10)
        consumed = [delivery.recorded for delivery in await deliver(deliveries, 2)]
        await deliveries.close()
        assert read == consumed == [await log.get(1), await log.get(2)]
        assert read[1] == await log.last("dp.>")
        assert abs(read[0].time - time.time()) < 60

    async def test_a_message_without_headers_is_a_fact(self, bench: Bench) -> None:
        """Made by hand, with an old field name: its id is its place, its node its subject's."""
        bench.say("dp.node.gpu-7.SELFPLAY_COMPLETE.hex8_2p", b'{"games_played": 500}')
        (fact,) = await soon(everything(bench.log, until=1))
        assert (fact.id, fact.owner, fact.problem) == ("DATAPLANE-1", "gpu-7", "")
        assert fact.event == SelfplayComplete(
            config_key="hex8_2p", source_node="gpu-7", games_count=500
        )

    async def test_what_can_not_be_understood_is_kept_and_says_why(self, bench: Bench) -> None:
        """A broken message blocks nobody and is lost to nobody."""
        bench.say("dp.node.gpu-7.NO_SUCH_TYPE.hex8_2p", b"not even JSON")
        await soon(everything(bench.log, until=1))
        await bench.log.publish(trigger(1))
        broken, good = await everything(bench.log)
        assert broken.event is None and broken.problem
        assert good.event is not None


class TestConsume:
    """A durable consumer gives every message until it is acknowledged."""

    async def test_messages_come_in_order_and_for_the_first_time(self, log: Log) -> None:
        """From the log's start, only what the filters match, as attempt 1."""
        for number in range(5):
            await log.publish(trigger(number))
            await log.publish(decision("c", number))
        deliveries = await log.consume("d", ["dp.chain.>"], ack_wait_s=30, max_pending=100)
        taken = await deliver(deliveries, 5)
        assert [one.recorded.sequence for one in taken] == [2, 4, 6, 8, 10]
        assert {one.attempt for one in taken} == {1}
        await deliveries.close()

    async def test_new_only_begins_behind_the_end(self, log: Log) -> None:
        """What was there before the consumer is not its business."""
        await log.publish(trigger(1))
        deliveries = await log.consume("d", [], ack_wait_s=30, max_pending=100, new_only=True)
        await log.publish(trigger(2))
        (only,) = await deliver(deliveries, 1)
        assert only.recorded.sequence == 2
        await deliveries.close()

    async def test_what_is_acknowledged_does_not_come_again(self, log: Log) -> None:
        """The next member of the durable goes on where the last stopped."""
        for number in range(4):
            await log.publish(trigger(number))
        first = await log.consume("d", [], ack_wait_s=30, max_pending=2)
        await deliver(first, 2)
        await first.close()
        second = await log.consume("d", [], ack_wait_s=30, max_pending=2)
        assert [one.recorded.sequence for one in await deliver(second, 2)] == [3, 4]
        await second.close()

    async def test_what_is_not_acknowledged_comes_again(self, log: Log) -> None:
        """After the ack wait, with the next attempt's number, for as long as it takes."""
        await log.publish(trigger(1))
        deliveries = await log.consume("d", [], ack_wait_s=0.5, max_pending=10)
        taken = await deliver(deliveries, 3, ack=False)
        attempts = [one.attempt for one in taken]
        assert {one.recorded.sequence for one in taken} == {1}
        assert attempts[0] == 1 and attempts == sorted(set(attempts))
        await taken[-1].ack()
        await deliveries.close()

    async def test_nak_brings_it_back_at_once(self, log: Log) -> None:
        """Without a delay nobody waits for the ack wait."""
        await log.publish(trigger(1))
        deliveries = await log.consume("d", [], ack_wait_s=600, max_pending=10)
        (first,) = await deliver(deliveries, 1, ack=False)
        await first.nak()
        (second,) = await deliver(deliveries, 1)
        assert (first.attempt, second.attempt) == (1, 2)
        await deliveries.close()

    async def test_nak_with_a_delay_brings_it_back_after_it(self, log: Log) -> None:
        """Not before the delay, and long before the ack wait; others are not held up."""
        await log.publish(trigger(1))
        await log.publish(trigger(2))
        deliveries = await log.consume("d", [], ack_wait_s=600, max_pending=10)
        (first,) = await deliver(deliveries, 1, ack=False)
        started = time.monotonic()
        await first.nak(delay_s=0.6)
        taken = await deliver(deliveries, 2)
        assert [one.recorded.sequence for one in taken] == [2, 1]
        assert time.monotonic() - started >= 0.55
        await deliveries.close()

    async def test_in_progress_keeps_it(self, log: Log) -> None:
        """Who says that it is still at it is not replaced, whatever the ack wait."""
        await log.publish(trigger(1))
        deliveries = await log.consume("d", [], ack_wait_s=1.5, max_pending=10)
        (job,) = await deliver(deliveries, 1, ack=False)
        again = asyncio.ensure_future(deliver(deliveries, 1))
        ends = time.monotonic() + 3.0
        while time.monotonic() < ends:
            await job.in_progress()
            await asyncio.sleep(0.05)
        assert not again.done()
        (redelivered,) = await again
        assert redelivered.attempt == 2
        await deliveries.close()

    async def test_no_more_than_max_pending_are_out_at_once(self, log: Log) -> None:
        """A further message comes only when one of those has been acknowledged."""
        for number in range(5):
            await log.publish(trigger(number))
        deliveries = await log.consume("d", [], ack_wait_s=600, max_pending=2)
        held = await deliver(deliveries, 2, ack=False)
        more = asyncio.ensure_future(deliver(deliveries, 1))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.7):
                await asyncio.shield(more)
        await held[0].ack()
        assert [one.recorded.sequence for one in await more] == [3]
        await deliveries.close()

    async def test_members_share_the_messages(self, bench: Bench) -> None:
        """Two members of one durable, on two connections, get each message once between them."""
        for number in range(40):
            await bench.log.publish(trigger(number))
        members = [
            await one.consume("d", [], ack_wait_s=600, max_pending=4)
            for one in (bench.log, await bench.another())
        ]
        seen: list[list[int]] = [[], []]

        async def work(member: Deliveries, mine: list[int]) -> None:
            async for delivery in member:
                mine.append(delivery.recorded.sequence)
                await asyncio.sleep(0.002)
                await delivery.ack()

        workers = [
            asyncio.create_task(work(member, mine))
            for member, mine in zip(members, seen, strict=True)
        ]
        await eventually(lambda: len(seen[0]) + len(seen[1]) == 40)
        for member in members:
            await member.close()
        await soon(asyncio.gather(*workers))
        assert sorted(seen[0] + seen[1]) == list(range(1, 41))
        assert seen[0] and seen[1]

    async def test_take_ready_gives_what_has_arrived(self, log: Log) -> None:
        """At most so many, without waiting, none twice."""
        for number in range(6):
            await log.publish(trigger(number))
        deliveries = await log.consume("d", [], ack_wait_s=600, max_pending=10)
        (first,) = await deliver(deliveries, 1)
        taken = [first]
        async with asyncio.timeout(PATIENCE_S):
            while len(taken) < 6:
                ready = deliveries.take_ready(2)
                assert len(ready) <= 2
                taken += ready
                await asyncio.sleep(0.01)
        assert [one.recorded.sequence for one in taken] == [1, 2, 3, 4, 5, 6]
        assert deliveries.take_ready(5) == []
        for one in taken:
            await one.ack()
        await deliveries.close()

    async def test_a_closed_member_leaves_what_it_did_not_take(self, bench: Bench) -> None:
        """Another member gets it at once, not after the ack wait; what it took is still its."""
        for number in range(4):
            await bench.log.publish(trigger(number))
        first = await bench.log.consume("d", [], ack_wait_s=600, max_pending=10)
        await deliver(first, 1)
        await first.close()
        second = await (await bench.another()).consume("d", [], ack_wait_s=600, max_pending=10)
        assert {one.recorded.sequence for one in await deliver(second, 3)} == {2, 3, 4}
        await second.close()

    async def test_closing_ends_the_iteration(self, log: Log) -> None:
        """Who waits for the next message is let go."""
        deliveries = await log.consume("d", [], ack_wait_s=30, max_pending=10)
        waiting = asyncio.ensure_future(deliver(deliveries, 1))
        await asyncio.sleep(0)
        await deliveries.close()
        await deliveries.close()
        assert await soon(waiting) == []


class TestClose:
    """A closed log is done with; what others do with theirs goes on."""

    async def test_closing_the_log_ends_reads_and_deliveries(self, bench: Bench) -> None:
        """Both end without an error; another client is not touched."""
        log = await bench.another()
        await bench.log.publish(trigger(1))
        deliveries = await log.consume("d", ["dp.task.>"], ack_wait_s=30, max_pending=10)
        consuming = asyncio.ensure_future(deliver(deliveries, 1))

        async def read_on() -> int:
            return sum([len(batch) async for batch in log.read()])

        reading = asyncio.ensure_future(read_on())
        await asyncio.sleep(0.05)
        await log.close()
        assert await soon(consuming) == []
        assert await soon(reading) in (0, 1)
        with pytest.raises(LogUnavailable):
            await log.publish(trigger(2))
        assert (await bench.log.state()).last_sequence == 1


async def test_consumer_says_how_far_it_is(log: Log, bench: Bench) -> None:
    """What it has not given out, what is out, and what was given more than once."""
    assert await log.consumer("d") is None
    for number in range(4):
        bench.say("dp.node.gpu-1.SELFPLAY_COMPLETE.hex8_2p", b'{"games_count":%d}' % number)
    await eventually(lambda: _has(log, 4))
    deliveries = await log.consume("d", ["dp.node.>"], ack_wait_s=30, max_pending=10)
    first = await anext(aiter(deliveries))
    await first.nak()
    acked = 0
    async with asyncio.timeout(PATIENCE_S):
        async for delivery in deliveries:
            if delivery.attempt > 1:
                await eventually(lambda: _is(log, redelivered=1))
            await delivery.ack()
            acked += 1
            if acked == 4:
                break
    await eventually(lambda: _is(log, redelivered=0, unacknowledged=0, waiting=0))
    assert await log.consumers() == {"d": await log.consumer("d")}


async def test_log_on_one_server_is_nowhere_short(log: Log) -> None:
    """What is to be on one server is on it."""
    await log.consume("d", ["dp.node.>"], ack_wait_s=30, max_pending=10)
    found = await log.standing()
    assert (found.replicas, found.short, found.behind, found.problem) == (1, {}, (), "")


async def _has(log: Log, count: int) -> bool:
    return (await log.state()).last_sequence == count


async def _is(log: Log, **wanted: int) -> bool:
    state = await log.consumer("d")
    return state is not None and all(getattr(state, k) == v for k, v in wanted.items())


class TestShortened:
    """A log whose beginning was removed."""

    @pytest.fixture
    async def shortened(self, bench: Bench) -> Log:
        """Six facts, of which the first three are gone."""
        for number in range(1, 7):
            await bench.log.publish(trigger(number, config="hex8_2p" if number % 2 else "sq8_2p"))
        await bench.log.remove_before(4)  # type: ignore[attr-defined]
        return bench.log

    async def test_it_begins_later_and_counts_on(self, shortened: Log) -> None:
        """Sequences stay what they were; what is gone is not there under any other."""
        state = await shortened.state()
        assert (state.first_sequence, state.last_sequence) == (4, 6)
        assert [fact.sequence for fact in await everything(shortened)] == [4, 5, 6]
        assert await shortened.get(3) is None
        assert (await shortened.get(4)) is not None
        assert (await shortened.publish(trigger(7))).sequence == 7

    async def test_a_read_from_before_is_told(self, shortened: Log) -> None:
        """What is gone is never passed over in silence: not by who reads all, nor by a filter."""
        with pytest.raises(NoLongerHeld, match="begins at 4"):
            await ids(shortened, after=1)
        with pytest.raises(NoLongerHeld):
            await ids(shortened, after=2, subjects=["dp.node.*.*.hex8_2p"])
        assert [fact.sequence for fact in await everything(shortened, after=3)] == [4, 5, 6]
        only = await everything(shortened, subjects=["dp.node.*.*.sq8_2p"])
        assert [fact.sequence for fact in only] == [4, 6]

    async def test_a_reader_it_overtakes_is_told(self, bench: Bench) -> None:
        """Also one that had begun before."""
        for number in range(1, 1202):
            await bench.log.publish(trigger(number))
        reading = bench.log.read()
        assert (await anext(reading))[0].sequence == 1
        await bench.log.remove_before(1200)  # type: ignore[attr-defined]
        seen = 0
        with pytest.raises(NoLongerHeld):
            async for batch in reading:
                seen = batch[-1].sequence
        assert seen < 1200

    async def test_a_guard_goes_on_guarding(self, bench: Bench) -> None:
        """Who saw a chain's last fact may go on behind it, though it is gone; who did not, not."""
        log = bench.log
        first = (await log.append([decision("c", 1)], fresh("c"))).sequence
        await log.publish(trigger(1))
        await log.remove_before(first + 1)  # type: ignore[attr-defined]
        assert await log.last(chain_filter("c")) is None
        await log.append([decision("c", 2)], fresh("c", first))
        with pytest.raises(SequenceConflict):
            await log.append([decision("c", 3)], fresh("c", first))


async def test_who_joins_a_consumer_waits_until_somebody_provides_it(log: Log) -> None:
    """It is never made by joining, and gives everything from the log's start on."""
    said = trigger(1)
    await log.publish(said)
    joining = asyncio.create_task(
        log.join("d", ["dp.node.>"], ack_wait_s=30, max_pending=10), name="joining"
    )
    await asyncio.wait([joining], timeout=0.3)
    assert await log.consumer("d") is None
    assert not joining.done()
    await log.provide("d", ["dp.node.>"], ack_wait_s=30, max_pending=10)
    deliveries = await asyncio.wait_for(joining, PATIENCE_S)
    assert (await anext(aiter(deliveries))).recorded.id == said.id
    await deliveries.close()
