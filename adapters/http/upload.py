"""One HTTP PUT over a socket of its own, sent in threads by the kernel, and nothing else.

The twin of `download`: no reuse, no redirect, no byte of a large body through the event loop.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
from collections.abc import Mapping
from typing import BinaryIO
from urllib.parse import urlsplit

import msgspec

from adapters.errors import Interrupted, Stalled
from adapters.http.download import Line, connect
from adapters.http.errors import broken_off
from adapters.transport import Request


class Answered(msgspec.Struct, frozen=True):
    """How a PUT was answered."""

    status: int
    headers: Mapping[str, str]
    text: str

    def value(self, name: str) -> object:
        """A field of an answer in JSON; None if there is none."""
        with contextlib.suppress(ValueError, AttributeError):
            return json.loads(self.text).get(name)
        return None


class Upload:
    """A request under way. All methods block and belong in a thread, one at a time."""

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str],
        request: Request,
        context: ssl.SSLContext | None = None,
        line: Line | None = None,
    ) -> None:
        """Connect to the target of `request` and say what comes. Raises `Unreachable`, `Refused`,
        `Stalled` or `Interrupted`.
        """
        self._who, self._what = request.target.node, request.entry.path
        self._line = line or Line()
        self._connection = connect(self._who, url, request.connect_s, context, self._line)
        self._connection.sock.settimeout(request.stall_s)
        parts = urlsplit(url)
        try:
            self._connection.putrequest("PUT", f"{parts.path}?{parts.query}")
            for name, value in headers.items():
                self._connection.putheader(name, value)
            self._connection.endheaders()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise self._gone(error) from error

    def send(self, file: BinaryIO, offset: int, count: int) -> int:
        """Send bytes of a file; return how many it had. Raises `Stalled` or `Interrupted`."""
        try:
            return int(self._connection.sock.sendfile(file, offset, count))
        except OSError as error:
            raise self._gone(error) from error

    def answer(self, within_s: float) -> Answered:
        """What came of it. Raises `Stalled` or `Interrupted` if there is no answer."""
        try:
            self._connection.sock.settimeout(within_s)
            answer = self._connection.getresponse()
            text = answer.read(1 << 16).decode(errors="replace")
            return Answered(answer.status, dict(answer.getheaders()), text)
        except (OSError, http.client.HTTPException) as error:
            raise self._gone(error) from error

    def abort(self) -> None:
        """Let whoever is blocked in it fail at once. From any thread."""
        self._line.give_up()

    def close(self) -> None:
        """Let go of the connection."""
        self._connection.close()

    def _gone(self, error: Exception) -> Stalled | Interrupted:
        if isinstance(error, TimeoutError):
            return Stalled(f"{self._who} takes nothing of {self._what} and says nothing")
        return broken_off(self._who, self._what, error)
