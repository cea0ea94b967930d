"""The contract of a log: an append-only, totally ordered list of facts that several may write.

Two logs keep it, `streams.memory` and `streams.jetstream`; one suite, ``tests/contract/test_log``,
holds both to it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import msgspec

from streams.codec import Fact, Recorded
from streams.micro import Service
from streams.stored import Stored


class LogError(Exception):
    """Base of all that a log may raise."""


class SequenceConflict(LogError):
    """A guard did not hold: somebody wrote there first. Read what they wrote and decide again."""


class DuplicateFact(LogError):
    """A fact of an atomic append is in the log already, by id; nothing of the batch was stored."""


class LogUnavailable(LogError):
    """The log did not answer in time. The append may or may not have happened; ask again."""


class LogFull(LogError):
    """The log refuses to grow. Nothing was stored; make room, then ask again."""


class NoLongerHeld(LogError):
    """What was asked for was removed from the log, which begins later now. It is in the archive."""


class PermissionDenied(LogError):
    """The bus refused this client; the text is the server's. Asking again will not help."""


class LogState(msgspec.Struct, frozen=True):
    """Which log this is and how far it goes."""

    #: When the stream was made; two logs never share it.
    created: str
    first_sequence: int
    last_sequence: int
    #: Up to here it was restored from an archive; 0 if it never was.
    restored_sequence: int = 0
    #: Of the log it was restored from: its `origin`, or else when that was made.
    restored_from: str = ""

    @property
    def origin(self) -> str:
        """What a log and its restored copies have in common."""
        return self.restored_from or self.created


class Guard(msgspec.Struct, frozen=True):
    """A condition of an append: the last message under `subjects` has this sequence (0: none)."""

    subjects: str
    last_sequence: int


class Receipt(msgspec.Struct, frozen=True):
    """The log has it. `duplicate` if it had it before, by id."""

    sequence: int
    duplicate: bool = False


class Standing(msgspec.Struct, frozen=True):
    """On how many servers the log stands, with all that is needed to use it."""

    #: How many servers are to have each part.
    replicas: int = 1
    #: How many have it now, of each part that too few have: a stream or a durable consumer.
    short: dict[str, int] = {}
    #: Servers that are away, or not up to date.
    behind: tuple[str, ...] = ()
    #: What the log's messages take, and what they may; 0: as much as there is room for.
    size_bytes: int = 0
    limit_bytes: int = 0
    #: Why all that is not known; "" where it is.
    problem: str = ""
    #: How long no heartbeat was stored though some are there, by the bus's own clock.
    quiet_s: float = 0.0


class ConsumerState(msgspec.Struct, frozen=True):
    """How far a durable consumer is."""

    #: Messages it has not given out yet.
    waiting: int
    #: Given out and not acknowledged, and how many of those more than once.
    unacknowledged: int
    redelivered: int


class Delivery(Protocol):
    """One message given to a durable consumer, until it is acknowledged."""

    recorded: Recorded
    #: Counts from 1.
    attempt: int

    async def ack(self) -> None:
        """It is dealt with. An ack may be lost; then the message comes again."""

    async def nak(self, delay_s: float = 0.0) -> None:
        """Deliver it again, not before `delay_s` has passed."""

    async def in_progress(self) -> None:
        """Still at it: restart the ack wait. Send it every third of the wait."""


class Deliveries(Protocol):
    """A durable consumer's messages. Iterate in one task; ack from any.

    Order is the log's, but for redeliveries. It survives restarts of the bus by itself and ends
    only by `close`. Messages come at least once.
    """

    def __aiter__(self) -> AsyncIterator[Delivery]: ...

    def take_ready(self, limit: int) -> list[Delivery]:
        """What has arrived already, at most `limit`, without waiting."""

    async def close(self) -> None:
        """Stop pulling; what is not acknowledged will be delivered to somebody else."""


class ReadingLog(Protocol):
    """A log that can be read and nothing else: a live one, an archive, or an exported file.

    What only looks takes this, so that it can't write. Facts are numbered without gaps. All
    methods may be called concurrently, and raise `LogError`s only.
    """

    async def state(self) -> LogState:
        """Which log this is and how far it goes."""

    def read(
        self, *, after: int = 0, until: int | None = None, subjects: Sequence[str] = ()
    ) -> AsyncGenerator[list[Recorded], None]:
        """Facts with a sequence above `after`, in order, none left out, in batches.

        With 0 it begins where the log does. Raises NoLongerHeld where what follows any other
        `after` was removed from the log: that is never passed over.

        Ends once `until` is passed or reached; without it, it waits for more and never ends, but
        for a log that can't grow, which has an end. `subjects` are NATS filters; empty means all.
        """

    async def get(self, sequence: int) -> Recorded | None:
        """The message with this sequence; None if the log does not hold it."""

    async def close(self) -> None:
        """Let go of what it reads from. Reads end."""


class StoredLog(ReadingLog, Protocol):
    """A log whose messages can be had as they are kept: what can be archived and exported."""

    def messages(
        self, *, after: int = 0, until: int | None = None
    ) -> AsyncGenerator[list[Stored], None]:
        """As `read`, undecoded and unfiltered."""


class Room:
    """Whether a log has room, as those found who appended to it last."""

    def __init__(self) -> None:
        #: What it said when it refused to grow; "" since it took something again.
        self.full = ""

    @contextmanager
    def asked(self) -> Iterator[None]:
        """Around each append."""
        try:
            yield
        except LogFull as error:
            self.full = f"the log is full: {error}"
            raise
        self.full = ""


class Log(ReadingLog, Protocol):
    """An append-only list of facts, numbered from 1 without gaps by the log itself.

    All methods may be called concurrently. They raise `LogError`s only, but for ValueError where
    an append makes no sense or a fact can't be encoded.
    """

    @property
    def room(self) -> Room:
        """What those found who appended through this."""

    async def append(self, facts: Sequence[Fact], guards: Sequence[Guard] = ()) -> Receipt:
        """Append all facts, in order and next to each other, or none of them.

        At most 1,000 facts. Each guard is checked at the moment of the append; each must cover the
        subject of one of the facts. Raises SequenceConflict or DuplicateFact, and then nothing
        was stored; LogUnavailable, and then it is unknown: a second call with the same facts and
        guards finds out, as it can't store them twice.
        """

    async def publish(self, fact: Fact) -> Receipt:
        """Append one fact without a condition; the same id twice is stored once (within days)."""

    async def last(self, subjects: str) -> Recorded | None:
        """The newest message under a filter, as the log's leader sees it."""

    async def consume(
        self,
        durable: str,
        subjects: Sequence[str],
        *,
        ack_wait_s: float,
        max_pending: int,
        new_only: bool = False,
    ) -> Deliveries:
        """Join, or make, the durable consumer `durable`; several callers share its messages.

        A message that isn't acknowledged within `ack_wait_s` comes again, without limit. At most
        `max_pending` are out at once. A new consumer begins at the log's start, or with
        `new_only` behind its end.
        """

    async def consumer(self, durable: str) -> ConsumerState | None:
        """How far the durable consumer `durable` is; None if there is none."""

    async def consumers(self) -> dict[str, ConsumerState]:
        """How far each durable consumer is."""

    async def standing(self) -> Standing:
        """Whether every part of the log is on as many servers as it is to be; never raises.

        While it is not, another server that is stopped may stop everything.
        """

    async def ensure_topology(self, *, replicas: int = 1, bounded: bool = False) -> list[str]:
        """Make streams and buckets that are not there; a sentence for each field that differs.

        From a log that is made `bounded` its beginning may be removed later, from others never.
        """

    async def provide(
        self, durable: str, subjects: Sequence[str], *, ack_wait_s: float, max_pending: int
    ) -> None:
        """Make a durable consumer for somebody who may only join it; harmless if it is there."""

    async def join(
        self, durable: str, subjects: Sequence[str], *, ack_wait_s: float, max_pending: int
    ) -> Deliveries:
        """`consume` what somebody else provides: never made here, waited for without end."""

    async def close(self) -> None:
        """Let go of the bus. Deliveries and reads end."""


class Bus(Protocol):
    """What the bus does besides keeping the log: small shared values, and words nobody keeps."""

    async def kv_put(self, bucket: str, key: str, value: bytes) -> None:
        """Set a value."""

    async def kv_get(self, bucket: str, key: str) -> bytes | None:
        """A value; None if there is none."""

    async def kv_create(self, bucket: str, key: str, value: bytes) -> bool:
        """Set a value if there is none; whether it was set."""

    async def kv_entry(self, bucket: str, key: str) -> tuple[int, bytes | None]:
        """A value and its revision; the revision is 0 for a key that never had a value."""

    async def kv_update(self, bucket: str, key: str, value: bytes, revision: int) -> int | None:
        """Set a value whose revision is still `revision`; the new one, None if it is not.

        A value never written before may be written twice by one call, and is taken for one.
        """

    async def kv_delete(self, bucket: str, key: str) -> None:
        """Take a value away; harmless if there is none."""

    async def kv_all(self, bucket: str) -> dict[str, bytes]:
        """All values of a bucket by key."""

    def tell(self, subject: str, body: bytes) -> None:
        """Say something to whoever listens now. Never waits, never fails; it may be lost."""

    def listen(self, subject: str) -> AsyncGenerator[tuple[str, bytes], None]:
        """What is told under a subject from now on."""

    async def request(self, subject: str, body: bytes, timeout_s: float = 5.0) -> bytes:
        """Ask whoever answers there. Raises a `LogError` if nobody does in time."""

    async def answer(
        self,
        subject: str,
        answerer: Callable[[str, bytes], Awaitable[bytes]],
        *,
        queue: str = "",
    ) -> Answering:
        """Answer what is asked under a subject, several at a time, until the result is closed.

        Of those that give the same `queue` one gets each question.
        """

    async def serve(self, service: Service) -> Answering:
        """Answer a service's questions until the result is closed."""


class Answering(Protocol):
    """Somebody answers; `close` ends it."""

    async def close(self) -> None: ...
