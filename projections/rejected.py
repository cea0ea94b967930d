"""Messages of the log that could not be understood, and whether that was said."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec.structs import replace

from projections.store import Reader, Writer
from projections.view import Handler, Row, number, unpacker
from streams import events
from streams.codec import Recorded


class RejectedRow(Row, frozen=True):
    """A message that could not be understood; it is still in the log at `sequence`."""

    sequence: int
    subject: str
    reason: str
    time: float
    #: Whether EVENT_REJECTED was said of it.
    said: bool = False


_REJECTED = unpacker(RejectedRow)


class RejectedView:
    """Folds what can't be decoded, and EVENT_REJECTED."""

    name = "rejected"
    version = 1
    tables = ("rejected", "rejected_unsaid")

    def __init__(self) -> None:
        self.folds: dict[type[events.Event], Handler] = {events.EventRejected: self._said}

    @staticmethod
    def _said(tx: Writer, event: events.EventRejected, _: Recorded) -> None:
        value = tx.get("rejected", number(event.sequence))
        if value is not None:
            row = replace(_REJECTED.decode(value), said=True)
            tx.put("rejected", number(event.sequence), row)
        tx.delete("rejected_unsaid", number(event.sequence))

    def apply_undecodable(self, tx: Writer, recorded: Recorded) -> None:
        """Fold a message without a meaning; called for those instead of what `folds` holds."""
        row = RejectedRow(recorded.sequence, recorded.subject, recorded.problem, recorded.time)
        tx.put("rejected", number(recorded.sequence), row)
        tx.put("rejected_unsaid", number(recorded.sequence))


def all_rejected(reader: Reader) -> Iterator[RejectedRow]:
    """All rejected messages, newest first."""
    for _, value in reader.scan("rejected", reverse=True):
        yield _REJECTED.decode(value)


def unsaid(reader: Reader) -> Iterator[RejectedRow]:
    """Rejected messages of which EVENT_REJECTED is still owed."""
    for key, _ in reader.scan("rejected_unsaid"):
        value = reader.get("rejected", key)
        if value is not None:
            yield _REJECTED.decode(value)
