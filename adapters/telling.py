"""Tells progress, but not all of it."""

from __future__ import annotations

import time
from types import TracebackType

from adapters.transport import Progress

TELL_EVERY_S = 0.2


class Telling:
    """Tells how much of one entry is there, a few times a second and at its end.

    As a context it also tells what it ends with, in whatever way that is.
    """

    def __init__(self, progress: Progress, size_bytes: int) -> None:
        self._progress = progress
        self._size = size_bytes
        self._done = self._told = -1
        self._told_at = 0.0

    def __enter__(self) -> Telling:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._done != self._told:
            self._told = self._done
            self._progress(self._done, self._size)

    def tell(self, done: int) -> None:
        """`done` bytes are there."""
        self._done, now = done, time.monotonic()
        if done != self._told and (done == self._size or now - self._told_at >= TELL_EVERY_S):
            self._told, self._told_at = done, now
            self._progress(done, self._size)


class Onward:
    """How far one entry is, over all that is tried: never less than before, and all at its end."""

    def __init__(self, progress: Progress, size_bytes: int) -> None:
        self._progress = progress
        self._size = size_bytes
        self._done = -1

    def __call__(self, done: int, total: int) -> None:
        """Tell, if it is further than it was. What another transport can't use comes again."""
        if done > self._done:
            self._done = done
            self._progress(done, total)

    def arrived(self) -> None:
        """All of it is there, whether anything had to move for it or not."""
        self(self._size, self._size)


class InAll:
    """How far several are as one: (bytes of all that are there, bytes in all). Neither shrinks."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._sizes: dict[str, int] = {}
        self._done: dict[str, int] = {}

    def expect(self, name: str, size_bytes: int) -> None:
        """One more is to come, of so many bytes."""
        self._sizes[name] = size_bytes

    def tell(self, name: str, done: int) -> None:
        """`done` bytes of one that is expected are there; of others nothing is told."""
        size, before = self._sizes.get(name), self._done.get(name, 0)
        # What is tried anew, or passes through another node, begins anew.
        if size is not None and done > before:
            self._done[name] = min(done, size)
            self._progress(sum(self._done.values()), sum(self._sizes.values()))

    def done(self) -> None:
        """All that is expected is there."""
        before, self._done = self._done, dict(self._sizes)
        if before != self._done:
            total = sum(self._sizes.values())
            self._progress(total, total)
