"""Threads for what would hold up the event loop: disks, digests, sockets, archives, databases.

They are apart from asyncio's own, which also look up host names, and each kind of work has its
own, so that slow sources never keep bytes that came from being written. What runs here must never
touch an asyncio object.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

DISK = ThreadPoolExecutor(max_workers=6, thread_name_prefix="disk")
#: Digests never wait for anything.
DIGESTS = ThreadPoolExecutor(max_workers=2, thread_name_prefix="digest")
#: One thread a transfer that reads from a socket.
SOCKETS = ThreadPoolExecutor(max_workers=16, thread_name_prefix="socket")
#: One thread a peer that is being asked: most of them wait.
PEERS = ThreadPoolExecutor(max_workers=64, thread_name_prefix="peer")
#: So long is the turn waited for: who has it may be waiting for a source or a disk.
_TURN_S = 0.05
_turn = threading.Lock()


@contextlib.contextmanager
def turn() -> Iterator[None]:
    """For whoever makes many short calls to the system, as small files need: one after the other.

    Threads that made theirs side by side would wait for the interpreter after each call: that takes
    a fifth more processor time. Who does not get the turn soon goes on without. Not to be taken
    again by who has it.
    """
    mine = _turn.acquire(timeout=_TURN_S)
    try:
        yield
    finally:
        if mine:
            _turn.release()


async def finish(
    function: Callable[[], T],
    *,
    executor: Executor = DISK,
    hurry: Callable[[], None] = lambda: None,
) -> T:
    """Run a function in a thread to its end, however often the caller is cancelled meanwhile.

    A thread cannot be stopped, and what it uses (a file, a lock) must not be taken from under it:
    the cancellation is raised once the function has ended. `hurry` is called then to let it end
    soon.
    """
    return await _ended(asyncio.wrap_future(executor.submit(function)), hurry)


async def to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """As `finish`, of what runs on the event loop."""
    return await _ended(asyncio.ensure_future(work), lambda: None)


async def _ended(job: asyncio.Future[T], hurry: Callable[[], None]) -> T:
    try:
        return await asyncio.shield(job)
    except asyncio.CancelledError:
        hurry()
        while not job.done():
            with contextlib.suppress(asyncio.CancelledError):
                await settled(job)
        # Nobody asks any more what came of it.
        if not job.cancelled():
            job.exception()
        raise


async def settled(job: asyncio.Future[T]) -> None:
    """Wait until a job has ended, in whatever way."""
    await asyncio.wait([job])
    if not job.cancelled():
        job.exception()


async def each(items: Iterable[T], work: Callable[[T], Awaitable[None]], at_once: int) -> None:
    """Work on all items, a few at a time; the first failure ends it."""
    left = iter(items)

    async def worker() -> None:
        for item in left:
            await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(worker())
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None


async def cancelled(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait until they have ended."""
    ending = list(tasks)
    for task in ending:
        task.cancel()
    await asyncio.gather(*ending, return_exceptions=True)
