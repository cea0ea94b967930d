"""What Prometheus scrapes from a coordinator: counted from facts as they come, read from views.

Counters and histograms begin when this process does, as Prometheus expects; gauges are the
cluster's state at the scrape. Every coordinator says the same gauges: alert on any of them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from dataplane.overview import Overview
from dataplane.rows import ChainLine
from projections.chains import ChainRow, ChainStatus
from streams import events
from streams.codec import Recorded
from streams.events import FILE_TRIGGERS, type_name
from streams.log import Log
from streams.subjects import type_filter
from streams.values import SyncPriority, TransportResult

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600)
_OUTCOMES = (str(ChainStatus.COMPLETED), str(ChainStatus.FAILED))
_AGE = "Since the last backup, or since the log's first fact where none ever succeeded"
ENDS = (events.DataSyncCompleted, events.DataSyncFailed)


class Metrics:
    """One coordinator's. `begin` once, `note` every batch of facts, `render` at each scrape."""

    def __init__(self, *, backs_up: bool = False) -> None:
        """`backs_up`: whether there is a bucket, so that the age of its backup means something."""
        self._registry = CollectorRegistry()
        self._backs_up = backs_up
        self._state = _State()
        self._registry.register(self._state)
        registry = self._registry
        self._facts = Counter("dataplane_facts", "Facts seen", ["type"], registry=registry)
        self._stages = Histogram(
            "dataplane_chain_stage_seconds",
            "Where the time of ended chains went: answer, plan, move, announce, and the whole",
            ["stage", "trigger"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._ended = Counter(
            "dataplane_chains_ended", "Chains that ended", ["outcome"], registry=registry
        )
        for outcome in _OUTCOMES:
            # What is there only from the first one on has no growth that an alert could see.
            self._ended.labels(outcome)
        self._attempts = Counter(
            "dataplane_transport_attempts",
            "Attempts by transport and outcome: ok, or the class of the error",
            ["transport", "outcome"],
            registry=registry,
        )
        self._bytes = Counter(
            "dataplane_transport_bytes", "Bytes moved", ["transport"], registry=registry
        )
        self._moving_s = Counter(
            "dataplane_transport_seconds",
            "Time attempts took; bytes by it is the rate",
            ["transport"],
            registry=registry,
        )

    async def begin(self, log: Log) -> None:
        """Learn from the log what happened before this process and is asked for all the same.

        Where no backup ever succeeded its age is that of the log: silence would look like health.
        """
        last = await log.last(type_filter(events.S3BackupCompleted))
        if last is None and self._backs_up:
            self._state.backed_up_at = await _began(log)
        elif last is not None:
            self._state.backed_up_at = last.time

    def note(self, facts: Sequence[Recorded], ended: Sequence[ChainRow]) -> None:
        """Count facts, and the chains that ended with some of them."""
        for fact in facts:
            self._facts.labels(fact.type).inc()
            event = fact.event
            if isinstance(event, events.TransferSucceeded | events.TransferFailed):
                for result in event.results:
                    self._attempt(result)
            elif isinstance(event, events.S3BackupCompleted):
                self._state.backed_up_at = fact.time
        for row in ended:
            self._chain(row)

    def _attempt(self, result: TransportResult) -> None:
        transport = str(result.transport_used)
        outcome = "ok" if result.success else result.error_class or "unknown"
        self._attempts.labels(transport, outcome).inc()
        self._bytes.labels(transport).inc(result.bytes_transferred)
        self._moving_s.labels(transport).inc(result.duration_seconds)

    def _chain(self, row: ChainRow) -> None:
        self._ended.labels(str(row.status)).inc()
        for stage, seconds in stages(row):
            self._stages.labels(stage, row.trigger).observe(seconds)
        self._stages.labels("whole", row.trigger).observe(max(0.0, row.ended_at - row.opened_at))

    def render(self, glance: Overview) -> bytes:
        """The exposition text for one scrape."""
        self._state.glance = glance
        return generate_latest(self._registry)


async def _began(log: Log) -> float:
    """When the log's first fact was said; now, if there is none."""
    state = await log.state()
    if not state.last_sequence:
        return time.time()
    first = await log.get(state.first_sequence)
    return time.time() if first is None else first.time


#: Triggers that a node has to answer first.
_ASKS = {type_name(kind) for kind in FILE_TRIGGERS}


def stages(row: ChainRow | ChainLine) -> Iterator[tuple[str, float]]:
    """Where a chain's time went, in order; a stage it never came to is left out."""
    marks = [("answer", row.answered_at), ("plan", row.planned_at), ("move", row.ended_at)]
    marks.append(("announce", row.announced_at))
    before = row.opened_at
    if row.ended_at and not row.planned_at:
        # It ended waiting for an answer, or for a decision.
        waited = row.trigger in _ASKS and not row.answered_at
        marks = [("answer", row.ended_at)] if waited else [marks[0], ("plan", row.ended_at)]
    for stage, at in marks:
        if at:
            yield stage, max(0.0, at - before)
            before = at


class _State(Collector):
    """The cluster's state as gauges."""

    def __init__(self) -> None:
        self.glance: Overview | None = None
        #: Of the last backup, or where there should be one from when on; 0 where nothing is said.
        self.backed_up_at = 0.0

    def collect(self) -> Iterator[Metric]:
        glance = self.glance
        if glance is None:
            return
        totals = glance.totals
        yield from _single(
            {
                "healthy": ("1 if all is well", float(glance.status == "healthy")),
                "alerts": ("What deserves a look", len(glance.alerts)),
                "log_last_sequence": ("Up to where the views are", totals.sequence),
                "projection_lag_facts": ("Facts the views have not seen", totals.lag),
                "entries": ("Current entries that somebody holds", totals.entries),
                "entries_bytes": ("Their bytes, each once", totals.bytes),
                "under_replicated_entries": ("With too few copies", totals.under_replicated),
                "under_replicated_bytes": ("With too few copies", totals.under_replicated_bytes),
                "transfers_in_flight": ("Assigned, no result yet", totals.transfers_in_flight),
                "rejected_messages": ("Could not be understood", totals.rejected),
                "oldest_open_chain_seconds": ("0 if none is open", _oldest(glance)),
            }
        )
        if self.backed_up_at:
            age = max(0.0, time.time() - self.backed_up_at)
            yield from _single({"s3_backup_age_seconds": (_AGE, age)})
        yield _family("chains", "Open chains", "state", glance.chains_by_state)
        staging = glance.staging
        ahead = {
            "hit": staging.hit_bytes,
            "wasted": staging.wasted_bytes,
            "waiting": staging.waiting_bytes,
        }
        text = "Brought ahead of trainings: found by one, come for nothing, or not yet decided"
        yield _family("prestaged_bytes", text, "outcome", ahead)
        queue = {str(priority): glance.queue.get(priority, 0) for priority in SyncPriority}
        yield _family("queue", "Transfers that wait", "priority", queue)
        yield from self._nodes(glance)

    @staticmethod
    def _nodes(glance: Overview) -> Iterator[Metric]:
        nodes = glance.nodes
        up = {node.node: node.planned_for and node.seen_s_ago is not None for node in nodes}
        yield _family("node_up", "1 if it is planned for and heard", "node", up)
        free = {node.node: node.disk_free_bytes for node in nodes}
        yield _family("node_disk_free_bytes", "Free on its data disk", "node", free)
        total = {node.node: node.disk_total_bytes for node in nodes}
        yield _family("node_disk_total_bytes", "Its data disk", "node", total)
        family = GaugeMetricFamily(
            "dataplane_link_open", "1 if its breaker is open", labels=["node", "transport"]
        )
        for link in glance.links:
            family.add_metric([link.node, link.transport or "any"], float(link.state == "open"))
        yield family


def _oldest(glance: Overview) -> float:
    return max((chain.seconds for chain in glance.chains if not chain.ended_at), default=0.0)


def _single(gauges: dict[str, tuple[str, float]]) -> Iterator[Metric]:
    for name, (text, value) in gauges.items():
        yield GaugeMetricFamily(f"dataplane_{name}", text, value=value)


def _family(name: str, text: str, label: str, values: dict[str, int] | dict[str, bool]) -> Metric:
    family = GaugeMetricFamily(f"dataplane_{name}", text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], float(value))
    return family
