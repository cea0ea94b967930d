"""The reference log: the contract of `streams.log` in memory, for tests and simulation.

It has no thread and no randomness: with a given clock and event loop the same calls have the same
results. It goes through the same bytes as the real one, so that what can't be encoded fails here.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Mapping,
    Sequence,
)
from datetime import UTC, datetime
from functools import lru_cache
from typing import Self

from streams.appending import covered, place_guards
from streams.codec import H_MSG_ID, Fact, Recorded, decode, encode
from streams.log import (
    ConsumerState,
    Delivery,
    DuplicateFact,
    Guard,
    LogFull,
    LogState,
    LogUnavailable,
    NoLongerHeld,
    Receipt,
    Room,
    SequenceConflict,
    Standing,
)
from streams.subjects import LOG_SUBJECTS, matches

_READ_BATCH = 500
#: The same few subjects are held against the same few filters again and again.
_matches = lru_cache(1 << 14)(matches)
Answerer = Callable[[str, bytes], Awaitable[bytes]]


class _Change:
    """Wakes all who wait for something to happen."""

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[None]] = []

    def happened(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def wait(self, timeout_s: float | None = None) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        if timeout_s is None:
            await future
            return
        try:
            async with asyncio.timeout(timeout_s):
                await future
        except TimeoutError:
            pass


class _Store:
    """What outlives the handles on it: the messages, and who has been given which."""

    def __init__(self, clock: Callable[[], float], max_messages: int | None) -> None:
        self.clock = clock
        self.created = datetime.fromtimestamp(clock(), UTC).isoformat()
        self.max_messages = max_messages
        #: All there ever were; those before `first` were removed.
        self.messages: list[Recorded] = []
        self.first = 1
        self.ids: dict[str, int] = {}
        self.consumers: dict[str, _Consumer] = {}
        self.change = _Change()
        # The last sequence of every subject, and of all that stand under each of its prefixes.
        self._last: dict[str, int] = {}

    def check_room(self, count: int) -> None:
        if self.max_messages is not None and len(self.messages) + count > self.max_messages:
            raise LogFull(f"the log may hold {self.max_messages} messages and no more")

    def add(self, subject: str, headers: Mapping[str, str], body: bytes) -> int:
        sequence = len(self.messages) + 1
        message = decode(sequence, self.clock(), subject, headers, body)
        self.messages.append(message)
        if H_MSG_ID in headers:
            self.ids[headers[H_MSG_ID]] = sequence
        self._last[subject] = sequence
        tokens = subject.split(".")
        for depth in range(1, len(tokens)):
            self._last[".".join([*tokens[:depth], ">"])] = sequence
        self.change.happened()
        return sequence

    def last(self, subjects: str) -> int:
        """The sequence of the newest message under a filter; 0 if there is none."""
        if "*" not in subjects:
            found = self._last.get(subjects, 0)
        else:
            every = (
                sequence
                for subject, sequence in self._last.items()
                if not subject.endswith(">") and matches(subject, subjects)
            )
            found = max(every, default=0)
        return found if found >= self.first else 0

    def start_of(self, facts: Sequence[Fact], guards: Sequence[Guard]) -> int | None:
        """Where these facts stand already, if it was they who broke the first guard."""
        first = self.ids.get(facts[0].id)
        if first is None:
            return None
        stored = self.messages[first - 1 : first - 1 + len(facts)]
        if [message.id for message in stored] != [fact.id for fact in facts]:
            return None
        if guards:
            guard, index = guards[0], covered(facts, guards[0])[0]
            for message in self.messages[guard.last_sequence :]:
                if matches(message.subject, guard.subjects):
                    return first if message.sequence == first + index else None
            return None
        return first


class MemoryLog:
    """A log in memory. `another` is a second client of the same one; `close` ends one client."""

    def __init__(
        self,
        clock: Callable[[], float] = time.time,
        *,
        max_messages: int | None = None,
        store: _Store | None = None,
    ) -> None:
        self._store = store or _Store(clock, max_messages)
        self._members: list[MemoryDeliveries] = []
        self._closed = False
        self.room = Room()

    def another(self) -> Self:
        """Another client of the same log."""
        return type(self)(store=self._store)

    async def state(self) -> LogState:
        self._check_open()
        return LogState(self._store.created, self._store.first, len(self._store.messages))

    async def append(self, facts: Sequence[Fact], guards: Sequence[Guard] = ()) -> Receipt:
        with self.room.asked():
            return await self._append(facts, guards)

    async def _append(self, facts: Sequence[Fact], guards: Sequence[Guard]) -> Receipt:
        self._check_open()
        store = self._store
        place_guards(facts, guards)
        start = store.start_of(facts, guards)
        if start is not None:
            return Receipt(start + len(facts) - 1, duplicate=True)
        for guard in guards:
            last = store.last(guard.subjects)
            # What was removed from the log guards as it did.
            if last != (guard.last_sequence if guard.last_sequence >= store.first else 0):
                raise SequenceConflict(
                    f"{guard.subjects}: the last is {last}, not {guard.last_sequence}"
                )
        for fact in facts:
            if fact.id in store.ids:
                raise DuplicateFact(f"{fact.id} is in the log at {store.ids[fact.id]}")
        encoded = [(fact.subject, *encode(fact, store.clock())) for fact in facts]
        store.check_room(len(encoded))
        for subject, headers, body in encoded:
            store.add(subject, headers, body)
        receipt = Receipt(len(store.messages))
        # Stored, but whose it is does not know yet: others may act on it before.
        await asyncio.sleep(0)
        return receipt

    async def publish(self, fact: Fact) -> Receipt:
        self._check_open()
        store = self._store
        headers, body = encode(fact, store.clock())
        known = store.ids.get(fact.id)
        if known is not None:
            return Receipt(known, duplicate=True)
        with self.room.asked():
            store.check_room(1)
        receipt = Receipt(store.add(fact.subject, headers, body))
        await asyncio.sleep(0)
        return receipt

    def tell(self, subject: str, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Store a message that somebody made by hand, if the log listens to its subject."""
        headers = headers or {}
        known = headers.get(H_MSG_ID) in self._store.ids
        if not known and any(matches(subject, pattern) for pattern in LOG_SUBJECTS):
            self._store.add(subject, headers, body)

    async def read(
        self, *, after: int = 0, until: int | None = None, subjects: Sequence[str] = ()
    ) -> AsyncGenerator[list[Recorded], None]:
        self._check_open()
        store, position = self._store, after or self._store.first - 1
        while not self._closed and (until is None or position < until):
            if position + 1 < store.first:
                raise NoLongerHeld(f"the log begins at {store.first}, behind {position}")
            end = min(position + _READ_BATCH, len(store.messages))
            if until is not None:
                end = min(end, until)
            batch = [
                message for message in store.messages[position:end] if _wanted(message, subjects)
            ]
            position = max(position, end)
            if batch:
                yield batch
            elif position >= len(store.messages) and (until is None or position < until):
                await store.change.wait()

    async def get(self, sequence: int) -> Recorded | None:
        self._check_open()
        store = self._store
        return (
            store.messages[sequence - 1] if store.first <= sequence <= len(store.messages) else None
        )

    async def last(self, subjects: str) -> Recorded | None:
        self._check_open()
        sequence = self._store.last(subjects)
        return self._store.messages[sequence - 1] if sequence else None

    async def consume(
        self,
        durable: str,
        subjects: Sequence[str],
        *,
        ack_wait_s: float,
        max_pending: int,
        new_only: bool = False,
    ) -> MemoryDeliveries:
        self._check_open()
        if durable not in self._store.consumers:
            after = len(self._store.messages) if new_only else self._store.first - 1
            consumer = _Consumer(self._store, subjects, ack_wait_s, max_pending, after)
            self._store.consumers[durable] = consumer
        member = MemoryDeliveries(self._store.consumers[durable])
        self._members.append(member)
        return member

    async def consumer(self, durable: str) -> ConsumerState | None:
        self._check_open()
        found = self._store.consumers.get(durable)
        return None if found is None else found.state()

    async def consumers(self) -> dict[str, ConsumerState]:
        self._check_open()
        return {name: one.state() for name, one in self._store.consumers.items()}

    async def standing(self) -> Standing:
        self._check_open()
        return Standing()

    async def remove_before(self, sequence: int) -> None:
        """As `JetStreamLog.remove_before`."""
        self._check_open()
        self._store.first = max(self._store.first, min(sequence, len(self._store.messages) + 1))

    async def ensure_topology(self, *, replicas: int = 1, bounded: bool = False) -> list[str]:
        return []

    async def provide(
        self, durable: str, subjects: Sequence[str], *, ack_wait_s: float, max_pending: int
    ) -> None:
        self._check_open()
        made = _Consumer(self._store, subjects, ack_wait_s, max_pending, 0)
        self._store.consumers.setdefault(durable, made)
        self._store.change.happened()

    async def join(
        self, durable: str, subjects: Sequence[str], *, ack_wait_s: float, max_pending: int
    ) -> MemoryDeliveries:
        while durable not in self._store.consumers:
            self._check_open()
            await self._store.change.wait()
        return await self.consume(durable, subjects, ack_wait_s=ack_wait_s, max_pending=max_pending)

    async def close(self) -> None:
        self._closed = True
        for member in self._members:
            await member.close()
        self._store.change.happened()

    def _check_open(self) -> None:
        if self._closed:
            raise LogUnavailable("the log is closed: by us")


class _Given:
    """A message that is out: to whom it is due again, and when."""

    __slots__ = ("attempt", "due")

    def __init__(self, due: float) -> None:
        self.attempt = 1
        self.due = due


class _Consumer:
    """A durable consumer: how far it has given out, and what is not acknowledged."""

    def __init__(
        self,
        store: _Store,
        subjects: Sequence[str],
        ack_wait_s: float,
        max_pending: int,
        after: int,
    ) -> None:
        self.store = store
        self.ack_wait_s = ack_wait_s
        self.out: dict[int, _Given] = {}
        self._subjects = tuple(subjects)
        self._max_pending = max_pending
        self._position = after

    def take(self) -> MemoryDelivery | None:
        """The next message to give out: what is due again goes before what is new."""
        now = self.store.clock()
        due = [(given.due, sequence) for sequence, given in self.out.items() if given.due <= now]
        if due:
            sequence = min(due)[1]
            given = self.out[sequence]
            given.attempt += 1
            given.due = now + self.ack_wait_s
        elif (found := self._next_new()) is not None:
            sequence, given = found, _Given(now + self.ack_wait_s)
            self.out[sequence] = given
        else:
            return None
        return MemoryDelivery(self, self.store.messages[sequence - 1], given.attempt)

    def state(self) -> ConsumerState:
        """How far it is."""
        behind = self.store.messages[max(self._position, self.store.first - 1) :]
        waiting = sum(_wanted(message, self._subjects) for message in behind)
        again = sum(given.attempt > 1 for given in self.out.values())
        return ConsumerState(waiting, len(self.out), again)

    def wait_s(self) -> float | None:
        """How long until something that is out is due again."""
        if not self.out:
            return None
        return max(min(given.due for given in self.out.values()) - self.store.clock(), 0.0)

    def _next_new(self) -> int | None:
        messages = self.store.messages
        self._position = max(self._position, self.store.first - 1)
        while self._position < len(messages) and len(self.out) < self._max_pending:
            message = messages[self._position]
            self._position += 1
            if _wanted(message, self._subjects):
                return message.sequence
        return None


class MemoryDelivery:
    """One message of a durable consumer, until it is acknowledged."""

    def __init__(self, consumer: _Consumer, recorded: Recorded, attempt: int) -> None:
        self._consumer = consumer
        self.recorded = recorded
        self.attempt = attempt

    async def ack(self) -> None:
        self._consumer.out.pop(self.recorded.sequence, None)
        self._consumer.store.change.happened()

    async def nak(self, delay_s: float = 0.0) -> None:
        self._due_in(delay_s)

    async def in_progress(self) -> None:
        self._due_in(self._consumer.ack_wait_s)

    def _due_in(self, delay_s: float) -> None:
        given = self._consumer.out.get(self.recorded.sequence)
        if given is not None:
            given.due = self._consumer.store.clock() + delay_s
            self._consumer.store.change.happened()


class MemoryDeliveries:
    """A member of a durable consumer. It fetches nothing ahead."""

    def __init__(self, consumer: _Consumer) -> None:
        self._consumer = consumer
        self._closed = False

    def __aiter__(self) -> AsyncIterator[Delivery]:
        return self

    async def __anext__(self) -> Delivery:
        while not self._closed:
            if ready := self.take_ready(1):
                return ready[0]
            await self._consumer.store.change.wait(self._consumer.wait_s())
        raise StopAsyncIteration

    def take_ready(self, limit: int) -> list[Delivery]:
        ready: list[Delivery] = []
        while len(ready) < limit and not self._closed:
            delivery = self._consumer.take()
            if delivery is None:
                break
            ready.append(delivery)
        return ready

    async def close(self) -> None:
        self._closed = True
        self._consumer.store.change.happened()


class MemoryBus:
    """Buckets and messages without a server; clients in one loop share one. No value expires."""

    def __init__(self) -> None:
        #: By bucket and key, the value and its revision.
        self._buckets: dict[str, dict[str, tuple[int, bytes | None]]] = {}
        self._revisions = 0
        self._listeners: list[tuple[str, deque[tuple[str, bytes]]]] = []
        self._answerers: dict[str, Answerer] = {}
        self._change = _Change()

    async def kv_put(self, bucket: str, key: str, value: bytes) -> None:
        self._set(bucket, key, value)

    async def kv_get(self, bucket: str, key: str) -> bytes | None:
        return (await self.kv_entry(bucket, key))[1]

    async def kv_create(self, bucket: str, key: str, value: bytes) -> bool:
        revision, found = await self.kv_entry(bucket, key)
        if found is not None:
            return found == value
        return await self.kv_update(bucket, key, value, revision) is not None

    async def kv_entry(self, bucket: str, key: str) -> tuple[int, bytes | None]:
        return self._buckets.get(bucket, {}).get(key, (0, None))

    async def kv_update(self, bucket: str, key: str, value: bytes, revision: int) -> int | None:
        last, found = await self.kv_entry(bucket, key)
        if last == revision:
            return self._set(bucket, key, value)
        return last if found == value and last > revision else None

    async def kv_delete(self, bucket: str, key: str) -> None:
        self._set(bucket, key, None)

    async def kv_all(self, bucket: str) -> dict[str, bytes]:
        entries = self._buckets.get(bucket, {}).items()
        return {key: value for key, (_, value) in entries if value is not None}

    def _set(self, bucket: str, key: str, value: bytes | None) -> int:
        self._revisions += 1
        self._buckets.setdefault(bucket, {})[key] = self._revisions, value
        return self._revisions

    def tell(self, subject: str, body: bytes) -> None:
        for pattern, heard in self._listeners:
            if matches(subject, pattern):
                heard.append((subject, body))
        self._change.happened()

    def listen(self, subject: str) -> AsyncGenerator[tuple[str, bytes], None]:
        heard: deque[tuple[str, bytes]] = deque()
        entry = (subject, heard)
        self._listeners.append(entry)
        return self._messages(entry)

    async def request(self, subject: str, body: bytes, timeout_s: float = 5.0) -> bytes:
        answerer = self._answerers.get(subject)
        if answerer is None:
            raise LogUnavailable(f"nobody answers {subject}")
        return await answerer(subject, body)

    async def answer(self, subject: str, answerer: Answerer, *, queue: str = "") -> MemoryAnswering:
        self._answerers[subject] = answerer
        return MemoryAnswering(self._answerers, subject)

    async def _messages(
        self, entry: tuple[str, deque[tuple[str, bytes]]]
    ) -> AsyncGenerator[tuple[str, bytes], None]:
        try:
            while True:
                while entry[1]:
                    yield entry[1].popleft()
                await self._change.wait()
        finally:
            self._listeners.remove(entry)


class MemoryAnswering:
    """Somebody answers on a `MemoryBus`."""

    def __init__(self, answerers: dict[str, Answerer], subject: str) -> None:
        self._answerers, self._subject = answerers, subject

    async def close(self) -> None:
        self._answerers.pop(self._subject, None)


def _wanted(message: Recorded, subjects: Sequence[str]) -> bool:
    return not subjects or any(_matches(message.subject, pattern) for pattern in subjects)
