"""What users import: publish events, ask for data and wait for it, subscribe, query.

`DataPlane` is a client. It decides nothing and holds nothing but an outbox; it may be closed and
opened again at any time without anything being lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar, cast

import msgspec

from adapters.workers import cancelled, finish
from dataplane.catalog import Catalog
from dataplane.config import ConfigError, DataPlaneConfig
from dataplane.credentials import bus_key, bus_tls
from dataplane.following import Following
from dataplane.health import HealthCheckResult, cluster_health, nobody_tells
from dataplane.outbox import NotKept, Outbox
from dataplane.overview import overview, with_alerts
from dataplane.presence import present
from dataplane.queries import PREFIX
from dataplane.questions import ask_any
from dataplane.turns import said
from projections.fold import Checkpoint
from projections.store import StoreMissing
from streams import events
from streams.codec import Recorded, chain_of_trigger, check_traceparent, node_fact
from streams.events import CHAIN_TRIGGERS, Event
from streams.jetstream import JetStreamLog
from streams.log import (
    Bus,
    ConsumerState,
    Delivery,
    Log,
    LogError,
    LogState,
    LogUnavailable,
    Standing,
)
from streams.subjects import chain_filter, type_filter
from streams.values import ALL_CONFIGS, S3_NODE, DataType, SyncPriority, TargetOutcome

E = TypeVar("E", bound=Event)
CONNECT_TIMEOUT_S = 10.0
SUBSCRIBER_ACK_WAIT_S = 30.0
#: How long a coordinator may take to answer.
_ANSWER_S = 10.0
SUBSCRIBER_MAX_PENDING = 64


class Published(msgspec.Struct, frozen=True):
    """What became of a publication."""

    #: The event's id; the same id is stored once however often it is published.
    id: str
    #: The chain a trigger opens; "" for other facts.
    chain: str
    #: Its place in the log; None while it waits in the outbox.
    sequence: int | None

    @property
    def queued(self) -> bool:
        """Whether it waits in the outbox because the bus could not be reached."""
        return self.sequence is None


class SyncResult(msgspec.Struct, frozen=True):
    """How a chain ended."""

    success: bool
    chain: str
    config_key: str
    reason: str
    #: What is in place, target by target, proven by digest.
    targets: tuple[TargetOutcome, ...]
    #: What is missing, and why.
    failed: tuple[TargetOutcome, ...]
    games_synced: int
    bytes_transferred: int
    duration_seconds: float


class SyncHandle:
    """A chain on its way."""

    def __init__(self, log: Log, bus: Bus, chain: str, sequence: int) -> None:
        self._log = log
        self._bus = bus
        self._sequence = sequence
        #: The chain's id, for ``dataplane chain ID``.
        self.chain = chain

    async def wait(
        self,
        timeout: float | None = None,
        *,
        progress_callback: Callable[[int, int], None] | None = None,
    ) -> SyncResult:
        """Wait for the chain's end. Raises TimeoutError; the chain goes on all the same.

        `progress_callback` is told (bytes done, bytes in all) of what the chain moves, a few times
        a second. It is called on the event loop; what it raises, this raises.
        """
        waiting = asyncio.timeout(timeout)
        try:
            async with waiting:
                return await self._followed(progress_callback)
        except TimeoutError:
            if not waiting.expired():
                raise
            raise TimeoutError(
                f"no end within {timeout:g} s; it goes on: dataplane chain {self.chain}"
            ) from None

    async def _followed(self, progress_callback: Callable[[int, int], None] | None) -> SyncResult:
        if progress_callback is None:
            return await self._end(lambda recorded: None)
        following = Following(progress_callback)
        hearing = asyncio.create_task(following.hear(self._bus))
        ending = asyncio.create_task(self._end(following.see))
        try:
            await asyncio.wait({ending, hearing}, return_when=asyncio.FIRST_COMPLETED)
            if not ending.done():
                hearing.result()
            return await ending
        finally:
            await cancelled([hearing, ending])

    async def _end(self, see: Callable[[Recorded], None]) -> SyncResult:
        reading = self._log.read(after=self._sequence, subjects=[chain_filter(self.chain)])
        async with contextlib.aclosing(reading) as batches:
            async for batch in batches:
                for recorded in batch:
                    see(recorded)
                    result = _result(recorded)
                    if result is not None:
                        return result
        raise LogUnavailable("the log was closed before the chain ended")


class Received(Generic[E]):
    """An event given to a subscriber; its fields can be read from it directly."""

    def __init__(self, recorded: Recorded, delivery: Delivery | None) -> None:
        self._delivery = delivery
        self.event = cast(E, recorded.event)
        #: Where it stands in the log, its id, chain, cause and time.
        self.recorded = recorded
        #: Counts from 1; above it, this is a redelivery.
        self.attempt = delivery.attempt if delivery else 1

    async def ack(self) -> None:
        """It is dealt with. Without this a durable subscription delivers it again."""
        if self._delivery is not None:
            await self._delivery.ack()

    async def nak(self, delay_s: float = 0.0) -> None:
        """Deliver it again, to this or another member of the subscription."""
        if self._delivery is not None:
            await self._delivery.nak(delay_s)

    async def in_progress(self) -> None:
        """Still at it: do not deliver it again yet."""
        if self._delivery is not None:
            await self._delivery.in_progress()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.event, name)

    def __repr__(self) -> str:
        return f"Received({self.event!r})"


class DataPlane:
    """A client of the data plane. Use `connect`; it can be used as ``async with``."""

    def __init__(self, config: DataPlaneConfig) -> None:
        self.config = config
        self._log: JetStreamLog | None = None
        self._connecting = asyncio.Lock()
        self._retry_at = 0.0
        self._unanswered = ""
        self._outbox = Outbox(config.state_dir / "outbox")
        #: Where the cluster's data is, from the views of this machine.
        self.catalog = Catalog(config)

    @classmethod
    def connect(
        cls,
        url: str | None = None,
        *,
        node: str | None = None,
        config: DataPlaneConfig | None = None,
        outbox: Path | None = None,
    ) -> DataPlane:
        """A client for the bus at `url`, speaking as `node`; both default to the configuration.

        Nothing is sent yet: ``async with`` or the first call connects. `outbox` is the directory
        that keeps what can't be sent, by default ``state_dir/outbox``.
        """
        settings = config or DataPlaneConfig.load()
        if url is not None:
            settings = msgspec.structs.replace(settings, nats_url=url)
        if node is not None:
            settings = msgspec.structs.replace(settings, node=node)
        fields = msgspec.structs.fields(DataPlaneConfig)
        values = {field.encode_name: getattr(settings, field.name) for field in fields}
        plane = cls(DataPlaneConfig.from_values(values))
        if outbox is not None:
            plane._outbox = Outbox(outbox)
        return plane

    async def __aenter__(self) -> DataPlane:
        with contextlib.suppress(LogUnavailable):
            await self.log()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def log(self) -> JetStreamLog:
        """The log, connected. Raises LogUnavailable, or PermissionDenied with the bus's words."""
        async with self._connecting:
            if self._log is None:
                if time.monotonic() < self._retry_at:
                    raise LogUnavailable(self._unanswered)
                try:
                    self._log = await open_log(self.config)
                except LogUnavailable as error:
                    self._retry_at = time.monotonic() + 1.0
                    self._unanswered = str(error)
                    raise
            return self._log

    async def publish(
        self, event: Event, *, id: str | None = None, traceparent: str = ""
    ) -> Published:
        """Say that something happened; durable once this returns.

        With the same `id` it is stored once, however often it is published: give one, made from
        what was done, where a program that runs again would say the same thing again. If the bus
        can't be reached the event waits in the outbox, and this node's agent, or the next
        publication, sends it. With a W3C `traceparent` all that a trigger brings about is part of
        that trace. Raises ValueError, naming the field, before anything is stored, and NotKept
        where neither the bus nor this machine's disk takes it.
        """
        if not isinstance(event, Event):
            raise TypeError(f"publish() takes an event such as SelfplayComplete, not {event!r}")
        node = events.speaker_of(event) or self.config.node
        event_id = id or uuid.uuid4().hex
        if traceparent:
            check_traceparent(traceparent)
        fact = node_fact(event, node, event_id, traceparent=traceparent)
        chain = chain_of_trigger(event_id) if isinstance(event, CHAIN_TRIGGERS) else ""
        try:
            path = await finish(lambda: self._outbox.put(fact))
        except OSError as full:
            # The bus may take it all the same; then it is as durable as it can be.
            try:
                receipt = await said(await self.log(), fact)
            except LogUnavailable as away:
                raise NotKept(f"the outbox takes nothing ({full}), and {away}") from full
            return Published(event_id, chain, receipt.sequence)
        try:
            receipt = await said(await self.log(), fact)
        except LogUnavailable:
            return Published(event_id, chain, None)
        except LogError:
            # Refused for good: the caller is told, so it must not be tried again behind his back.
            self._outbox.done(path)
            raise
        self._outbox.done(path)
        return Published(event_id, chain, receipt.sequence)

    async def drain_outbox(self) -> int:
        """Send what waits in the outbox; how many events were sent."""
        return await self._outbox.drain(await self.log())

    async def request_sync(
        self,
        data_type: DataType,
        config_key: str,
        target_nodes: Iterable[str],
        priority: SyncPriority = SyncPriority.NORMAL,
        deadline: float | None = None,
        *,
        traceparent: str = "",
    ) -> SyncHandle:
        """Ask for data on named nodes; the handle waits for it. `traceparent` as for `publish`.

        Raises LogUnavailable where nobody could take the request: a request is never queued.
        """
        if isinstance(target_nodes, str):
            raise TypeError(f"target_nodes must be a list of nodes, not the text {target_nodes!r}")
        targets = tuple(target_nodes)
        if not targets:
            raise ValueError("target_nodes is empty: name at least one node")
        event = events.DataSyncRequested(
            data_type=data_type,
            config_key=config_key,
            target_nodes=targets,
            priority=priority,
            deadline=deadline,
            requester=self.config.node,
        )
        if traceparent:
            check_traceparent(traceparent)
        log = await self.log()
        id = uuid.uuid4().hex
        receipt = await log.publish(node_fact(event, self.config.node, id, traceparent=traceparent))
        return SyncHandle(log, log.bus, chain_of_trigger(id), receipt.sequence)

    async def handle(self, published: Published) -> SyncHandle:
        """A handle on the chain that a published trigger opened."""
        if not isinstance(published, Published):
            raise TypeError(f"handle() takes what publish() returned, not {published!r}")
        log = await self.log()
        return SyncHandle(log, log.bus, published.chain, published.sequence or 0)

    async def sync_all(self, priority: SyncPriority = SyncPriority.LOW) -> list[SyncHandle]:
        """Ask for everything that training nodes lack; a handle for each request."""
        asked: dict[tuple[str, DataType], set[str]] = {}
        for node, entry in self.catalog.missing_everywhere():
            asked.setdefault((entry.config_key, entry.data_type), set()).add(node)
        return [
            await self.request_sync(data_type, config_key, sorted(nodes), priority)
            for (config_key, data_type), nodes in sorted(asked.items())
        ]

    async def backup_to_s3(self, priority: SyncPriority = SyncPriority.LOW) -> list[SyncHandle]:
        """Ask for everything that belongs in the bucket and is not there; a handle each request.

        Raises ConfigError where no bucket is configured.
        """
        if not self.config.s3_enabled:
            raise ConfigError("s3_enabled is off: there is no bucket to back up to")
        lacking = self.catalog.not_in_bucket()
        asked = sorted({(entry.config_key, entry.data_type) for entry in lacking})
        return [
            await self.request_sync(data_type, config_key, [S3_NODE], priority)
            for config_key, data_type in asked
        ]

    async def subscribe(
        self,
        event_class: type[E],
        *,
        config_key: str = "",
        durable: str = "",
        since: str = "",
    ) -> AsyncIterator[Received[E]]:
        """Events of a class, of one configuration if it is given, in the log's order.

        With `durable`, a subscription that outlives its process: it goes on where it was, shares
        its events with all who use the same name, and delivers again what was not acknowledged
        within 30 s. A new one begins at the ``start`` of what the bus still holds, or with
        ``since="now"`` behind its end. Without, it begins now, or at that ``start``, and remembers
        nothing.
        """
        log = await self.log()
        subjects = [type_filter(event_class, config_key)]
        if durable:
            deliveries = await log.consume(
                durable,
                subjects,
                ack_wait_s=SUBSCRIBER_ACK_WAIT_S,
                max_pending=SUBSCRIBER_MAX_PENDING,
                new_only=since == "now",
            )
            try:
                async for delivery in deliveries:
                    if delivery.recorded.event is None:
                        await delivery.ack()
                        continue
                    yield Received(delivery.recorded, delivery)
            finally:
                await deliveries.close()
            return
        after = 0 if since == "start" else (await log.state()).last_sequence
        async with contextlib.aclosing(log.read(after=after, subjects=subjects)) as batches:
            async for batch in batches:
                for recorded in batch:
                    if recorded.event is not None:
                        yield Received(recorded, None)

    async def health_check(self) -> HealthCheckResult:
        """Whether the data plane does its work, judged by progress.

        By the views on this machine; a machine without any asks a coordinator.
        """
        try:
            return await self.health_by_views()
        except StoreMissing as missing:
            return await self._health_as_told(missing)

    async def _health_as_told(self, missing: StoreMissing) -> HealthCheckResult:
        try:
            bus = (await self.log()).bus
            answer = await ask_any(bus, f"{PREFIX}.health", b"", _ANSWER_S)
            return msgspec.json.decode(answer, type=HealthCheckResult)
        except LogError as error:
            return nobody_tells(f"{missing}; and no coordinator answers: {error}")

    async def health_by_views(self) -> HealthCheckResult:
        """As `health_check`, by the views on this machine. Raises StoreMissing if it has none."""
        last_sequence, there = None, None
        consumers: dict[str, ConsumerState] = {}
        standing: Standing | None = None
        unknown = not_ours = ""
        with self.catalog.view() as view:
            before = view.checkpoint
        try:
            log = await self.log()
            state = await log.state()
            last_sequence = state.last_sequence
            not_ours = _not_folded_from(before, state)
            standing = await log.standing()
            there = await present(log.bus)
            consumers = await log.consumers()
        except LogError as error:
            if last_sequence is not None:
                unknown = f"the bus told only a part of how it is: {error}"
        with self.catalog.view() as view:
            now, policy = time.time(), self.config.policy()
            verdict = cluster_health(
                view,
                now=now,
                last_sequence=last_sequence,
                present=there,
                consumers=consumers,
                standing=standing,
                unknown=unknown,
                not_ours=not_ours,
                policy=policy,
            )
            seen = overview(
                view,
                now=now,
                beats=there,
                last_sequence=last_sequence,
                standing=standing,
                policy=policy,
            )
            return with_alerts(verdict, seen)

    async def close(self) -> None:
        """Let go of the bus and the views."""
        if self._log is not None:
            await self._log.close()
            self._log = None
        self.catalog.close()


async def open_log(config: DataPlaneConfig) -> JetStreamLog:
    """Connect to the configured bus. Raises LogUnavailable or PermissionDenied with a hint, and
    ConfigError for files that can't be used.
    """
    return await JetStreamLog.connect(
        config.servers,
        name=config.node,
        user=config.nats_user or None,
        password=config.nats_password or None,
        creds_file=bus_key("nats_credentials", config.nats_credentials),
        nkey_seed_file=bus_key("nats_nkey", config.nats_nkey),
        tls=bus_tls(config),
    )


_current: DataPlane | None = None


def get_data_plane() -> DataPlane:
    """This process's client, made from the configuration at the first call."""
    global _current
    if _current is None:
        _current = DataPlane.connect()
    return _current


async def request_sync(
    data_type: DataType,
    config_key: str,
    target_nodes: Iterable[str],
    priority: SyncPriority = SyncPriority.NORMAL,
    deadline: float | None = None,
) -> SyncHandle:
    """`DataPlane.request_sync` of this process's client."""
    plane = get_data_plane()
    return await plane.request_sync(data_type, config_key, target_nodes, priority, deadline)


def _not_folded_from(views: Checkpoint, state: LogState) -> str:
    """Why views can't be those of a log that was asked after them; "" if they can."""
    if not views.sequence:
        return ""
    if views.created != state.created:
        return "the views here are of another log than the bus has"
    if views.sequence > state.last_sequence:
        return (
            f"the views here are at {views.sequence} and the log ends at {state.last_sequence}: "
            "it is an earlier copy of theirs"
        )
    return ""


def _result(recorded: Recorded) -> SyncResult | None:
    event = recorded.event
    failed: tuple[TargetOutcome, ...] = ()
    if isinstance(event, events.DataSyncCompleted):
        arrived = event.targets
    elif isinstance(event, events.DataSyncFailed):
        arrived, failed = event.arrived, event.failed
    else:
        return None
    return SyncResult(
        success=isinstance(event, events.DataSyncCompleted),
        chain=recorded.chain,
        config_key=event.config_key or ALL_CONFIGS,
        reason=event.reason,
        targets=arrived,
        failed=failed,
        games_synced=event.games_synced,
        bytes_transferred=event.bytes_transferred,
        duration_seconds=event.duration_seconds,
    )
