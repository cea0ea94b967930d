"""How a delivery is worked on: kept alive while the work goes on, left to the bus if it can't."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from dataplane.logs import about
from streams.log import Delivery, LogError

logger = logging.getLogger(__name__)

ACK_WAIT_S = 6.0


@contextlib.asynccontextmanager
async def kept_alive(delivery: Delivery) -> AsyncIterator[None]:
    """Say 'in progress' every third of the ack wait while the work goes on."""

    async def say() -> None:
        while True:
            await asyncio.sleep(ACK_WAIT_S / 3)
            with contextlib.suppress(LogError):
                await delivery.in_progress()

    task = asyncio.create_task(say())
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
