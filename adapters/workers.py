"""Threads for what would hold up the event loop: disks, digests, archives, databases.

They are apart from asyncio's own, which also look up host names. What runs here must never touch
an asyncio object.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_DISK = ThreadPoolExecutor(max_workers=6, thread_name_prefix="disk")


def start(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
    """Run a function in a thread from now on; await the future for its result."""
    return asyncio.wrap_future(_DISK.submit(function, *args, **kwargs))


async def finish(function: Callable[[], T], *, executor: Executor | None = None) -> T:
    """Run a function in a thread to its end, even if the caller is cancelled meanwhile.

    A thread cannot be stopped, and what it uses (a file, a lock) must not be taken from under it:
    the cancellation is raised once the function has ended.
    """
    job = asyncio.wrap_future((executor or _DISK).submit(function))
    try:
        return await asyncio.shield(job)
    except asyncio.CancelledError:
        await settled(job)
        raise


async def settled(job: asyncio.Future[T]) -> None:
    """Wait until a job has ended, in whatever way."""
    await asyncio.wait([job])
    if not job.cancelled():
        job.exception()
