"""An event loop whose time is a number, and whose next step is drawn by a seed."""

from __future__ import annotations

import asyncio
import heapq
import random
from typing import Any


class _CountedTask(asyncio.Task[Any]):
    """A task whose place in a set does not depend on where in memory it lies."""

    _count = 0

    def __init__(self, *arguments: Any, **more: Any) -> None:
        # First: the loop keeps all its tasks in a set from the moment they are made.
        self._number = _CountedTask._count = _CountedTask._count + 1
        super().__init__(*arguments, **more)

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other


class VirtualLoop(asyncio.SelectorEventLoop):
    """Runs what is ready in any order; when nothing is, time jumps to what is due next.

    Of what is ready any may run next: that is every order in which real processes could have run.
    There is no thread and no socket in it.
    """

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self._rng = rng
        self._now = 0.0
        self.steps = 0
        _CountedTask._count = 0
        self.set_task_factory(lambda loop, work, **more: _CountedTask(work, loop=loop, **more))

    def time(self) -> float:
        """Virtual seconds since the run began."""
        return self._now

    def _run_once(self) -> None:
        ready: Any = self._ready  # type: ignore[attr-defined]
        scheduled: Any = self._scheduled  # type: ignore[attr-defined]
        while scheduled and scheduled[0]._cancelled:
            self._timer_cancelled_count -= 1  # type: ignore[attr-defined]
            heapq.heappop(scheduled)._scheduled = False
        if not ready:
            if not scheduled:
                raise RuntimeError("nothing will ever happen again")
            self._now = max(self._now, scheduled[0]._when)
        while scheduled and scheduled[0]._when <= self._now:
            handle = heapq.heappop(scheduled)
            handle._scheduled = False
            ready.append(handle)
        if len(ready) > 1:
            ready.rotate(-self._rng.randrange(len(ready)))
        handle = ready.popleft()
        if not handle._cancelled:
            self.steps += 1
            handle._run()
