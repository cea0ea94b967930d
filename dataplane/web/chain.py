"""One chain as a page: a line for each stage and each attempt, along the time it took."""

from __future__ import annotations

from contextlib import aclosing

import msgspec

from dataplane.metrics import stages
from projections.chains import ChainRow
from streams import events
from streams.codec import Recorded
from streams.log import Log

#: A chain's facts are looked for up to so many facts behind its end.
_BEHIND = 200
_MOST_FACTS = 2_000


class Line(msgspec.Struct, frozen=True):
    """Something that took time; `start` and `width` are hundredths of the whole."""

    what: str
    #: How it is coloured.
    kind: str
    #: Seconds after the trigger.
    begins: float
    seconds: float
    start: float
    width: float


class ChainPage(msgspec.Struct, frozen=True):
    """What the page shows besides the chain's row."""

    whole: float
    lines: list[Line]
    history: list[Recorded]


async def chain_page(log: Log, row: ChainRow, now: float) -> ChainPage:
    """Read a chain's facts, no more of the log than it spans."""
    history = await _history(log, row)
    end = max(row.ended_at, row.announced_at) or now
    whole = max(end - row.opened_at, 0.001)

    def line(what: str, kind: str, begins: float, seconds: float) -> Line:
        start = min(100.0, max(0.0, 100 * begins / whole))
        # A piece that took no time is drawn all the same.
        width = max(0.4, min(100.0 - start, 100 * seconds / whole))
        return Line(what, kind, max(0.0, begins), seconds, round(start, 2), round(width, 2))

    lines, at = [], 0.0
    for stage, seconds in stages(row):
        lines.append(line(stage, stage, at, seconds))
        at += seconds
    if not row.ended_at:
        lines.append(line("so far", "so-far", at, whole - at))
    for what, kind, began, ended in _attempts(history):
        lines.append(line(what, kind, began - row.opened_at, (ended or now) - began))
    return ChainPage(whole, lines, history)


def _attempts(history: list[Recorded]) -> list[tuple[str, str, float, float]]:
    """Each attempt of its transfers: its words and colour, when it was assigned and answered."""
    ends: dict[tuple[str, int], Recorded] = {}
    for fact in history:
        event = fact.event
        if isinstance(event, events.TransferSucceeded | events.TransferFailed):
            ends[event.transfer, event.attempt] = fact
    found = []
    for fact in history:
        order = fact.event
        if not isinstance(order, events.TransferAssigned):
            continue
        end = ends.get((order.transfer, order.attempt))
        failed = end is not None and isinstance(end.event, events.TransferFailed)
        kind = "failed" if failed else "move" if end else "so-far"
        what = f"{order.entry.path} to {order.target}"
        if order.attempt > 1:
            what += f", attempt {order.attempt}"
        found.append((what, kind, fact.time, end.time if end else 0.0))
    return found


async def _history(log: Log, row: ChainRow) -> list[Recorded]:
    """The chain's facts, and those of transfers that another chain asked for before it."""
    transfers = {need.transfer for need in row.needs}
    found: list[Recorded] = []
    last = (await log.state()).last_sequence
    behind = 0
    reading = log.read(after=row.opened_sequence - 1, until=last)
    async with aclosing(reading) as batches:
        async for batch in batches:
            for fact in batch:
                if fact.chain == row.id or getattr(fact.event, "transfer", "") in transfers:
                    found.append(fact)
                    behind = 0
                elif not row.open:
                    behind += 1
            ended = any(isinstance(f.event, _ENDS) and f.chain == row.id for f in found)
            if len(found) >= _MOST_FACTS or (ended and behind > _BEHIND):
                break
    return found[:_MOST_FACTS]


_ENDS = (events.DataSyncCompleted, events.DataSyncFailed)
