"""What the JetStream log needs of a connection, and JetStream's own words: headers, errors, times.

It knows no client library. What goes wrong comes in three kinds: nobody answered (`NoAnswer`: ask
again), the server said no (`ApiError`), or this client may not (`PermissionDenied`).
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec

from streams.log import LogError, LogFull, LogUnavailable
from streams.micro import Service
from streams.stored import Stored

T = TypeVar("T")
#: Called with subject, reply subject, body and raw headers, in the reading task: must be quick
#: and must never raise.
Handler = Callable[[bytes, bytes, bytes, bytes | None], None]

WRONG_LAST_SEQUENCE = 10071
DUPLICATE_IN_BATCH = 10201
STREAM_NOT_FOUND = 10059
STREAM_NAME_IN_USE = 10058
CONSUMER_NOT_FOUND = 10014
CONSUMER_EXISTS = frozenset({10013, 10148})
MESSAGE_NOT_FOUND = 10037
#: Nothing was stored and the same call may succeed soon, or be refused for good: batch incomplete,
#: too many batches, a replicated stream that is still busy with the guarded subject or with an
#: earlier try of the same message; or a cluster whose servers have not all found each other yet,
#: or are moving a stream or consumer to another.
_RETRY = frozenset({10005, 10118, 10119, 10158, 10164, 10176, 10210})
#: Limits of stream, account or server; and the store itself, which may say why in words.
_FULL = frozenset({10002, 10023, 10028, 10047, 10077})


class NoAnswer(LogUnavailable):
    """Nobody answered one try in time; whether it was heard is unknown."""


class ApiError(LogError):
    """JetStream understood and refused; `code` is from its list (``nats errors lookup``)."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{text} ({code})")
        self.code = code


class Message(NamedTuple):
    """Something to publish."""

    subject: str
    body: bytes = b""
    headers: Mapping[str, str] | None = None


class Answer(NamedTuple):
    """What came back."""

    headers: dict[str, str]
    body: bytes


class Subscription(Protocol):
    """Messages on their way to a handler, until closed."""

    async def close(self) -> None:
        """No message is handed over after this. Never raises."""

    async def drain(self) -> None:
        """Close it, but hand over what the server has sent already. Never raises."""


class Wire(Protocol):
    """A connection that restores itself. All methods raise `LogError`s only."""

    @property
    def connected(self) -> bool:
        """Whether it is up now."""

    @property
    def alive(self) -> bool:
        """Whether it is up or will be again; False once it is closed."""

    def token(self) -> str:
        """A name nobody else has; fit for a subject and for a consumer."""

    def inbox(self) -> str:
        """A new prefix of subjects that only this client listens to."""

    def reader(self) -> str:
        """A name for a consumer that reads the log; somebody may have it already: ask again."""

    async def online(self, timeout_s: float) -> None:
        """Wait until it is up; NoAnswer if that takes too long."""

    async def send(self, message: Message, *, reply: str = "") -> None:
        """Hand it to the server, if it comes to that: no answer, no proof."""

    async def ask(self, *messages: Message, timeout_s: float = 2.0) -> Answer:
        """Send all, in order, and wait for the answer to the last; once, without repetition."""

    async def subscribe(self, subject: str, handler: Handler, *, queue: str = "") -> Subscription:
        """Give what is published under `subject` to `handler`; of a queue one member gets it."""

    async def serve(self, service: Service) -> Subscription:
        """Answer a service's questions, until closed; of a queue one member gets each."""

    async def flush(self) -> None:
        """Wait until the server has seen all that was sent."""

    def watch(self, watcher: Watcher) -> None:
        """Tell `watcher` of reconnects, denials and the end, until `unwatch`."""

    def unwatch(self, watcher: Watcher) -> None:
        """Tell it no more."""


class Watcher(Protocol):
    """Somebody who must know what happens to the connection."""

    def reconnected(self) -> None:
        """It was down and is up, or is closed: what was under way is lost."""

    def denied(self, subject: str, text: str) -> None:
        """The server refused `subject` (which it names in lower case)."""


async def persist(once: Callable[[], Awaitable[T]], deadline_s: float) -> T:
    """Repeat `once` while nobody answers, for so long; then LogUnavailable with the last reason."""
    loop = asyncio.get_running_loop()
    end, pause = loop.time() + deadline_s, 0.05
    while True:
        try:
            return await once()
        except NoAnswer as error:
            if loop.time() + pause >= end:
                raise LogUnavailable(f"no answer within {deadline_s:g} s: {error}") from error
        await asyncio.sleep(pause)
        pause = min(2 * pause, 0.5)


async def api(
    wire: Wire, name: str, request: Mapping[str, Any] | None = None, *, timeout_s: float = 2.0
) -> dict[str, Any]:
    """One try of one call of ``$JS.API``."""
    body = msgspec.json.encode(request) if request is not None else b""
    answer = await wire.ask(Message(f"$JS.API.{name}", body), timeout_s=timeout_s)
    return accepted(answer.body)


async def create_consumer(wire: Wire, stream: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Create and never update: an existing consumer with another configuration is an error."""
    request = {"stream_name": stream, "config": config, "action": "create"}
    return await api(wire, f"CONSUMER.CREATE.{stream}.{config['name']}", request)


def accepted(body: bytes) -> dict[str, Any]:
    """JetStream's answer, if it is not an error; else that error as the exception it means."""
    said: dict[str, Any] = msgspec.json.decode(body) if body else {}
    error = said.get("error")
    if error is None:
        return said
    code, text = error.get("err_code", 0), error.get("description", "refused")
    if code in _FULL:
        raise LogFull(f"{text} ({code}): raise the stream's max_bytes or give the bus more disk")
    if code in _RETRY or error.get("code") in (429, 503):
        raise NoAnswer(f"{text} ({code})")
    raise ApiError(code, text)


def parse_headers(raw: bytes | None) -> dict[str, str]:
    """A NATS header block as a dict; of a repeated name the last value."""
    if not raw:
        return {}
    lines = raw.decode("utf-8", "replace").split("\r\n")[1:-2]
    try:
        return dict([line.split(": ", 1) for line in lines])
    except ValueError:  # somebody writes ``name:value``
        pairs = (line.partition(":") for line in lines if ":" in line)
        return {name.strip(): value.strip() for name, _, value in pairs}


class Delivered(NamedTuple):
    """What the reply subject of a consumer's message says."""

    attempt: int
    sequence: int
    consumer_sequence: int
    #: Nanoseconds since 1970.
    time_ns: int
    #: How many more the consumer had for us at that moment.
    pending: int


def parse_reply(reply: bytes) -> Delivered:
    """Nine tokens, or from newer servers at least eleven: domain and account stand in front."""
    tokens = reply.split(b".")
    at = 4 if len(tokens) < 11 else 6
    attempt, sequence, consumer_sequence, nanoseconds, pending = tokens[at : at + 5]
    return Delivered(
        int(attempt), int(sequence), int(consumer_sequence), int(nanoseconds), int(pending)
    )


def gotten(message: Mapping[str, Any]) -> Stored:
    """A message as ``STREAM.MSG.GET`` gives it."""
    raw = base64.b64decode(message["hdrs"]) if message.get("hdrs") else None
    body = base64.b64decode(message.get("data", ""))
    return Stored(
        message["seq"], parse_time(message["time"]), message["subject"], parse_headers(raw), body
    )


def subject_of(raw: bytes) -> str:
    """A subject as text; one that is none still must not stop who reads it."""
    return raw.decode("utf-8", "backslashreplace")


def parse_time(text: str) -> int:
    """JetStream's RFC 3339 to nanoseconds since 1970, exactly: a view must not see two times."""
    whole, _, fraction = text.removesuffix("Z").partition(".")
    seconds = int(datetime.fromisoformat(f"{whole}+00:00").timestamp())
    return seconds * 1_000_000_000 + int(fraction.ljust(9, "0"))
