"""A node's agent: says what the node holds, serves it, and carries out what the node is asked.

Everything it was told and everything it says goes through the log; what it must remember besides
is the inventory's index, which the log can restore.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import cast

import msgspec

from adapters.http import FileServer
from adapters.inventory import Inventory, Scan
from adapters.landing import sweep_partials
from adapters.signing import Signer
from adapters.transport import Fetches
from dataplane.config import DataPlaneConfig
from dataplane.crashpoints import reach
from dataplane.outbox import Outbox
from dataplane.presence import Presence, signing_key
from dataplane.proving import answer_proofs
from dataplane.transfers import ProgressMessage, TransportManager, quarantine_fact
from dataplane.transports import content_path, locate_subject, make_transports
from streams import events
from streams.codec import Fact, Recorded, fact_id, node_fact, split_entries
from streams.events import FILE_TRIGGERS
from streams.log import Answering, Bus, Delivery, Log, LogError
from streams.subjects import Place
from streams.values import ALL_CONFIGS, Endpoint, NodeDescription, Transport, config_key_in

logger = logging.getLogger(__name__)

ACK_WAIT_S = 6.0
MAX_TASKS = 64
MAX_TRIGGERS = 64
HEARTBEAT_S = 5.0
OUTBOX_S = 2.0
#: Reports that nothing asked for are at least this far apart.
WATCH_GAP_S = 2.0
PROGRESS_S = 0.25
#: How long the answer to a trigger waits for files that are being written, of its limit.
PATIENCE = 0.5


class Agent:
    """One node. `start`, then `run` in a task until it is cancelled, then `stop`."""

    def __init__(self, log: Log, bus: Bus, config: DataPlaneConfig) -> None:
        self._log = log
        self._bus = bus
        self._config = config
        self.node = config.node
        self._inventory = Inventory(
            config.data_dir,
            config.node,
            config.path_rules,
            rescan_s=config.manifest_refresh_interval,
        )
        self._outbox = Outbox(config.state_dir / "outbox")
        self._presence = Presence(bus, self.node, "agent")
        #: One report at a time: what was found, published and marked as said belongs together.
        self._reporting = asyncio.Lock()
        self._server: FileServer | None = None
        self._transports: dict[Transport, Fetches] = {}
        self._manager: TransportManager | None = None
        self._answering: list[Answering] = []

    async def start(self) -> None:
        """Open the inventory, serve files, and say that the node is there."""
        config = self._config
        config.data_dir.mkdir(parents=True, exist_ok=True)
        signer = Signer(await signing_key(self._bus))
        port_file = config.state_dir / "http_port"
        self._server = await self._serve(signer, config.http_port or _remembered(port_file))
        port_file.parent.mkdir(parents=True, exist_ok=True)
        port_file.write_text(str(self._server.port))
        self._transports = make_transports(config, signer)
        self._answering = [
            await self._bus.answer(locate_subject(self.node), self._locate),
            await answer_proofs(self._bus, self.node, self._inventory.prove),
        ]
        self._manager = TransportManager(
            self.node,
            config.data_dir,
            self._inventory,
            self._transports,
            rules=config.path_rules,
            stall_s=config.stall_timeout_seconds,
            content_path=partial(content_path, self._bus),
        )
        await self._remember_received()
        await self._register()

    async def run(self) -> None:
        """Everything an agent does at once, for ever. One loop's end is the end of all."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._answer_triggers(), name="triggers")
            group.create_task(self._take_orders(), name="orders")
            group.create_task(self._watch(), name="watch")
            group.create_task(self._beat(), name="heartbeat")
            group.create_task(self._send_outbox(), name="outbox")

    async def stop(self) -> None:
        """Let go of everything; what was under way is done again by whoever comes next."""
        for answering in self._answering:
            await answering.close()
        for transport in self._transports.values():
            await transport.close()
        if self._server is not None:
            await self._server.stop()
        await self._inventory.close()

    async def _serve(self, signer: Signer, port: int) -> FileServer:
        server = FileServer(self._inventory.locate, signer, self._config.http_host, port)
        try:
            await server.start()
        except OSError:
            if self._config.http_port:
                raise
            # The port of last time is taken: any other will do, it is registered anew.
            server = FileServer(self._inventory.locate, signer, self._config.http_host, 0)
            await server.start()
        return server

    async def _locate(self, subject: str, body: bytes) -> bytes:
        """Which file of this node holds a content and will not change; "" if none does."""
        path = self._inventory.locate(body.decode())
        return msgspec.json.encode(str(path.resolve()) if path else "")

    # What this node is

    def describe(self) -> NodeDescription:
        """This node in its own words."""
        config = self._config
        disk = shutil.disk_usage(config.data_dir)
        return NodeDescription(
            name=self.node,
            roles=config.roles,
            traits=config.traits,
            endpoint=Endpoint(
                node=self.node,
                http_url=config.http_advertise or (self._server.url if self._server else ""),
                ssh_host=config.ssh_host,
                ssh_port=config.ssh_port,
                ssh_user=config.ssh_user,
                data_root=str(config.data_dir.resolve()),
            ),
            provider=config.provider,
            region=config.region,
            nfs_group=config.nfs_group,
            disk_total_bytes=disk.total,
            disk_free_bytes=disk.free,
        )

    async def _register(self) -> None:
        event = events.NodeRegistered(description=self.describe())
        id = fact_id("registered", self.node, time.time_ns())
        await self._log.publish(node_fact(event, self.node, id))

    async def _beat(self) -> None:
        while True:
            counts = self._inventory.counts()
            manager = self._manager
            await self._presence.beat(
                {
                    "http_url": self._server.url if self._server else "",
                    "roles": list(self._config.roles),
                    "disk_free_bytes": shutil.disk_usage(self._config.data_dir).free,
                    "files": counts.files,
                    "transfers_running": manager.running if manager else 0,
                    "bytes_moved": manager.bytes_moved if manager else 0,
                }
            )
            await asyncio.sleep(HEARTBEAT_S)

    async def _send_outbox(self) -> None:
        """Send what self-play on this node could not send itself."""
        while True:
            await self._outbox.drain(self._log)
            await asyncio.sleep(OUTBOX_S)

    # What this node holds

    async def _remember_received(self) -> None:
        """Ask the log what this node has received, so that nothing of it is ever taken for ours."""
        state = await self._log.state()
        received: dict[str, events.TransferSucceeded] = {}
        subject = f"dp.node.{self.node}.TRANSFER_SUCCEEDED.>"
        if state.last_sequence == 0:
            return
        reading = self._log.read(until=state.last_sequence, subjects=[subject])
        async with aclosing(reading) as batches:
            async for batch in batches:
                for recorded in batch:
                    if isinstance(recorded.event, events.TransferSucceeded):
                        received[recorded.event.entry.path] = recorded.event
        await self._inventory.adopt([event.entry for event in received.values()])

    async def _watch(self) -> None:
        """Report what changes by itself, without a trigger."""
        async for _ in self._inventory.watch(asyncio.Event()):
            with contextlib.suppress(LogError):
                async with self._reporting:
                    await self._report(await self._inventory.scan())
            await asyncio.to_thread(sweep_partials, self._config.data_dir, time.time())
            # A live database changes all the time; triggers do not wait for this.
            await asyncio.sleep(WATCH_GAP_S)

    async def _answer_triggers(self) -> None:
        """Say what this node holds, to each trigger that speaks of its files."""
        subjects = [
            f"dp.{Place.NODE}.{self.node}.{events.type_name(cls)}.>" for cls in FILE_TRIGGERS
        ]
        deliveries = await self._log.consume(
            f"observe_{self.node}", subjects, ack_wait_s=ACK_WAIT_S, max_pending=MAX_TRIGGERS
        )
        try:
            async for delivery in deliveries:
                async with _kept_alive(delivery), _left_to_redelivery(delivery):
                    await self._answer(delivery)
        finally:
            await deliveries.close()

    async def _answer(self, delivery: Delivery) -> None:
        trigger = delivery.recorded
        if trigger.event is None:
            await delivery.ack()
            return
        whole_node = isinstance(trigger.event, events.NodeTerminating)
        async with self._reporting:
            scan = await self._inventory.scan(None if whole_node else trigger.config_key)
            patience = self._config.answer_limit_seconds * PATIENCE
            if _relevant(scan.waiting, trigger) and time.time() - trigger.time < patience:
                await delivery.nak(1.0)
                return
            await self._report(scan, trigger)
        await delivery.ack()

    async def _report(self, scan: Scan, trigger: Recorded | None = None) -> None:
        """Publish what a scan found, whole or not at all, then mark it as said."""
        if trigger is None and not scan.changed and not scan.removed:
            return
        facts = [*self._removals(scan), *self._observations(scan, trigger)]
        if len(facts) == 1:
            await self._log.publish(facts[0])
        else:
            await self._log.append(facts)
        reach("agent.observed")
        await self._inventory.reported(scan.changed, scan.removed)

    def _observations(self, scan: Scan, trigger: Recorded | None) -> list[Fact]:
        if trigger is None and not scan.changed:
            return []
        problems = _relevant((*scan.problems, *scan.waiting), trigger)
        parts = split_entries(scan.changed)
        content = fact_id(*((e.path, e.checksum, e.mtime) for e in scan.changed))
        chain, cause = (trigger.chain, trigger.id) if trigger else ("", "")
        return [
            node_fact(
                events.FilesObserved(
                    node=self.node,
                    entries=entries,
                    last_part=index == len(parts) - 1,
                    problems=problems if index == 0 else (),
                ),
                self.node,
                fact_id("observed", self.node, cause, content, index),
                chain=chain,
                cause=cause,
            )
            for index, entries in enumerate(parts)
        ]

    def _removals(self, scan: Scan) -> list[Fact]:
        if not scan.removed:
            return []
        return [
            node_fact(
                events.FilesRemoved(node=self.node, paths=paths),
                self.node,
                fact_id("removed", self.node, time.time_ns(), index),
            )
            for index, paths in enumerate(split_entries(scan.removed))
        ]

    # What this node is asked to do

    async def _take_orders(self) -> None:
        """Carry out assignments, all that are given at once: how many is decided by who gives."""
        deliveries = await self._log.consume(
            f"task_{self.node}",
            [f"dp.{Place.TASK}.{self.node}.>"],
            ack_wait_s=ACK_WAIT_S,
            max_pending=MAX_TASKS,
        )
        try:
            async with asyncio.TaskGroup() as group:
                async for delivery in deliveries:
                    group.create_task(self._obey(delivery))
        finally:
            await deliveries.close()

    async def _obey(self, delivery: Delivery) -> None:
        order = delivery.recorded
        if not isinstance(order.event, events.TransferAssigned):
            await delivery.ack()
            return
        async with _kept_alive(delivery), _left_to_redelivery(delivery):
            await self._carry_out(order, order.event)
            await delivery.ack()

    async def _carry_out(self, recorded: Recorded, order: events.TransferAssigned) -> None:
        """Move the bytes and say what came of it; the caller acknowledges after that."""
        manager = cast(TransportManager, self._manager)
        result = await manager.transfer(order, self._progress(order))
        facts = [self._result_fact(recorded, result)]
        if isinstance(result, events.TransferFailed):
            quarantined = quarantine_fact(self.node, order.entry, result)
            if quarantined is not None:
                id = fact_id("quarantined", recorded.id)
                facts.append(node_fact(quarantined, self.node, id, chain=recorded.chain))
        for fact in facts:
            await self._outbox.publish(self._log, fact)
        manager.said(order.transfer)
        reach("agent.reported")

    def _result_fact(
        self, order: Recorded, result: events.TransferSucceeded | events.TransferFailed
    ) -> Fact:
        # An attempt has one outcome of each kind however often it is carried out.
        id = fact_id(order.id, events.type_name(result))
        return node_fact(result, self.node, id, chain=order.chain, cause=order.id)

    def _progress(self, order: events.TransferAssigned) -> Progress:
        return Progress(self._bus, order)


class Progress:
    """Tells watchers how far a transfer is, a few times a second. Kept nowhere."""

    def __init__(self, bus: Bus, order: events.TransferAssigned) -> None:
        self._bus = bus
        self._order = order
        self._told = 0.0

    def __call__(self, done: int, total: int) -> None:
        """Tell, unless it was told just now."""
        now = time.monotonic()
        if now - self._told < PROGRESS_S and done < total:
            return
        self._told = now
        order = self._order
        message = ProgressMessage(
            transfer=order.transfer,
            source=order.source,
            target=order.target,
            path=order.entry.path,
            config_key=order.entry.config_key,
            done=done,
            total=total,
            time=time.time(),
        )
        self._bus.tell(f"dp.progress.{order.transfer}", msgspec.json.encode(message))


def _relevant(problems: tuple[str, ...], trigger: Recorded | None) -> tuple[str, ...]:
    """Problems a report tells: all, or those of the configuration that a trigger speaks of."""
    if trigger is not None and trigger.config_key != ALL_CONFIGS:
        problems = tuple(p for p in problems if config_key_in(p) == trigger.config_key)
    return tuple(text[:1000] for text in problems[:100])


@contextlib.asynccontextmanager
async def _kept_alive(delivery: Delivery) -> AsyncIterator[None]:
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
async def _left_to_redelivery(delivery: Delivery) -> AsyncIterator[None]:
    """A log that can't be reached ends this try, not the agent: the message comes again."""
    try:
        yield
    except LogError as error:
        logger.warning("event %s will be redelivered: %s", delivery.recorded.id, error)


def _remembered(port_file: Path) -> int:
    """The port of last time, so that what others know of us stays true; 0 if there is none."""
    try:
        return int(port_file.read_text())
    except (FileNotFoundError, ValueError):
        return 0
