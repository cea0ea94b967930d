"""The last sequence under each subject that decisions are guarded by.

What a guard compares with is the log's own count, whatever the message says: one that nobody could
understand, or that came twice, counts like any other.
"""

from __future__ import annotations

from projections.store import Reader, Writer
from projections.view import number
from streams.codec import Recorded

_ASSIGNED = ".TRANSFER_ASSIGNED."


class GuardsView:
    """Notes every message under ``dp.chain`` and every assignment, decodable or not."""

    name = "guards"
    version = 1
    tables = ("guards",)

    def apply(self, tx: Writer, recorded: Recorded) -> None:
        """Note where a message stands."""
        subject = recorded.subject
        if subject.startswith("dp.chain."):
            chain = subject.split(".", 3)[2]
            tx.put("guards", b"c" + chain.encode(), number(recorded.sequence))
        elif subject.startswith("dp.task.") and _ASSIGNED in subject:
            tx.put("guards", b"assigned", number(recorded.sequence))


def last_of_chain(reader: Reader, chain: str) -> int:
    """Sequence of the newest message under ``dp.chain.<chain>``; 0 if there is none."""
    return int.from_bytes(reader.get("guards", b"c" + chain.encode()) or b"\x00", "big")


def last_assignment(reader: Reader) -> int:
    """Sequence of the newest message among all assignments; 0 if there is none."""
    return int.from_bytes(reader.get("guards", b"assigned") or b"\x00", "big")
