"""The connection to the bus: the only module that imports ``nats``.

It never decides what to say. A lost connection is restored for ever; what can't be restored (a
client that was thrown out) ends in `Connection.closed`, and the process should end with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
import ssl
import weakref
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, Self, TypedDict, Unpack
from urllib.parse import urlsplit

import nats.errors
import nats.micro
import nats.micro.service
import nkeys
from nats.aio.client import Client
from nats.aio.subscription import Subscription as NatsSubscription
from nats.micro.request import Request, ServiceError

from streams.log import LogError, LogUnavailable, PermissionDenied
from streams.micro import Question, Service, ServiceRefusal
from streams.topology import READERS_OF_A_CLIENT, reader_name
from streams.values import is_token
from streams.wire import Answer, Handler, Message, NoAnswer, Subscription, Watcher, parse_headers

log = logging.getLogger(__name__)

DEFAULT_SERVER = "nats://127.0.0.1:4222"
_CONNECT_S = 2
_PROBE_S = 10.0
_CLOSE_S = 5.0
_NO_TLS = "offers no TLS"
#: What JetStream answers, not somebody who may be away.
_KEPT = ("$", "dp.node.", "dp.chain.", "dp.task.")


class ConnectOptions(TypedDict, total=False):
    """How to connect; all may be left out."""

    #: What the server calls us; also names our inboxes, ``_INBOX_<name>``, if it is a token.
    name: str
    #: Another beginning for our inboxes: what the user may subscribe to.
    inbox_prefix: str
    user: str | None
    password: str | None
    token: str | None
    creds_file: Path | None
    nkey_seed_file: Path | None
    tls: ssl.SSLContext | None


class _Client(Client):
    """nats-py with a short way in: a message goes from the parser straight to its handler.

    Its own way is a header parse, a queue and a task switch for each message: 8 µs, where reading
    a million of them is to take seconds.
    """

    def __init__(self) -> None:
        super().__init__()
        self.handlers: dict[int, Handler] = {}

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes
    ) -> None:
        handler = self.handlers.get(sid)
        if handler is not None:
            handler(subject, reply, data, headers)
        elif (subscription := self._subs.get(sid)) is not None and subscription._cb is not None:
            # A subscription of the library's own, such as a service's.
            await super()._process_msg(sid, subject, reply, data, headers)

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        server = self._current_server
        wanted = "tls" in self.options or (server is not None and server.uri.scheme == "tls")
        if initial_connection and wanted and not info.get("tls_required"):
            # The library would go on without, and show who we are to whoever took TLS out.
            if not info.get("tls_available"):
                raise nats.errors.Error(_NO_TLS)
            info["tls_required"] = True
        await super()._process_info(info, initial_connection)

    async def settle(self) -> None:
        """Until the server has seen all that was sent: the library's ping overtakes it."""
        await self._flush_pending(force_flush=True)
        await self.flush()


class _Subscription:
    """What `Connection.subscribe` gives out."""

    def __init__(self, client: _Client, subscription: NatsSubscription) -> None:
        self._client, self._subscription = client, subscription

    async def close(self) -> None:
        self._client.handlers.pop(self._subscription._id, None)
        with contextlib.suppress(nats.errors.Error):
            await self._subscription.unsubscribe()

    async def drain(self) -> None:
        # The library forgets the subscription at once; our handler stays until the server has
        # seen the end of it.
        with contextlib.suppress(nats.errors.Error, OSError):
            await self._subscription.unsubscribe()
            if self._client.is_connected:
                await self._client.settle()
        self._client.handlers.pop(self._subscription._id, None)


class _Service:
    """What `Connection.serve` gives out."""

    def __init__(self, service: nats.micro.service.Service) -> None:
        self._service = service

    async def close(self) -> None:
        with contextlib.suppress(nats.errors.Error, OSError):
            await self._service.stop()

    async def drain(self) -> None:
        await self.close()


class Connection:
    """One client's connection to the bus; the `Wire` of the log and of everything beside it."""

    def __init__(self, client: _Client, name: str = "") -> None:
        self._client, self._name = client, name
        # Clients of one name begin in different places.
        self._readers = secrets.randbelow(READERS_OF_A_CLIENT)
        self._inbox = ""
        self._tokens = 0
        self._waiting: dict[bytes, tuple[asyncio.Future[Answer], frozenset[str]]] = {}
        self._watchers: weakref.WeakSet[Watcher] = weakref.WeakSet()
        self._up = asyncio.Event()
        self._refused = ""
        self._deaf = ""
        #: Why it could not come back, each said once.
        self._troubles: set[str] = set()
        self._closing = False
        #: For health: how often it came back, and what the client library last complained of.
        self.reconnects = 0
        self.last_error = ""
        #: Done when the connection is lost for good; not by our own `close`.
        self.closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    @classmethod
    async def connect(
        cls,
        servers: str | Sequence[str] = DEFAULT_SERVER,
        **options: Unpack[ConnectOptions],
    ) -> Self:
        """Connect, or say within seconds why not: PermissionDenied or LogUnavailable."""
        servers = [servers] if isinstance(servers, str) else list(servers)
        arguments = _arguments(servers, options)
        await _probe(arguments)
        client = _Client()
        connection = cls(client, options.get("name", ""))
        try:
            async with asyncio.timeout(_PROBE_S):
                await client.connect(
                    **arguments,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=0.25,  # type: ignore[arg-type]
                    ping_interval=10,
                    max_outstanding_pings=2,
                    error_cb=connection._on_error,
                    disconnected_cb=connection._on_disconnect,
                    reconnected_cb=connection._on_reconnect,
                    closed_cb=connection._on_close,
                )
                await connection._open()
        except (nats.errors.Error, OSError, LogError) as error:
            await connection.close()
            _explain(arguments, [str(error)], error)
        if connection._deaf:
            await connection.close()
            name = options.get("name", "")
            raise PermissionDenied(
                f"{connection._deaf}: these credentials are not for {name!r}; `node` (or "
                "DATAPLANE_NODE) must be the name that they were made for"
            )
        return connection

    async def _open(self) -> None:
        self._inbox = self._client.new_inbox()
        self._up.set()
        await self.subscribe(f"{self._inbox}.*", self._on_answer)
        await self.flush()

    @property
    def connected(self) -> bool:
        return self._up.is_set() and self._client.is_connected

    @property
    def alive(self) -> bool:
        return not self._client.is_closed

    def token(self) -> str:
        return self._client.new_inbox().rpartition(".")[2]

    def inbox(self) -> str:
        return self._client.new_inbox()

    def reader(self) -> str:
        # Only these names are allowed to clients that are not allowed all.
        if not is_token(self._name):
            return f"read_{self.token()}"
        self._readers += 1
        return reader_name(self._name, self._readers % READERS_OF_A_CLIENT)

    async def online(self, timeout_s: float) -> None:
        if self.connected:
            return
        if not self.alive:
            raise LogUnavailable(f"the connection is closed: {self.last_error or 'by us'}")
        if self._refused:
            raise PermissionDenied(f"the bus lets us in no more: {self._refused}")
        try:
            async with asyncio.timeout(timeout_s):
                await self._up.wait()
        except TimeoutError:
            raise NoAnswer(f"no connection to the bus: {self.last_error}") from None

    async def send(self, message: Message, *, reply: str = "") -> None:
        headers = dict(message.headers) if message.headers else None
        try:
            await self._client.publish(message.subject, message.body, reply, headers)
        except (nats.errors.ConnectionClosedError, nats.errors.ConnectionDrainingError) as error:
            raise LogUnavailable(f"the connection is closed: {self.last_error}") from error
        except nats.errors.OutboundBufferLimitError as error:
            raise NoAnswer(f"no connection to the bus: {self.last_error}") from error
        except (nats.errors.MaxPayloadError, nats.errors.BadSubjectError) as error:
            raise ValueError(f"{message.subject}: {error}") from error

    async def ask(self, *messages: Message, timeout_s: float = 2.0) -> Answer:
        await self.online(timeout_s)
        if self._deaf:
            raise PermissionDenied(self._deaf)
        self._tokens += 1
        token = str(self._tokens)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        subjects = frozenset(message.subject.lower() for message in messages)
        self._waiting[token.encode()] = future, subjects
        last = messages[-1]
        # Not asyncio.timeout: the library's publish swallows a cancellation now and then.
        timer = loop.call_later(timeout_s, _give_up, future, last.subject, timeout_s)
        try:
            for message in messages[:-1]:
                await self.send(message)
            await self.send(last, reply=f"{self._inbox}.{token}")
            return await future
        finally:
            timer.cancel()
            del self._waiting[token.encode()]

    async def subscribe(self, subject: str, handler: Handler, *, queue: str = "") -> Subscription:
        # The future is never used: it keeps the library from starting a task for a callback.
        unused: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        try:
            subscription = await self._client.subscribe(subject, queue, future=unused)
        except (nats.errors.ConnectionClosedError, nats.errors.ConnectionDrainingError) as error:
            raise LogUnavailable(f"the connection is closed: {self.last_error}") from error
        self._client.handlers[subscription._id] = handler
        return _Subscription(self._client, subscription)

    async def serve(self, service: Service) -> Subscription:
        try:
            serving = await nats.micro.add_service(
                self._client,
                name=service.name,
                version=service.version,
                description=service.description,
                metadata=service.metadata,
                queue_group=service.queue,
            )
            for question in service.questions:
                await serving.add_endpoint(
                    name=question.name,
                    subject=question.subject,
                    handler=_answering(question),
                    metadata=question.metadata,
                )
        except (nats.errors.Error, OSError) as error:
            raise NoAnswer(f"no connection to the bus: {error}") from error
        await self.flush()
        return _Service(serving)

    async def flush(self) -> None:
        """Wait until the server has seen all that was sent."""
        try:
            await self._client.settle()
        except (nats.errors.Error, OSError) as error:
            raise NoAnswer(f"no connection to the bus: {error}") from error

    def watch(self, watcher: Watcher) -> None:
        self._watchers.add(watcher)

    def unwatch(self, watcher: Watcher) -> None:
        self._watchers.discard(watcher)

    async def close(self) -> None:
        """Send what is under way and let go; in bounded time, whatever the server does."""
        self._closing = True
        # Waited for from outside: closing a connection whose server was just killed has hung.
        ending = asyncio.create_task(self._end())
        _, unfinished = await asyncio.wait({ending}, timeout=_CLOSE_S)
        for task in unfinished:
            log.warning("the connection did not close within %s s and is dropped", _CLOSE_S)
            task.cancel()
        self._fail_all(LogUnavailable("the connection is closed: by us"))

    async def _end(self) -> None:
        if self._client.is_connected:
            with contextlib.suppress(LogUnavailable):
                await self.flush()
        # What was still unsent goes to the server that is gone; there is nobody else to tell.
        with contextlib.suppress(nats.errors.Error, OSError):
            await self._client.close()

    def _on_answer(self, subject: bytes, reply: bytes, body: bytes, headers: bytes | None) -> None:
        future, asked = self._waiting.get(subject[len(self._inbox) + 1 :], (None, frozenset()))
        if future is None or future.done():
            return
        if headers is not None and headers.startswith(b"NATS/1.0 503"):
            kept = any(one.startswith(_KEPT) for one in asked)
            hint = "; is JetStream on, the stream made?" if kept else ""
            future.set_exception(NoAnswer(f"nobody listens there{hint}"))
        else:
            future.set_result(Answer(parse_headers(headers), body))

    async def _on_error(self, error: Exception) -> None:
        text = str(error) or repr(error)
        self.last_error = text
        if "permissions violation" in text.lower():
            self._deny(text)
        elif "authorization" in text.lower() or "authentication" in text.lower():
            if not self._refused:
                log.error("the bus refuses our credentials: %s", text)
            self._refused = text
            self._fail_all(PermissionDenied(text))
        elif not self._up.is_set() and text not in self._troubles:
            self._troubles.add(text)
            log.warning("the bus can't be reached again: %s", text)
        else:
            log.debug("nats: %s", text)

    def _deny(self, text: str) -> None:
        """The server names the subject, in lower case; who uses it learns of it at once."""
        log.error("%s", text)
        named = re.search(r'"([^"]+)"', text)
        subject = named.group(1).lower() if named else ""
        if subject.startswith(self._inbox.lower()):
            # No answer to anything will ever reach us.
            self._deaf = text
        for future, subjects in list(self._waiting.values()):
            if (subject in subjects or self._deaf) and not future.done():
                future.set_exception(PermissionDenied(text))
        for watcher in list(self._watchers):
            watcher.denied(subject, text)

    async def _on_disconnect(self) -> None:
        self._up.clear()
        if not self._closing:
            log.warning("lost the connection to the bus: %s", self.last_error)

    async def _on_reconnect(self) -> None:
        self.reconnects += 1
        self._refused = ""
        self._troubles.clear()
        log.info("connected to the bus again")
        self._up.set()
        for watcher in list(self._watchers):
            watcher.reconnected()

    async def _on_close(self) -> None:
        self._up.clear()
        # A protocol error is not told to the error callback, only kept.
        self.last_error = str(self._client.last_error or "") or self.last_error
        self._fail_all(LogUnavailable(f"the connection is closed: {self.last_error}"))
        if not self._closing and not self.closed.done():
            log.critical("the bus closed the connection for good: %s", self.last_error)
            self.closed.set_result(self.last_error)
        for watcher in list(self._watchers):
            watcher.reconnected()

    def _fail_all(self, error: Exception) -> None:
        for future, _ in list(self._waiting.values()):
            if not future.done():
                future.set_exception(error)


def _answering(question: Question) -> Callable[[Request], Awaitable[None]]:
    async def answer(request: Request) -> None:
        try:
            said = await question.answer(request.data)
        except ServiceRefusal as error:
            raise ServiceError(error.code, str(error)) from error
        except LogError as error:
            raise ServiceError("503", str(error)) from error
        await request.respond(said)

    return answer


def _give_up(future: asyncio.Future[Answer], subject: str, timeout_s: float) -> None:
    if not future.done():
        future.set_exception(NoAnswer(f"{subject}: no answer in {timeout_s:g} s"))


def _credentials(path: Path | None, marker: str) -> str | None:
    """The file's name, if it is what it should be; the library would read a wrong one for ever."""
    if path is None:
        return None
    try:
        text = path.read_text(errors="replace")
    except OSError as error:
        raise PermissionDenied(f"credentials {path} can't be read: {error.strerror}") from error
    if marker not in text:
        raise PermissionDenied(f"{path} holds no NATS credentials: no {marker!r} in it")
    return str(path)


def _arguments(servers: list[str], options: ConnectOptions) -> dict[str, Any]:
    """The options in the library's words."""
    name = options.get("name", "")
    return {
        "servers": servers,
        "name": name or None,
        "inbox_prefix": options.get("inbox_prefix")
        or (f"_INBOX_{name}" if is_token(name) else "_INBOX"),
        "user": options.get("user"),
        "password": options.get("password"),
        "token": options.get("token"),
        "user_credentials": _credentials(options.get("creds_file"), "BEGIN NATS USER JWT"),
        "nkeys_seed": _credentials(options.get("nkey_seed_file"), "SU"),
        "tls": options.get("tls"),
        "connect_timeout": _CONNECT_S,
    }


async def _probe(arguments: Mapping[str, Any]) -> None:
    """Connect once without patience: with it, bad credentials and no server look like waiting."""
    client, failures = _Client(), list[str]()

    async def note(error: Exception) -> None:
        failures.append(str(error) or repr(error))

    try:
        async with asyncio.timeout(_PROBE_S):
            await client.connect(
                **arguments,
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0.05,  # type: ignore[arg-type]
                error_cb=note,
            )
    except (nats.errors.Error, OSError, ValueError, nkeys.NkeysError) as error:
        _explain(arguments, [*failures, str(error)], error)
    finally:
        if client.is_connected or client.is_connecting:
            # Not waited for without end: after a failed TLS handshake the library waits for ever.
            await asyncio.wait({asyncio.create_task(client.close())}, timeout=1.0)


def _explain(arguments: Mapping[str, Any], why: list[str], cause: Exception) -> NoReturn:
    """Turn what the library said into what an operator can act on; no password is in it."""
    where = ", ".join(without_secret(server) for server in arguments["servers"])
    said = "; ".join(dict.fromkeys(filter(None, why))) or repr(cause)
    said = re.sub(r"\[Errno \d+\] ", "", said)
    refused = re.search("authori[sz]ation|authentication", said, re.IGNORECASE)
    if refused or isinstance(cause, nkeys.NkeysError):
        user = arguments["user"]
        who = f"user {user!r}" if user else "these credentials"
        raise PermissionDenied(
            f"the NATS server at {where} does not let {who} in ({said}); check user and password, "
            "or the credentials file, against its configuration"
        ) from cause
    if _NO_TLS in said:
        raise LogUnavailable(
            f"the NATS server at {where} {_NO_TLS}, and without it nothing is said to it; set it "
            "up there, or take out nats_tls_ca, nats_tls_cert and tls:// here"
        ) from cause
    if "certificate" in said.lower() or "ssl" in said.lower():
        raise LogUnavailable(
            f"no TLS with the NATS server at {where} ({said}); nats_tls_ca must be who signed its "
            "certificate, nats_tls_cert and nats_tls_key ours if it asks for one"
        ) from cause
    raise LogUnavailable(
        f"no NATS server answers at {where} ({said}); is it running and is the address right? "
        "`dataplane up` brings its own"
    ) from cause


def without_secret(server: str) -> str:
    """A server's URL as it may be shown: without who connects, and with which password."""
    parts = urlsplit(server if "://" in server else f"nats://{server}")
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
