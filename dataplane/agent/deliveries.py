"""How a delivery is worked on: kept alive while the work goes on, left to the bus if it can't.

What nobody thought of ends a try, never the agent; after a few tries whoever works on it says what
it was, for somebody waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

from dataplane.logs import about
from streams.log import Delivery, LogError

logger = logging.getLogger(__name__)

ACK_WAIT_S = 6.0
#: So often is tried what ends by a surprise; then that is the answer.
TRIES = 4
#: The second try comes after so long, each later one after twice as long, up to a most.
_REST_S, _MOST_REST_S = 1.0, 60.0


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
    """A log that can't be reached, or a surprise, ends this try and not the agent: the message
    comes again, after a surprise later each time.
    """
    recorded = delivery.recorded
    with about(recorded):
        logger.debug("at work on %s", recorded.type)
        try:
            yield
        except LogError as error:
            logger.warning("event %s will be redelivered: %s", recorded.id, error)
        except Exception as surprise:
            logger.error(
                "event %s will be redelivered, after try %d",
                recorded.id,
                delivery.attempt,
                exc_info=surprise,
            )
            with contextlib.suppress(LogError):
                await delivery.nak(min(_REST_S * 2.0 ** (delivery.attempt - 1), _MOST_REST_S))


def is_last_try(delivery: Delivery) -> bool:
    """Whether a surprise now is what came of it."""
    return delivery.attempt >= TRIES


def described(error: BaseException) -> str:
    """A surprise in words: the first one, where several things were done at once."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, OSError):
        return str(error)
    return f"{type(error).__name__}: {error}"
