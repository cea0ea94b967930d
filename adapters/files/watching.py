"""Notices that something changed under a directory. It says that, and never what."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from watchfiles import Change, awatch

from adapters.files.places import OWN_DIRECTORY

#: Changes are gathered until nothing happened for a step, or for so long.
_STEP_MS = 100
_GATHER_MS = 1000


async def changes_under(root: Path, stop: asyncio.Event, rescan_s: float) -> AsyncIterator[None]:
    """Yield after changes, and at least every `rescan_s`, until `stop` is set.

    Where the system can watch no further (too many directories, a network disk), only the clock
    is left.
    """
    own = str(root / OWN_DIRECTORY)
    with contextlib.suppress(OSError, RuntimeError):
        async for _ in awatch(
            root,
            watch_filter=lambda change, path: _matters(change, path, own),
            debounce=_GATHER_MS,
            step=_STEP_MS,
            stop_event=stop,
            rust_timeout=int(rescan_s * 1000),
            yield_on_timeout=True,
        ):
            if not stop.is_set():
                yield
    while not stop.is_set():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(rescan_s):
                await stop.wait()
        if not stop.is_set():
            yield


def _matters(_: Change, path: str, own: str) -> bool:
    return not path.startswith(own) and not path.endswith("-shm")
