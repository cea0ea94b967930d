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
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import cast

import msgspec

from adapters.files.inventory import Inventory
from adapters.files.maps import MapStore
from adapters.files.places import OWN_DIRECTORY
from adapters.http import tls
from adapters.http.receiving import Receiver
from adapters.http.signing import Signer
from adapters.http.transport import FileServer
from adapters.p2p.asking import Around
from adapters.reasons import reason
from adapters.transport import Fetches
from dataplane.agent import asking
from dataplane.agent.attempt import Outcome
from dataplane.agent.bucket import Backups, make_s3
from dataplane.agent.consolidating import Consolidator
from dataplane.agent.custody import Custody
from dataplane.agent.diskwatch import DiskWatch
from dataplane.agent.machine import marks, memory_bytes, memory_moved
from dataplane.agent.observing import Observer
from dataplane.agent.orders import Orders
from dataplane.agent.parting import Parting
from dataplane.agent.parts import Parts
from dataplane.agent.progress import Progress
from dataplane.agent.reaching import Reaching
from dataplane.agent.relaying import Relaying
from dataplane.agent.saying import Saying
from dataplane.agent.scrub import Scrubber
from dataplane.agent.succession import began_empty, take_over
from dataplane.agent.tidying import Tidying
from dataplane.agent.transfers import TransportManager
from dataplane.agent.transports import content_path, locate_subject, make_transports
from dataplane.config import DataPlaneConfig
from dataplane.coordinator.granting import GrantKeeper
from dataplane.outbox import Outbox
from dataplane.presence import Presence, instance_of, signing_key
from dataplane.pulse import stands_still
from dataplane.standstill import Standstill
from streams import events
from streams.codec import Fact, fact_id, node_fact
from streams.log import Answering, Bus, Log, LogError
from streams.values import Endpoint, NodeDescription, Transport

logger = logging.getLogger(__name__)

HEARTBEAT_S = 5.0
#: How often others are asked to try this node's address, and while nobody was there to ask.
PROBE_S = 300.0
PROBE_SOON_S = 3.0
OUTBOX_S = 2.0
#: How often the loops are looked at, and for how long one may do nothing while work waits: it takes
#: minutes to count the games of a database of tens of gigabytes.
WATCH_S = 10.0
STANDSTILL_S = 600.0


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
        self._saying = Saying(log, self._outbox)
        self._began_empty = began_empty(config.data_dir)
        place = config.data_dir / OWN_DIRECTORY
        self._presence = Presence(bus, self.node, "agent", instance_of(place))
        self._observer = Observer(log, bus, config, self._inventory)
        self._scrubber = Scrubber(
            config.node,
            self._inventory,
            self._say_in_the_end,
            interval_s=config.scrub_interval,
            limit_mbps=config.scrub_limit_mbps,
        )
        self._consolidator = self._made_to_consolidate()
        self._custody = Custody(
            log,
            bus,
            self.node,
            self._inventory,
            config.policy(),
            look_again=self._scrubber.scrub_at,
        )
        self._server: FileServer | None = None
        self._transports: dict[Transport, Fetches] = {}
        self._backups: Backups | None = None
        self._receiver: Receiver | None = None
        self._relaying: Relaying | None = None
        #: Whether others reach this node's file server; None until one could be asked.
        self._reaching = Reaching(bus, self.node)
        #: What this node last said of itself.
        self._told = NodeDescription(name=self.node)
        self._manager: TransportManager | None = None
        self._orders: Orders | None = None
        self._disk = DiskWatch(
            log,
            self.node,
            config.data_dir,
            config.policy(),
            lambda: self._told,
            self._describe_anew,
        )
        self._tidying = Tidying(bus, config.data_dir, config.policy().disk.stop_production_from)
        self._grants = GrantKeeper(bus, self.node, self._set_bandwidth)
        self._answering: list[Answering] = []

    def _made_to_consolidate(self) -> Consolidator | None:
        config = self._config
        if not config.consolidate_to:
            return None
        return Consolidator(
            self._say_in_the_end,
            self.node,
            config.data_dir,
            self._inventory,
            config.path_rules,
            config.policy().quality,
            config.consolidate_to,
        )

    def _unmerged(self) -> str:
        return "; ".join(self._consolidator.troubles.described()) if self._consolidator else ""

    async def start(self) -> None:
        """Open the inventory, serve files, and say that the node is there.

        Raises NameTaken where another agent speaks for the node.
        """
        await self._presence.claim()
        config = self._config
        config.data_dir.mkdir(parents=True, exist_ok=True)
        around = Around(
            Signer(await signing_key(self._bus), plain=config.http_plain),
            self._find,
            MapStore(config.data_dir),
            gossip=self._bus,
            context=tls.trusting(Path(config.http_tls_ca) if config.http_tls_ca else None),
        )
        port_file = config.state_dir / "http_port"
        self._receiver = Receiver(
            self.node,
            config.data_dir,
            self._inventory,
            rules=config.path_rules,
            stall_s=config.stall_timeout_seconds,
        )
        parts = Parts(self._bus, self._grants)
        self._relaying = Relaying(self.node, config.data_dir, parts, self._receiver)
        self._server = await self._serve(around, config.http_port or _remembered(port_file))
        # Where there is no room, the next one is registered anew.
        with suppress(OSError):
            port_file.parent.mkdir(parents=True, exist_ok=True)
            port_file.write_text(str(self._server.port))
        self._transports = make_transports(config, around)
        self._answering = [
            await self._bus.answer(locate_subject(self.node), self._locate),
            await asking.answer_handovers(self._bus, self._receiver),
            await asking.answer_parts(self._bus, self.node, self._do_part),
            await asking.answer_probes(self._bus, self.node),
        ]
        await self._custody.start()
        await self._grants.start()
        if config.s3_enabled:
            s3 = make_s3(config)
            self._transports[Transport.S3] = s3
            self._backups = Backups(self.node, s3)
        self._manager = TransportManager(
            self.node,
            config.data_dir,
            self._inventory,
            self._transports,
            rules=config.path_rules,
            stall_s=config.stall_timeout_seconds,
            content_path=partial(content_path, self._bus),
            bus=self._bus,
            backups=self._backups,
            relaying=self._relaying,
            parts=parts,
            here=self._endpoint,
        )
        self._orders = Orders(
            self._log, self._bus, self.node, self._manager, self._grants, self._saying
        )
        await self._observer.remember_received()
        if self._began_empty:
            await take_over(self._log, self.node, self._joining(), self._observer.reconcile_now)
        await self._register()
        served = self._endpoint().http_url
        logger.info("%s has joined; %s is served at %s", self.node, config.data_dir, served)

    async def run(self) -> None:
        """Everything an agent does at once, for ever. One loop's end is the end of all."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._observer.answer_triggers(), name="triggers")
            if self._orders is not None:
                group.create_task(self._orders.take(), name="orders")
            group.create_task(self._observer.watch(), name="watch")
            group.create_task(self._observer.reconcile(), name="reconcile")
            group.create_task(self._observer.keep_footing(), name="footing")
            group.create_task(self._beat(), name="heartbeat")
            group.create_task(self._watch_progress(), name="progress")
            group.create_task(self._grants.run(), name="grants")
            group.create_task(self._disk.run(), name="disk")
            group.create_task(self._tidying.run(), name="tidying")
            group.create_task(self._send_outbox(), name="outbox")
            group.create_task(self._probe(), name="probe")
            group.create_task(self._scrubber.run(), name="scrub")
            if self._consolidator is not None:
                group.create_task(self._consolidator.run(), name="consolidate")
            if self._relaying is not None:
                group.create_task(self._relaying.run(), name="relays")
            if self._backups is not None:
                group.create_task(self._backups.consolidate(), name="bucket")
                group.create_task(self._backups.tidy(), name="uploads")

    async def part(self) -> None:
        """Push to the bucket what it lacks, for a while; `run` must have ended."""
        limit_s = self._config.shutdown_push_seconds
        if self._backups is None or self._manager is None or not limit_s:
            return
        parting = Parting(
            self._log,
            self._outbox,
            self._config,
            self._inventory,
            self._observer,
            self._manager,
            self._backups,
        )
        await parting.push(limit_s)

    async def stop(self) -> None:
        """Let go of everything; what was under way is done again by whoever comes next."""
        await self._grants.stop()
        await self._custody.stop()
        for answering in self._answering:
            await answering.close()
        if self._manager is not None:
            await self._manager.close()
        await self._saying.close()
        for transport in self._transports.values():
            await transport.close()
        if self._server is not None:
            await self._server.stop()
        await self._inventory.close()
        await self._presence.leave()

    async def _serve(self, around: Around, port: int) -> FileServer:
        cert, key = self._config.http_tls_cert, self._config.http_tls_key
        context = tls.serving(Path(cert), Path(key)) if cert and key else None

        def made(port: int) -> FileServer:
            return FileServer(
                around.locate,
                around.signer,
                self._config.http_host,
                port,
                receiver=self._receiver,
                maps=around.maps,
                underway=around.underway,
                context=context,
            )

        server = made(port)
        try:
            await server.start()
        except OSError as error:
            if self._config.http_port:
                raise self._not_served(error) from error
            # The port of last time is taken: any other will do, it is registered anew.
            server = made(0)
            try:
                await server.start()
            except OSError as late:
                raise self._not_served(late) from late
        return server

    def _not_served(self, error: OSError) -> OSError:
        """Why files can't be served, by the settings that say where."""
        host, port = self._config.http_host, self._config.http_port
        why = f"files can't be served at http_host {host!r}, http_port {port}: {reason(error)}"
        return OSError(why)

    def _find(self, checksum: str) -> Path | None:
        """A file of this node, or one that passes through it, with exactly this content."""
        found = self._inventory.locate(checksum)
        if found is None and self._relaying is not None:
            return self._relaying.locate(checksum)
        return found

    async def _do_part(self, order: events.TransferAssigned, claim: str) -> Outcome:
        """A part of a transfer that was assigned to another node, which knows what it may use."""
        manager = cast(TransportManager, self._manager)
        with self._grants.running(order, claim):
            outcome = await manager.transfer(order, Progress(self._bus, order), claim)
        manager.said(order.transfer)
        return outcome

    async def _locate(self, subject: str, body: bytes) -> bytes:
        """Which file of this node holds a content and will not change; "" if none does."""
        path = self._inventory.locate(body.decode())
        return msgspec.json.encode(str(path.resolve()) if path else "")

    # What this node is

    def describe(self) -> NodeDescription:
        """This node in its own words."""
        config = self._config
        disk = shutil.disk_usage(config.data_dir)
        memory_total, memory_free = memory_bytes()
        return NodeDescription(
            name=self.node,
            roles=config.roles,
            traits=config.traits,
            endpoint=self._endpoint(),
            provider=config.provider,
            region=config.region,
            nfs_group=config.nfs_group,
            # What nobody may use, such as blocks kept for root, is not of the disk.
            disk_total_bytes=disk.used + disk.free,
            disk_free_bytes=disk.free,
            memory_total_bytes=memory_total,
            memory_free_bytes=memory_free,
            bandwidth_limit_mbps=config.bandwidth_limit_mbps,
            seal_key=self._backups.transport.seal_key if self._backups is not None else "",
        )

    def _endpoint(self) -> Endpoint:
        """How others reach this node, as far as it knows."""
        config = self._config
        http_url = config.http_advertise or (self._server.url if self._server else "")
        http, ssh = self._reaching.of(http_url), self._reaching.of(self._ssh_url())
        return Endpoint(
            node=self.node,
            http_url=http_url,
            ssh_host=config.ssh_host,
            ssh_port=config.ssh_port,
            ssh_user=config.ssh_user,
            data_root=str(config.data_dir.resolve()),
            reachable=http.answers,
            not_from=http.not_from,
            ssh_reachable=ssh.answers,
            ssh_not_from=ssh.not_from,
        )

    def _ssh_url(self) -> str:
        """Where others try whether the SSH server answers; "" if there is none."""
        host = self._config.ssh_host
        named = f"[{host}]" if ":" in host else host
        return f"ssh://{named}:{self._config.ssh_port}" if host else ""

    async def _probe(self) -> None:
        """Find out, by letting other agents try, which addresses answer; say what is new."""
        while True:
            addresses = [self._endpoint().http_url, self._ssh_url()]
            if await self._reaching.look(filter(None, addresses)):
                with suppress(LogError):
                    await self._register(changed=True)
            await asyncio.sleep(PROBE_S if self._reaching.settled else PROBE_SOON_S)

    async def _describe_anew(self) -> None:
        await self._register(changed=True)

    async def _register(self, *, changed: bool = False) -> None:
        """Say what this node is: that it joined, or with `changed` only what is new of it."""
        event = self._joining(changed=changed)
        id = fact_id("registered", self.node, time.time_ns())
        await self._log.publish(node_fact(event, self.node, id))
        self._told = event.description

    def _joining(self, *, changed: bool = False) -> events.NodeRegistered:
        machine, boot = marks()
        return events.NodeRegistered(self.describe(), changed, machine, boot)

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
                    "problem": counts.missing
                    or counts.forgetful
                    or self._observer.problem
                    or self._unmerged(),
                    "transfers_running": manager.running if manager else 0,
                    "bytes_moved": manager.bytes_moved if manager else 0,
                }
            )
            await asyncio.sleep(HEARTBEAT_S)
            if memory_moved(self._told, self.describe()):
                with suppress(LogError):
                    await self._register(changed=True)

    async def _watch_progress(self) -> None:
        """End this process if a loop of it stands still. Whoever supervises starts it again."""
        standstill = Standstill(STANDSTILL_S)
        while True:
            await asyncio.sleep(WATCH_S)
            try:
                loops = [await self._observer.progress()]
                if self._orders is not None:
                    loops += await self._orders.progress()
            except LogError as error:
                # Without a bus nobody makes progress, and starting anew mends nothing.
                standstill.forget()
                logger.debug("progress can't be judged: %s", error)
                continue
            if problem := standstill.judge(loops, time.monotonic()):
                raise stands_still(problem)

    async def _say_in_the_end(self, fact: Fact) -> None:
        """Say it now, or if the bus is away, as soon as it is back, also after a restart."""
        with contextlib.suppress(LogError):
            await self._outbox.publish(self._log, fact)

    async def _send_outbox(self) -> None:
        """Send what self-play on this node could not send itself."""
        while True:
            await self._outbox.drain(self._log)
            await asyncio.sleep(OUTBOX_S)

    def _set_bandwidth(self, claim: str, mbps: float) -> None:
        if self._manager is not None:
            self._manager.set_bandwidth(claim, mbps)


def _remembered(port_file: Path) -> int:
    """The port of last time, so that what others know of us stays true; 0 if there is none."""
    try:
        return int(port_file.read_text())
    except (FileNotFoundError, ValueError):
        return 0
