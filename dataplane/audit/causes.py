"""Why something took as long as it did: the line of causes from a trigger to an end. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import msgspec

from streams import events
from streams.codec import Recorded

_ENDS = (events.DataSyncCompleted, events.DataSyncFailed)


class Step(msgspec.Struct, frozen=True):
    """A fact, what it caused, and the time between."""

    cause: Recorded
    effect: Recorded
    seconds: float
    #: Of the whole way, 0 to 1.
    share: float


def where_time_went(facts: Sequence[Recorded]) -> list[Step]:
    """The steps from a chain's trigger to its end, or to its last fact while it is open.

    Of all that happened, the line of causes that the end waited for: what went on beside it took
    no time of the chain's.
    """
    if not facts:
        return []
    ends = [fact for fact in facts if isinstance(fact.event, _ENDS)]
    way = _line_to(ends[0] if ends else facts[-1], {fact.id: fact for fact in facts})
    whole = way[-1].time - way[0].time
    return [
        Step(cause, effect, effect.time - cause.time, _share(effect.time - cause.time, whole))
        for cause, effect in itertools.pairwise(way)
    ]


def _line_to(fact: Recorded, by_id: dict[str, Recorded]) -> list[Recorded]:
    way = [fact]
    while (cause := by_id.get(way[-1].cause)) is not None and cause.sequence < way[-1].sequence:
        way.append(cause)
    return way[::-1]


def _share(seconds: float, whole: float) -> float:
    return seconds / whole if whole > 0 else 0.0
