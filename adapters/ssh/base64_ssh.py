"""The transport of last resort: base64 through a shell at the far end, piece by piece.

It needs nothing there but a POSIX shell with ``base64``, ``dd`` and ``tail``, and for a push one of
the tools that know SHA-256. It makes one attempt, in flat memory, and never retries.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import BinaryIO

import pybase64

from adapters.errors import EntryMissing, Interrupted
from adapters.files.landing import Landing
from adapters.files.sent import opened
from adapters.ssh.channel import Channel, Opens
from adapters.ssh.connections import Connections, SshOptions, source_file
from adapters.ssh.push import Place, delivered, prepared
from adapters.ssh.shell import giving, taking
from adapters.telling import Telling
from adapters.throttle import Throttle
from adapters.transport import Progress, Request
from adapters.workers import finish
from streams.identity import PathRules
from streams.values import Endpoint, Transport

#: In base64. A multiple of four.
PIECE_BYTES = 256 << 10
SMALLEST_PIECE_BYTES = 4 << 10
PIECE_S = 0.1
#: What a source may send before we take it; with a limit about as much as passes in a second.
WINDOW_BYTES = 2 << 20
SMALLEST_WINDOW_BYTES = 64 << 10
#: Commands at one far end at once; OpenSSH allows ten over one connection.
AT_ONCE = 8


class Base64Transport:
    """Fetches from and pushes to whoever has an SSH server and a shell.

    The limit is applied to what passes over the link: base64 is a third more than the entry.
    """

    name = Transport.BASE64_SSH

    def __init__(
        self, options: SshOptions, *, rules: PathRules | None = None, at_once: int = AT_ONCE
    ) -> None:
        self._connections = Connections(options)
        self._rules = rules or PathRules()
        self._at_once = at_once
        self._slots: dict[tuple[str, int], asyncio.Semaphore] = {}

    async def fetch(
        self, request: Request, landing: Landing, throttle: Throttle, progress: Progress
    ) -> int:
        """As `Fetches.fetch`. Asks nothing of the source if no byte is lacking."""
        size = request.entry.size_bytes
        if landing.offset == size:
            return 0
        path = source_file(request, self._rules)
        words = giving(path, size, landing.offset)
        window = throttle.paced(SMALLEST_WINDOW_BYTES, WINDOW_BYTES, 1.0)
        async with (
            self._slot(request.source),
            self._connections.run(request.source, request, words, window) as channel,
        ):
            channel.end()
            if not await channel.hears("begin"):
                await channel.succeed()
                raise Interrupted(f"{channel.who} said nothing")
            came = await _received(channel, landing, throttle, Telling(progress, size))
            await channel.succeed()
        if landing.offset < size:
            so_far = f"{landing.offset} of {size} bytes"
            raise Interrupted(f"{channel.who} ended {request.entry.path} after {so_far}")
        return came

    async def push(
        self, request: Request, file: Path, throttle: Throttle, progress: Progress
    ) -> int:
        """As `Pushes.push`. What came is kept at the target, bound to transfer and digest."""
        size = request.entry.size_bytes
        source = await finish(lambda: opened(file, size))
        try:
            async with self._slot(request.target):
                opens = self._opens(request.target, request)
                place = await prepared(opens, request, self._rules, "base64 dd")

                async def send() -> bool:
                    with Telling(progress, size) as telling:
                        telling.tell(place.have)
                        await _sent(opens, place, source, request, throttle, telling)
                    return True

                await delivered(opens, request, self._rules, place, send)
                return size - place.have
        finally:
            source.close()

    async def close(self) -> None:
        """Let go of connections."""
        await self._connections.close()

    def _slot(self, endpoint: Endpoint) -> asyncio.Semaphore:
        key = (endpoint.ssh_host, endpoint.ssh_port)
        return self._slots.setdefault(key, asyncio.Semaphore(self._at_once))

    def _opens(self, endpoint: Endpoint, request: Request) -> Opens:
        def opens(command: str) -> AbstractAsyncContextManager[Channel]:
            return self._connections.run(endpoint, request, command)

        return opens


class Decoder:
    """Base64 in pieces of any length, with or without line ends."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> bytes:
        """The bytes that are whole by now. Raises `ValueError` for what is no base64."""
        text = self._rest + data.replace(b"\n", b"").replace(b"\r", b"")
        whole = len(text) - len(text) % 4
        self._rest = text[whole:]
        return pybase64.b64decode(memoryview(text)[:whole], validate=True)


async def _received(
    channel: Channel, landing: Landing, throttle: Throttle, telling: Telling
) -> int:
    decoder, came = Decoder(), 0
    while text := await channel.read(throttle.paced(SMALLEST_PIECE_BYTES, PIECE_BYTES, PIECE_S)):
        try:
            data = decoder.feed(text)
        except ValueError as error:
            raise Interrupted(f"{channel.who} says what is no base64: {error}") from error
        await landing.write(data)
        await throttle.take(len(text))
        came += len(data)
        telling.tell(landing.offset)
    return came


async def _sent(
    opens: Opens,
    place: Place,
    file: BinaryIO,
    request: Request,
    throttle: Throttle,
    telling: Telling,
) -> None:
    size = request.entry.size_bytes
    async with opens(taking(place.home, place.partial, place.have)) as channel:
        done = place.have
        while done < size:
            most = throttle.paced(SMALLEST_PIECE_BYTES, PIECE_BYTES, PIECE_S) // 4 * 3
            most = min(most, size - done)
            raw, text = await finish(lambda at=done, most=most: _encoded(file, at, most))  # type: ignore[misc]
            if not raw:
                what = request.entry.path
                raise EntryMissing(f"the file of {what}, which is sent, has become shorter")
            await throttle.take(len(text))
            await channel.write(text)
            done += raw
            telling.tell(done)
        channel.end()
        # What is still in flight has to be taken first.
        await channel.succeed(2 * request.stall_s)


def _encoded(file: BinaryIO, offset: int, most: int) -> tuple[int, bytes]:
    data = os.pread(file.fileno(), most, offset)
    return len(data), pybase64.b64encode(data) + b"\n"
