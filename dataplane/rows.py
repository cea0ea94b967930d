"""What is known, as rows for people and programs: the words of every command, service and page.

Pure: readings and the time come in. A field is never renamed, because scripts read these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from projections.chains import ChainRow
from projections.links import LinkRow, breaker
from projections.nodes import NodeRow
from projections.rejected import RejectedRow
from projections.trainings import TrainingRow, expected
from projections.transfers import TransferRow
from streams.topology import NODES_TTL_S
from streams.values import DataEntry

#: By less a clock may be off, and nobody is told.
CLOCK_OFF_S = 30.0

#: What rates are shown for: a file of a common size.
TYPICAL_BYTES = 16 << 20


class EntryLine(msgspec.Struct, frozen=True, kw_only=True):
    """An entry of the catalog: one content under one path."""

    path: str
    type: str
    config_key: str
    size_bytes: int
    #: Counted in the file; null where nobody has counted.
    games: int | None
    copies: int
    locations: tuple[str, ...]
    authority: str
    checksum: str
    version: int
    mtime: float


class RejectedLine(msgspec.Struct, frozen=True, kw_only=True):
    """A message that could not be understood, or a trigger that could not be decided."""

    #: Where it stands in the log: what `rejected retry` takes.
    sequence: int
    subject: str
    reason: str
    time: float
    #: Whether EVENT_REJECTED or EVENT_SET_ASIDE was said of it.
    said: bool
    #: The chain that could not be decided; "" for a message that could not be understood.
    chain: str
    tries: int
    #: Id under which it was said anew; "" if it was not.
    retried_as: str


class NodeLine(msgspec.Struct, frozen=True, kw_only=True):
    """A node by its own word, with its last heartbeat where the bus could be asked."""

    node: str
    roles: tuple[str, ...]
    traits: tuple[str, ...]
    planned_for: bool
    #: Whether it is to go: what it holds counts for nobody.
    leaving: bool = False
    #: null if no heartbeat is there.
    seen_s_ago: float | None
    #: How far its clock is ahead of that of whoever asked, negative if behind; 0 where the age of
    #: its last heartbeat may account for that.
    clock_ahead_s: float = 0.0
    disk_free_bytes: int
    disk_total_bytes: int
    transfers_running: int | None
    #: Since its agent started; null if no heartbeat is there.
    bytes_moved: int | None
    http_url: str
    #: Whether others reach it there; null if nobody has tried, or nobody had to.
    reachable: bool | None
    #: Nodes that can't, though others can.
    not_from: tuple[str, ...]
    #: The same of its SSH server, if it has one.
    ssh_reachable: bool | None
    ssh_not_from: tuple[str, ...]
    #: Why it was taken out of planning or put back.
    reason: str
    registered_at: float

    @property
    def state(self) -> str:
        """In one word or two: in, to go, silent, out."""
        if not self.planned_for:
            return "out"
        if self.seen_s_ago is None:
            return "silent"
        return "to go" if self.leaving else "in"


class TransferLine(msgspec.Struct, frozen=True, kw_only=True):
    """A transfer that waits or runs."""

    transfer: str
    state: str
    priority: str
    path: str
    config_key: str
    source: str
    target: str
    size_bytes: int
    attempts: int
    last_error: str
    deadline: float | None
    chains: tuple[str, ...]
    reason: str
    queued_at: float
    #: 0 while it waits.
    assigned_at: float
    #: Why it does not start now, by rule and in words; "" if it runs or is about to.
    waits_for: str = ""
    #: When it would be there if it started now, by the log's own rates; None if nobody knows.
    expected_at: float | None = None


class ChainLine(msgspec.Struct, frozen=True, kw_only=True):
    """A chain in one line."""

    chain: str
    trigger: str
    config_key: str
    node: str
    status: str
    copies_wanted: int
    games: int
    bytes: int
    seconds: float
    opened_at: float
    #: 0 where it has not come to that.
    answered_at: float
    planned_at: float
    ended_at: float
    announced_at: float
    new_games_announced: bool
    reason: str


class LinkLine(msgspec.Struct, frozen=True, kw_only=True):
    """How well a node could be reached by one transport."""

    node: str
    #: null for the node as a whole.
    transport: str | None
    #: Of its breaker: ``closed``, ``open`` or ``half-open``.
    state: str
    successes: int
    failures: int
    bytes: int
    #: The median for a file of a common size; null if none was moved.
    mbit_per_s: float | None
    last_error: str | None
    last_error_class: str | None
    last_error_at: float | None
    opens_until: float | None
    opens_again_in_s: float | None


class TrainingLine(msgspec.Struct, frozen=True, kw_only=True):
    """When a node trains a configuration, by its history, and what was brought ahead of that."""

    node: str
    config_key: str
    #: That are remembered.
    starts: int
    last_started_at: float
    #: null where no start is to be expected.
    expected_at: float | None
    #: Seconds from start to start, or with `after_end` from the end of a run to the next start.
    rhythm_s: float | None
    after_end: bool
    #: From 0 to 1.
    confidence: float | None
    #: Bytes that were brought ahead: in all, found by a start, and come for nothing.
    staged_bytes: int
    hit_bytes: int
    wasted_bytes: int


def plain(line: msgspec.Struct) -> dict[str, Any]:
    """A line as a dictionary, tuples as lists."""
    row: dict[str, Any] = msgspec.to_builtins(line)
    return row


def entry_line(entry: DataEntry) -> EntryLine:
    """An entry of the catalog."""
    return EntryLine(
        path=entry.path,
        type=entry.data_type,
        config_key=entry.config_key,
        size_bytes=entry.size_bytes,
        games=entry.games,
        copies=len(entry.locations),
        locations=entry.locations,
        authority=entry.primary_location,
        checksum=entry.checksum,
        version=entry.version,
        mtime=entry.mtime,
    )


def rejected_line(row: RejectedRow) -> RejectedLine:
    """What was rejected or set aside, in the words of rows."""
    return RejectedLine(
        sequence=row.sequence,
        subject=row.subject,
        reason=row.reason,
        time=row.time,
        said=row.said,
        chain=row.chain,
        tries=row.tries,
        retried_as=row.retried_as,
    )


def _clock_ahead(age_s: float | None) -> float:
    """How far a clock is off by which a heartbeat that the bus still has is so old."""
    if age_s is None or -CLOCK_OFF_S <= age_s <= NODES_TTL_S + CLOCK_OFF_S:
        return 0.0
    return -age_s


def node_line(row: NodeRow, beat: Mapping[str, Any] | None, now: float) -> NodeLine:
    """A node, with its last heartbeat if the bus could be asked."""
    description, said = row.description, beat or {}
    age = None if beat is None else now - beat["time"]
    ahead = _clock_ahead(age)
    return NodeLine(
        node=row.name,
        roles=description.roles,
        traits=description.traits,
        planned_for=row.online,
        leaving=row.is_leaving(now),
        seen_s_ago=None if age is None else round(age + ahead, 1),
        clock_ahead_s=round(ahead, 1),
        disk_free_bytes=said.get("disk_free_bytes", description.disk_free_bytes),
        disk_total_bytes=description.disk_total_bytes,
        transfers_running=said.get("transfers_running"),
        bytes_moved=said.get("bytes_moved"),
        http_url=description.endpoint.http_url,
        reachable=description.endpoint.reachable,
        not_from=description.endpoint.not_from,
        ssh_reachable=description.endpoint.ssh_reachable,
        ssh_not_from=description.endpoint.ssh_not_from,
        reason=row.reason,
        registered_at=row.registered_at,
    )


def transfer_line(
    row: TransferRow, waits_for: str = "", expected_at: float | None = None
) -> TransferLine:
    """A pending or running transfer."""
    last = row.failures[-1] if row.failures else None
    return TransferLine(
        transfer=row.id,
        state=row.state,
        priority=row.priority,
        path=row.entry.path,
        config_key=row.entry.config_key,
        source=row.source,
        target=row.target,
        size_bytes=row.entry.size_bytes,
        attempts=row.attempt,
        last_error=f"{last.error_class}: {last.error}" if last else "",
        deadline=row.deadline,
        chains=row.chains,
        reason=row.reason,
        queued_at=row.queued_at,
        assigned_at=row.assigned_at,
        waits_for=waits_for,
        expected_at=expected_at,
    )


def chain_line(row: ChainRow, now: float) -> ChainLine:
    """A chain in one line."""
    return ChainLine(
        chain=row.id,
        trigger=row.trigger,
        config_key=row.config_key,
        node=row.node,
        status=row.status,
        copies_wanted=row.copies,
        games=row.games_synced,
        bytes=row.bytes_transferred,
        seconds=round((row.ended_at or now) - row.opened_at, 3),
        opened_at=row.opened_at,
        answered_at=row.answered_at,
        planned_at=row.planned_at,
        ended_at=row.ended_at,
        announced_at=row.announced_at,
        new_games_announced=bool(row.announced_at),
        reason=row.reason,
    )


def link_line(row: LinkRow, now: float) -> LinkLine:
    """A node by one transport, with what its breaker says at `now`."""
    state, rate = breaker(row, now), row.rate(TYPICAL_BYTES)
    left = state.until - now
    return LinkLine(
        node=row.node,
        transport=row.transport,
        state=state.state,
        successes=row.successes,
        failures=row.failures,
        bytes=row.bytes,
        mbit_per_s=None if rate is None else round(rate * 8 / 1e6, 1),
        last_error=row.last_error or None,
        last_error_class=row.last_error_class or None,
        last_error_at=row.last_error_at or None,
        opens_until=state.until or None,
        opens_again_in_s=round(left, 1) if left > 0 else None,
    )


def training_line(row: TrainingRow, now: float) -> TrainingLine:
    """A node and configuration, with the start that is expected at `now`."""
    start = expected(row, now)
    rhythm = start.rhythm if start else None
    return TrainingLine(
        node=row.node,
        config_key=row.config_key,
        starts=len(row.starts),
        last_started_at=row.starts[-1] if row.starts else 0.0,
        expected_at=start.at if start else None,
        rhythm_s=round(rhythm.seconds, 3) if rhythm else None,
        after_end=rhythm.after_end if rhythm else False,
        confidence=round(rhythm.confidence, 3) if rhythm else None,
        staged_bytes=row.staged_bytes,
        hit_bytes=row.hit_bytes,
        wasted_bytes=row.wasted_bytes,
    )
