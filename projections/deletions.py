"""Deletions of copies, from the request to its end: one at a time for each entry.

A deletion that was granted keeps its place until its node has had the last word on it, however
long it stays away: until then nobody may count on that copy, nor delete another one.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator

from msgspec.structs import replace

from projections.catalog import entry_key
from projections.store import Reader, Writer
from projections.view import Handler, Row, digest_key, number, unpacker
from streams import events
from streams.codec import Recorded, chain_of_trigger, fact_id


class DeletionState(enum.StrEnum):
    """Where a deletion stands."""

    REQUESTED = "requested"
    #: No other copy of the entry may be deleted; the remaining ones are being proven.
    RESERVED = "reserved"
    #: They were proven; the node is to delete its copy.
    GRANTED = "granted"
    DELETED = "deleted"
    #: Refused by a rule, or by the node itself.
    KEPT = "kept"


class DeletionRow(Row, frozen=True):
    """One deletion. Its id is that of the request."""

    id: str
    state: DeletionState
    path: str
    node: str
    #: What was asked for at first, what is held once it is reserved; "" for whatever there is.
    checksum: str
    reason: str
    requester: str
    requested_at: float
    requested_sequence: int
    reserved_at: float = 0.0
    granted_at: float = 0.0
    ended_at: float = 0.0
    freed_bytes: int = 0
    #: Why the copy stays, in words, and the rule that said so.
    rule: str = ""
    refusal: str = ""
    #: Id of the DELETION_GRANTED.
    grant: str = ""
    #: When its node said that it deleted the copy by that: one that comes after is not meant.
    removed_at: float = 0.0

    @property
    def open(self) -> bool:
        """Whether it has not ended."""
        return self.state not in (DeletionState.DELETED, DeletionState.KEPT)


_DELETION = unpacker(DeletionRow)
_Decision = (
    events.DeletionReserved | events.DeletionGranted | events.DeletionRefused | events.DeletionDone
)


class DeletionsView:
    """Folds requests, decisions and their outcomes."""

    name = "deletions"
    version = 2
    tables = ("deletions", "deletions_open", "deletions_of_entry", "deletions_granted")

    def __init__(self) -> None:
        self.folds: dict[type[events.Event], Handler] = {
            events.DeletionRequested: self._request,
            events.DeletionReserved: self._decide,
            events.DeletionGranted: self._decide,
            events.DeletionRefused: self._decide,
            events.DeletionDone: self._decide,
            events.FilesRemoved: self._note_removed,
        }

    @staticmethod
    def _request(tx: Writer, event: events.DeletionRequested, recorded: Recorded) -> None:
        # A token, as a chain's name is: no id may be longer than a key.
        id = chain_of_trigger(recorded.id)
        if get_deletion(tx, id) is not None:
            return
        row = DeletionRow(
            id=id,
            state=DeletionState.REQUESTED,
            path=event.path,
            node=event.node,
            checksum=event.checksum,
            reason=event.reason,
            requester=event.requester or recorded.owner,
            requested_at=recorded.time,
            requested_sequence=recorded.sequence,
        )
        tx.put("deletions", row.id.encode(), row)
        tx.put("deletions_open", _place(row))

    def _decide(self, tx: Writer, event: _Decision, recorded: Recorded) -> None:
        row = get_deletion(tx, event.request)
        if row is None or not row.open:
            return
        early = recorded.owner == turned_down(row.id)
        if early and row.state is not DeletionState.REQUESTED:
            # Somebody else had reserved it already: that is what counts.
            return
        changed = _evolve(row, event, recorded)
        tx.put("deletions", row.id.encode(), changed)
        key = entry_key(changed.path, changed.checksum)
        copy = digest_key(changed.node, changed.path)
        if changed.state is DeletionState.GRANTED:
            tx.put("deletions_granted", copy, row.id.encode())
        elif row.state is DeletionState.GRANTED:
            tx.delete("deletions_granted", copy)
        if changed.open:
            tx.put("deletions_of_entry", key, row.id.encode())
            return
        tx.delete("deletions_open", _place(row))
        if tx.get("deletions_of_entry", key) == row.id.encode():
            tx.delete("deletions_of_entry", key)

    @staticmethod
    def _note_removed(tx: Writer, event: events.FilesRemoved, recorded: Recorded) -> None:
        for path in event.paths:
            id = tx.get("deletions_granted", digest_key(event.node, path))
            row = None if id is None else get_deletion(tx, id.decode())
            if row is not None and row.grant == recorded.cause and not row.removed_at:
                tx.put("deletions", row.id.encode(), replace(row, removed_at=recorded.time))


def _evolve(row: DeletionRow, event: _Decision, recorded: Recorded) -> DeletionRow:
    time = recorded.time
    if isinstance(event, events.DeletionReserved):
        return replace(row, state=DeletionState.RESERVED, checksum=event.checksum, reserved_at=time)
    if isinstance(event, events.DeletionGranted):
        return replace(row, state=DeletionState.GRANTED, granted_at=time, grant=recorded.id)
    if isinstance(event, events.DeletionRefused):
        return replace(
            row,
            state=DeletionState.KEPT,
            ended_at=time,
            rule=event.rule,
            refusal=event.reason,
        )
    return replace(
        row,
        state=DeletionState.DELETED if event.deleted else DeletionState.KEPT,
        ended_at=time,
        freed_bytes=event.freed_bytes,
        rule="" if event.deleted else "node",
        refusal=event.reason,
    )


def turned_down(id: str) -> str:
    """Under which name it is said that a request was refused before anything was reserved."""
    return f"kept-{fact_id(id)}"


def get_deletion(reader: Reader, id: str) -> DeletionRow | None:
    """A deletion by the id of its request."""
    return reader.row("deletions", id.encode(), _DELETION)


def open_deletions(reader: Reader) -> Iterator[DeletionRow]:
    """Deletions that have not ended, oldest first."""
    for key, _ in reader.scan("deletions_open"):
        row = get_deletion(reader, key[8:].decode())
        if row is not None:
            yield row


def deletion_of(reader: Reader, path: str, checksum: str) -> DeletionRow | None:
    """The reserved or granted deletion of some copy of an entry; None if there is none."""
    id = reader.get("deletions_of_entry", entry_key(path, checksum))
    return None if id is None else get_deletion(reader, id.decode())


def _place(row: DeletionRow) -> bytes:
    return number(row.requested_sequence) + row.id.encode()
