"""All views as one fold: a batch of facts and the checkpoint behind it, in one transaction.

It must never skip a sequence, fold one twice, or let two batches differ from one.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from projections.catalog import CatalogView
from projections.chains import ChainsView
from projections.deletions import DeletionsView
from projections.guards import GuardsView
from projections.links import LinksView
from projections.nodes import NodesView
from projections.rejected import RejectedView
from projections.store import Reader, Writer
from projections.sweeps import SweepsView
from projections.trainings import TrainingsView
from projections.transfers import TransfersView
from projections.view import Handler, View, digest_key, number
from streams.codec import STREAM, Recorded
from streams.events import TYPE_NAMES, Event

_GUARDS = GuardsView()
_REJECTED = RejectedView()
#: In this order each fact visits them; a view may read those before it.
VIEWS: tuple[View, ...] = (
    CatalogView(),
    NodesView(),
    LinksView(),
    TransfersView(),
    ChainsView(),
    TrainingsView(),
    DeletionsView(),
    SweepsView(),
    _REJECTED,
)
#: By type of event, what folds it, in that order.
_HANDLERS: dict[type[Event], list[Handler]] = {
    cls: [view.folds[cls] for view in VIEWS if cls in view.folds] for cls in TYPE_NAMES
}
#: With those that also see what has no meaning, or came twice.
ALL_VIEWS: tuple[View, ...] = (_GUARDS, *VIEWS)
#: `fold`'s own: the checkpoint, and the ids that were seen.
OWN_TABLES = ("meta", "seen", "seen_order")
TABLES = (*OWN_TABLES, *(table for view in ALL_VIEWS for table in view.tables))
#: How many ids are remembered to recognise a fact that was published twice. Far more than a
#: publisher can have under way; the log's own window covers the recent ones.
SEEN_LIMIT = 1_000_000


class Checkpoint(msgspec.Struct, frozen=True):
    """How far the views are, and of which log."""

    #: When the log's stream was made: a view of another log is worthless.
    created: str = ""
    sequence: int = 0
    #: Id of the event at `sequence`: tells a log that was rolled back and written on.
    event_id: str = ""
    #: Log time of that event, seconds since 1970.
    time: float = 0.0
    #: Versions of `fold` and of each view that wrote the tables.
    versions: dict[str, int] = {}
    #: Facts that came a second time under the same id, and were ignored.
    duplicates: int = 0


class SequenceGap(Exception):
    """The log left out a message. Folding on would make a wrong view: the process must stop."""


_CHECKPOINT = msgspec.json.Decoder(Checkpoint)
#: Changes with what `fold` itself writes, as a view's version does.
_OWN_VERSION = 2
WANTED_VERSIONS = {"fold": _OWN_VERSION, **{view.name: view.version for view in ALL_VIEWS}}


def checkpoint(reader: Reader) -> Checkpoint:
    """How far the views are; an empty one before the first fold."""
    value = reader.get("meta", b"checkpoint")
    return Checkpoint(versions=WANTED_VERSIONS) if value is None else _CHECKPOINT.decode(value)


def fold(tx: Writer, batch: Iterable[Recorded], created: str) -> Checkpoint:
    """Fold facts that follow the checkpoint; those at or before it are passed over."""
    before = checkpoint(tx)
    done, duplicates, last = before.sequence, before.duplicates, None
    for recorded in batch:
        if recorded.sequence <= done:
            continue
        if recorded.sequence != done + 1:
            raise SequenceGap(f"expected sequence {done + 1}, the log gave {recorded.sequence}")
        duplicates += not _fold_one(tx, recorded)
        done, last = recorded.sequence, recorded
        if done > SEEN_LIMIT:
            _forget(tx, done - SEEN_LIMIT)
    if last is None:
        return before
    after = Checkpoint(created, done, last.id, last.time, WANTED_VERSIONS, duplicates)
    tx.put("meta", b"checkpoint", msgspec.json.encode(after))
    return after


def view_digests(reader: Reader) -> dict[str, str]:
    """SHA-256 of each view's tables; two folds of one log have the same."""
    return {view.name: reader.digest(view.tables) for view in ALL_VIEWS}


def _fold_one(tx: Writer, recorded: Recorded) -> bool:
    """Apply one fact; False if its id was seen before."""
    _GUARDS.apply(tx, recorded)
    event = recorded.event
    if event is None:
        _REJECTED.apply_undecodable(tx, recorded)
        return True
    if not recorded.id.startswith(STREAM) and not _first_sight(tx, recorded):
        return False
    for handle in _HANDLERS[type(event)]:
        handle(tx, event, recorded)
    return True


def _first_sight(tx: Writer, recorded: Recorded) -> bool:
    # With the subject: nobody can make a fact look seen by using its id under a prefix of his own.
    key = digest_key.__wrapped__(recorded.subject, recorded.id)  # never asked for again
    if not tx.add("seen", key):
        return False
    tx.put("seen_order", number(recorded.sequence), key)
    return True


def _forget(tx: Writer, sequence: int) -> None:
    """The id that was first seen then, if any was."""
    place = number(sequence)
    key = tx.get("seen_order", place)
    if key is not None:
        tx.delete("seen_order", place)
        tx.delete("seen", key)
