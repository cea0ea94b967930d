"""Saying anew what was rejected or set aside.

The original stays where it is and its chain stays failed: what is said anew opens a chain of its
own. It must never be said anew twice.
"""

from __future__ import annotations

import msgspec

from dataplane.planner import CommandRejected
from projections.rejected import RejectedRow
from streams import events
from streams.codec import chain_fact, chain_of_trigger, fact_id, node_fact
from streams.events import CHAIN_TRIGGERS
from streams.log import DuplicateFact, Guard, Log, SequenceConflict
from streams.subjects import Place, chain_filter, place_of


class Retried(msgspec.Struct, frozen=True):
    """What was said anew."""

    id: str
    #: The chain it opens; "" if it is no trigger.
    chain: str


async def retry(log: Log, row: RejectedRow) -> Retried:
    """Say the original of `row` anew. Raises CommandRejected with the reason where it can't be."""
    original = await log.get(row.sequence)
    if original is None:
        raise CommandRejected(f"the log holds no message {row.sequence}")
    if original.event is None:
        raise CommandRejected(f"message {row.sequence} is still not understood: {original.problem}")
    if place_of(type(original.event)) is not Place.NODE:
        raise CommandRejected(f"{original.type} is a decision; it is taken anew by itself")
    id = fact_id("retried", row.sequence)
    again = node_fact(original.event, original.owner, id, cause=original.id)
    said = events.EventRetried(sequence=row.sequence, event_id=id)
    history = f"rejected-{row.sequence}"
    last = await log.last(chain_filter(history))
    try:
        await log.append(
            [chain_fact(said, history, original.id), again],
            [Guard(chain_filter(history), 0 if last is None else last.sequence)],
        )
    except (SequenceConflict, DuplicateFact):
        raise CommandRejected(f"message {row.sequence} was said anew by somebody else") from None
    opens = isinstance(original.event, CHAIN_TRIGGERS)
    return Retried(id, chain_of_trigger(id) if opens else "")
