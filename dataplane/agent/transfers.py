"""One assignment carried out: fetched to this node, or sent from it, through its transports.

It carries out what was assigned and tells what came of it; when to try again, and from whom, is
decided elsewhere. A failed transfer is an answer, and so is a surprise: it never ends the agent.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from adapters.errors import CheckFailed, Refused, TimedOut, TransportError, Unforeseen
from adapters.files.inventory import Inventory
from adapters.telling import Onward
from adapters.throttle import Throttle
from adapters.transport import Fetches, Progress, Pushes
from dataplane.agent.attempt import Attempt, Outcome
from dataplane.agent.bucket import Backups
from dataplane.agent.deliveries import described
from dataplane.agent.fetching import Fetching
from dataplane.agent.parts import Parts
from dataplane.agent.pushing import Pushing
from dataplane.agent.relaying import Relaying
from dataplane.budget import claim_of_order
from streams import events
from streams.identity import PathRules
from streams.log import Bus, LogError
from streams.values import DataEntry, Endpoint, Transport

logger = logging.getLogger(__name__)


class TransportManager:
    """Carries out what this node is asked to do. Several transfers may run at once."""

    def __init__(
        self,
        node: str,
        root: Path,
        inventory: Inventory,
        transports: Mapping[Transport, Fetches],
        *,
        rules: PathRules = PathRules(),  # noqa: B008 - immutable
        stall_s: float = 30.0,
        receipts: Path | None = None,
        content_path: Callable[[str, str], Awaitable[str]] | None = None,
        bus: Bus | None = None,
        backups: Backups | None = None,
        relaying: Relaying | None = None,
        parts: Parts | None = None,
        here: Callable[[], Endpoint] | None = None,
    ) -> None:
        self._node = node
        self._fetching = Fetching(
            node,
            root,
            inventory,
            transports,
            rules=rules,
            stall_s=stall_s,
            receipts=receipts or root / ".dataplane" / "receipts",
            content_path=content_path,
        )
        pushes = {name: t for name, t in transports.items() if isinstance(t, Pushes)}
        pushes.pop(Transport.S3, None)
        self._pushing = Pushing(
            node,
            inventory,
            pushes,
            bus=bus,
            backups=backups,
            parts=parts,
            rules=rules,
            stall_s=stall_s,
        )
        self._relaying = relaying
        self._here = here
        #: By claim, as grants name them: small ones that travel together share one.
        self._throttles: dict[str, Throttle] = {}
        self._throttled: Counter[str] = Counter()
        self.running = 0
        self.succeeded = 0
        self.failed = 0
        self.bytes_moved = 0

    async def transfer(
        self,
        order: events.TransferAssigned,
        progress_callback: Progress | None = None,
        claim: str = "",
    ) -> Outcome:
        """Do this node's part: fetch it if this is the target, send it if it is the source, else
        pass it on.

        `progress_callback` is told (bytes done, bytes in all): never fewer than before, and all of
        them once it is there. `claim` is what a part's whole is called in grants. Cancellation
        leaves nothing but a partial that the next attempt goes on from.
        """
        self.running += 1
        attempt = Attempt(self._node, order)
        try:
            claim = claim or claim_of_order(order)
            progress = Onward(progress_callback or _ignore, order.entry.size_bytes)
            outcome = await self._within_its_time(order, claim, attempt, progress)
            progress.arrived()
            self.succeeded += 1
            return outcome
        except TransportError as error:
            self.failed += 1
            return attempt.failed(error)
        except LogError:
            raise
        except Exception as surprise:
            logger.error("transfer %s ended by a surprise", order.transfer, exc_info=surprise)
            self.failed += 1
            return attempt.failed(Unforeseen(described(surprise)))
        finally:
            self.running -= 1
            self.bytes_moved += attempt.moved

    async def close(self) -> None:
        """Give up what is on its way."""
        await self._fetching.close()
        await self._pushing.close()

    def said(self, transfer: str) -> None:
        """The result of a transfer is in the log: what was kept in case of a crash can go."""
        self._fetching.said(transfer)

    def set_bandwidth(self, claim: str, mbps: float) -> None:
        """Change the grant of what is running under a claim; 0 means unlimited."""
        throttle = self._throttles.get(claim)
        if throttle is not None:
            throttle.set_rate(mbps)

    async def _within_its_time(
        self, order: events.TransferAssigned, claim: str, attempt: Attempt, progress: Progress
    ) -> events.TransferSucceeded:
        throttle = self._throttles.setdefault(claim, Throttle(order.bandwidth_mbps))
        self._throttled[claim] += 1
        try:
            async with asyncio.timeout(order.timeout_s):
                return await self._in_its_role(order, attempt, throttle, progress)
        except TimeoutError:
            raise TimedOut(f"not done within {order.timeout_s:g} s") from None
        finally:
            self._throttled[claim] -= 1
            if not self._throttled[claim]:
                del self._throttled[claim], self._throttles[claim]

    async def _in_its_role(
        self,
        order: events.TransferAssigned,
        attempt: Attempt,
        throttle: Throttle,
        progress: Progress,
    ) -> events.TransferSucceeded:
        if order.target == self._node:
            return await self._fetching.bring(order, attempt, throttle, progress)
        if order.source == self._node:
            return await self._pushing.send(order, attempt, throttle, progress)
        if self._relaying is None or self._here is None:
            raise Refused(f"{self._node} is neither {order.source} nor {order.target}")
        return await self._relaying.pass_on(order, attempt, self._here())


def _ignore(done: int, total: int) -> None:
    """Nobody watches."""


def quarantine_fact(
    node: str, entry: DataEntry, failure: events.TransferFailed
) -> events.FileQuarantined | None:
    """FILE_QUARANTINED, where a transfer failed because the file is unsound."""
    if failure.error_class != CheckFailed.__name__:
        return None
    return events.FileQuarantined(
        node=node, path=entry.path, checksum=entry.checksum, reason=failure.error
    )
