"""Saying anew what was rejected or set aside.

The original stays where it is and its chain stays failed: what is said anew opens a chain of its
own. It must never be said anew twice.
"""

from __future__ import annotations

import msgspec

from dataplane.planner import CommandRejected
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


async def retry(log: Log, sequence: int) -> Retried:
    """Say anew what was rejected or set aside at `sequence`.

    Raises CommandRejected with the reason where it can't be.
    """
    original = await log.get(sequence)
    if original is None:
        raise CommandRejected(f"the log holds no message {sequence}")
    if original.event is None:
        raise CommandRejected(f"message {sequence} is still not understood: {original.problem}")
    if place_of(type(original.event)) is not Place.NODE:
        raise CommandRejected(f"{original.type} is a decision; it is taken anew by itself")
    id = fact_id("retried", sequence)
    again = node_fact(original.event, original.owner, id, cause=original.id)
    said = events.EventRetried(sequence=sequence, event_id=id)
    history = f"rejected-{sequence}"
    last = await log.last(chain_filter(history))
    try:
        await log.append(
            [chain_fact(said, history, original.id), again],
            [Guard(chain_filter(history), 0 if last is None else last.sequence)],
        )
    except (SequenceConflict, DuplicateFact):
        raise CommandRejected(f"message {sequence} was said anew by somebody else") from None
    opens = isinstance(original.event, CHAIN_TRIGGERS)
    return Retried(id, chain_of_trigger(id) if opens else "")
