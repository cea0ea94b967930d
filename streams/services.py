"""What the bus does besides the log: key-value buckets, plain messages, questions and answers.

Nothing here is a fact. A bucket holds what may be forgotten or is no history (who is alive, a
signing key); a plain message reaches who listens at that moment and nobody else.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

from streams.log import LogError, LogUnavailable, PermissionDenied, SequenceConflict
from streams.micro import Service
from streams.wire import (
    MESSAGE_NOT_FOUND,
    WRONG_LAST_SEQUENCE,
    ApiError,
    Message,
    Subscription,
    Wire,
    accepted,
    api,
    parse_headers,
    persist,
    subject_of,
)

log = logging.getLogger(__name__)

#: What answers a question: gets its subject and body.
Answerer = Callable[[str, bytes], Awaitable[bytes]]
#: A listener that does not keep up loses the oldest of these.
_LISTEN_BACKLOG = 10_000
#: How many of a stream's newest messages are looked at for such as are wanted.
_MOST_LOOKED_AT, _AT_ONCE = 1000, 50
#: How NATS services say that a handler failed; without it a failure looks like an empty answer.
_ERROR_HEADER, _ERROR_CODE_HEADER = "Nats-Service-Error", "Nats-Service-Error-Code"
_OPERATION_HEADER = "KV-Operation"


class RequestFailed(LogError):
    """Who was asked could not answer; text and `code` are theirs, "" where they gave none."""

    def __init__(self, text: str, code: str = "") -> None:
        super().__init__(text)
        self.code = code


class JetStreamBus:
    """Buckets and messages over one connection. All methods raise `LogError`s only."""

    def __init__(self, wire: Wire, *, deadline_s: float = 30.0) -> None:
        self._wire, self._deadline_s = wire, deadline_s
        self._tasks: set[asyncio.Task[None]] = set()

    async def kv_put(self, bucket: str, key: str, value: bytes) -> None:
        """Set a key; its time to live begins again."""
        await self._store(Message(f"$KV.{bucket}.{key}", value))

    async def kv_create(self, bucket: str, key: str, value: bytes) -> bool:
        """Set a key that has no value; False if it has another one. Of several callers one wins."""
        expected = 0
        while True:
            headers = {"Nats-Expected-Last-Subject-Sequence": str(expected)}
            try:
                await self._store(Message(f"$KV.{bucket}.{key}", value, headers))
                return True
            except SequenceConflict:
                expected, found = await self._last(bucket, key)
            if found is not None:
                # The same value is our own, from a try whose answer was lost.
                return found == value

    async def kv_get(self, bucket: str, key: str) -> bytes | None:
        """A key's value as the bucket's leader has it; None if it has none."""
        _, value = await self._last(bucket, key)
        return value

    async def kv_entry(self, bucket: str, key: str) -> tuple[int, bytes | None]:
        """A key's revision and value, as the bucket's leader has them."""
        return await self._last(bucket, key)

    async def kv_update(self, bucket: str, key: str, value: bytes, revision: int) -> int | None:
        """Set a key that is still at `revision`; the new one, None if somebody was there first."""
        headers = {"Nats-Expected-Last-Subject-Sequence": str(revision)}
        try:
            return await self._store(Message(f"$KV.{bucket}.{key}", value, headers))
        except SequenceConflict:
            last, found = await self._last(bucket, key)
        # Our own value, from a try whose answer was lost.
        return last if found == value and last > revision else None

    async def kv_delete(self, bucket: str, key: str) -> None:
        """Take a key's value away; harmless if it has none."""
        await self._store(Message(f"$KV.{bucket}.{key}", b"", {_OPERATION_HEADER: "DEL"}))

    async def kv_all(self, bucket: str) -> dict[str, bytes]:
        """Every key that has a value, with it; not a snapshot of one moment."""
        prefix = f"$KV.{bucket}."
        request = {"subjects_filter": f"{prefix}>"}
        info = await persist(
            lambda: api(self._wire, f"STREAM.INFO.KV_{bucket}", request), self._deadline_s
        )
        keys = [subject.removeprefix(prefix) for subject in info["state"].get("subjects") or {}]
        values = await asyncio.gather(*(self.kv_get(bucket, key) for key in keys))
        return {key: value for key, value in zip(keys, values, strict=True) if value is not None}

    async def recent(
        self, stream: str, count: int, wanted: Callable[[str], bool] = lambda subject: True
    ) -> list[tuple[str, bytes]]:
        """Subject and body of a stream's newest messages, oldest first.

        With `wanted` only those under such subjects, of as many as are looked at.
        """
        state = (await persist(lambda: api(self._wire, f"STREAM.INFO.{stream}"), self._deadline_s))[
            "state"
        ]
        found: list[tuple[str, bytes]] = []
        last, first = state["last_seq"], state["first_seq"]
        looked_at = range(last, max(first - 1, last - _MOST_LOOKED_AT), -1)
        for begin in range(0, len(looked_at), _AT_ONCE):
            part = looked_at[begin : begin + _AT_ONCE]
            messages = await asyncio.gather(*(self._message(stream, one) for one in part))
            found += [one for one in messages if one is not None and wanted(one[0])]
            if len(found) >= count:
                break
        return found[:count][::-1]

    async def _message(self, stream: str, sequence: int) -> tuple[str, bytes] | None:
        """Subject and body of one message of a stream; None if it has expired."""
        ask = partial(api, self._wire, f"STREAM.MSG.GET.{stream}", {"seq": sequence})
        try:
            message = (await persist(ask, self._deadline_s))["message"]
        except ApiError:
            return None
        return message["subject"], base64.b64decode(message.get("data", ""))

    async def _store(self, message: Message) -> int:
        async def once() -> int:
            answer = await self._wire.ask(message)
            try:
                return int(accepted(answer.body)["seq"])
            except ApiError as error:
                if error.code == WRONG_LAST_SEQUENCE:
                    raise SequenceConflict(f"{message.subject}: {error}") from error
                raise

        return await persist(once, self._deadline_s)

    async def _last(self, bucket: str, key: str) -> tuple[int, bytes | None]:
        """Sequence and value of a key's last message; 0 if there is none."""
        request = {"last_by_subj": f"$KV.{bucket}.{key}"}
        try:
            said = await persist(
                lambda: api(self._wire, f"STREAM.MSG.GET.KV_{bucket}", request), self._deadline_s
            )
        except ApiError as error:
            if error.code == MESSAGE_NOT_FOUND:
                return 0, None
            raise
        message = said["message"]
        raw = base64.b64decode(message["hdrs"]) if message.get("hdrs") else None
        gone = parse_headers(raw).get(_OPERATION_HEADER) in ("DEL", "PURGE")
        return message["seq"], None if gone else base64.b64decode(message.get("data", ""))

    def tell(self, subject: str, body: bytes) -> None:
        """Say it to who listens now. Never waits, never fails; it may be lost."""
        self._spawn(self._send(Message(subject, body)))

    def listen(self, subject: str) -> AsyncGenerator[tuple[str, bytes], None]:
        """Subject and body of all that is told from now on; of a backlog the oldest is lost.

        It ends with the connection. Wildcards work as in every NATS subject.
        """
        listener = _Listener(self._wire, subject)
        self._spawn(listener.open())
        return listener.messages()

    async def request(self, subject: str, body: bytes, timeout_s: float = 5.0) -> bytes:
        """Ask once. LogUnavailable if nobody answers in time, RequestFailed if they could not."""
        answer = await self._wire.ask(Message(subject, body), timeout_s=timeout_s)
        if (code := answer.headers.get(_ERROR_CODE_HEADER)) is not None:
            said = answer.headers.get(_ERROR_HEADER, "failed")
            raise RequestFailed(f"{subject}: {said}", code)
        return answer.body

    async def answer(self, subject: str, answerer: Answerer, *, queue: str = "") -> Subscription:
        """Answer what is asked under `subject`, several at a time, until the result is closed.

        An exception of `answerer` reaches who asked as RequestFailed. Of those that give the same
        `queue` one gets each question. Raises PermissionDenied where this is not for us to answer.
        """

        def on_question(topic: bytes, reply: bytes, body: bytes, _: bytes | None) -> None:
            self._spawn(self._answer_one(answerer, subject_of(topic), subject_of(reply), body))

        refusal = _Refusal(subject)
        self._wire.watch(refusal)
        try:
            subscription = await self._wire.subscribe(subject, on_question, queue=queue)
            await self._wire.flush()
        finally:
            self._wire.unwatch(refusal)
        if refusal.text:
            await subscription.close()
            raise PermissionDenied(refusal.text)
        return subscription

    async def serve(self, service: Service) -> Subscription:
        """Answer a service's questions, one after the other for each, until closed.

        A `ServiceRefusal` reaches who asked with its code, any other exception as 500.
        """
        return await self._wire.serve(service)

    async def _answer_one(self, answerer: Answerer, subject: str, reply: str, body: bytes) -> None:
        headers: dict[str, str] | None = None
        try:
            said = await answerer(subject, body)
        except Exception as error:  # the outermost frame: who asked must hear
            log.warning("no answer to %s", subject, exc_info=error)
            text = f"{type(error).__name__}: {error}"
            said, headers = b"", {_ERROR_CODE_HEADER: "500", _ERROR_HEADER: text}
        if reply:
            await self._send(Message(reply, said, headers))

    async def _send(self, message: Message) -> None:
        try:
            await self._wire.send(message)
        except (LogUnavailable, ValueError) as error:
            log.debug("%s is lost: %s", message.subject, error)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Refusal:
    """What the server says against a subject, if it does."""

    def __init__(self, subject: str) -> None:
        self._subject = subject.lower()
        self.text = ""

    def reconnected(self) -> None:
        """The subscription is made anew; a flush waits for what is said to it."""

    def denied(self, subject: str, text: str) -> None:
        if subject == self._subject:
            self.text = text


class _Listener:
    """A subscription of `JetStreamBus.listen`."""

    def __init__(self, wire: Wire, subject: str) -> None:
        self._wire, self._subject = wire, subject
        self._heard: deque[tuple[bytes, bytes]] = deque(maxlen=_LISTEN_BACKLOG)
        self._wake = asyncio.Event()
        self._failure: LogError | None = None
        self._subscription: Subscription | None = None

    async def open(self) -> None:
        try:
            self._wire.watch(self)
            self._subscription = await self._wire.subscribe(self._subject, self._on_message)
        except LogError as error:
            self._failure = error
        self._wake.set()

    async def messages(self) -> AsyncGenerator[tuple[str, bytes], None]:
        try:
            while self._wire.alive:
                while self._heard:
                    subject, body = self._heard.popleft()
                    yield subject_of(subject), body
                if self._failure is not None:
                    raise self._failure
                await self._wake.wait()
                self._wake.clear()
        finally:
            self._wire.unwatch(self)
            if self._subscription is not None:
                await self._subscription.close()

    def _on_message(self, subject: bytes, reply: bytes, body: bytes, headers: bytes | None) -> None:
        self._heard.append((subject, body))
        self._wake.set()

    def reconnected(self) -> None:
        self._wake.set()

    def denied(self, subject: str, text: str) -> None:
        if subject == self._subject.lower():
            self._failure = PermissionDenied(text)
            self._wake.set()
