"""Reading the log in order, through consumers that are thrown away at the first doubt.

A reader acknowledges nothing and keeps its own place; whatever happens to the bus, it makes a new
consumer and goes on behind the last fact it gave.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from streams.codec import Recorded, decode
from streams.log import LogError, LogState, LogUnavailable, NoLongerHeld, PermissionDenied
from streams.pull import Pull
from streams.quorum import speaks_for
from streams.stored import Stored, as_stored
from streams.topology import READERS_OF_A_CLIENT, restored_until
from streams.wire import (
    CONSUMER_EXISTS,
    MESSAGE_NOT_FOUND,
    ApiError,
    Delivered,
    Message,
    NoAnswer,
    Wire,
    api,
    create_consumer,
    parse_headers,
    parse_reply,
    subject_of,
)

log = logging.getLogger(__name__)

_AHEAD = 1000
_BATCH = 500
#: What is given at once was read at once: nobody else has a turn meanwhile.
_BATCH_BYTES = 4 * 1024 * 1024
#: A reader that is not iterated for longer than this begins again where it was.
_IDLE_S = 120.0
_PAUSE_S = 0.2
_TAKEN_S = 0.01
#: How often a reader that gets nothing asks the leader whether there is nothing.
_LOOK_S = 1.5
#: Nothing as young as this is ever removed from the log.
_YOUNG_S = 3600.0
_SECOND = 1_000_000_000
M = TypeVar("M")
#: Makes what a reader gives of what came: delivery, subject, headers, body.
Make = Callable[[Delivered, bytes, bytes | None, bytes], M]


async def log_state(wire: Wire, stream: str) -> LogState:
    """One try of asking how far the stream goes. A server that is cut off is no answer."""
    info = await api(wire, f"STREAM.INFO.{stream}")
    if not speaks_for(info):
        raise NoAnswer(f"the server that answers for {stream} hears too few of the others")
    state = info["state"]
    restored_sequence, restored_from = restored_until(info["config"])
    if state["last_seq"] < restored_sequence:
        raise LogUnavailable(
            f"the log {stream} is being restored: it is at {state['last_seq']} of "
            f"{restored_sequence}; if nobody is at it, restore it again and it goes on from there"
        )
    return LogState(
        info["created"],
        max(state["first_seq"], 1),
        state["last_seq"],
        restored_sequence,
        restored_from,
    )


def as_fact(said: Delivered, subject: bytes, headers: bytes | None, body: bytes) -> Recorded:
    """A message that came as the fact it is."""
    return decode(
        said.sequence, said.time_ns / 1e9, subject_of(subject), parse_headers(headers), body
    )


def as_message(said: Delivered, subject: bytes, headers: bytes | None, body: bytes) -> Stored:
    """A message that came as the log keeps it."""
    return Stored(said.sequence, said.time_ns, subject_of(subject), parse_headers(headers), body)


class Reader(Generic[M]):
    """Messages in order through a consumer that is thrown away at the first doubt.

    `make` and `remake` say what is given: the second of a message that was restored.
    """

    def __init__(
        self,
        wire: Wire,
        stream: str,
        make: Make[M],
        remake: Callable[[Stored], M],
        after: int,
        until: int | None,
        subjects: Sequence[str] = (),
    ) -> None:
        self._wire, self._stream = wire, stream
        self._make, self._remake = make, remake
        self._until, self._subjects = until, list(subjects)
        self._position = after
        self._pull: Pull | None = None
        self._consumer = ""
        #: A name that was made free just now.
        self._freed = ""
        self._expected = 1
        self._state: LogState | None = None
        #: Matching messages behind the last one seen, as the server said with it.
        self._pending = 0
        #: A sequence that the leader had when it was last asked, and when to ask it again.
        self._there, self._look_at = 0.0, 0.0
        #: When it last waited for more: all it was to give had been given.
        self._in_time = -math.inf

    async def next(self) -> list[M] | None:
        """What has arrived, perhaps nothing yet; None if all up to `until` has been given."""
        if self._until is not None and self._position >= self._until:
            return None
        pull = self._pull or await self._begin()
        if pull.items:
            batch = self._take(pull)
            if pull.wanting and not pull.gone and self._wire.connected:
                await self._request(pull)
            return batch
        if self._until is not None and self._pending == 0 and await self._passed(self._until):
            return None
        if pull.denial:
            raise PermissionDenied(pull.denial)
        if pull.gone or pull.silent:
            await self.close()
            if self._expected == 1:  # it never worked: don't make consumers as fast as we can
                await asyncio.sleep(_PAUSE_S)
        else:
            if pull.left <= 0:
                await self._request(pull)
            await pull.wait(pull.arrival)
            self._in_time = asyncio.get_running_loop().time()
            if not pull.items and await self._left_behind():
                log.info(
                    "read of %s: nothing comes after %d, though there is more: beginning again",
                    self._stream,
                    self._position,
                )
                await self.close()
        return []

    async def _request(self, pull: Pull) -> None:
        try:
            await pull.request()
        except NoAnswer:
            pull.gone = True

    async def close(self) -> None:
        """Let go of the consumer; the reader may begin again where it is."""
        pull, self._pull = self._pull, None
        if pull is None:
            return
        await pull.close()
        if self._wire.connected:
            name = f"$JS.API.CONSUMER.DELETE.{self._stream}.{self._consumer}"
            with contextlib.suppress(LogUnavailable):
                await self._wire.send(Message(name))

    def _take(self, pull: Pull) -> list[M]:
        batch: list[M] = []
        size = 0
        restored = self._state.restored_sequence if self._state else 0
        items, until = pull.items, self._until
        while items and len(batch) < _BATCH and size < _BATCH_BYTES:
            _, subject, reply, body, headers = items.popleft()
            size += len(body)
            said = parse_reply(reply)
            if said.consumer_sequence != self._expected:
                log.warning(
                    "read of %s: gap after %d, beginning again", self._stream, self._position
                )
                items.clear()
                pull.gone = True
                break
            if not self._subjects and 0 < self._position != said.sequence - 1:
                raise NoLongerHeld(
                    f"the log {self._stream} gives {said.sequence} after {self._position}: what "
                    "lies between is there no more"
                )
            self._expected += 1
            self._pending = said.pending
            self._position = said.sequence
            if until is not None and said.sequence > until:
                break
            if said.sequence > restored:
                batch.append(self._make(said, subject, headers, body))
            else:
                batch.append(self._remake(as_stored(as_message(said, subject, headers, body))))
        return batch

    async def _begin(self) -> Pull:
        """A new consumer from where we are, however long the bus takes to come back."""
        pause, taken = 0.05, 0
        while True:
            try:
                return await self._open()
            except NoAnswer as error:
                log.debug("read of %s: %s", self._stream, error)
            except ApiError as error:
                if error.code in CONSUMER_EXISTS:
                    log.debug("read of %s: another has %s", self._stream, self._consumer)
                    taken += 1
                    if taken % READERS_OF_A_CLIENT == 0:
                        await self._free(self._consumer)
                    else:
                        await asyncio.sleep(min(1.0, taken * _TAKEN_S))
                    continue
                raise LogUnavailable(f"the log {self._stream} can't be read: {error}") from error
            await asyncio.sleep(pause)
            pause = min(2 * pause, 1.0)

    async def _free(self, name: str) -> None:
        """All names are taken, and a client that is killed often leaves them so: take this one.

        Should anybody still read by it, he makes a new consumer and goes on where he was.
        """
        log.info("read of %s: all names are taken, taking over %s", self._stream, name)
        with contextlib.suppress(LogError):
            await api(self._wire, f"CONSUMER.DELETE.{self._stream}.{name}")
        self._freed = name

    async def _open(self) -> Pull:
        state = await log_state(self._wire, self._stream)
        self._check_same(state)
        self._check_held(state)
        self._consumer, self._freed = self._freed or self._wire.reader(), ""
        config: dict[str, Any] = {
            "name": self._consumer,
            # Two readers of one name are never taken for one: the second is refused.
            "metadata": {"reader": self._wire.token()},
            "ack_policy": "none",
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": self._position + 1,
            "replay_policy": "instant",
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": round(_IDLE_S * _SECOND),
        }
        if self._subjects:
            config["filter_subjects"] = self._subjects
        pull = Pull(self._wire, self._stream, self._consumer, _AHEAD)
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

    def _check_held(self, state: LogState) -> None:
        """To read on where what comes next was removed would skip facts."""
        # What a filter lets through may be far behind; what came lately can't have been removed.
        now = asyncio.get_running_loop().time()
        lately = self._subjects and now - self._in_time < _YOUNG_S
        if 0 < self._position < state.first_sequence - 1 and not lately:
            raise NoLongerHeld(
                f"the log {self._stream} begins at {state.first_sequence}: what follows "
                f"{self._position} was removed from it, and is in the archive"
            )

    async def _passed(self, until: int) -> bool:
        """Whether nothing up to `until` can still come; asked of the stream's leader.

        The consumer's own count won't do: in a cluster it may stand on a replica that is behind.
        """
        try:
            if (await log_state(self._wire, self._stream)).last_sequence < until:
                return False
            for pattern in self._subjects or [">"]:
                request = {"seq": self._position + 1, "next_by_subj": pattern}
                if await self._sequence(request) <= until:
                    return False
        except (NoAnswer, ApiError):
            return False
        return True

    async def _left_behind(self) -> bool:
        """Whether the leader has had more for a while than this consumer gives.

        In a cluster it may stand on a replica that is behind and, being mended, stays so for long.
        """
        now = asyncio.get_running_loop().time()
        if now < self._look_at:
            return False
        self._look_at = now + _LOOK_S
        before = self._there
        try:
            self._there = await self._next_at_the_leader()
        except LogError:
            return False
        return self._position < before < math.inf

    async def _next_at_the_leader(self) -> float:
        """A sequence that the leader has and that is to be given; infinity if there is none."""
        if not self._subjects:
            last = (await log_state(self._wire, self._stream)).last_sequence
            return last if last > self._position else math.inf
        wanted = [{"seq": self._position + 1, "next_by_subj": one} for one in self._subjects]
        return min([await self._sequence(request) for request in wanted])

    async def _sequence(self, request: dict[str, Any]) -> float:
        """Where the leader finds a message; infinity if it finds none."""
        try:
            found = await api(self._wire, f"STREAM.MSG.GET.{self._stream}", request)
        except ApiError as error:
            if error.code == MESSAGE_NOT_FOUND:
                return math.inf
            raise
        sequence: int = found["message"]["seq"]
        return sequence
