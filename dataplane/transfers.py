"""One transfer through its chain of transports, into one landing.

It carries out what was assigned and tells what came of it; when to try again, and from whom, is
decided elsewhere. A failed transfer is an answer, only a surprise is an exception.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import msgspec

from adapters.inventory import Inventory
from adapters.landing import Landed, Landing
from adapters.throttle import Throttle
from adapters.transport import (
    CheckFailed,
    Fetches,
    NeverReplaced,
    Progress,
    Request,
    Superseded,
    TimedOut,
    TransportError,
    Unreachable,
)
from dataplane.crashpoints import reach
from dataplane.transports import NAMING_FILES
from streams import events
from streams.identity import Ownership, PathRules
from streams.values import DataEntry, Transport, TransportResult

CONNECT_TIMEOUT_S = 30.0


class TransportManager:
    """Carries out transfers to this node. Several may run at once, each into its own landing."""

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
    ) -> None:
        self._node = node
        self._content_path = content_path
        self._root = root
        self._inventory = inventory
        self._transports = transports
        self._rules = rules
        self._stall_s = stall_s
        self._receipts = _Receipts(receipts or root / ".dataplane" / "receipts")
        self._throttles: dict[str, Throttle] = {}
        self.running = 0
        self.succeeded = 0
        self.failed = 0
        self.bytes_moved = 0

    async def transfer(
        self,
        order: events.TransferAssigned,
        progress_callback: Progress | None = None,
    ) -> events.TransferSucceeded | events.TransferFailed:
        """Bring the entry here by the first transport that can, and prove it.

        `progress_callback` is told (bytes done, bytes in all). Cancellation leaves nothing but a
        partial that the next attempt goes on from.
        """
        self.running += 1
        attempt = _Attempt(order)
        try:
            return await self._attempt(order, attempt, progress_callback or _ignore)
        except TransportError as error:
            self.failed += 1
            return attempt.failed(self._node, error)
        finally:
            self.running -= 1
            self.bytes_moved += attempt.moved

    def said(self, transfer: str) -> None:
        """The result of a transfer is in the log: what was kept in case of a crash can go."""
        self._receipts.remove(transfer)

    def set_bandwidth(self, transfer: str, mbps: float) -> None:
        """Change the grant of a running transfer; 0 means unlimited."""
        throttle = self._throttles.get(transfer)
        if throttle is not None:
            throttle.set_rate(mbps)

    async def _attempt(
        self, order: events.TransferAssigned, attempt: _Attempt, progress: Progress
    ) -> events.TransferSucceeded:
        entry = order.entry
        there = await self._inventory.arrived(entry.path)
        if there is not None and there.checksum == entry.checksum:
            self.succeeded += 1
            receipt = self._receipts.read(order.transfer)
            return attempt.succeeded(self._node, there.games, receipt.moved)
        if there is not None and there.version > entry.version:
            raise Superseded(f"{entry.path}: version {there.version} is newer than {entry.version}")
        owned = self._rules.ownership(entry.path) is Ownership.OWNED
        if owned and await self._inventory.keeps_own(entry.path):
            raise NeverReplaced(f"{self._local(entry)} is a file of {self._node}'s own")
        landed = await self._bring(order, attempt, progress)
        reach("agent.landed")
        await self._inventory.landed(entry, self._local(entry))
        self.succeeded += 1
        return attempt.succeeded(self._node, landed.games)

    async def _named(self, transport: Transport, order: events.TransferAssigned) -> str:
        """The source's own file with the content, for transports that must name one."""
        if transport not in NAMING_FILES or self._content_path is None:
            return ""
        return await self._content_path(order.source, order.entry.checksum)

    def _local(self, entry: DataEntry) -> str:
        return self._rules.local(entry.path, self._node)

    async def _bring(
        self, order: events.TransferAssigned, attempt: _Attempt, progress: Progress
    ) -> Landed:
        """Try the transports in order, within the time the attempt has in all."""
        error: TransportError = Unreachable(f"none of {list(order.transports)} is known here")
        throttle = self._throttles[order.transfer] = Throttle(order.bandwidth_mbps)
        try:
            async with asyncio.timeout(order.timeout_s):
                for name in order.transports:
                    transport = self._transports.get(name)
                    if transport is None:
                        continue
                    try:
                        return await self._try(transport, order, throttle, attempt, progress)
                    except TransportError as failure:
                        error = failure
                        if not failure.try_next_transport:
                            break
        except TimeoutError:
            raise TimedOut(f"not done within {order.timeout_s:g} s") from None
        finally:
            del self._throttles[order.transfer]
        raise error

    async def _try(
        self,
        transport: Fetches,
        order: events.TransferAssigned,
        throttle: Throttle,
        attempt: _Attempt,
        progress: Progress,
    ) -> Landed:
        """One try over one transport, from where the last one stopped; recorded as a result."""
        entry, local = order.entry, self._local(order.entry)
        request = Request(
            transfer=order.transfer,
            entry=entry,
            source=order.source_at,
            target=order.target_at,
            peers=order.peers,
            local_path=local,
            content_path=await self._named(transport.name, order),
            stall_s=self._stall_s,
            connect_s=CONNECT_TIMEOUT_S,
        )
        landing = await Landing.open(self._root, entry, order.transfer, local, rules=self._rules)
        try:
            with attempt.measure(transport.name, landing) as measured:
                reach("agent.fetching")
                measured.moved = await transport.fetch(request, landing, throttle, progress)
                # Said before the file appears: a crash in between must neither make the file
                # ours nor the bytes unmoved.
                await self._inventory.expect(entry, local)
                self._receipts.write(order.transfer, attempt.moved + measured.moved)
                return await landing.commit()
        finally:
            await landing.abort()


class _Receipt(msgspec.Struct, frozen=True):
    """What a transfer had moved when its file was about to appear."""

    moved: int = 0


class _Receipts:
    """Notes from before a file appears until its result is in the log.

    They outlive a killed process, not a power failure: then the bytes count as not moved.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def write(self, transfer: str, moved: int) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        (self._directory / transfer).write_bytes(msgspec.json.encode(_Receipt(moved)))

    def read(self, transfer: str) -> _Receipt:
        try:
            return msgspec.json.decode((self._directory / transfer).read_bytes(), type=_Receipt)
        except (FileNotFoundError, msgspec.DecodeError):
            return _Receipt()

    def remove(self, transfer: str) -> None:
        (self._directory / transfer).unlink(missing_ok=True)


class _Attempt:
    """What an assignment came to: results by transport, bytes and time."""

    def __init__(self, order: events.TransferAssigned) -> None:
        self._order = order
        self._started = time.monotonic()
        self.results: list[TransportResult] = []

    @property
    def moved(self) -> int:
        """Bytes that really moved, over all transports."""
        return sum(result.bytes_transferred for result in self.results)

    def measure(self, transport: Transport, landing: Landing) -> _Measured:
        """A context that records one try over one transport."""
        return _Measured(self.results, transport, self._order.source, landing)

    def succeeded(
        self, node: str, games: int | None, moved_before: int = 0
    ) -> events.TransferSucceeded:
        """It is there. `moved_before`: bytes this transfer brought before the process died."""
        order = self._order
        return events.TransferSucceeded(
            transfer=order.transfer,
            node=node,
            source=order.source,
            target=order.target,
            entry=order.entry,
            attempt=order.attempt,
            results=tuple(self.results),
            bytes_transferred=self.moved or moved_before,
            duration_seconds=round(time.monotonic() - self._started, 6),
            games=games,
        )

    def failed(self, node: str, error: TransportError) -> events.TransferFailed:
        order = self._order
        return events.TransferFailed(
            transfer=order.transfer,
            node=node,
            source=order.source,
            target=order.target,
            entry=order.entry,
            attempt=order.attempt,
            error=str(error)[:2000] or type(error).__name__,
            error_class=type(error).__name__,
            results=tuple(self.results),
            bytes_transferred=self.moved,
            duration_seconds=round(time.monotonic() - self._started, 6),
            retryable=error.retryable,
        )


class _Measured:
    """Times one try and counts the bytes that came, also where it fails."""

    def __init__(
        self, results: list[TransportResult], transport: Transport, remote: str, landing: Landing
    ) -> None:
        self._results = results
        self._transport = transport
        self._remote = remote
        self._landing = landing
        self._before = landing.offset
        self._started = time.monotonic()
        #: Bytes that came, once the transport has said so.
        self.moved: int | None = None

    def __enter__(self) -> _Measured:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> None:
        came = max(0, self._landing.offset - self._before) if self.moved is None else self.moved
        result = TransportResult(
            success=error is None,
            transport_used=self._transport,
            bytes_transferred=came,
            duration_seconds=round(time.monotonic() - self._started, 6),
            error=None if error is None else (str(error)[:500] or _class_of(kind)),
            error_class=_class_of(kind),
            remote=self._remote,
        )
        self._results.append(result)


def _class_of(kind: type[BaseException] | None) -> str:
    """The class of what ended a try. Results are only told of tries whose time was up."""
    if kind is None:
        return ""
    return TimedOut.__name__ if issubclass(kind, asyncio.CancelledError) else kind.__name__


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


class ProgressMessage(msgspec.Struct, frozen=True):
    """What watchers of ``dp.progress.<transfer>`` are told; not a fact, and kept nowhere."""

    transfer: str
    source: str
    target: str
    path: str
    config_key: str
    done: int
    total: int
    #: Seconds since 1970.
    time: float
