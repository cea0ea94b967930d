"""A command under way at the far end of SSH: what it hears and says, and what it died of."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeVar

from adapters.errors import Interrupted, Stalled
from adapters.ssh.shell import MARK, SAID_CHARS, outcome
from adapters.workers import settled

T = TypeVar("T")

_ANSWER_BYTES = 64 << 10


class Reading(Protocol):
    """What a command says."""

    async def read(self, n: int = -1) -> bytes: ...


class Writing(Protocol):
    """What a command hears."""

    def write(self, data: bytes) -> None: ...
    async def drain(self) -> None: ...
    def write_eof(self) -> None: ...


class Channel:
    """A command under way at the far end; whoever opened it ends it.

    Methods raise `Stalled` if nothing moves for `stall_s`, `Interrupted` if the connection broke
    off, and what the command itself died of if that is known.
    """

    def __init__(
        self,
        who: str,
        stdin: Writing,
        stdout: Reading,
        stderr: Reading,
        wait: Callable[[], Awaitable[int | None]],
        stall_s: float,
        window_bytes: int,
        breaks: tuple[type[Exception], ...] = (OSError,),
    ) -> None:
        """`window_bytes`: what the far end may say before it is taken. `breaks`: what the streams
        raise when the connection is gone.
        """
        self.who = who
        self._stdin, self._stdout = stdin, stdout
        self._wait = wait
        self._stall_s = stall_s
        self._window_bytes = window_bytes
        self._breaks = breaks
        self._heard = b""
        self._said = b""
        self._listening = asyncio.ensure_future(self._listen(stderr))

    async def read(self, most: int) -> bytes:
        """The next bytes it says; none at the end."""
        if not self._heard:
            # With the first bytes that are taken, the far end may say a whole window more: if these
            # were fewer than that, whatever it says would gather here.
            self._heard = await self._moving(self._stdout.read(self._window_bytes))
        data, self._heard = self._heard[:most], self._heard[most:]
        return data

    async def hears(self, word: str, within_s: float | None = None) -> bool:
        """Whether it says a word of ours before it ends; what it says afterwards can be read."""
        line = f"{MARK}{word}\n".encode()
        said = b""
        while line not in said:
            data = await self._moving(self._stdout.read(_ANSWER_BYTES), within_s)
            if not data:
                return False
            said = said[-_ANSWER_BYTES:] + data
        self._heard = said.partition(line)[2]
        return True

    async def answer(self) -> str:
        """What it says, of which the end counts: a login may greet at any length before. Raises
        what it died of.
        """
        said = b""
        while data := await self.read(_ANSWER_BYTES):
            said = (said + data)[-_ANSWER_BYTES:]
        await self.succeed()
        return said.decode(errors="surrogateescape")

    async def write(self, data: bytes) -> None:
        """Let it hear bytes, and wait until there is room for more."""
        gone: tuple[type[Exception], ...] = (Interrupted, *self._breaks)
        try:
            self._stdin.write(data)
            await self._moving(self._stdin.drain())
        except gone:
            await self.succeed()
            raise Interrupted(f"{self.who} stopped listening") from None

    def end(self) -> None:
        """It will hear no more."""
        with contextlib.suppress(OSError):
            self._stdin.write_eof()

    async def succeed(self, within_s: float | None = None) -> None:
        """Wait until it has ended well. Raises what it died of."""
        status = await self._moving(self._wait(), within_s)
        await settled(self._listening)
        if status != 0:
            raise outcome(status, self._said.decode(errors="replace"), self.who)

    async def close(self) -> None:
        """Stop listening."""
        self._listening.cancel()
        await settled(self._listening)

    async def _moving(self, step: Awaitable[T], within_s: float | None = None) -> T:
        patience = max(self._stall_s, within_s or 0.0)
        try:
            async with asyncio.timeout(patience):
                return await step
        except TimeoutError as error:
            raise Stalled(f"{self.who}: nothing moved for {patience:g} s") from error
        except self._breaks as error:
            raise Interrupted(f"{self.who} broke off: {error}") from error

    async def _listen(self, stderr: Reading) -> None:
        with contextlib.suppress(*self._breaks):
            while data := await stderr.read(1 << 12):
                self._said = (self._said + data)[-SAID_CHARS:]


class Opens(Protocol):
    """Runs a command at the far end."""

    def __call__(self, command: str) -> AbstractAsyncContextManager[Channel]: ...
