"""Every chain from its trigger to its end: what it waits for, what it planned, how it ended.

What was planned for a chain may be long: it lies beside the chain's row, as one row for each
message that said it, and only who decides about the chain reads it.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TypeVar

import msgspec
from msgspec.structs import astuple, replace

from projections.catalog import entry_key
from projections.nodes import Stays
from projections.store import Reader, Writer
from projections.transfers import transfer_id
from projections.view import Handler, Row, number, text_key, unpacker
from streams import events
from streams.codec import Recorded, trace_joined
from streams.events import CHAIN_TRIGGERS, EVENT_TYPES, FILE_TRIGGERS
from streams.values import Held, Refusal

_EXPECTED = events.type_name(events.TrainingExpected)
_TERMINATING = events.type_name(events.NodeTerminating)


class ChainStatus(enum.StrEnum):
    """Where a chain stands."""

    #: The node it speaks of has not yet said what it holds.
    WAITING_FOR_FILES = "waiting for files"
    #: All is known that a plan needs.
    READY = "ready"
    #: Planned; its transfers are not all done.
    MOVING = "moving"
    COMPLETED = "completed"
    FAILED = "failed"


class Need(Row, frozen=True):
    """One entry that must be on one target for the chain to complete."""

    transfer: str
    target: str
    path: str
    checksum: str
    size_bytes: int
    games: int | None


class ChainRow(Row, frozen=True):
    """One chain."""

    id: str
    trigger: str
    config_key: str
    #: The node whose files or wishes it speaks of.
    node: str
    #: The trigger's payload, JSON.
    payload: bytes
    #: Id of the trigger event.
    trigger_id: str
    opened_sequence: int
    opened_at: float
    status: ChainStatus
    #: When anything last happened to it.
    progress_at: float = 0.0
    answered_at: float = 0.0
    planned_at: float = 0.0
    planned_sequence: int = 0
    #: In how many parts its plan was said so far, and how many copies they want or found in place.
    parts: int = 0
    copies: int = 0
    #: What its node could not read when it said what it holds.
    unread: tuple[Refusal, ...] = ()
    source_node: str = ""
    announced_at: float = 0.0
    overdue_at: float = 0.0
    ended_at: float = 0.0
    reason: str = ""
    bytes_transferred: int = 0
    games_synced: int = 0
    #: When all that it wanted in the bucket was there.
    backed_up_at: float = 0.0
    #: When a promoted model was on the quorum of its targets.
    distributed_at: float = 0.0
    #: When its node last said that it is still reading what it holds.
    reading_at: float = 0.0
    #: Of one that empties a node: when it was said that the node stays.
    cancelled_at: float = 0.0

    @property
    def open(self) -> bool:
        """Whether it has not ended."""
        return self.status not in (ChainStatus.COMPLETED, ChainStatus.FAILED)

    @property
    def ahead(self) -> bool:
        """Whether it brings what nobody has asked for yet, and may be given up."""
        return self.trigger == _EXPECTED

    def event(self) -> events.Event:
        """The trigger as it was understood."""
        return msgspec.json.decode(self.payload, type=EVENT_TYPES[self.trigger])


class PartRow(Row, frozen=True):
    """What one SYNC_PLANNED said for a chain."""

    needs: tuple[Need, ...] = ()
    held: tuple[Held, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    #: Paths for which its completion is to be followed by NEW_GAMES_AVAILABLE.
    announces: tuple[str, ...] = ()


class Chain(ChainRow, frozen=True):
    """A chain with all that was planned for it, in the order in which it was said."""

    needs: tuple[Need, ...] = ()
    held: tuple[Held, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    announces: tuple[str, ...] = ()


C = TypeVar("C", bound=ChainRow)
_CHAIN = unpacker(ChainRow)
_PART = unpacker(PartRow)
#: What changes a chain that is open; everything else of it is the business of other views.
_EVOLVES: tuple[type[events.Event], ...] = (
    events.FilesObserved,
    events.SyncPlanned,
    events.DataSyncCompleted,
    events.DataSyncFailed,
    events.NewGamesAvailable,
    events.ChainOverdue,
    events.S3BackupCompleted,
    events.ModelDistributionComplete,
)


class ChainsView:
    """Folds triggers, answers, decisions and results into chains."""

    name = "chains"
    version = 9
    tables = (
        "chains",
        "chain_parts",
        "chains_open",
        "chains_ended",
        "announced",
        "chain_triggers",
        "chain_traces",
        "emptying",
        "drains",
    )

    def __init__(self) -> None:
        self.folds: dict[type[events.Event], Handler] = {
            **dict.fromkeys(CHAIN_TRIGGERS, self._open),
            **dict.fromkeys(_EVOLVES, self._change),
            events.NodeDrained: self._forget_drain,
            events.NodeDrainCancelled: self._cancel_drain,
            events.NodeRecovered: self._cancel_drain,
        }

    def _change(self, tx: Writer, event: events.Event, recorded: Recorded) -> None:
        row = get_chain(tx, recorded.chain) if recorded.chain else None
        if row is None:
            return
        changed = self._evolve(tx, row, recorded)
        if changed is not None:
            self._store(tx, replace(changed, progress_at=recorded.time), recorded.sequence)
            if row.open and not changed.open and row.trigger == _TERMINATING:
                tx.delete("emptying", text_key(row.node) + row.id.encode())
                if changed.status is ChainStatus.COMPLETED and not row.cancelled_at:
                    tx.put("drains", row.node.encode(), row.id.encode())

    def _open(self, tx: Writer, event: events.Event, recorded: Recorded) -> None:
        if get_chain(tx, recorded.chain) is not None:
            return
        waits = type(event) in FILE_TRIGGERS
        row = ChainRow(
            id=recorded.chain,
            trigger=recorded.type,
            config_key=recorded.config_key,
            node=events.speaker_of(event) or recorded.owner,
            payload=msgspec.json.encode(event),
            trigger_id=recorded.id,
            opened_sequence=recorded.sequence,
            opened_at=recorded.time,
            status=ChainStatus.WAITING_FOR_FILES if waits else ChainStatus.READY,
            progress_at=recorded.time,
        )
        self._store(tx, row, recorded.sequence)
        tx.put("chain_triggers", row.id.encode(), row.trigger.encode())
        if trace := trace_joined(recorded):
            tx.put("chain_traces", row.id.encode(), trace.encode())
        if isinstance(event, events.NodeTerminating):
            # What was said to empty it before is overtaken.
            tx.delete("drains", event.node.encode())
            tx.put("emptying", text_key(row.node) + row.id.encode())

    @staticmethod
    def _forget_drain(tx: Writer, event: events.NodeDrained, recorded: Recorded) -> None:
        tx.delete("drains", event.node.encode())

    @staticmethod
    def _cancel_drain(tx: Writer, event: Stays, recorded: Recorded) -> None:
        tx.delete("drains", event.node.encode())
        prefix = text_key(event.node)
        for key, _ in list(tx.scan("emptying", prefix)):
            row = get_chain(tx, key[len(prefix) :].decode())
            if row is not None and not row.cancelled_at:
                tx.put("chains", row.id.encode(), replace(row, cancelled_at=recorded.time))

    def _evolve(self, tx: Writer, row: ChainRow, recorded: Recorded) -> ChainRow | None:
        event, time = recorded.event, recorded.time
        if isinstance(event, events.FilesObserved):
            return self._answer(row, event, time)
        if isinstance(event, events.SyncPlanned):
            part = part_of(event)
            tx.put("chain_parts", text_key(row.id) + number(recorded.sequence), part)
            return advanced(row, event, part, time, recorded.sequence)
        if isinstance(event, events.DataSyncCompleted | events.DataSyncFailed):
            done = isinstance(event, events.DataSyncCompleted)
            return replace(
                row,
                status=ChainStatus.COMPLETED if done else ChainStatus.FAILED,
                ended_at=time,
                reason=event.reason,
                bytes_transferred=event.bytes_transferred,
                games_synced=event.games_synced,
            )
        if isinstance(event, events.NewGamesAvailable):
            self._announce(tx, row)
            return replace(row, announced_at=time)
        if isinstance(event, events.ModelDistributionComplete):
            return replace(row, distributed_at=time)
        if isinstance(event, events.ChainOverdue):
            return replace(row, overdue_at=time)
        if isinstance(event, events.S3BackupCompleted):
            return replace(row, backed_up_at=time)
        return None

    @staticmethod
    def _answer(row: ChainRow, event: events.FilesObserved, time: float) -> ChainRow | None:
        if row.status is not ChainStatus.WAITING_FOR_FILES or event.node != row.node:
            return None
        if not event.last_part:
            return replace(row, reading_at=time)
        problems = tuple(
            Refusal(rule="unreadable", reason=text, blocking=True) for text in event.problems
        )
        return replace(row, status=ChainStatus.READY, answered_at=time, unread=problems)

    @staticmethod
    def _announce(tx: Writer, row: ChainRow) -> None:
        for part in list(_parts(tx, row.id)):
            said = {(need.path, need.checksum) for need in part.needs}
            said |= {(held.path, held.checksum) for held in part.held}
            for path, checksum in said:
                tx.put("announced", entry_key(path, checksum), row.id.encode())

    @staticmethod
    def _store(tx: Writer, row: ChainRow, sequence: int) -> None:
        tx.put("chains", row.id.encode(), row)
        place = number(row.opened_sequence) + row.id.encode()
        if row.open:
            tx.put("chains_open", place)
        elif tx.delete("chains_open", place):
            tx.put("chains_ended", number(sequence) + row.id.encode())


def part_of(event: events.SyncPlanned) -> PartRow:
    """What one SYNC_PLANNED says; a large plan comes in several."""
    needs = tuple(
        Need(
            transfer_id(entry, target),
            target,
            entry.path,
            entry.checksum,
            entry.size_bytes,
            entry.games,
        )
        for plan in event.plans
        for target in plan.target_nodes
        for entry in plan.entries
    )
    return PartRow(needs, event.held, event.refusals, event.announces)


def advanced(row: C, event: events.SyncPlanned, part: PartRow, time: float, sequence: int = 0) -> C:
    """A chain's row after one SYNC_PLANNED.

    One that moves already is as old as its first plan, whatever is planned again.
    """
    again = row.status is ChainStatus.MOVING
    return replace(
        row,
        status=ChainStatus.MOVING if event.last_part else row.status,
        planned_at=row.planned_at if again else time,
        planned_sequence=row.planned_sequence if row.parts else sequence,
        parts=row.parts + 1,
        copies=row.copies + len(part.needs) + len(part.held),
        source_node=row.source_node if again else event.source_node,
    )


def with_parts(row: ChainRow, parts: Iterable[PartRow]) -> Chain:
    """A chain and what these parts, in order, say beside what it has."""
    whole, said = row, list(parts)
    if not isinstance(whole, Chain):
        whole = replace(Chain(*astuple(row)), refusals=row.unread)
    return replace(
        whole,
        needs=(*whole.needs, *chain.from_iterable(part.needs for part in said)),
        held=(*whole.held, *chain.from_iterable(part.held for part in said)),
        refusals=(*whole.refusals, *chain.from_iterable(part.refusals for part in said)),
        announces=(*whole.announces, *chain.from_iterable(part.announces for part in said)),
    )


def joined_trace(reader: Reader, id: str) -> str:
    """The trace that a chain's trigger was said in where it is not its own; else ""."""
    value = reader.get("chain_traces", id.encode())
    return "" if value is None else value.decode()


def get_chain(reader: Reader, id: str) -> ChainRow | None:
    """A chain by its id."""
    return reader.row("chains", id.encode(), _CHAIN)


def whole_chain(reader: Reader, id: str) -> Chain | None:
    """A chain by its id with all that was planned for it: as much as its files are many."""
    row = get_chain(reader, id)
    return None if row is None else with_parts(row, _parts(reader, id))


def _parts(reader: Reader, id: str) -> Iterator[PartRow]:
    return (_PART.decode(value) for _, value in reader.scan("chain_parts", text_key(id)))


def trigger_of(reader: Reader, id: str) -> str:
    """The wire name of a chain's trigger, without reading the chain; "" if it is unknown."""
    value = reader.get("chain_triggers", id.encode())
    return "" if value is None else value.decode()


def chain_ids(reader: Reader, beginning: str) -> Iterator[str]:
    """Ids of chains that begin so."""
    for key, _ in reader.scan("chains", beginning.encode()):
        yield key.decode()


def open_chains(reader: Reader, *, after: bytes = b"") -> Iterator[ChainRow]:
    """Chains that have not ended, oldest first; `after` is a `place_of` to go on from."""
    for key, _ in reader.scan("chains_open", start=after + b"\x00" if after else b""):
        row = get_chain(reader, key[8:].decode())
        if row is not None:
            yield row


def ended_chains(reader: Reader) -> Iterator[ChainRow]:
    """Chains that have ended, newest first."""
    for key, _ in reader.scan("chains_ended", reverse=True):
        row = get_chain(reader, key[8:].decode())
        if row is not None:
            yield row


def drains(reader: Reader) -> Iterator[ChainRow]:
    """Completed chains that have emptied a node of which NODE_DRAINED was not said yet."""
    for _, id in reader.scan("drains"):
        row = get_chain(reader, id.decode())
        if row is not None:
            yield row


def place_of(row: ChainRow) -> bytes:
    """Where a chain stands among the open ones."""
    return number(row.opened_sequence) + row.id.encode()


def was_announced(reader: Reader, path: str, checksum: str) -> bool:
    """Whether NEW_GAMES_AVAILABLE was said of this content before."""
    return reader.get("announced", entry_key(path, checksum)) is not None
