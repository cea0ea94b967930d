"""Taking messages from a pull consumer: our own loop, one open request at a time.

The client library's `fetch` makes a task per message and hangs over a restart of the server; this
takes messages as they come and notices silence. What to do about silence, it leaves to who reads
(`streams.reading`) or consumes (`streams.consuming`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import NamedTuple

import msgspec

from streams.wire import Message, Subscription, Wire

_HEARTBEAT_S = 0.5
_SILENCE_S = 3 * _HEARTBEAT_S
_EXPIRES_S = 10.0
#: At most this much is under way to us at once, whatever the number of messages.
_MAX_BYTES = 16 * 1024 * 1024
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

    async def close(self, *, drain: bool = False) -> None:
        """Listen no more; with `drain` what is under way to us still comes to `items`."""
        self._wire.unwatch(self)
        if self._subscription is not None:
            await (self._subscription.drain() if drain else self._subscription.close())

    async def request(self) -> None:
        """Ask for the next batch. An answer to an earlier request no longer counts."""
        await self._wire.online(_SILENCE_S)
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
