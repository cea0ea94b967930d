"""One HTTP answer over a socket of its own, read in threads into memory that is given.

Faster than going through the event loop for large bodies, and nothing else: no reuse, no redirect.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import time
from collections.abc import Mapping
from functools import partial
from urllib.parse import urlsplit

from adapters.errors import Interrupted, Stalled
from adapters.http.errors import broken_off, unreached
from adapters.transport import Request

#: A reader comes back this often, so that it can be given up or slowed down.
TICK_S = 0.25


class Line:
    """What a thread waits for at the other end, to be given up from any other: also before a
    connection stands, which may take as long as its patience.
    """

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._given_up = False

    def holds(self, opened: socket.socket) -> None:
        """From now on it is this that is waited for. Raises `ConnectionAbortedError` if all was
        given up.
        """
        self._socket = opened
        if self._given_up:
            raise ConnectionAbortedError("given up")

    def give_up(self) -> None:
        """Let whoever waits fail at once, and all who come later."""
        self._given_up = True
        opened = self._socket
        if opened is not None:
            with contextlib.suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)


class Download:
    """A request under way. All methods block and belong in a thread, one at a time."""

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str],
        request: Request,
        context: ssl.SSLContext | None = None,
        line: Line | None = None,
    ) -> None:
        """Ask the source of `request`. Raises `Unreachable`, `Refused`, `Stalled` or `Interrupted`
        if there is no answer.
        """
        self._who, self._what = request.source.node, request.entry.path
        self._stall_s = request.stall_s
        self._line = line or Line()
        self._connection = connect(self._who, url, request.connect_s, context, self._line)
        self._socket: socket.socket = self._connection.sock
        try:
            self._socket.settimeout(self._stall_s)
            parts = urlsplit(url)
            self._connection.request("GET", f"{parts.path}?{parts.query}", headers=dict(headers))
            self._answer = self._connection.getresponse()
        except TimeoutError as error:
            self.close()
            raise Stalled(
                f"{self._who} gave no answer about {self._what} for {self._stall_s:g} s"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise self._broken_off(error) from error
        self.status = self._answer.status
        self.reason = self._answer.reason
        self.etag = self._answer.getheader("ETag")
        self.content_range = self._answer.getheader("Content-Range")
        self.length = self._answer.length
        self._first = True
        self._heard_at = time.monotonic()

    def into(self, view: memoryview) -> int:
        """Fill `view` with the next bytes of the body, or less of it after a moment; 0 if none came
        yet. Raises `Stalled` or `Interrupted` if none come any more. Never ask beyond the body.
        """
        count, end = 0, time.monotonic() + TICK_S
        while count < len(view) and (now := time.monotonic()) < end:
            try:
                came = self._read(view[count:], end - now)
            except TimeoutError:
                break
            except OSError as error:
                if count:
                    break
                raise self._broken_off(error) from error
            if not came:
                if count:
                    break
                raise self._broken_off(ConnectionResetError("it closed the connection"))
            count += came
        if count:
            self._heard_at = time.monotonic()
        elif time.monotonic() - self._heard_at > self._stall_s:
            raise Stalled(f"{self._who}: no byte of {self._what} for {self._stall_s:g} s")
        return count

    def text(self, most: int) -> str:
        """The beginning of the body, for an error's text."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self._answer.read(most).decode(errors="replace")
        return ""

    def abort(self) -> None:
        """Let whoever is blocked in it fail at once. From any thread."""
        self._line.give_up()

    def close(self) -> None:
        """Let go of the connection."""
        self._connection.close()
        self._socket.close()

    def _broken_off(self, error: Exception) -> Interrupted:
        return broken_off(self._who, self._what, error)

    def _read(self, view: memoryview, wait_s: float) -> int:
        if self._first:
            # What came together with the headers lies in the answer's own buffer.
            self._first = False
            return int(self._answer.fp.readinto1(view))
        self._socket.settimeout(wait_s)
        return self._socket.recv_into(view)


def connect(
    who: str, url: str, connect_s: float, context: ssl.SSLContext | None, line: Line
) -> http.client.HTTPConnection:
    """A connection that stands, to the node `who`. `context` says whom to trust. Raises
    `Unreachable`, or `Refused` if whoever answers can't prove who he is.
    """
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        connection = (
            http.client.HTTPSConnection(host, parts.port, timeout=connect_s, context=context)
            if parts.scheme == "https"
            else http.client.HTTPConnection(host, parts.port, timeout=connect_s)
        )
        with contextlib.ExitStack() as until_it_stands:
            dial = partial(_dialled, line, until_it_stands)
            connection._create_connection = dial  # type: ignore[attr-defined]
            connection.connect()
            try:
                line.holds(connection.sock)
            except OSError:
                connection.close()
                raise
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise unreached(who, url, error) from error
    return connection


def _dialled(
    line: Line,
    until_it_stands: contextlib.ExitStack,
    address: tuple[str, int],
    timeout_s: float,
    source_address: object = None,
) -> socket.socket:
    """As `socket.create_connection`, but it can be given up."""
    error = OSError(f"{address[0]} has no address")
    for family, kind, protocol, _, where in socket.getaddrinfo(*address, 0, socket.SOCK_STREAM):
        opened = socket.socket(family, kind, protocol)
        try:
            opened.settimeout(timeout_s)
            # The socket itself is taken over by TLS, whose greetings are waited for as well.
            line.holds(until_it_stands.enter_context(opened.dup()))
            opened.connect(where)
        except OSError as failure:
            opened.close()
            error = failure
        else:
            return opened
    raise error
