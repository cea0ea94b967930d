"""How a delivery is worked on: kept alive while the work goes on, left to the bus if it can't."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

from dataplane.logs import about
from streams.log import Delivery, LogError

logger = logging.getLogger(__name__)

ACK_WAIT_S = 6.0


def kept_alive(delivery: Delivery) -> contextlib.AbstractAsyncContextManager[None]:
    """Say 'in progress' every third of the ack wait while the work goes on."""
    return meanwhile(delivery.in_progress, ACK_WAIT_S / 3)


@contextlib.asynccontextmanager
async def meanwhile(say: Callable[[], Awaitable[object]], every_s: float) -> AsyncIterator[None]:
    """Say something again and again while the work goes on; what the bus does not take is left."""

    async def saying() -> None:
        while True:
            await asyncio.sleep(every_s)
            with contextlib.suppress(LogError):
                await say()

    task = asyncio.create_task(saying())
    try:
        yield
    finally:
        task.cancel()


@contextlib.asynccontextmanager
async def left_to_redelivery(delivery: Delivery) -> AsyncIterator[None]:
    """A log that can't be reached ends this try, not the agent: the message comes again."""
    try:
        with about(delivery.recorded):
            yield
    except LogError as error:
        logger.warning("event %s will be redelivered: %s", delivery.recorded.id, error)
