"""The last sequence under each subject that decisions are guarded by.

What a guard compares with is the log's own count, whatever the message says: one that nobody could
understand, or that came twice, counts like any other.
"""

from __future__ import annotations

from projections.store import Reader, Writer
from projections.view import Handler, number
from streams import events
from streams.codec import Recorded
from streams.events import Event
from streams.subjects import matches, type_filter
from streams.values import is_token

_ASSIGNED = type_filter(events.TransferAssigned)


class GuardsView:
    """Notes every message under ``dp.chain`` and every assignment, decodable or not."""

    name = "guards"
    version = 1
    tables = ("guards",)
    folds: dict[type[Event], Handler] = {}

    def apply(self, tx: Writer, recorded: Recorded) -> None:
        """Note where a message stands; called for every one."""
        subject = recorded.subject
        if subject.startswith("dp.node."):
            return
        tokens = subject.split(".")
        # Exactly what a guard's filter covers; and no chain's name is longer than a key may be.
        if tokens[:2] == ["dp", "chain"] and len(tokens) > 3 and is_token(tokens[2]):
            tx.put("guards", b"c" + tokens[2].encode(), number(recorded.sequence))
        elif matches(subject, _ASSIGNED):
            tx.put("guards", b"assigned", number(recorded.sequence))


def last_of_chain(reader: Reader, chain: str) -> int:
    """Sequence of the newest message under ``dp.chain.<chain>``; 0 if there is none."""
    return int.from_bytes(reader.get("guards", b"c" + chain.encode()) or b"\x00", "big")


def last_assignment(reader: Reader) -> int:
    """Sequence of the newest message among all assignments; 0 if there is none."""
    return int.from_bytes(reader.get("guards", b"assigned") or b"\x00", "big")
