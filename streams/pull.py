"""Reading and consuming: our own pull loop, one open request at a time.

The client library's `fetch` makes a task per message and hangs over a restart of the server; this
takes messages as they come, notices silence, and begins again where it was. It never acknowledges
anything by itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

import msgspec

from streams.codec import Recorded, decode
from streams.log import Delivery, LogError, LogState, LogUnavailable, PermissionDenied
from streams.topology import Config, drift
from streams.wire import (
    CONSUMER_EXISTS,
    CONSUMER_NOT_FOUND,
    ApiError,
    Message,
    NoAnswer,
    Subscription,
    Wire,
    api,
    parse_headers,
    parse_reply,
    persist,
)

log = logging.getLogger(__name__)

_HEARTBEAT_S = 0.5
_SILENCE_S = 3 * _HEARTBEAT_S
_EXPIRES_S = 10.0
#: At most this much is under way to us at once, whatever the number of messages.
_MAX_BYTES = 16 * 1024 * 1024
_READ_AHEAD = 1000
_READ_BATCH = 500
#: A reader that is not iterated for longer than this begins again where it was.
_READER_IDLE_S = 120.0
_CONSUME_AHEAD = 256
#: A message that waited longer than this part of its ack wait is left to its redelivery.
_STALE = 0.6
_SECOND = 1_000_000_000


class Item(NamedTuple):
    """A message as it came in."""

    arrived: float
    subject: bytes
    reply: bytes
    body: bytes
    headers: bytes | None


class Pull:
    """One consumer's messages as they arrive, and whether somebody is still sending them."""

    def __init__(self, wire: Wire, stream: str, consumer: str, batch: int) -> None:
        self._wire = wire
        self._loop = asyncio.get_running_loop()
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._inbox = wire.inbox()
        self._request = b""
        self._serial = 0
        self._heard = self._loop.time()
        self._subscription: Subscription | None = None
        self.batch = batch
        self.items: deque[Item] = deque()
        #: How many messages the open request may still bring.
        self.left = 0
        #: The consumer does not exist any more, as far as can be told.
        self.gone = False
        self.denial = ""
        #: Something for who takes messages; something for who keeps them coming.
        self.arrival, self.attention = asyncio.Event(), asyncio.Event()

    async def open(self) -> None:
        self._subscription = await self._wire.subscribe(f"{self._inbox}.*", self._on_message)
        self._wire.watch(self)

    async def close(self) -> None:
        self._wire.unwatch(self)
        if self._subscription is not None:
            await self._subscription.close()

    async def request(self) -> None:
        """Ask for the next batch. An answer to an earlier request no longer counts."""
        await self._wire.online(_EXPIRES_S)
        self._serial += 1
        reply = f"{self._inbox}.{self._serial}"
        self._request = reply.encode()
        self.left, self.gone = self.batch, False
        self._heard = self._loop.time()
        body = {
            "batch": self.batch,
            "max_bytes": _MAX_BYTES,
            "expires": round(_EXPIRES_S * _SECOND),
            "idle_heartbeat": round(_HEARTBEAT_S * _SECOND),
        }
        await self._wire.send(Message(self._next, msgspec.json.encode(body)), reply=reply)

    @property
    def wanting(self) -> bool:
        """Whether it is time for another request."""
        return self.left <= 0 and len(self.items) <= self.batch // 2

    @property
    def silent(self) -> bool:
        """Whether the open request has died: not even a heartbeat came."""
        return self.left > 0 and self._loop.time() - self._heard > _SILENCE_S

    def _on_message(self, subject: bytes, reply: bytes, body: bytes, headers: bytes | None) -> None:
        if headers is not None and headers.startswith(b"NATS/1.0 "):
            if subject == self._request:
                self._on_status(headers)
            return
        self._heard = self._loop.time()
        self.left -= 1
        self.items.append(Item(self._heard, subject, reply, body, headers))
        self.arrival.set()
        if self.left <= 0:
            self.attention.set()

    def _on_status(self, headers: bytes) -> None:
        self._heard = self._loop.time()
        if headers.startswith(b"NATS/1.0 100"):
            return
        # 408 and most 409 say that this request is over; 503 that nobody serves the consumer.
        self.left = 0
        self.gone = headers.startswith(b"NATS/1.0 503") or b"Consumer Deleted" in headers
        self._call()

    def reconnected(self) -> None:
        """The request died with the connection: don't wait for the silence to tell."""
        self.left, self._heard = 1, self._loop.time() - 2 * _SILENCE_S
        self._call()

    def denied(self, subject: str, text: str) -> None:
        """Ours if it names our request or our inbox."""
        if subject == self._next.lower() or subject.startswith(self._inbox.lower()):
            self.denial = text
            self._call()

    def _call(self) -> None:
        self.arrival.set()
        self.attention.set()

    async def wait(self, event: asyncio.Event, timeout_s: float = _HEARTBEAT_S) -> None:
        """Until `event`, or for so long; the event is spent."""
        try:
            async with asyncio.timeout(timeout_s):
                await event.wait()
        except TimeoutError:
            pass
        event.clear()


async def log_state(wire: Wire, stream: str) -> LogState:
    """One try of asking how far the stream goes."""
    info = await api(wire, f"STREAM.INFO.{stream}")
    state = info["state"]
    return LogState(info["created"], max(state["first_seq"], 1), state["last_seq"])


class Reader:
    """Facts in order through a consumer that is thrown away at the first doubt."""

    def __init__(
        self, wire: Wire, stream: str, after: int, until: int | None, subjects: Sequence[str]
    ) -> None:
        self._wire, self._stream = wire, stream
        self._until, self._subjects = until, list(subjects)
        self._position = after
        self._pull: Pull | None = None
        self._consumer = ""
        self._expected = 1
        self._state: LogState | None = None
        #: Matching messages behind the last one seen, as the server said with it.
        self._pending = 0

    async def next(self) -> list[Recorded] | None:
        """What has arrived, perhaps nothing yet; None if all up to `until` has been given."""
        if self._until is not None and self._position >= self._until:
            return None
        pull = self._pull or await self._begin()
        if pull.items:
            batch = self._take(pull)
            if pull.wanting and not pull.gone:
                await pull.request()
            return batch
        if self._until is not None and self._pending == 0 and await self._passed(self._until):
            return None
        if pull.denial:
            raise PermissionDenied(pull.denial)
        if pull.gone or pull.silent:
            await self.close()
        else:
            if pull.left <= 0:
                await pull.request()
            await pull.wait(pull.arrival)
        return []

    async def close(self) -> None:
        """Let go of the consumer; the reader may begin again where it is."""
        pull, self._pull = self._pull, None
        if pull is None:
            return
        await pull.close()
        if self._wire.connected:
            name = f"$JS.API.CONSUMER.DELETE.{self._stream}.{self._consumer}"
            await self._wire.send(Message(name))

    def _take(self, pull: Pull) -> list[Recorded]:
        batch: list[Recorded] = []
        items, until = pull.items, self._until
        while items and len(batch) < _READ_BATCH:
            _, subject, reply, body, headers = items.popleft()
            said = parse_reply(reply)
            if said.consumer_sequence != self._expected:
                log.warning(
                    "read of %s: gap after %d, beginning again", self._stream, self._position
                )
                items.clear()
                pull.gone = True
                break
            self._expected += 1
            self._pending = said.pending
            self._position = said.sequence
            if until is not None and said.sequence > until:
                break
            batch.append(
                decode(said.sequence, said.time, subject.decode(), parse_headers(headers), body)
            )
        return batch

    async def _begin(self) -> Pull:
        """A new consumer from where we are, however long the bus takes to come back."""
        pause = 0.05
        while True:
            try:
                return await self._open()
            except NoAnswer as error:
                log.debug("read of %s: %s", self._stream, error)
            except ApiError as error:
                raise LogUnavailable(f"the log {self._stream} can't be read: {error}") from error
            await asyncio.sleep(pause)
            pause = min(2 * pause, 1.0)

    async def _open(self) -> Pull:
        state = await log_state(self._wire, self._stream)
        self._check_same(state)
        self._consumer = f"read_{self._wire.token()}"
        config: dict[str, Any] = {
            "name": self._consumer,
            "ack_policy": "none",
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": self._position + 1,
            "replay_policy": "instant",
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": round(_READER_IDLE_S * _SECOND),
        }
        if self._subjects:
            config["filter_subjects"] = self._subjects
        pull = Pull(self._wire, self._stream, self._consumer, _READ_AHEAD)
        await pull.open()
        try:
            made = await create_consumer(self._wire, self._stream, config)
            self._expected, self._pending = 1, made["num_pending"]
            await pull.request()
        except BaseException:
            await pull.close()
            raise
        self._state, self._pull = state, pull
        return pull

    def _check_same(self, state: LogState) -> None:
        """A log that lost its end counts again from there; to read on would skip facts."""
        if self._state is None:
            return
        if state.created != self._state.created or state.last_sequence < self._position:
            raise LogUnavailable(
                f"the log {self._stream} is not the one that was read up to {self._position}: made "
                f"{state.created}, it ends at {state.last_sequence}; read it again from its start"
            )

    async def _passed(self, until: int) -> bool:
        """Whether nothing up to `until` can still come, when the last we saw had none behind it."""
        if self._state is not None and self._state.last_sequence >= until:
            return True
        try:
            state = await log_state(self._wire, self._stream)
            if state.last_sequence < until:
                return False
            info = await api(self._wire, f"CONSUMER.INFO.{self._stream}.{self._consumer}")
        except (NoAnswer, ApiError):
            return False
        given: int = info["delivered"]["consumer_seq"]
        pending: int = info["num_pending"]
        return given == self._expected - 1 and pending == 0


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

    def __init__(self, wire: Wire, stream: str, config: Config) -> None:
        self._wire, self._stream, self._config = wire, stream, config
        self._loop = asyncio.get_running_loop()
        self._stale_s = _STALE * config["ack_wait"] / _SECOND
        ahead = min(config["max_ack_pending"], _CONSUME_AHEAD)
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
        items, ready = self._pull.items, list[Delivery]()
        oldest = self._loop.time() - self._stale_s
        while items and len(ready) < limit and not self._closed:
            item = items.popleft()
            if item.arrived >= oldest:
                ready.append(self._delivery(item))
        if self._pull.wanting:
            self._pull.attention.set()
        return ready

    def _delivery(self, item: Item) -> JetStreamDelivery:
        said = parse_reply(item.reply)
        headers = parse_headers(item.headers)
        fact = decode(said.sequence, said.time, item.subject.decode(), headers, item.body)
        return JetStreamDelivery(self._wire, item.reply.decode(), fact, said.attempt)

    async def close(self) -> None:
        """Stop, and hand back at once what was fetched but not taken."""
        if self._closed:
            return
        self._closed = True
        self._pull.arrival.set()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._pull.close()
        while self._pull.items and self._wire.connected:
            item = self._pull.items.popleft()
            await self._wire.send(Message(item.reply.decode(), b"-NAK"))

    async def _tend(self) -> None:
        """Keep a request open until closed; a failure is handed to who iterates."""
        pull, pause = self._pull, 0.05
        while not pull.denial:
            try:
                if pull.gone:
                    await asyncio.sleep(pause)
                    await ensure_consumer(self._wire, self._stream, self._config)
                    await pull.request()
                elif pull.wanting or pull.silent:
                    await pull.request()
                pause = min(2 * pause, 1.0) if pull.gone else 0.05
            except NoAnswer as error:
                pull.gone, pause = True, min(2 * pause, 1.0)
                log.debug("consumer %s: %s", self._config["name"], error)
            except LogError as error:
                self._failure = error
                break
            await pull.wait(pull.attention)
        self._failure = self._failure or PermissionDenied(pull.denial)
        pull.arrival.set()


async def ensure_consumer(wire: Wire, stream: str, config: Config) -> None:
    """Make the durable consumer if it does not exist; one that differs stays as it is."""
    name = config["name"]
    try:
        info = await api(wire, f"CONSUMER.INFO.{stream}.{name}")
    except ApiError as error:
        if error.code != CONSUMER_NOT_FOUND:
            raise
        try:
            await create_consumer(wire, stream, config)
            return
        except ApiError as late:
            if late.code not in CONSUMER_EXISTS:
                raise
            info = await api(wire, f"CONSUMER.INFO.{stream}.{name}")
    for sentence in drift(config, info["config"]):
        log.warning("consumer %s; it stays as it is", sentence)


async def create_consumer(wire: Wire, stream: str, config: Config) -> dict[str, Any]:
    """Create and never update: an existing consumer with another configuration is an error."""
    request = {"stream_name": stream, "config": config, "action": "create"}
    return await api(wire, f"CONSUMER.CREATE.{stream}.{config['name']}", request)


async def open_deliveries(
    wire: Wire, stream: str, config: Config, deadline_s: float
) -> JetStreamDeliveries:
    """Join, or make, a durable consumer."""
    try:
        await persist(lambda: ensure_consumer(wire, stream, config), deadline_s)
    except ApiError as error:
        raise LogUnavailable(f"consumer {config['name']} of {stream}: {error}") from error
    deliveries = JetStreamDeliveries(wire, stream, config)
    await deliveries.open()
    return deliveries
