"""Durable consumers: every message until it is acknowledged, also over restarts of the bus.

Nothing here acknowledges by itself, and an existing consumer is never changed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

from streams.codec import Recorded
from streams.log import Delivery, LogError, LogUnavailable, PermissionDenied
from streams.pull import Item, Pull
from streams.reading import as_fact, as_message, log_state
from streams.stored import as_stored
from streams.topology import Config, drift
from streams.wire import (
    CONSUMER_EXISTS,
    CONSUMER_NOT_FOUND,
    ApiError,
    Message,
    NoAnswer,
    Wire,
    api,
    create_consumer,
    parse_reply,
    persist,
)

log = logging.getLogger(__name__)

_AHEAD = 256
#: A message that waited longer than this part of its ack wait is left to its redelivery.
_STALE = 0.6
_PAUSE_S = 0.2
#: Who lists consumers waits for the servers that lead them, and longer than for anything else.
_LIST_S = 6.0
#: What is taken in one go is read in one go: no more than this of it, beside the first.
_TAKEN_BYTES = 4 * 1024 * 1024
_SECOND = 1_000_000_000


class JetStreamDelivery:
    """One message of a durable consumer. The acks go without proof: a lost one means again."""

    __slots__ = ("_reply", "_wire", "attempt", "recorded")

    def __init__(self, wire: Wire, reply: str, recorded: Recorded, attempt: int) -> None:
        self._wire, self._reply = wire, reply
        self.recorded = recorded
        self.attempt = attempt

    async def ack(self) -> None:
        await self._say(b"+ACK")

    async def nak(self, delay_s: float = 0.0) -> None:
        delay = f' {{"delay": {round(delay_s * _SECOND)}}}' if delay_s > 0 else ""
        await self._say(b"-NAK" + delay.encode())

    async def in_progress(self) -> None:
        await self._say(b"+WPI")

    async def _say(self, word: bytes) -> None:
        try:
            await self._wire.send(Message(self._reply, word))
        except LogUnavailable as error:
            log.debug("ack of %d lost: %s", self.recorded.sequence, error)


class JetStreamDeliveries:
    """A member of a durable consumer: a background task keeps a request open."""

    def __init__(
        self, wire: Wire, stream: str, config: Config, restored: int, *, make: bool = True
    ) -> None:
        self._wire, self._stream, self._config, self._make = wire, stream, config, make
        self._restored = restored
        self._loop = asyncio.get_running_loop()
        self._stale_s = _STALE * config["ack_wait"] / _SECOND
        ahead = min(config["max_ack_pending"], _AHEAD)
        self._pull = Pull(wire, stream, config["name"], ahead)
        self._closed = False
        self._failure: LogError | None = None
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        await self._pull.open()
        self._task = asyncio.create_task(self._tend(), name=f"consume {self._config['name']}")

    def __aiter__(self) -> AsyncIterator[Delivery]:
        return self

    async def __anext__(self) -> Delivery:
        while not self._closed:
            if ready := self.take_ready(1):
                return ready[0]
            if self._failure is not None:
                raise self._failure
            await self._pull.wait(self._pull.arrival, 60.0)
        raise StopAsyncIteration

    def take_ready(self, limit: int) -> list[Delivery]:
        items, ready, size = self._pull.items, list[Delivery](), 0
        oldest = self._loop.time() - self._stale_s
        while items and len(ready) < limit and size < _TAKEN_BYTES and not self._closed:
            item = items.popleft()
            if item.arrived >= oldest:
                ready.append(self._delivery(item))
                size += len(item.body)
        if self._pull.wanting:
            self._pull.attention.set()
        return ready

    def _delivery(self, item: Item) -> JetStreamDelivery:
        said = parse_reply(item.reply)
        if said.sequence > self._restored:
            fact = as_fact(said, item.subject, item.headers, item.body)
        else:
            fact = as_stored(as_message(said, item.subject, item.headers, item.body)).recorded()
        return JetStreamDelivery(self._wire, item.reply.decode(), fact, said.attempt)

    async def close(self) -> None:
        """Stop, and hand back at once what was sent to us but not taken."""
        if self._closed:
            return
        self._closed = True
        self._pull.arrival.set()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._pull.close(drain=True)
        while self._pull.items and self._wire.connected:
            item = self._pull.items.popleft()
            await self._wire.send(Message(item.reply.decode(), b"-NAK"))

    async def _tend(self) -> None:
        """Keep a request open until closed; a failure is handed to who iterates."""
        pull = self._pull
        try:
            # The client library swallows a cancellation now and then: look at the flag too.
            while not pull.denial and not self._closed:
                try:
                    await self._request_if_wanted(pull)
                except NoAnswer as error:
                    log.debug("consumer %s: %s", self._config["name"], error)
                    pull.gone = True
                await pull.wait(pull.attention)
            self._failure = PermissionDenied(pull.denial)
        except ApiError as error:
            # The log or the consumer can't be had any more, such as where the stream was deleted.
            name = self._config["name"]
            self._failure = LogUnavailable(f"consumer {name} of {self._stream}: {error}")
        except LogError as error:
            self._failure = error
        pull.arrival.set()

    async def _request_if_wanted(self, pull: Pull) -> None:
        if pull.gone:
            await asyncio.sleep(_PAUSE_S)
            await ensure_consumer(self._wire, self._stream, self._config, make=self._make)
        if pull.gone or pull.wanting or pull.silent:
            await pull.request()


async def ensure_consumer(wire: Wire, stream: str, config: Config, *, make: bool = True) -> None:
    """Make the durable consumer if it does not exist; one that differs stays as it is.

    Who may not `make` it does not try: raises NoAnswer until somebody else has.
    """
    name = config["name"]
    try:
        info = await api(wire, f"CONSUMER.INFO.{stream}.{name}")
    except ApiError as error:
        if error.code != CONSUMER_NOT_FOUND:
            raise
        if not make:
            # A node's consumers are made by a coordinator, a moment after the node has joined.
            raise NoAnswer(f"no coordinator has made consumer {name} yet") from error
        try:
            await create_consumer(wire, stream, config)
            return
        except ApiError as late:
            if late.code not in CONSUMER_EXISTS:
                raise
            info = await api(wire, f"CONSUMER.INFO.{stream}.{name}")
    for sentence in drift(config, info["config"]):
        log.warning("consumer %s; it stays as it is", sentence)


async def list_consumers(wire: Wire, stream: str) -> tuple[list[dict[str, Any]], list[str]]:
    """One try of asking for all consumers, as JetStream shows them; and who of them is silent."""
    found, silent = list[dict[str, Any]](), list[str]()
    while True:
        request = {"offset": len(found) + len(silent)}
        page = await api(wire, f"CONSUMER.LIST.{stream}", request, timeout_s=_LIST_S)
        listed, missing = page.get("consumers") or [], page.get("missing") or []
        found += listed
        silent += missing
        if not (listed or missing) or len(found) + len(silent) >= page["total"]:
            return found, silent


async def open_deliveries(
    wire: Wire, stream: str, config: Config, deadline_s: float, *, make: bool = True
) -> JetStreamDeliveries:
    """Join a durable consumer; `make` it where it is not there, or else wait for so long."""
    try:
        # A log that is just being restored brings the consumers it had.
        state = await persist(lambda: log_state(wire, stream), deadline_s)
        await persist(lambda: ensure_consumer(wire, stream, config, make=make), deadline_s)
    except ApiError as error:
        raise LogUnavailable(f"consumer {config['name']} of {stream}: {error}") from error
    deliveries = JetStreamDeliveries(wire, stream, config, state.restored_sequence, make=make)
    await deliveries.open()
    return deliveries
