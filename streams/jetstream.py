"""The log on NATS JetStream, and the bus beside it.

It never decides what to write, and never changes a stream that exists.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, Self, TypeVar, Unpack

from streams import topology
from streams.appending import Appender, find
from streams.codec import STREAM, Fact, Recorded
from streams.connection import DEFAULT_SERVER, Connection, ConnectOptions
from streams.consuming import (
    JetStreamDeliveries,
    ensure_consumer,
    list_consumers,
    open_deliveries,
)
from streams.log import (
    ConsumerState,
    Guard,
    LogError,
    LogState,
    LogUnavailable,
    PermissionDenied,
    Receipt,
    Room,
    SequenceConflict,
    Standing,
)
from streams.reading import Reader, as_fact, as_message, log_state
from streams.services import JetStreamBus
from streams.standing import standing_of
from streams.stored import Stored, as_stored
from streams.wire import (
    CONSUMER_NOT_FOUND,
    STREAM_NAME_IN_USE,
    STREAM_NOT_FOUND,
    ApiError,
    api,
    persist,
)

log = logging.getLogger(__name__)
#: Whoever asks how the log stands is told in time that nobody knows.
_TOLD_S = 10.0
M = TypeVar("M")


class JetStreamLog:
    """The log as a JetStream stream; keeps the contract of `streams.log.Log`."""

    def __init__(
        self,
        connection: Connection,
        *,
        stream: str = STREAM,
        try_s: float = 2.0,
        deadline_s: float = 30.0,
    ) -> None:
        self.connection = connection
        #: Key-value buckets and plain messages over the same connection.
        self.bus = JetStreamBus(connection, deadline_s=deadline_s)
        self._stream, self._deadline_s = stream, deadline_s
        self._deliveries: weakref.WeakSet[JetStreamDeliveries] = weakref.WeakSet()
        self._closed = False
        self.room = Room()
        #: Up to where the log was restored; it never changes while the stream exists.
        self._restored: int | None = None
        self._appender = Appender(
            connection, stream, self._history, try_s=try_s, deadline_s=deadline_s
        )

    @classmethod
    async def connect(
        cls,
        servers: str | Sequence[str] = DEFAULT_SERVER,
        *,
        stream: str = STREAM,
        try_s: float = 2.0,
        deadline_s: float = 30.0,
        **options: Unpack[ConnectOptions],
    ) -> Self:
        """Connect; the stream need not exist yet. See `Connection.connect`."""
        connection = await Connection.connect(servers, **options)
        return cls(connection, stream=stream, try_s=try_s, deadline_s=deadline_s)

    @property
    def connected(self) -> bool:
        """Whether the connection is up now."""
        return self.connection.connected

    async def ensure_topology(
        self, *, replicas: int = 1, max_bytes: int | None = None, **log_options: Any
    ) -> list[str]:
        """Make what is missing, change nothing; a sentence for each field that differs."""
        wanted = topology.streams(replicas=replicas, max_bytes=max_bytes, **log_options)
        sentences: list[str] = []
        for config in wanted:
            existing = await persist(partial(self._ensure, config), self._deadline_s)
            sentences += topology.drift(config, existing)
        for sentence in sentences:
            log.warning("%s", sentence)
        return sentences

    async def _ensure(self, config: topology.Config) -> Mapping[str, Any]:
        name = config["name"]
        wire = self.connection
        try:
            info = await api(wire, f"STREAM.INFO.{name}")
        except ApiError as error:
            if error.code != STREAM_NOT_FOUND:
                raise
            try:
                info = await api(wire, f"STREAM.CREATE.{name}", config)
            except PermissionDenied as denied:
                raise PermissionDenied(
                    f"the bus has no stream {name} yet, and this key may not make it; start a "
                    f"coordinator first, whose key may ({denied})"
                ) from denied
            except ApiError as late:
                if late.code != STREAM_NAME_IN_USE:
                    raise LogUnavailable(f"stream {name} can't be made: {late}") from late
                info = await api(wire, f"STREAM.INFO.{name}")
        found: Mapping[str, Any] = info["config"]
        return found

    async def state(self) -> LogState:
        try:
            return await persist(lambda: log_state(self.connection, self._stream), self._deadline_s)
        except ApiError as error:
            raise LogUnavailable(f"the log {self._stream}: {error}") from error

    async def append(self, facts: Sequence[Fact], guards: Sequence[Guard] = ()) -> Receipt:
        with self.room.asked():
            return await self._append(facts, guards)

    async def _append(self, facts: Sequence[Fact], guards: Sequence[Guard]) -> Receipt:
        try:
            return await self._appender.append(facts, guards)
        except SequenceConflict:
            # What a guard names may have been removed from the log, and then guards as it did.
            first = (await self.state()).first_sequence
            removed = [0 < guard.last_sequence < first for guard in guards]
            if not any(removed):
                raise
        again = [
            Guard(guard.subjects, 0 if gone else guard.last_sequence)
            for guard, gone in zip(guards, removed, strict=True)
        ]
        return await self._appender.append(facts, again)

    async def publish(self, fact: Fact) -> Receipt:
        with self.room.asked():
            return await self._appender.publish(fact)

    async def read(
        self, *, after: int = 0, until: int | None = None, subjects: Sequence[str] = ()
    ) -> AsyncGenerator[list[Recorded], None]:
        reader = Reader(
            self.connection, self._stream, as_fact, Stored.recorded, after, until, subjects
        )
        async with aclosing(self._given(reader)) as batches:
            async for batch in batches:
                yield batch

    async def messages(
        self, *, after: int = 0, until: int | None = None
    ) -> AsyncGenerator[list[Stored], None]:
        reader = Reader(
            self.connection, self._stream, as_message, lambda message: message, after, until
        )
        async with aclosing(self._given(reader)) as batches:
            async for batch in batches:
                yield batch

    async def _given(self, reader: Reader[M]) -> AsyncGenerator[list[M], None]:
        try:
            while (batch := await reader.next()) is not None:
                if batch:
                    yield batch
        except LogUnavailable:
            if not self._closed:
                raise
        finally:
            await reader.close()

    async def _history(self, subject: str) -> AsyncGenerator[list[Recorded], None]:
        end = (await self.state()).last_sequence
        async for batch in self.read(until=end, subjects=[subject]):
            yield batch

    async def get(self, sequence: int) -> Recorded | None:
        return await self._find({"seq": sequence})

    async def last(self, subjects: str) -> Recorded | None:
        return await self._find({"last_by_subj": subjects})

    async def _find(self, request: Mapping[str, object]) -> Recorded | None:
        found = await find(self.connection, self._stream, request, self._deadline_s)
        if found is None:
            return None
        if self._restored is None:
            self._restored = (await self.state()).restored_sequence
        return (as_stored(found) if found.sequence <= self._restored else found).recorded()

    async def consume(
        self,
        durable: str,
        subjects: Sequence[str],
        *,
        ack_wait_s: float,
        max_pending: int,
        new_only: bool = False,
    ) -> JetStreamDeliveries:
        config = topology.durable_consumer(
            durable,
            list(subjects),
            ack_wait_s=ack_wait_s,
            max_pending=max_pending,
            new_only=new_only,
        )
        deliveries = await open_deliveries(self.connection, self._stream, config, self._deadline_s)
        self._deliveries.add(deliveries)
        return deliveries

    async def consumer(self, durable: str) -> ConsumerState | None:
        name = f"CONSUMER.INFO.{self._stream}.{durable}"
        try:
            info = await persist(lambda: api(self.connection, name), self._deadline_s)
        except ApiError as error:
            if error.code == CONSUMER_NOT_FOUND:
                return None
            raise
        return _state_of(info)

    async def consumers(self) -> dict[str, ConsumerState]:
        once = partial(list_consumers, self.connection, self._stream)
        found, _ = await persist(once, min(_TOLD_S, self._deadline_s))
        lasting = (one for one in found if one["config"].get("durable_name"))
        return {one["name"]: _state_of(one) for one in lasting}

    async def standing(self) -> Standing:
        others = [stream["name"] for stream in topology.streams()[1:]]
        once = partial(standing_of, self.connection, self._stream, others)
        try:
            return await persist(once, min(_TOLD_S, self._deadline_s))
        except LogError as error:
            return Standing(problem=str(error))

    async def provide(
        self, durable: str, subjects: Sequence[str], *, ack_wait_s: float, max_pending: int
    ) -> None:
        config = topology.durable_consumer(
            durable, list(subjects), ack_wait_s=ack_wait_s, max_pending=max_pending, new_only=False
        )
        await persist(
            lambda: ensure_consumer(self.connection, self._stream, config), self._deadline_s
        )

    async def join(
        self, durable: str, subjects: Sequence[str], *, ack_wait_s: float, max_pending: int
    ) -> JetStreamDeliveries:
        config = topology.durable_consumer(
            durable, list(subjects), ack_wait_s=ack_wait_s, max_pending=max_pending, new_only=False
        )
        while True:
            try:
                deliveries = await open_deliveries(
                    self.connection, self._stream, config, self._deadline_s, make=False
                )
                break
            except LogUnavailable as error:
                if not self.connection.connected:
                    raise
                log.info("waiting: %s", error)
        self._deliveries.add(deliveries)
        return deliveries

    async def remove_before(self, sequence: int) -> None:
        """Remove all that comes before a sequence, for ever. Raises LogError where it may not be.

        Only `dataplane.audit.bounding` asks for it: what is removed must be proven elsewhere.
        """
        request = {"seq": sequence}
        try:
            await persist(
                lambda: api(self.connection, f"STREAM.PURGE.{self._stream}", request),
                self._deadline_s,
            )
        except ApiError as error:
            raise LogError(f"nothing was removed from the log {self._stream}: {error}") from error

    async def close(self) -> None:
        self._closed = True
        for deliveries in list(self._deliveries):
            await deliveries.close()
        await self.connection.close()


def _state_of(info: Mapping[str, Any]) -> ConsumerState:
    return ConsumerState(
        info["num_pending"], info["num_ack_pending"], info.get("num_redelivered", 0)
    )
