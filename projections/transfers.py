"""Pending plans and transfers: one row for each entry that is to reach a target.

Two chains that need the same bytes on the same node share one row. A row goes when the last chain
that waits for it has ended; what it did stays in the log.
"""

from __future__ import annotations

import enum
from collections.abc import Container, Iterable, Iterator
from itertools import takewhile

from msgspec.structs import replace

from projections import queue
from projections.catalog import EntryRow, row_held_by
from projections.headway import MOST_TIMES, is_headway, kept_bytes
from projections.store import Reader, Writer
from projections.view import Handler, Row, digest_key, number, text_key, unpacker
from streams import events
from streams.codec import Recorded, fact_id
from streams.values import S3_NODE, DataEntry, SyncPlan, SyncPriority, Transport, added

#: The class of an attempt that found its source without the content.
ENTRY_MISSING = "EntryMissing"
#: Of what goes on and on, so many failures are remembered one by one.
MOST_FAILURES = 64


class TransferState(enum.StrEnum):
    """Where a transfer stands."""

    PENDING = "pending"
    ASSIGNED = "assigned"
    SUCCEEDED = "succeeded"
    #: A later version of the path has reached the target instead.
    SUPERSEDED = "superseded"


class Failure(Row, frozen=True):
    """An attempt that failed."""

    time: float
    error: str
    error_class: str
    retryable: bool
    source: str
    sequence: int = 0
    #: Who made it: an attempt of the target is a fetch, one of the source a push.
    executor: str = ""
    #: Bytes that it brought and that are kept, and whether that was a real share of the file.
    moved: int = 0
    headway: bool = False
    #: How many it stands for: of long stories the oldest are told as one.
    attempts: int = 1


class TransferRow(Row, frozen=True):
    """One entry on its way to one target."""

    id: str
    entry: DataEntry
    source: str
    target: str
    state: TransferState
    priority: SyncPriority
    transports: tuple[Transport, ...]
    reason: str
    #: Seconds since 1970; None if any time will do.
    deadline: float | None
    #: Chains that wait for it.
    chains: tuple[str, ...]
    #: Sequence of the plan that asked for it first; later rows of the same transfer differ in it.
    queued_sequence: int
    queued_at: float
    #: Attempts assigned so far.
    attempt: int = 0
    executor: str = ""
    assigned_at: float = 0.0
    timeout_s: float = 0.0
    bandwidth_mbps: float = 0.0
    failures: tuple[Failure, ...] = ()
    bytes_transferred: int = 0
    games: int | None = None
    #: What the target holds at the end: this entry's digest, or that of the later version.
    arrived_checksum: str = ""
    ended_at: float = 0.0
    #: Sequence of the newest plan that asked for it: what failed before is not held against that.
    asked_sequence: int = 0
    #: Whether all that ask for it want it only with what nothing else asks for.
    spare_only: bool = False

    @property
    def ended(self) -> bool:
        """Whether nothing is left to do: the target holds this, or something later."""
        return self.state in (TransferState.SUCCEEDED, TransferState.SUPERSEDED)

    def failures_since(self, sequence: int) -> tuple[Failure, ...]:
        """Attempts that failed after a point of the log, oldest first."""
        return tuple(failure for failure in self.failures if failure.sequence >= sequence)

    def fruitless_since(self, sequence: int) -> int:
        """Attempts in a row, up to the last one, that failed and made no headway."""
        newest_first = reversed(self.failures_since(sequence))
        return len(tuple(takewhile(lambda failure: not failure.headway, newest_first)))


class Totals(Row, frozen=True):
    """Since the log began."""

    transfers: int = 0
    bytes: int = 0
    failures: int = 0


class CopyRow(Row, frozen=True):
    """The last proven copy of something of a configuration."""

    #: By the log's clock, seconds since 1970.
    time: float
    path: str
    target: str


#: So much later than its priority stands what may only take what is spare.
SPARE_RANKS = len(SyncPriority)
_BY_RANK = {priority.rank: priority for priority in SyncPriority}
_TRANSFER = unpacker(TransferRow)
_TOTALS = unpacker(Totals)
_COPY = unpacker(CopyRow)
_COPIED = b"copied "
_FOR_GOOD = 255


def transfer_id(entry: DataEntry, target: str) -> str:
    """A transfer by what it achieves: this content, under this path, on this target."""
    return fact_id("transfer", entry.path, entry.checksum, target)


class TransfersView:
    """Folds plans, assignments, results and the ends of chains."""

    name = "transfers"
    version = 12
    tables = (
        "transfers",
        *queue.TABLES,
        "flight",
        "by_target",
        "superseded",
        "chain_transfers",
        "waiting",
        "transfers_meta",
    )

    def __init__(self) -> None:
        self.folds: dict[type[events.Event], Handler] = {
            events.SyncPlanned: self._plan,
            events.TransferAssigned: self._assign,
            events.TransferSucceeded: self._succeed,
            events.TransferFailed: self._fail,
            events.FilesObserved: self._observe,
            events.DataSyncCompleted: self._end_chain,
            events.DataSyncFailed: self._end_chain,
        }

    def _plan(self, tx: Writer, event: events.SyncPlanned, recorded: Recorded) -> None:
        for plan in event.plans:
            for target in plan.target_nodes:
                for entry in plan.entries:
                    self._want(tx, plan, target, entry, recorded)

    def _want(
        self, tx: Writer, plan: SyncPlan, target: str, entry: DataEntry, recorded: Recorded
    ) -> None:
        id = transfer_id(entry, target)
        row = get_transfer(tx, id)
        waiting = row.chains if row else ()
        chains = waiting if recorded.chain in waiting else (*waiting, recorded.chain)
        tx.put("chain_transfers", text_key(recorded.chain) + id.encode())
        if row is not None and row.state in (TransferState.PENDING, TransferState.ASSIGNED):
            priority = min(row.priority, plan.priority, key=lambda p: p.rank)
            deadline = _earlier(row.deadline, plan.deadline)
            joined = replace(
                row,
                chains=chains,
                priority=priority,
                deadline=deadline,
                asked_sequence=recorded.sequence,
                spare_only=row.spare_only and plan.spare_only,
            )
            self._store(tx, row, joined)
            return
        held = row_held_by(tx, target, entry.path)
        if held is not None and (held.checksum == entry.checksum or held.version > entry.version):
            # It arrived between the decision and its record.
            state, checksum, games = TransferState.SUCCEEDED, held.checksum, held.games
        else:
            state, checksum, games = TransferState.PENDING, "", None
        fresh = TransferRow(
            id=id,
            entry=entry,
            source=plan.source_node,
            target=target,
            state=state,
            priority=plan.priority,
            transports=plan.transport_preference,
            reason=plan.reason,
            deadline=plan.deadline,
            chains=chains,
            queued_sequence=recorded.sequence,
            queued_at=recorded.time,
            asked_sequence=recorded.sequence,
            arrived_checksum=checksum,
            games=games,
            spare_only=plan.spare_only,
        )
        self._store(tx, row, fresh)

    def _assign(self, tx: Writer, event: events.TransferAssigned, recorded: Recorded) -> None:
        row = get_transfer(tx, event.transfer)
        if row is not None and row.state is not TransferState.PENDING:
            return
        assigned = replace(
            row or _unwanted(event, recorded),
            state=TransferState.ASSIGNED,
            attempt=event.attempt,
            executor=event.executor,
            source=event.source,
            assigned_at=recorded.time,
            timeout_s=event.timeout_s,
            bandwidth_mbps=event.bandwidth_mbps,
        )
        self._store(tx, row, assigned)
        queue.serve(tx, event.entry.config_key, event.entry.size_bytes, recorded.time)

    def _succeed(self, tx: Writer, event: events.TransferSucceeded, recorded: Recorded) -> None:
        before = totals(tx)
        moved = added(before.bytes, event.bytes_transferred)
        after = Totals(before.transfers + 1, moved, before.failures)
        tx.put("transfers_meta", b"totals", after)
        copy = CopyRow(recorded.time, event.entry.path, event.target)
        tx.put("transfers_meta", _COPIED + event.entry.config_key.encode(), copy)
        row = get_transfer(tx, event.transfer)
        if row is not None and row.state is not TransferState.SUCCEEDED:
            done = replace(
                row,
                state=TransferState.SUCCEEDED,
                bytes_transferred=added(row.bytes_transferred, event.bytes_transferred),
                games=event.games,
                arrived_checksum=event.entry.checksum,
                ended_at=recorded.time,
            )
            self._store(tx, row, done)
        entry = replace(event.entry, games=event.games)
        self._supersede_older(tx, event.target, entry, recorded.time)

    def _observe(self, tx: Writer, event: events.FilesObserved, recorded: Recorded) -> None:
        """What a node has written itself is later than what waits to be brought there.

        What is under way keeps its slot until its result says that it has ended.
        """
        if next(iter(tx.scan("by_target", text_key(event.node))), None) is None:
            return
        for entry in event.entries:
            for row in list(_at_place(tx, "by_target", event.node, entry.path)):
                held = _later_held(tx, row)
                if held is not None and row.state is TransferState.PENDING:
                    self._store(tx, row, _superseded(row, held, recorded.time))

    def _supersede_older(self, tx: Writer, target: str, entry: DataEntry, time: float) -> None:
        """Older versions of what has come to a target need not reach it any more."""
        for row in list(_at_place(tx, "by_target", target, entry.path)):
            if row.entry.version < entry.version:
                self._store(tx, row, _superseded(row, entry, time))

    def _fail(self, tx: Writer, event: events.TransferFailed, recorded: Recorded) -> None:
        before = totals(tx)
        moved = added(before.bytes, event.bytes_transferred)
        after = Totals(before.transfers, moved, before.failures + 1)
        tx.put("transfers_meta", b"totals", after)
        row = get_transfer(tx, event.transfer)
        if row is None or row.state is not TransferState.ASSIGNED or row.attempt != event.attempt:
            return
        failed = replace(
            row,
            state=TransferState.PENDING,
            failures=_remembered(row, _failure(row, event, recorded)),
            bytes_transferred=added(row.bytes_transferred, event.bytes_transferred),
        )
        held = _later_held(tx, row)
        self._store(tx, row, failed if held is None else _superseded(failed, held, recorded.time))

    def _end_chain(self, tx: Writer, event: events.Event, recorded: Recorded) -> None:
        chain = recorded.chain
        prefix = text_key(chain)
        for key, _ in list(tx.scan("chain_transfers", prefix)):
            tx.delete("chain_transfers", key)
            row = get_transfer(tx, key[len(prefix) :].decode())
            if row is not None:
                rest = tuple(waiting for waiting in row.chains if waiting != chain)
                self._store(tx, row, replace(row, chains=rest))

    @staticmethod
    def _store(tx: Writer, before: TransferRow | None, row: TransferRow) -> None:
        """Write a row, and its places where it has left one or come to another."""
        kept = bool(row.chains) or row.state is TransferState.ASSIGNED
        old = _places(before) if before is not None else {}
        new = _places(row) if kept else {}
        for table, key in old.keys() - new.keys():
            tx.delete(table, key)
        for (table, key), value in new.items():
            if (table, key) not in old:
                tx.put(table, key, value)
        if kept:
            tx.put("transfers", row.id.encode(), row)
        else:
            tx.delete("transfers", row.id.encode())


def attempts(failures: Iterable[Failure]) -> int:
    """How many attempts failed."""
    return sum(failure.attempts for failure in failures)


def _later_held(reader: Reader, row: TransferRow) -> EntryRow | None:
    """What a target holds already that is later than what a transfer brings; None if nothing is."""
    held = row_held_by(reader, row.target, row.entry.path)
    return held if held is not None and held.version > row.entry.version else None


def _superseded(row: TransferRow, held: DataEntry | EntryRow, time: float) -> TransferRow:
    """A transfer that is needless because of what its target holds now."""
    return replace(
        row,
        state=TransferState.SUPERSEDED,
        games=held.games,
        arrived_checksum=held.checksum,
        ended_at=time,
    )


def _failure(row: TransferRow, event: events.TransferFailed, recorded: Recorded) -> Failure:
    moved, size = kept_bytes(event.results), row.entry.size_bytes
    before = sum(failure.moved for failure in row.failures_since(row.asked_sequence))
    return Failure(
        recorded.time,
        event.error,
        event.error_class,
        event.retryable,
        event.source,
        recorded.sequence,
        row.executor,
        moved,
        is_headway(moved, size) and before + moved <= MOST_TIMES * size,
    )


def _remembered(row: TransferRow, failure: Failure) -> tuple[Failure, ...]:
    """A row's failures with one more. What came before headway decides little: the oldest of very
    many are told as one.
    """
    failures = (*row.failures, failure)
    if len(failures) > MOST_FAILURES and any(one.headway for one in failures[1:]):
        first, second, *rest = failures
        if first.sequence >= row.asked_sequence:
            moved, tries = added(first.moved, second.moved), first.attempts + second.attempts
            second = replace(second, moved=moved, attempts=tries)
        failures = (second, *rest)
    return failures


def _unwanted(event: events.TransferAssigned, recorded: Recorded) -> TransferRow:
    """An order whose last chain ended while it was decided: its executor moves bytes all the same,
    and until the result it counts for what is in flight.
    """
    return TransferRow(
        id=event.transfer,
        entry=event.entry,
        source=event.source,
        target=event.target,
        state=TransferState.PENDING,
        priority=event.priority,
        transports=event.transports,
        reason="",
        deadline=event.deadline,
        chains=(),
        queued_sequence=recorded.sequence,
        queued_at=recorded.time,
        asked_sequence=recorded.sequence,
    )


def get_transfer(reader: Reader, id: str) -> TransferRow | None:
    """A transfer that some chain waits for or that is under way."""
    return reader.row("transfers", id.encode(), _TRANSFER)


def pending(reader: Reader, target: str = "") -> Iterator[TransferRow]:
    """Transfers that wait to be assigned, or those to a target: by priority, deadline, age."""
    return _rows(reader, queue.ids_in_order(reader, target))


def pending_fairly(reader: Reader, passed_over: Container[str] = ()) -> Iterator[TransferRow]:
    """The same by priority, each configuration in turn.

    Those to targets in `passed_over` are left out unread; it may grow while this is iterated.
    """
    return _rows(reader, queue.ids_fairly(reader, passed_over))


def pending_by_age(reader: Reader) -> Iterator[TransferRow]:
    """The same, the oldest first."""
    return _rows(reader, queue.ids_by_age(reader))


def pending_by_priority(reader: Reader) -> dict[SyncPriority, int]:
    """How many wait of each priority, the most urgent first; no row is read for it."""
    found = dict.fromkeys(SyncPriority, 0)
    for rank, count in queue.lengths(reader).items():
        found[_BY_RANK[rank % SPARE_RANKS]] += count
    return {priority: count for priority, count in found.items() if count}


def _rows(reader: Reader, ids: Iterator[str]) -> Iterator[TransferRow]:
    return (row for id in ids if (row := get_transfer(reader, id)) is not None)


def in_flight(reader: Reader) -> Iterator[TransferRow]:
    """Transfers that are assigned and have no result yet."""
    for key, _ in reader.scan("flight"):
        row = get_transfer(reader, key.decode())
        if row is not None:
            yield row


def newer_versions(reader: Reader, row: TransferRow) -> list[TransferRow]:
    """Open transfers of later versions of the same path to the same target."""
    # Its place is ordered by version: of most transfers there is nothing behind their own.
    place = text_key(row.target) + digest_key(row.entry.path)
    later = reader.scan("by_target", place, start=place + number(row.entry.version + 1))
    return list(_rows(reader, (id.decode() for _, id in later)))


def open_at(reader: Reader, target: str, path: str) -> list[TransferRow]:
    """Transfers that are to bring, or bring now, some version of a path to a target."""
    return list(_at_place(reader, "by_target", target, path))


def superseded_at(reader: Reader, target: str, path: str = "") -> list[TransferRow]:
    """Transfers that some chain still names and that a later version has made needless, of one path
    or of all.
    """
    return list(_at_place(reader, "superseded", target, path))


def last_copies(reader: Reader) -> dict[str, CopyRow]:
    """The last proven copy of each configuration."""
    found = reader.scan("transfers_meta", _COPIED)
    return {key[len(_COPIED) :].decode(): _COPY.decode(value) for key, value in found}


def totals(reader: Reader) -> Totals:
    """Transfers and bytes since the log began."""
    return reader.row("transfers_meta", b"totals", _TOTALS) or Totals()


def transfers_of_chain(reader: Reader, chain: str) -> list[TransferRow]:
    """What an open chain waits for."""
    prefix = text_key(chain)
    ids = [key[len(prefix) :].decode() for key, _ in reader.scan("chain_transfers", prefix)]
    return [row for id in ids if (row := get_transfer(reader, id)) is not None]


def waiting_in_chain(reader: Reader, chain: str) -> Iterator[TransferRow]:
    """What a chain waits for on nodes, then in the bucket: of each the one with most hope."""
    for in_bucket in (False, True):
        prefix = text_key(chain) + bytes([in_bucket])
        for key, _ in reader.scan("waiting", prefix):
            row = get_transfer(reader, key[len(prefix) + 1 :].decode())
            if row is not None:
                yield row
            break


def _places(row: TransferRow) -> dict[tuple[str, bytes], bytes]:
    """By table and key, where a row can be found besides under its id."""
    id = row.id.encode()
    waiting = {("waiting", _waiting_key(chain, row)): b"" for chain in row.chains}
    if row.state is TransferState.PENDING:
        waits = queue.queue_keys(
            # What only takes what is spare stands behind all else.
            row.priority.rank + SPARE_RANKS * row.spare_only,
            row.entry.config_key,
            row.target,
            row.deadline,
            row.queued_sequence,
            row.id,
        )
        return {**waits, ("by_target", _target_key(row)): id} | waiting
    if row.state is TransferState.ASSIGNED:
        return {("flight", id): b"", ("by_target", _target_key(row)): id} | waiting
    if row.state is TransferState.SUPERSEDED:
        return {("superseded", _target_key(row)): id}
    return {}


def _waiting_key(chain: str, row: TransferRow) -> bytes:
    # What is to reach nodes stands before what is to reach the bucket, and of each what failed
    # least before what failed more, or for good: whether any goes on, the first one tells.
    failed = min(row.fruitless_since(0), _FOR_GOOD - 1)
    if row.failures and not row.failures[-1].retryable:
        failed = _FOR_GOOD
    return text_key(chain) + bytes([row.target == S3_NODE, failed]) + row.id.encode()


def _at_place(reader: Reader, table: str, target: str, path: str) -> Iterator[TransferRow]:
    there = reader.scan(table, text_key(target) + (digest_key(path) if path else b""))
    return _rows(reader, (id.decode() for _, id in there))


def _target_key(row: TransferRow) -> bytes:
    place = text_key(row.target) + digest_key(row.entry.path)
    return place + number(row.entry.version) + digest_key(row.id)


def _earlier(one: float | None, other: float | None) -> float | None:
    return min((d for d in (one, other) if d is not None), default=None)
