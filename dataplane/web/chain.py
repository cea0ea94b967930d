"""One chain as a page: a line for each stage and each attempt, along the time it took."""

from __future__ import annotations

import msgspec

from dataplane.audit.replay import history_of
from dataplane.metrics import stages
from projections.chains import Chain
from streams import events
from streams.codec import Recorded
from streams.log import ReadingLog


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


async def chain_page(log: ReadingLog, row: Chain, now: float) -> ChainPage:
    """Read a chain's facts, no more of the log than it spans."""
    history = await history_of(log, row)
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
