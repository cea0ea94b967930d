"""Tells progress, but not all of it."""

from __future__ import annotations

import time

from adapters.transport import Progress

TELL_EVERY_S = 0.2


class Telling:
    """Tells how much of one entry is there, a few times a second and at its end."""

    def __init__(self, progress: Progress, size_bytes: int) -> None:
        self._progress = progress
        self._size = size_bytes
        self._told = -1
        self._told_at = 0.0

    def tell(self, done: int) -> None:
        """`done` bytes are there."""
        now = time.monotonic()
        if done != self._told and (done == self._size or now - self._told_at >= TELL_EVERY_S):
            self._told, self._told_at = done, now
            self._progress(done, self._size)
