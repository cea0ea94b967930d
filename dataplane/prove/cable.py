"""A cable between a process and a server, that can be cut and joined again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

_PIECE = 1 << 16


class Cable:
    """Forwards connections to one of `servers`, in turn, that answers; nothing while it is cut."""

    def __init__(self, servers: Callable[[], list[tuple[str, int]]], port: int = 0) -> None:
        """`port` is where it listens; 0 for any that is free."""
        self._servers = servers
        self._port = port
        self._turn = 0
        self._listening: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.cut = False

    @property
    def address(self) -> str:
        """Host and port to connect to instead of to a server."""
        assert self._listening is not None
        return f"127.0.0.1:{self._listening.sockets[0].getsockname()[1]}"

    async def open(self) -> None:
        """Begin to listen."""
        self._listening = await asyncio.start_server(self._carry, "127.0.0.1", self._port)

    async def close(self) -> None:
        """Stop listening and let go of everything."""
        if self._listening is not None:
            self._listening.close()
        self._drop()

    def sever(self) -> None:
        """Cut it: what is connected is lost, what comes is refused."""
        self.cut = True
        self._drop()

    def join(self) -> None:
        """Carry again."""
        self.cut = False

    def _drop(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            if self.cut:
                return
            far = await self._connect()
            if far is None:
                return
            far_reader, far_writer = far
            self._writers.add(far_writer)
            try:
                await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
            finally:
                self._writers.discard(far_writer)
                far_writer.transport.abort()
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        servers = self._servers()
        # Who comes again was not served where it was: that server may be paused, or cut off.
        self._turn += 1
        first = self._turn % len(servers)
        for host, port in (*servers[first:], *servers[:first]):
            with contextlib.suppress(OSError):
                return await asyncio.open_connection(host, port)
        return None


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One direction; its end, from whichever side, ends the other too."""
    with contextlib.suppress(OSError):
        while piece := await reader.read(_PIECE):
            writer.write(piece)
            await writer.drain()
    writer.transport.abort()
