"""Messages that could not be understood, triggers whose chains could not be decided, and what
became of both: said, and said anew.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec.structs import replace

from projections.store import Reader, Writer
from projections.view import Handler, Row, number, unpacker
from streams import events
from streams.codec import Recorded


class RejectedRow(Row, frozen=True):
    """A message that was rejected or set aside; it is still in the log at `sequence`."""

    sequence: int
    #: Of the message; of what was set aside, the wire name of the trigger.
    subject: str
    reason: str
    time: float
    #: Whether EVENT_REJECTED or EVENT_SET_ASIDE was said of it.
    said: bool = False
    #: The chain that could not be decided; "" for a message that could not be understood.
    chain: str = ""
    #: How often that was tried.
    tries: int = 0
    #: Id under which it was said anew; "" if it was not.
    retried_as: str = ""


_REJECTED = unpacker(RejectedRow)


class RejectedView:
    """Folds what can't be decoded, and what is said of that and of what can't be decided."""

    name = "rejected"
    version = 2
    tables = ("rejected", "rejected_unsaid")

    def __init__(self) -> None:
        self.folds: dict[type[events.Event], Handler] = {
            events.EventRejected: self._said,
            events.EventSetAside: self._set_aside,
            events.EventRetried: self._retried,
        }

    @staticmethod
    def _said(tx: Writer, event: events.EventRejected, _: Recorded) -> None:
        row = get_rejected(tx, event.sequence)
        if row is not None:
            tx.put("rejected", number(event.sequence), replace(row, said=True))
        tx.delete("rejected_unsaid", number(event.sequence))

    @staticmethod
    def _set_aside(tx: Writer, event: events.EventSetAside, recorded: Recorded) -> None:
        row = RejectedRow(
            sequence=event.sequence,
            subject=event.trigger,
            reason=event.reason,
            time=recorded.time,
            said=True,
            chain=recorded.chain,
            tries=event.tries,
        )
        tx.put("rejected", number(event.sequence), row)

    @staticmethod
    def _retried(tx: Writer, event: events.EventRetried, _: Recorded) -> None:
        row = get_rejected(tx, event.sequence)
        if row is not None:
            retried = replace(row, retried_as=event.event_id)
            tx.put("rejected", number(event.sequence), retried)

    def apply_undecodable(self, tx: Writer, recorded: Recorded) -> None:
        """Fold a message without a meaning; called for those instead of what `folds` holds."""
        row = RejectedRow(recorded.sequence, recorded.subject, recorded.problem, recorded.time)
        tx.put("rejected", number(recorded.sequence), row)
        tx.put("rejected_unsaid", number(recorded.sequence))


def get_rejected(reader: Reader, sequence: int) -> RejectedRow | None:
    """What was rejected or set aside at a place of the log; None if nothing was."""
    return reader.row("rejected", number(sequence), _REJECTED)


def all_rejected(reader: Reader) -> Iterator[RejectedRow]:
    """All that was rejected or set aside, newest first."""
    for _, value in reader.scan("rejected", reverse=True):
        yield _REJECTED.decode(value)


def count_unsaid(reader: Reader) -> int:
    """How many those are; none is read."""
    return reader.count("rejected_unsaid")


def unsaid(reader: Reader) -> Iterator[RejectedRow]:
    """Rejected messages of which EVENT_REJECTED is still owed."""
    for key, _ in reader.scan("rejected_unsaid"):
        value = reader.get("rejected", key)
        if value is not None:
            yield _REJECTED.decode(value)
