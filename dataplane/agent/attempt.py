"""What one assignment came to: a result for each try, the bytes that moved, and its outcome.

It only keeps account. What to try, and in which order, is decided elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from msgspec.structs import replace

from adapters.errors import TimedOut, TransportError, Unforeseen, Unreachable, told_as
from adapters.http.receiving import error_of
from dataplane.agent.deliveries import described
from streams import events
from streams.log import LogError
from streams.values import Transport, TransportResult, added

logger = logging.getLogger(__name__)

#: How long before its own end an attempt wants to hear of a part of it, at most, and of its time.
HEARD_S = 5.0
HEARD_SHARE = 0.1
_SHORTEST_S = 0.001

T = TypeVar("T")
R = TypeVar("R")
Outcome = events.TransferSucceeded | events.TransferFailed


class Attempt:
    """The account of one assignment, kept by the node that carries it out."""

    def __init__(self, node: str, order: events.TransferAssigned) -> None:
        self._node = node
        self._order = order
        self._started = time.monotonic()
        self.results: list[TransportResult] = []
        #: Of what is stored in the bucket on the way: the key that it was sealed with.
        self.sealed_with = ""

    @property
    def moved(self) -> int:
        """Bytes that really moved, over all transports."""
        return added(*(result.bytes_transferred for result in self.results))

    def part(self, **changed: Any) -> events.TransferAssigned:
        """What another node is to do for this attempt: the order, but for what is changed. Its time
        is up before this one's, so that what came of it is heard.
        """
        left_s = self._order.timeout_s - (time.monotonic() - self._started)
        timeout_s = max(left_s - min(HEARD_S, left_s * HEARD_SHARE), _SHORTEST_S)
        return replace(self._order, timeout_s=timeout_s, **changed)

    def measure(self, transport: Transport, remote: str, came: Callable[[], int]) -> Measured:
        """A context that records one try with `remote`; `came` says what came where it fails."""
        return Measured(self.results, transport, remote, came)

    def joined(self, part: Outcome) -> None:
        """Add what another node did for this attempt. Raises if it failed.

        Its results name the places it spoke with; where they don't, they do now.
        """
        other = part.target if part.node == part.source else part.source
        self.results += [replace(one, remote=one.remote or other) for one in part.results]
        if isinstance(part, events.TransferFailed):
            raise error_of(part.error_class, f"{part.node}: {part.error}")

    def succeeded(self, games: int | None, moved_before: int = 0) -> events.TransferSucceeded:
        """It is there. `moved_before`: bytes this transfer brought before the process died."""
        order = self._order
        return events.TransferSucceeded(
            transfer=order.transfer,
            node=self._node,
            source=order.source,
            target=order.target,
            entry=replace(order.entry, sealed_with=self.sealed_with),
            attempt=order.attempt,
            results=tuple(self.results),
            bytes_transferred=self.moved or moved_before,
            duration_seconds=round(time.monotonic() - self._started, 6),
            games=games,
        )

    def failed(self, error: TransportError) -> events.TransferFailed:
        """It is not there, and why."""
        order = self._order
        return events.TransferFailed(
            transfer=order.transfer,
            node=self._node,
            source=order.source,
            target=order.target,
            entry=replace(order.entry, sealed_with=self.sealed_with),
            attempt=order.attempt,
            error=str(error)[:2000] or type(error).__name__,
            error_class=told_as(type(error)),
            results=tuple(self.results),
            bytes_transferred=self.moved,
            duration_seconds=round(time.monotonic() - self._started, 6),
            retryable=error.retryable,
        )


class Measured:
    """Times one try and counts the bytes that moved, also where it fails."""

    def __init__(
        self,
        results: list[TransportResult],
        transport: Transport,
        remote: str,
        came: Callable[[], int],
    ) -> None:
        self._results = results
        self._transport = transport
        self._remote = remote
        self._came = came
        self._started = time.monotonic()
        #: Bytes that moved, once the transport has said so.
        self.moved: int | None = None

    def __enter__(self) -> Measured:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> None:
        name = _class_of(kind)
        result = TransportResult(
            success=error is None,
            transport_used=self._transport,
            bytes_transferred=max(0, self._came()) if self.moved is None else self.moved,
            duration_seconds=round(time.monotonic() - self._started, 6),
            error=None if error is None else (str(error)[:500] or name),
            error_class=name,
            remote=self._remote,
        )
        self._results.append(result)


def _class_of(kind: type[BaseException] | None) -> str:
    """The class of what ended a try. Results are only told of tries whose time was up."""
    if kind is None:
        return ""
    return TimedOut.__name__ if issubclass(kind, asyncio.CancelledError) else told_as(kind)


async def through(
    order: events.TransferAssigned,
    transports: Mapping[Transport, T],
    attempt_one: Callable[[T], Awaitable[R]],
) -> R:
    """Try the transports of an order, in its order, until one succeeds.

    Ends early where another transport can't do better; one that ends by a surprise may be the only
    one that does. Raises the last `TransportError`, or a `LogError`.
    """
    error: TransportError = Unreachable(f"none of {list(order.transports)} is known here")
    for name in order.transports:
        transport = transports.get(name)
        if transport is None:
            continue
        try:
            return await attempt_one(transport)
        except TransportError as failure:
            error = failure
            if not failure.try_next_transport:
                break
        except LogError:
            raise
        except Exception as surprise:
            logger.error("%s ended by a surprise", name, exc_info=surprise)
            error = Unforeseen(described(surprise))
    raise error
