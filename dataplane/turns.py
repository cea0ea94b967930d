"""Saying a fact so that no decision passes by it unseen that it speaks against.

Several servers check a guard against what is stored, and against what is guarded alike and still
under way, but not against what anybody else says in the same moment. So what says of a node that
it stays is guarded as NODE_DRAINED is, which must not come behind it.
"""

from __future__ import annotations

from contextlib import suppress

from projections.nodes import Stays
from streams.codec import Fact
from streams.log import DuplicateFact, Guard, Log, Receipt, SequenceConflict
from streams.subjects import about_filter

#: So often something is said only if nobody else said anything of the node meanwhile.
_TURNS = 20


async def said(log: Log, fact: Fact) -> Receipt:
    """As `Log.publish`, for whatever anybody may say."""
    if isinstance(fact.event, Stays):
        subjects = about_filter(fact.event.node)
        with suppress(DuplicateFact):
            for _ in range(_TURNS):
                last = await log.last(subjects)
                with suppress(SequenceConflict):
                    return await log.append([fact], [Guard(subjects, last.sequence if last else 0)])
    # Of a node of which somebody speaks without a pause it can't be said that it is drained.
    return await log.publish(fact)
