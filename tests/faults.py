"""A TCP proxy that fails as networks do: late, slow, cut, silent, or with other bytes.

It passes everything until it is told otherwise, and may be told so while connections are open.
"""

from __future__ import annotations

import asyncio
import contextlib

HOST = "127.0.0.1"
_PIECE_BYTES = 1 << 16


class Proxy:
    """Between a client and the server on a port; ``down`` is from the server."""

    def __init__(self, port: int, host: str = HOST) -> None:
        self._there = (host, port)
        self._server: asyncio.Server | None = None
        self._relays: set[asyncio.Task[None]] = set()
        self._closed = asyncio.Event()
        self.port = 0
        #: Bytes that may still pass in all; None is no limit.
        self.down: int | None = None
        self.up: int | None = None
        #: Whether a connection ends, or only falls silent, when what may pass is used up.
        self.cuts = False
        #: What each connection lives: bytes either way, and seconds.
        self.cut_after_bytes: int | None = None
        self.cut_after_s: float | None = None
        #: How long each piece is held back, and how fast all pieces of a connection pass.
        self.latency_s = 0.0
        self.bytes_per_s = 0
        #: Which bytes from the server are spoiled, counted over all connections.
        self.spoil_at: list[int] = []
        self.passed_down = self.passed_up = 0
        self.connections = self.open_now = self.most_open = 0
        self.used_up = asyncio.Event()

    @property
    def url(self) -> str:
        """Where it listens, for HTTP."""
        return f"http://{HOST}:{self.port}"

    async def open(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._accept, HOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Refuse connections from now on, and end those there are."""
        if self._server is not None:
            self._server.close()
        self._closed.set()
        self.cut()
        if self._relays:
            await asyncio.wait(self._relays)

    def cut(self) -> None:
        """End all connections there are."""
        for relay in self._relays:
            relay.cancel()

    def heal(self) -> None:
        """Pass everything from now on."""
        self.down = self.up = self.cut_after_bytes = self.cut_after_s = None
        self.latency_s, self.bytes_per_s, self.spoil_at = 0.0, 0, []

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        relay = asyncio.ensure_future(self._relay(reader, writer))
        self._relays.add(relay)
        relay.add_done_callback(self._relays.discard)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open_now += 1
        self.most_open = max(self.most_open, self.open_now)
        ends = [writer]
        try:
            there, back = await asyncio.open_connection(*self._there)
            ends.append(back)
            life = _Life(self.cut_after_bytes)
            async with asyncio.timeout(self.cut_after_s), asyncio.TaskGroup() as both:
                both.create_task(self._pass(reader, back, life, "up"))
                both.create_task(self._pass(there, writer, life, "down"))
        except* (OSError, asyncio.CancelledError, TimeoutError):
            pass
        finally:
            self.open_now -= 1
            for one in ends:
                one.transport.abort()

    async def _pass(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        life: _Life,
        way: str,
    ) -> None:
        while data := await reader.read(_PIECE_BYTES):
            data = life.take(self._allowed(way, data))
            if self.latency_s:
                await asyncio.sleep(self.latency_s)
            writer.write(self._spoiled(data) if way == "down" else data)
            await writer.drain()
            if self.bytes_per_s:
                await asyncio.sleep(len(data) / self.bytes_per_s)
            if life.left == 0:
                raise ConnectionResetError
            if getattr(self, way) == 0:
                self.used_up.set()
                if self.cuts:
                    raise ConnectionResetError
                await self._closed.wait()
        if way == "up":
            # Who has said all may still be answered.
            with contextlib.suppress(OSError):
                writer.write_eof()
        else:
            raise ConnectionResetError

    def _allowed(self, way: str, data: bytes) -> bytes:
        left: int | None = getattr(self, way)
        if left is not None:
            data = data[:left]
            setattr(self, way, left - len(data))
        passed = f"passed_{way}"
        setattr(self, passed, getattr(self, passed) + len(data))
        return data

    def _spoiled(self, data: bytes) -> bytes:
        first = self.passed_down - len(data)
        if not self.spoil_at or not first <= self.spoil_at[0] < self.passed_down:
            return data
        at = self.spoil_at.pop(0) - first
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


class _Life:
    """How many bytes a connection may still pass."""

    def __init__(self, left: int | None) -> None:
        self.left = left

    def take(self, data: bytes) -> bytes:
        """As much of `data` as may pass."""
        if self.left is None:
            return data
        data = data[: self.left]
        self.left -= len(data)
        return data
