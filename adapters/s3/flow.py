"""What the bytes of one attempt pass to or from S3: a limit on speed, and a watch for silence."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Self

from adapters.s3 import layout
from adapters.telling import Telling
from adapters.throttle import Throttle
from adapters.transport import Progress, Request

CONNECT_S = 10.0
_PIECE_BYTES = 256 << 10
_SMALLEST_PIECE_BYTES = 16 << 10
#: How much passes at once, as seconds of the rate it is limited to.
_PIECE_S = 0.1


class Flow:
    """What the bytes of an attempt pass: the limit on their speed, and the watch for silence."""

    def __init__(
        self,
        size_bytes: int = 0,
        throttle: Throttle | None = None,
        progress: Progress = lambda *_: None,
        *,
        stall_s: float = 30.0,
        connect_s: float = CONNECT_S,
    ) -> None:
        self.stall_s = stall_s
        #: Bytes that went through a connection.
        self.moved = 0
        self._answer_s = stall_s + connect_s
        self._size = size_bytes
        self._throttle = throttle or Throttle()
        self._telling = Telling(progress, size_bytes)
        self._done = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._telling.__exit__(kind, error, trace)

    @classmethod
    def of(cls, request: Request, throttle: Throttle, progress: Progress) -> Flow:
        """The flow of one attempt."""
        return cls(
            request.entry.size_bytes,
            throttle,
            progress,
            stall_s=request.stall_s,
            connect_s=request.connect_s,
        )

    @property
    def piece_bytes(self) -> int:
        """How much may pass at once."""
        rate = self._throttle.bytes_per_s
        fitting = int(rate * _PIECE_S) if rate else _PIECE_BYTES
        return max(_SMALLEST_PIECE_BYTES, min(_PIECE_BYTES, fitting))

    def answering(self, at_least_s: float = 0.0) -> asyncio.Timeout:
        """How long a question may go without an answer."""
        return asyncio.timeout(max(self._answer_s, at_least_s))

    async def take(self, nbytes: int) -> None:
        """Wait until they may pass."""
        await self._throttle.take(nbytes)

    def begin(self, nbytes: int) -> None:
        """So many were done before."""
        self._done = 0
        self.tell(nbytes)

    def count(self, nbytes: int) -> None:
        """So many more went through a connection."""
        self.moved += nbytes
        self.tell(nbytes)

    def tell(self, nbytes: int) -> None:
        """So many more are done."""
        self._done = min(self._done + nbytes, self._size)
        self._telling.tell(self._done)


class Body:
    """The body of a request, given away piece by piece as the connection takes it."""

    def __init__(self, data: bytes | memoryview, flow: Flow, watch: asyncio.Timeout) -> None:
        self._data = memoryview(data)
        self._flow = flow
        self._watch = watch

    async def __aiter__(self) -> AsyncGenerator[memoryview]:
        clock = asyncio.get_running_loop().time
        # Whoever asks may keep us for long, but not the bytes.
        data, self._data = self._data, memoryview(b"")
        for at, length in layout.spans(0, len(data), self._flow.piece_bytes):
            # To wait for the throttle is no silence.
            self._expect_by(None)
            await self._flow.take(length)
            self._expect_by(clock() + self._flow.stall_s)
            yield data[at : at + length]
            self._flow.count(length)

    def _expect_by(self, when: float | None) -> None:
        # The question may have ended, with an early answer or without one.
        with contextlib.suppress(RuntimeError):
            self._watch.reschedule(when)
