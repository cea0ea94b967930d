"""Looks, without being asked, for what no trigger speaks of, and says what it found.

It looks at everything in pages so short that nothing else waits for it, off the log; only what was
found becomes a fact, with an id made of what was found and when, so that of two coordinators that
look at the same time one is heard. What is done about it is decided elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial

import msgspec

from dataplane.coordinator.staging import PAGE_S, PAUSE_S, Stager
from dataplane.planner import Known
from dataplane.policy import Policy
from dataplane.sweeps import Survey, cleanup, orphans_said, repairs_allowed, too_full_bytes
from projections.cluster import ClusterView
from projections.nodes import NodeRow
from projections.projector import Projector
from projections.standing import SWEEP_CHAIN, StandingRow
from projections.store import StoreError
from streams import events
from streams.codec import Fact, chain_fact, fact_id, node_fact, split_entries
from streams.log import DuplicateFact, Log, LogError, SequenceConflict
from streams.values import DataEntry, SweepKind

logger = logging.getLogger(__name__)
#: Files of a node with a full disk that are weighed against each other.
MOST_CANDIDATES = 20_000


class Sweeps(msgspec.Struct):
    """How sweeping goes, for health."""

    surveys: int = 0
    looked_at: int = 0
    short: int = 0
    #: What has been short of copies for longest, and since when.
    oldest_short: str = ""
    oldest_short_at: float = 0.0
    unbacked: int = 0
    took_s: float = 0.0
    last_at: float = 0.0
    longest_page_s: float = 0.0
    errors: int = 0
    #: What the last sweep stumbled over; "" if over nothing.
    problem: str = ""


class Sweeper:
    """Sweeps for one coordinator."""

    def __init__(
        self,
        log: Log,
        projector: Projector,
        policy: Policy,
        node: str,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._log = log
        self._projector = projector
        self._policy = policy
        self._node = node
        self._clock = clock
        self._short_since: dict[bytes, float] = {}
        self.state = Sweeps()
        self.stager = Stager(projector, policy, node, self._say, clock)

    async def run(self) -> None:
        """Sweep at the policy's intervals, for ever."""
        schedule = self._policy.schedule
        async with asyncio.TaskGroup() as group:
            group.create_task(self._each(schedule.replication_s, self.survey_and_say))
            group.create_task(self._each(schedule.cleanup_s, self.clean_up))
            group.create_task(self._each(schedule.prestage_s, self.stager.stage_ahead))

    async def _each(self, interval_s: float, sweep: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(interval_s)
            try:
                await sweep()
            except (LogError, TimeoutError) as error:
                self.state.errors += 1
                logger.warning("a sweep did not finish: %s", error)
            except StoreError:
                raise
            except Exception as error:
                # What nobody asked for keeps nothing from going on that somebody did.
                what = self._stumbled(f"{sweep.__name__} does not finish", error)
                logger.error("%s", what, exc_info=error)

    async def survey_and_say(self) -> None:
        """Look at every path once, and say what was found."""
        survey = await self.survey()
        now = self._clock()
        for alert in survey.alerts:
            await self._say(_alert_fact(alert, now))
        with self._projector.store.read() as reader:
            view = ClusterView(reader)
            facts = [*self._replication(view, survey, now), *self._bucket(view, survey, now)]
        facts += self._orphans(survey, now)
        for fact in facts:
            await self._say(fact)

    async def survey(self) -> Survey:
        """Look at every path once."""
        began, now = time.monotonic(), self._clock()
        self.state.problem = ""
        with self._projector.store.read() as reader:
            sealing = any(row.description.seal_key for row in ClusterView(reader).nodes())
        survey = Survey(self._policy, self._lasting(now), now, self._short_since, sealing=sealing)
        after: bytes | None = b""
        while after is not None:
            page = time.perf_counter()
            after = self._page(survey, after, page + PAGE_S)
            took = time.perf_counter() - page
            self.state.longest_page_s = max(self.state.longest_page_s, took)
            await asyncio.sleep(PAUSE_S)
        self._short_since = survey.short_since
        self.state.surveys += 1
        self.state.looked_at, self.state.short = survey.looked_at, survey.short
        self.state.oldest_short, self.state.oldest_short_at = survey.oldest
        self.state.unbacked, self.state.last_at = survey.unbacked, now
        self.state.took_s = time.monotonic() - began
        return survey

    def _page(self, survey: Survey, after: bytes, until: float) -> bytes | None:
        """Look until the time is up; behind which path to go on, None at the end."""
        with self._projector.store.read() as reader:
            view = ClusterView(reader)
            for key, row in view.standing(after):
                self._look(survey, key, row, view)
                if time.perf_counter() >= until:
                    return key
        return None

    def _look(self, survey: Survey, key: bytes, row: StandingRow, view: ClusterView) -> None:
        """Look at one path; whatever is wrong with it keeps nobody from looking at the others."""
        try:
            survey.look(key, row, view)
        except StoreError:
            raise
        except Exception as error:
            entry = view.entry(row.entry)
            path = entry.path if entry else key.hex()
            what = self._stumbled(f"{path} can't be surveyed", error)
            logger.error("%s", what, exc_info=error)

    def _stumbled(self, what: str, error: Exception) -> str:
        self.state.errors += 1
        self.state.problem = f"{what}: {type(error).__name__}: {error}"
        return self.state.problem

    def _lasting(self, now: float) -> Callable[[Sequence[str], str], tuple[int, int]]:
        """Counts copies by the nodes as they are at the start of a survey."""

        def count(nodes: Sequence[str], sealed_with: str) -> tuple[int, int]:
            with self._projector.store.read() as reader:
                known = Known(self._policy, ClusterView(reader), now)
                there = known.lasting(nodes, sealed_with=sealed_with)
                in_all = known.lasting(nodes, offline=True, sealed_with=sealed_with)
                return len(there), len(in_all)

        return count

    # What was found

    def _replication(self, view: ClusterView, survey: Survey, now: float) -> list[Fact]:
        rule = self._policy.replication
        last = view.last_sweep(SweepKind.REPLICATION)
        under_way = last.named if last and not last.ended_at else 0
        paths = survey.repairs(repairs_allowed(under_way, view.repairs_since(now - 3600.0), rule))
        if not paths:
            return []
        cycle = int(now // self._policy.schedule.replication_s)
        return [self._due(SweepKind.REPLICATION, cycle, paths, survey.short)]

    def _bucket(self, view: ClusterView, survey: Survey, now: float) -> list[Fact]:
        """The bucket's turn, once a cycle, or sooner where the last one left some over."""
        last = view.last_sweep(SweepKind.S3)
        left_over = last is not None and bool(last.ended_at) and last.found > last.named
        due = last is None or left_over or now - last.due_at >= self._policy.schedule.s3_cycle_s
        if not survey.backups or not due:
            return []
        cycle = int(now // self._policy.schedule.replication_s)
        return [self._due(SweepKind.S3, cycle, survey.backups, survey.unbacked)]

    def _orphans(self, survey: Survey, now: float) -> list[Fact]:
        # Where nothing comes of it, it is said again the next hour.
        hour = int(now // 3600)
        return [
            node_fact(event, event.node, fact_id("orphans", event.node, event.config_key, hour))
            for event in orphans_said(survey.orphans)
        ]

    def _due(self, kind: SweepKind, cycle: int, paths: list[str], found: int) -> Fact:
        # As many as fit into a message; the rest is found again.
        named = split_entries(tuple(paths))[0]
        event = events.SweepDue(kind=kind, cycle=cycle, paths=named, found=found)
        return node_fact(event, self._node, f"{SWEEP_CHAIN}{kind}-{cycle}")

    # Disks

    async def clean_up(self) -> None:
        """Ask for deletions on nodes whose disks are too full (K21)."""
        now = self._clock()
        with self._projector.store.read() as reader:
            view = ClusterView(reader)
            full = {
                row.name: wanted
                for row in view.nodes()
                if row.online and (wanted := self._too_full(row))
            }
            asked = {row.node for row in view.open_deletions()}
        for name, wanted in full.items():
            if name not in asked:
                await self._clean(name, wanted, now)

    def _too_full(self, row: NodeRow) -> int:
        disk = row.description
        return too_full_bytes(disk.disk_total_bytes, disk.disk_free_bytes, self._policy)

    async def _clean(self, node: str, wanted: int, now: float) -> None:
        held = await self._held(node)
        with self._projector.store.read() as reader:
            known = Known(self._policy, ClusterView(reader), now)
            chosen = cleanup(held, node, known, wanted)
        cycle = int(now // self._policy.schedule.cleanup_s)
        for entry in chosen:
            event = events.DeletionRequested(
                path=entry.path,
                node=node,
                checksum=entry.checksum,
                reason="its disk is too full",
                requester=self._node,
            )
            id = fact_id("cleanup", node, entry.path, entry.checksum, cycle)
            await self._say(node_fact(event, self._node, id))

    async def _held(self, node: str) -> list[DataEntry]:
        """What a node holds, read in pages."""
        found: list[DataEntry] = []
        after: bytes | None = b""
        while after is not None and len(found) < MOST_CANDIDATES:
            until = time.perf_counter() + PAGE_S
            with self._projector.store.read() as reader:
                catalog = ClusterView(reader).catalog
                some, after = catalog.held_page(node, after, partial(_past, until))
            found += some
            await asyncio.sleep(PAUSE_S)
        return found

    async def _say(self, fact: Fact) -> None:
        # By its id it is said once; whoever was first has said the same.
        try:
            with suppress(SequenceConflict, DuplicateFact):
                await self._log.publish(fact)
        except ValueError as error:
            # What no message can hold is in the way of nothing else that was found.
            self.state.errors += 1
            logger.error("%s can't be said: %s", fact.subject, error)


def _past(until: float) -> bool:
    return time.perf_counter() >= until


def _alert_fact(alert: events.ReplicationAlert, now: float) -> Fact:
    """Said for the path; once for each severity an hour."""
    chain = f"alert-{fact_id(alert.path)}"
    return chain_fact(alert, chain, "", alert.checksum, alert.severity, int(now // 3600))
