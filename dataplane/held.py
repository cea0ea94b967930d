"""What the catalog says a node holds, asked of a coordinator: for whom the log begins too late.

A node's agent folds what it needs from the log itself. Where the log's beginning was removed, what
stood there is in a coordinator's views.
"""

from __future__ import annotations

import msgspec

from dataplane.questions import ask_any
from streams.foreign import Unreadable, from_json
from streams.log import Bus, LogUnavailable
from streams.values import DataEntry

_SUBJECT = "dp.query.held"
_PATIENCE_S = 10.0


class HeldPage(msgspec.Struct, frozen=True):
    """Some of what a node holds."""

    #: Up to where the log is folded in this.
    sequence: int
    entries: tuple[DataEntry, ...]
    #: Where the next page begins; "" for the last one.
    after: str = ""


async def held_by(bus: Bus, node: str) -> HeldPage:
    """All that a node holds, as one page.

    Between its pages the log may have gone on: fold on behind `sequence`, which is that of the
    first page; what is folded twice that way is folded to the same. Raises a `LogError` where no
    coordinator answers.
    """
    entries: dict[str, DataEntry] = {}
    sequence, after = -1, ""
    while sequence < 0 or after:
        question = msgspec.json.encode({"node": node, "after": after})
        try:
            page = from_json(await ask_any(bus, _SUBJECT, question, _PATIENCE_S), HeldPage)
        except Unreadable as error:
            raise LogUnavailable(f"no coordinator says what {node} holds: {error}") from error
        sequence = page.sequence if sequence < 0 else sequence
        entries |= {entry.path: entry for entry in page.entries}
        after = page.after
    return HeldPage(sequence, tuple(entries.values()))
