"""The cluster at a glance: what the page, `top` and the metrics show, from one reading.

Pure: views, heartbeats and the time come in. It judges nothing but what deserves a look first.
"""

from __future__ import annotations

import enum
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from itertools import islice
from typing import Any

import msgspec

from dataplane.health import (
    ENDED_LOOKED_AT,
    OLD_CHAIN_S,
    HealthCheckResult,
    cluster_health,
    named_chain,
    standing_problems,
)
from dataplane.policy import Policy
from dataplane.rows import (
    ChainLine,
    LinkLine,
    NodeLine,
    TransferLine,
    chain_line,
    link_line,
    node_line,
    transfer_line,
)
from dataplane.words import counted, span
from projections.chains import ChainRow, ChainStatus
from projections.cluster import ClusterView
from projections.links import BreakerState
from projections.tallies import Tally
from projections.trainings import Staging
from streams.events import DataSyncFailed, NodeRegistered, type_name
from streams.log import Standing
from streams.values import added

#: Rows of each kind that are shown; how many there are is counted all the same.
MOST_ROWS = 100
#: Of alerts of one kind so many are said one by one, and how many more there are.
MOST_ALIKE = 20
#: Nodes that one alert names.
MOST_NAMED = 5
#: A chain that failed is an alert for so long.
FAILED_LATELY_S = 3600.0
_LOOPBACK = re.compile(r"http://(127\.|localhost[:/]|\[::1\])")
_FAILED, _REGISTERED = type_name(DataSyncFailed), type_name(NodeRegistered)


class Severity(enum.StrEnum):
    """How soon somebody should look."""

    CRITICAL = "critical"
    WARNING = "warning"


class Alert(msgspec.Struct, frozen=True):
    """Something that deserves a look, and which facts tell more."""

    severity: Severity
    text: str
    #: Which facts: fields of `dataplane.audit.facts.FactFilter` to values, or ``few`` for entries
    #: with too few copies; empty where no fact tells more.
    facts: dict[str, str] = {}


class Held(msgspec.Struct, frozen=True):
    """What one node holds of a row of the map."""

    entries: int
    bytes: int


class MapRow(msgspec.Struct, frozen=True, kw_only=True):
    """The current data of one configuration and type, and who holds how much of it."""

    config_key: str
    type: str
    entries: int
    bytes: int
    #: Counted in the files; null where nobody has counted.
    games: int | None
    #: Of the entry with the fewest copies.
    copies_least: int
    #: Entries with fewer copies than wanted.
    under_replicated: int
    under_replicated_bytes: int
    by_node: dict[str, Held]


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """The cluster in numbers."""

    sequence: int
    lag: int
    nodes: int
    nodes_online: int
    entries: int
    replicas: int
    bytes: int
    under_replicated: int
    under_replicated_bytes: int
    copies_wanted: int
    chains_open: int
    chains_ended: int
    transfers_pending: int
    transfers_in_flight: int
    #: Since the log began.
    transfers: int
    failures: int
    bytes_moved: int
    rejected: int


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """Everything at one moment."""

    #: Seconds since 1970.
    time: float
    status: str
    message: str
    totals: Totals
    alerts: tuple[Alert, ...]
    nodes: tuple[NodeLine, ...]
    map: tuple[MapRow, ...]
    #: Running ones, then waiting ones in the order in which they go.
    transfers: tuple[TransferLine, ...]
    #: Waiting transfers by priority.
    queue: dict[str, int]
    #: Open ones by state.
    chains_by_state: dict[str, int]
    chains: tuple[ChainLine, ...]
    links: tuple[LinkLine, ...]
    #: What bringing data ahead of trainings was worth.
    staging: Staging


def with_alerts(health: HealthCheckResult, seen: Overview) -> HealthCheckResult:
    """A verdict that names what deserves a look besides: alerts make none worse."""
    texts = [alert.text for alert in seen.alerts]
    message = health.message
    if health.healthy and texts:
        message += f", but {counted(len(texts), 'alert', 'alerts')} to look at"
    details = {**health.details, "alerts": texts}
    return msgspec.structs.replace(health, message=message, details=details)


def overview(
    view: ClusterView,
    *,
    now: float,
    beats: Mapping[str, Mapping[str, Any]] | None,
    last_sequence: int | None,
    policy: Policy,
    standing: Standing | None = None,
) -> Overview:
    """Everything `view` knows, judged at `now`. None where the bus could not be asked.

    A look at the past has no heartbeats: `beats` None, and no node is said to be silent.
    """
    heard = beats or {}
    nodes = tuple(node_line(row, heard.get(f"agent.{row.name}"), now) for row in view.nodes())
    online = sum(node.planned_for for node in nodes)
    # A cluster of two nodes can't keep three copies; that is no fault of an entry.
    wanted = min(policy.replication.minimum, max(1, online))
    rows = data_map(view.catalog.tallied(), wanted)
    open_chains = list(view.open_chains())
    ended = list(islice(view.ended_chains(), ENDED_LOOKED_AT))
    links = tuple(link_line(row, now) for row in view.links())
    known = None if beats is None else {key: dict(beat) for key, beat in heard.items()}
    health = cluster_health(
        view,
        now=now,
        last_sequence=last_sequence,
        present=known,
        standing=standing,
        policy=policy,
    )
    totals = _totals(view, nodes, rows, last_sequence, wanted)
    return Overview(
        time=now,
        status=health.status,
        message=health.message,
        totals=totals,
        alerts=tuple(
            _by_severity(
                [
                    *_node_alerts(nodes, policy, silent_matters=beats is not None),
                    *_plain_alerts(nodes),
                    *_chain_alerts(open_chains, ended, [node.node for node in nodes], now),
                    *_link_alerts(links),
                    *_data_alerts(totals, beats),
                    *_server_alerts(standing),
                ]
            )
        ),
        nodes=nodes,
        map=rows,
        transfers=_transfers(view),
        queue=_queue(view),
        chains_by_state={
            str(state): count for state, count in Counter(c.status for c in open_chains).items()
        },
        chains=tuple(
            chain_line(row, now) for row in [*open_chains[:MOST_ROWS], *ended[: MOST_ROWS // 5]]
        ),
        links=links,
        staging=view.staging(now),
    )


def data_map(counted: Iterable[Tally], copies_wanted: int) -> tuple[MapRow, ...]:
    """Current entries by configuration and type, and by node."""
    return tuple(_map_row(tally, copies_wanted) for tally in counted)


def _map_row(tally: Tally, copies_wanted: int) -> MapRow:
    amounts = tally.by_copies.items()
    lacking = [amount for copies, amount in amounts if copies < copies_wanted]
    return MapRow(
        config_key=tally.config_key,
        type=tally.data_type,
        entries=sum(amount.entries for _, amount in amounts),
        bytes=added(*(amount.bytes for _, amount in amounts)),
        games=None if tally.games is None else added(tally.games),
        copies_least=min(tally.by_copies),
        under_replicated=sum(amount.entries for amount in lacking),
        under_replicated_bytes=added(*(amount.bytes for amount in lacking)),
        by_node={
            node: Held(amount.entries, added(amount.bytes))
            for node, amount in tally.by_node.items()
        },
    )


def _totals(
    view: ClusterView,
    nodes: tuple[NodeLine, ...],
    rows: tuple[MapRow, ...],
    last_sequence: int | None,
    wanted: int,
) -> Totals:
    counts, moved = view.counts(), view.totals()
    sequence = view.checkpoint.sequence
    return Totals(
        sequence=sequence,
        lag=max(0, (last_sequence or sequence) - sequence),
        nodes=len(nodes),
        nodes_online=sum(node.planned_for for node in nodes),
        entries=sum(row.entries for row in rows),
        replicas=counts["replicas"],
        bytes=added(*(row.bytes for row in rows)),
        under_replicated=sum(row.under_replicated for row in rows),
        under_replicated_bytes=added(*(row.under_replicated_bytes for row in rows)),
        copies_wanted=wanted,
        chains_open=counts["chains_open"],
        chains_ended=counts["chains_ended"],
        transfers_pending=counts["transfers_pending"],
        transfers_in_flight=counts["transfers_in_flight"],
        transfers=moved.transfers,
        failures=moved.failures,
        bytes_moved=moved.bytes,
        rejected=counts["rejected"],
    )


def _transfers(view: ClusterView) -> tuple[TransferLine, ...]:
    running = [transfer_line(row) for row in view.in_flight()]
    waiting = [transfer_line(row) for row in islice(view.pending(), MOST_ROWS)]
    return (*running, *waiting)


def _queue(view: ClusterView) -> dict[str, int]:
    return {str(priority): count for priority, count in view.pending_by_priority().items()}


# What deserves a look


def _by_severity(alerts: list[Alert]) -> list[Alert]:
    return sorted(alerts, key=lambda alert: alert.severity is not Severity.CRITICAL)


def _node_alerts(
    nodes: Iterable[NodeLine], policy: Policy, *, silent_matters: bool
) -> Iterable[Alert]:
    for node in nodes:
        facts = {"node": node.node}
        if not node.planned_for:
            why = f": {node.reason}" if node.reason else ""
            yield Alert(Severity.WARNING, f"{node.node} is out of planning{why}", facts)
        elif silent_matters and node.seen_s_ago is None:
            yield Alert(Severity.WARNING, f"no heartbeat from {node.node}", facts)
        if off := node.clock_ahead_s:
            way = "ahead of" if off > 0 else "behind"
            text = f"the clock of {node.node} is {span(abs(off))} {way} the one here; set it right"
            yield Alert(Severity.WARNING, text, facts)
        used = 1 - node.disk_free_bytes / node.disk_total_bytes if node.disk_total_bytes else 0.0
        if used >= policy.disk.cleanup_from:
            full = used >= policy.disk.stop_production_from
            severity = Severity.CRITICAL if full else Severity.WARNING
            yield Alert(severity, f"the disk of {node.node} is {used:.0%} full", facts)


def _plain_alerts(nodes: Iterable[NodeLine]) -> Iterable[Alert]:
    """Nodes without TLS among others with it: to change over half of a cluster parts it."""
    here = [node for node in nodes if node.planned_for]
    # Where others reach nobody, such as behind a NAT, it is nobody's business.
    plain = [
        node.node
        for node in here
        if node.http_url.startswith("http:") and not _LOOPBACK.match(node.http_url)
    ]
    if plain and any(node.http_url.startswith("https:") for node in here):
        more = f" and {len(plain) - MOST_NAMED} more" if len(plain) > MOST_NAMED else ""
        text = (
            f"some nodes serve files by TLS, and without it {', '.join(plain[:MOST_NAMED])}{more}"
        )
        yield Alert(Severity.WARNING, text, {"node": plain[0], "type": _REGISTERED})


def _chain_alerts(
    open_chains: Iterable[ChainRow], ended: Iterable[ChainRow], joined: Collection[str], now: float
) -> Iterable[Alert]:
    waiting, old = [], []
    for row in open_chains:
        if row.status is ChainStatus.WAITING_FOR_FILES and row.node not in joined:
            text = f"{named_chain(row)} waits for {row.node}, which never joined"
            waiting.append(Alert(Severity.WARNING, text, {"chain": row.id}))
        if now - row.opened_at > OLD_CHAIN_S and not row.ahead:
            age = span(now - row.opened_at)
            text = f"{named_chain(row)} has been {row.status} for {age}"
            old.append(Alert(Severity.WARNING, text, {"chain": row.id}))
    yield from _first(waiting, "chains wait for nodes that never joined")
    yield from _first(old, f"chains have been open for more than {span(OLD_CHAIN_S)}")
    alike: dict[tuple[str, str, str], list[str]] = {}
    for row in ended:
        lately = row.status is ChainStatus.FAILED and now - row.ended_at < FAILED_LATELY_S
        if lately and not row.ahead:
            alike.setdefault((named_chain(row), row.config_key, row.reason), []).append(row.id)
    for (named, config, reason), ids in alike.items():
        facts = {"chain": ids[0]} if len(ids) == 1 else {"type": _FAILED, "config": config}
        often = "" if len(ids) == 1 else f" {len(ids)} times"
        yield Alert(Severity.WARNING, f"{named} failed{often}: {reason}", facts)


def _first(alike: list[Alert], others: str) -> Iterable[Alert]:
    """The first ones, the oldest, and how many `others` there are: all would hide the rest."""
    yield from alike[:MOST_ALIKE]
    if len(alike) > MOST_ALIKE:
        yield Alert(Severity.WARNING, f"{len(alike) - MOST_ALIKE} more {others}")


def _link_alerts(links: Iterable[LinkLine]) -> Iterable[Alert]:
    for link in links:
        if link.state == BreakerState.OPEN:
            way = f" by {link.transport}" if link.transport else ""
            text = f"{link.node} can't be reached{way}: {link.last_error}"
            facts = {"link": link.node, "transport": link.transport or "", "outcome": "failed"}
            yield Alert(Severity.WARNING, text, facts)


def _server_alerts(standing: Standing | None) -> Iterable[Alert]:
    for text in standing_problems(standing):
        yield Alert(Severity.WARNING, text)


def _data_alerts(totals: Totals, beats: Mapping[str, Any] | None) -> Iterable[Alert]:
    if beats is not None and not any(key.startswith("coordinator.") for key in beats):
        yield Alert(Severity.CRITICAL, "no coordinator is there")
    if totals.under_replicated:
        few = counted(totals.under_replicated, "entry has", "entries have")
        few += f" fewer than {totals.copies_wanted} copies"
        yield Alert(Severity.WARNING, few, {"few": "1"})
    if totals.rejected:
        text = counted(totals.rejected, "message", "messages") + " could not be understood"
        yield Alert(Severity.WARNING, text, {"type": "EVENT_REJECTED"})
