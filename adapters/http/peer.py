"""One connection to a file server, kept for one question after the other.

All methods but `abort` block and belong in a thread, one at a time. Nothing is asked twice, and
nothing that comes is believed.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import urlsplit

from adapters.errors import EntryMissing, Refused, Stalled, TransportError
from adapters.http.download import Line, connect
from adapters.http.errors import broken_off
from adapters.memory import room

_ERROR_TEXT = 300
#: What has come of a piece when the answer breaks off is lost: the first pieces are small, so that
#: something stays of every answer, and each later one is twice as large, up to a most.
_FIRST_PIECE_BYTES, _MOST_PIECE_BYTES = 16 << 10, 256 << 10
#: A reader is woken for so many bytes, not for each packet, as long as more than these are to come.
WAKE_BYTES = 32 << 10


class Unserved(Refused):
    """Whoever was asked takes no such question: an older version."""


class Peer:
    """A connection that is made when first needed, and anew after it broke."""

    def __init__(
        self,
        node: str,
        base: str,
        connect_s: float,
        stall_s: float,
        context: ssl.SSLContext | None = None,
        about: str = "many entries",
    ) -> None:
        """`context` says whom to trust over TLS; None: whom this machine trusts."""
        self.node = node
        self.base = base
        #: No byte for this long ends a question.
        self.stall_s = stall_s
        self._connect_s = connect_s
        self._context = context
        #: What passes, in the words of errors.
        self.about = about
        self._connection: http.client.HTTPConnection | None = None
        #: The last answer, as far as it was read.
        self.answer: http.client.HTTPResponse | None = None
        self._socket: socket.socket | None = None
        self._woken_for = 1
        self._line = Line()
        self._room = memoryview(b"")
        self._piece_bytes = _FIRST_PIECE_BYTES

    def ask(
        self,
        url: str,
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: bytes | Iterable[bytes] | None = None,
    ) -> http.client.HTTPResponse:
        """Ask, and return what was answered, of which the body is still to be read.

        Raises `Unreachable`, `Stalled`, `Interrupted`, `Refused`, or `EntryMissing`.
        """
        try:
            answer = self._asked(url, method, headers or {}, body)
            if answer.status not in (200, 206):
                said = answer.read(_ERROR_TEXT).decode(errors="replace")
                self.close()
                if answer.status in (404, 410):
                    raise EntryMissing(f"{self.node} does not hold {self.about}: {said}")
                kind = Unserved if answer.status == 405 else Refused
                status = f"{answer.status} {answer.reason}"
                raise kind(f"{self.node} answered {status} about {self.about}: {said}")
            return answer
        except TimeoutError as error:
            self.close()
            raise Stalled(
                f"{self.node} gave no answer about {self.about} for {self._patience}"
            ) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.close()
            raise broken_off(self.node, self.about, error) from error

    def room(self, nbytes: int) -> memoryview:
        """Memory to read into: the same each time, as long as it is enough."""
        if len(self._room) < nbytes:
            self._room = room(nbytes)
        return self._room[:nbytes]

    def fill(self, view: memoryview) -> tuple[int, TransportError | None]:
        """Fill `view` with the next bytes of the answer; how many came, and what ended it if it
        is not all: `Stalled` or `Interrupted`.
        """
        count = 0
        try:
            with self._reading() as answer:
                if answer.length is None or answer.length < len(view):
                    raise ConnectionResetError("ends early")
                self._wake_for(WAKE_BYTES if answer.length - len(view) >= WAKE_BYTES else 1)
                while count < len(view):
                    # One call to the system at a time: what came before it broke off counts.
                    came = answer.fp.readinto1(view[count:])
                    if not came:
                        raise ConnectionResetError("ended early")
                    count += came
                    answer.length -= came
                if not answer.length:
                    # It is over, and the next question may be asked.
                    answer.read()
        except TransportError as error:
            return count, error
        return count, None

    def some(self, view: memoryview) -> int:
        """Put the next bytes into `view`, as many as are good to take at once; how many. Raises
        `Stalled` or `Interrupted`.
        """
        with self._reading() as answer:
            count = answer.readinto(view[: self._piece_bytes])
            if not count:
                raise ConnectionResetError("ended early")
            self._piece_bytes = min(2 * self._piece_bytes, _MOST_PIECE_BYTES)
            return count

    def read(self, most: int) -> bytes:
        """The next bytes of the answer, `most` if it goes on so long. As `fill` otherwise."""
        buffer, count = bytearray(), 0
        with self._reading() as answer:
            while count < most:
                # Grown as bytes come: a stranger's word for a length costs no memory.
                buffer += bytes(min(most - count, 1 << 18))
                came = answer.readinto(memoryview(buffer)[count:])
                if not came:
                    break
                count += came
                del buffer[count:]
        return bytes(buffer[:count])

    @contextlib.contextmanager
    def _reading(self) -> Iterator[http.client.HTTPResponse]:
        answer = self.answer
        try:
            if answer is None:
                raise ConnectionResetError("no answer is open")
            yield answer
        except TimeoutError as error:
            self.close()
            raise Stalled(f"{self.node}: no byte of {self.about} for {self._patience}") from error
        except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
            self.close()
            raise broken_off(self.node, self.about, error) from error

    def close(self) -> None:
        """Let go of the connection; the next question makes a new one."""
        connection, self._connection = self._connection, None
        answer, self.answer = self.answer, None
        for one in (answer, connection):
            if one is not None:
                with contextlib.suppress(OSError, ValueError):
                    one.close()

    def abort(self) -> None:
        """Let whoever waits for bytes fail at once, and all who ask later. From any thread."""
        self._line.give_up()

    @property
    def _patience(self) -> str:
        return f"{round(self.stall_s, 1):g} s"

    def _wake_for(self, count: int) -> None:
        """Wait for so many bytes from now on; of TLS nobody knows how many make a record."""
        opened = self._socket
        if count == self._woken_for or opened is None or isinstance(opened, ssl.SSLSocket):
            return
        with contextlib.suppress(OSError):
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)
        self._woken_for = count

    def _asked(
        self,
        url: str,
        method: str,
        headers: Mapping[str, str],
        body: bytes | Iterable[bytes] | None,
    ) -> http.client.HTTPResponse:
        if self.answer is not None and not self.answer.isclosed():
            # Something of the last answer was not read: it would be taken for the next one.
            self.close()
        if self._connection is None or self._connection.sock is None:
            # Whoever is asked may end a connection with each answer.
            self._connection = connect(self.node, url, self._connect_s, self._context, self._line)
            self._socket = self._connection.sock
            self._woken_for = 1
        self._wake_for(1)
        self._line.holds(self._connection.sock)
        self._connection.sock.settimeout(self.stall_s)
        parts = urlsplit(url)
        self._connection.request(
            method,
            f"{parts.path}?{parts.query}",
            body=body,
            headers={"Accept-Encoding": "identity", **headers},
        )
        answer = self.answer = self._connection.getresponse()
        self._piece_bytes = _FIRST_PIECE_BYTES
        return answer
