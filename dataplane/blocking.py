"""The client without async: for plain scripts, and inside a running event loop's threads.

One background thread runs the event loop of all blocking clients of a process. Every method
blocks the calling thread, also where that thread has an event loop of its own.
"""

from __future__ import annotations

import asyncio
import atexit
import queue
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

from dataplane import api
from dataplane.api import Published, SyncResult
from dataplane.catalog import Catalog
from dataplane.config import DataPlaneConfig
from dataplane.health import HealthCheckResult
from streams.events import Event
from streams.values import DataType, SyncPriority

T = TypeVar("T")
E = TypeVar("E", bound=Event)


class _Loop:
    """An event loop in a thread of its own, started when it is first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine there and wait for its result."""
        future = self.start(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine there."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                thread = threading.Thread(
                    target=self._loop.run_forever, name="dataplane", daemon=True
                )
                thread.start()
                atexit.register(self._loop.call_soon_threadsafe, self._loop.stop)
        return asyncio.run_coroutine_threadsafe(work, self._loop)


_loop = _Loop()


class SyncHandle:
    """A chain on its way."""

    def __init__(self, handle: api.SyncHandle) -> None:
        self._handle = handle
        self.chain = handle.chain

    def wait(
        self,
        timeout: float | None = None,
        *,
        progress_callback: Callable[[int, int], None] | None = None,
    ) -> SyncResult:
        """Wait for the chain's end. Raises TimeoutError; the chain goes on all the same.

        `progress_callback` is told (bytes done, bytes in all), in the thread that waits.
        """
        if progress_callback is None:
            return _loop.run(self._handle.wait(timeout))
        told: queue.SimpleQueue[tuple[int, int] | None] = queue.SimpleQueue()
        waiting = _loop.start(
            self._handle.wait(
                timeout, progress_callback=lambda done, total: told.put((done, total))
            )
        )
        waiting.add_done_callback(lambda _: told.put(None))
        try:
            while (said := told.get()) is not None:
                progress_callback(*said)
            return waiting.result()
        except BaseException:
            waiting.cancel()
            raise


class Received(Generic[E]):
    """An event given to a subscriber; its fields can be read from it directly."""

    def __init__(self, received: api.Received[E]) -> None:
        self._received = received
        self.event: E = received.event
        self.recorded = received.recorded
        self.attempt = received.attempt

    def ack(self) -> None:
        """It is dealt with. Without this a durable subscription delivers it again."""
        _loop.run(self._received.ack())

    def nak(self, delay_s: float = 0.0) -> None:
        """Deliver it again, to this or another member of the subscription."""
        _loop.run(self._received.nak(delay_s))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.event, name)

    def __repr__(self) -> str:
        return f"Received({self.event!r})"


class DataPlane:
    """The blocking twin of `dataplane.DataPlane`; see there."""

    def __init__(self, plane: api.DataPlane) -> None:
        self._plane = plane
        self.config = plane.config
        self.catalog: Catalog = plane.catalog

    @classmethod
    def connect(
        cls,
        url: str | None = None,
        *,
        node: str | None = None,
        config: DataPlaneConfig | None = None,
        outbox: Path | None = None,
    ) -> DataPlane:
        """A client for the bus at `url`, speaking as `node`; use it as ``with``."""

        async def make() -> api.DataPlane:
            return api.DataPlane.connect(url, node=node, config=config, outbox=outbox)

        return cls(_loop.run(make()))

    def __enter__(self) -> DataPlane:
        _loop.run(self._plane.__aenter__())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def publish(self, event: Event, *, id: str | None = None, traceparent: str = "") -> Published:
        """Say that something happened; durable once this returns."""
        return _loop.run(self._plane.publish(event, id=id, traceparent=traceparent))

    def drain_outbox(self) -> int:
        """Send what waits in the outbox; how many events were sent."""
        return _loop.run(self._plane.drain_outbox())

    def request_sync(
        self,
        data_type: DataType,
        config_key: str,
        target_nodes: Iterable[str],
        priority: SyncPriority = SyncPriority.NORMAL,
        deadline: float | None = None,
        *,
        traceparent: str = "",
    ) -> SyncHandle:
        """Ask for data on named nodes; the handle waits for it."""
        asking = self._plane.request_sync(
            data_type, config_key, target_nodes, priority, deadline, traceparent=traceparent
        )
        return SyncHandle(_loop.run(asking))

    def handle(self, published: Published) -> SyncHandle:
        """A handle on the chain that a published trigger opened."""
        return SyncHandle(_loop.run(self._plane.handle(published)))

    def sync_all(self, priority: SyncPriority = SyncPriority.LOW) -> list[SyncHandle]:
        """Ask for everything that training nodes lack; a handle for each request."""
        return [SyncHandle(handle) for handle in _loop.run(self._plane.sync_all(priority))]

    def backup_to_s3(self, priority: SyncPriority = SyncPriority.LOW) -> list[SyncHandle]:
        """Ask for everything that belongs in the bucket and is not there; a handle each request."""
        return [SyncHandle(handle) for handle in _loop.run(self._plane.backup_to_s3(priority))]

    def subscribe(
        self, event_class: type[E], *, config_key: str = "", durable: str = "", since: str = ""
    ) -> Iterator[Received[E]]:
        """Events of a class as they come; blocks between them."""
        events = self._plane.subscribe(
            event_class, config_key=config_key, durable=durable, since=since
        )
        try:
            while True:
                try:
                    yield Received(_loop.run(_next(events)))
                except StopAsyncIteration:
                    return
        finally:
            _loop.run(_close(events))

    def health_check(self) -> HealthCheckResult:
        """Whether the data plane does its work, judged by progress."""
        return _loop.run(self._plane.health_check())

    def close(self) -> None:
        """Let go of the bus and the views."""
        _loop.run(self._plane.close())


_current: DataPlane | None = None


def get_data_plane() -> DataPlane:
    """This process's blocking client, made from the configuration at the first call."""
    global _current
    if _current is None:
        _current = DataPlane.connect()
    return _current


def request_sync(
    data_type: DataType,
    config_key: str,
    target_nodes: Iterable[str],
    priority: SyncPriority = SyncPriority.NORMAL,
    deadline: float | None = None,
) -> SyncHandle:
    """`DataPlane.request_sync` of this process's client."""
    plane = get_data_plane()
    return plane.request_sync(data_type, config_key, target_nodes, priority, deadline)


async def _next(events: Any) -> Any:
    return await events.__anext__()


async def _close(events: Any) -> None:
    await events.aclose()
